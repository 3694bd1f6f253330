"""What goes wrong in a model's text: a refusal, chatter around a rewrite, words of the prompt that leaked into it.

Each function answers for one text alone and errs on the side of keeping it: the benchmarks of these rules are real
instructions, which must pass, and failures as models write them, which must not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from instructgym.metrics.text import count_words

__all__ = ["has_chatter", "leaks_template", "refuses", "template_markers"]

_REMEMBERED = 4096
"""Texts whose answer is kept: a child is looked at by rules and rewards, and a step later as a parent."""

SORRY_WORDS = 80
"""WizardLM (arXiv 2304.12244) takes an answer as refused if it says "sorry" in fewer than 80 words."""

# --- refusals ---------------------------------------------------------------------------------------------------------
_HEAD_CHARACTERS = 240
_GREETING = r"[\s\"'“‘*_>#-]*(?:(?:hello|hi|no|well|thank you(?: for [^.!,\n]{1,60})?)[,.!]+\s+)?"
_APOLOGY = (
    r"(?:(?:i'm|i am|we are|we're)\s+(?:(?:so|very|truly|really|terribly)\s+)?(?:sorry|afraid)\b[,.!:;]?\s*(?:that\s+)?"
    r"|(?:i|we)\s+(?:sincerely\s+|do\s+)?apologi[sz]e\b[^.!,\n]{0,40}[,.!:;]?\s*"
    r"|(?:sorry|my apologies|apologies|unfortunately|regrettably)\b[,.!:;]?\s*)"
    r"(?:(?:but|however|and)\b,?\s+)?"
)
_AN_AI = (
    r"(?:an?|your)\s+(?:(?:responsible|helpful|large|digital|virtual)\s+)*"
    r"(?:ai|artificial intelligence|language model|assistant|llm)\b"
)
_AS_AN_AI = rf"as {_AN_AI}[^,.\n]{{0,80}},?\s*(?:and\s+)?"
_UNABLE = (
    r"(?:(?:i|we)(?:\s+am|'m|\s+are|'re)?\s+(?:(?:simply|really|currently|actually)\s+)?"
    r"(?:cannot|can\s*not|can't|could not|couldn't|won't|will not|would not be able to|should(?:n't| not)"
    r"|must (?:respectfully |politely )?decline|(?:have to|need to) decline|decline|unable|not able|not capable"
    r"|not allowed|not permitted|not programmed|not comfortable|do(?:n't| not) (?:actually )?feel comfortable"
    r"|do(?:n't| not) (?:actually )?have (?:the|any|an?|real|direct|detailed|enough|sufficient|access|personal)"
    r"|lack the)\b)"
)
_NOT_DONE = (
    r"(?:(?:it is|it's|it would be|it would)\s+not\s+(?:be\s+)?(?:appropriate|ethical|possible|right)\b"
    r"|(?:that|this|your|the) (?:request|prompt|instruction|task)\b[^.\n]{0,60}"
    r"\b(?:violates|goes against|is against|cannot be|can't be|is not something i can))"
)
_SOCIAL = (
    r"(?!\s+(?:make it|attend|come|join|be (?:there|with)|accept (?:your|the)|wait|believe|stop|imagine|thank|express"
    r"|say)\b)"
)
# Without an apology "I can't ..." may be the voice of a story; then the verb says whether somebody's request is meant.
_HELPING = (
    r"(?:\s+(?:to|of|directly|truly|really|in good conscience|personally|with)\b)*\s*"
    r"(?:assist|help (?!but)|provid|fulfil|comply|creat|writ|rewrit|generat|produc|answer|respond|recommend|predict"
    r"|access|brows|set (?:up|an?)|complet|do (?:that|this)|discuss|engag|support|determin|give|offer|share|open|view"
    r"|perform|process|translat|proceed|continu|display|draw|execut|endors|encourag|suggest|verif|definitively"
    r"|(?:ability|capability|access|information|context|details|data)\b|ability|capabilit"
    r"|(?:this|that|your|the) (?:request|task|instruction|prompt)\b)"
)
_REFUSAL = re.compile(
    rf"{_GREETING}(?:(?:{_APOLOGY}(?:{_AS_AN_AI})?|{_AS_AN_AI})(?:{_UNABLE}{_SOCIAL}|{_NOT_DONE})|{_UNABLE}{_HELPING}"
    rf"|(?:sorry|unfortunately),? [^.\n]{{0,90}}\b(?:cannot|can't) be"
    r" (?:generated|fulfilled|completed|processed|done)\b"
    rf"|(?:(?:{_APOLOGY})?as |i am |i'm ){_AN_AI}[^.\n]{{0,120}}"
    r"\b(?:cannot|can't|unable|not able|do(?:es)?(?:n't| not)|not (?:appropriate|capable|ethical|possible)|must not"
    r"|won't)\b"
    r")",
    re.I,
)
# A refusal whose first sentence is final, whatever is preached after it.
_FLAT = re.compile(
    r"\b(?:fulfil?l|complete|assist|help|comply|engage|proceed|continue)(?: you)?(?: with| in)?"
    r" (?:that|this|your|the|such)\b(?: \w+)?(?: request)?\s*[.!]",
    re.I,
)
_REFUSING = ("can", "unable", "not ", "n't", "declin", "against", "violat", "lack")


@lru_cache(maxsize=_REMEMBERED)
def refuses(text: str) -> bool:
    """True if the text is a refusal: it opens by declining in the first person, and does not go on to answer.

    The opening decides, so "Write a letter that says sorry" is none. As in WizardLM's rule a refusal has fewer than
    80 words, unless its first sentence is flat ("I can't help with that."). Unlike that rule, being sorry about
    something ("I'm sorry for your loss. ...") is not refusing.
    """
    head = text[:_HEAD_CHARACTERS].lower().replace("’", "'")
    if not any(word in head for word in _REFUSING) or not _REFUSAL.match(head):
        return False
    return count_words(text) < SORRY_WORDS or _FLAT.search(head) is not None


# --- leaked template words --------------------------------------------------------------------------------------------
# name: (what stands in every text that holds it; the pattern), both for lower-cased text, which is searched faster than
# any case is; of those in _CASED the pattern is for the text as it is.
_MARKERS = {
    "#prompt#": (
        ("#",),
        r"#\s*(?:the\s+)?(?:finally\s+)?(?:given|rewritten|created|new|original)\s+(?:prompt|instruction)\s*#",
    ),
    "rewritten prompt": (("n prompt", "d prompt"), r"\b(?:rewritten|given|created|evolved) prompt\b"),
    "rewritten instruction:": (
        ("instruction", "prompt"),
        r"\b(?:rewritten|evolved|new|created|given) (?:instruction|prompt)\s*\**\s*:",
    ),
    "given instruction": (
        ("rewrit",),
        r"\brewrit(?:e|ten|ing) (?:of )?(?:the|this) (?:given|above|original) (?:instruction|prompt)\b",
    ),
    "2048 words": (("2048",), r"\b2048 (?:words|tokens)\b"),
    "INPUT:": (("input:",), r"(?m:^INPUT:[ \t]*$)"),
    "fence": (("<",), r"</?[a-z_]+-[0-9a-f]{8}>"),
    "chat token": (
        ("<", "inst]"),
        r"<\|[a-z_]+\|>|\[/?inst\]|<</?sys>>|</s>|<start_of_turn>|<end_of_turn>",
    ),
    "### Response:": (("##",), r"(?m:^#{2,}\s*(?:instruction|response)s?\s*:)"),
    "Operation:": (("operation:",), r"(?m:^Operation: [a-z][a-z0-9_]*[ \t]*$)"),
    "our rules": (
        ("instruct", "between the tags", "material to", "put a line", "add about", "input is kept"),
        r"\breply with the new instruction alone\b|\bstands between the tags\b|\bmaterial to rewrite\b"
        r"|\byou rewrite instructions for language models\b|\bkeep what the instruction already asks for\b"
        r"|\bput a line that holds only\b|\badd about \d+ to \d+ words\b|\bthe input is kept as it is\b",
    ),
}
_CASED = ("INPUT:", "Operation:")
_MARKER_PATTERNS = {name: (hints, re.compile(pattern)) for name, (hints, pattern) in _MARKERS.items()}
_ALL_HINTS = tuple(dict.fromkeys(hint for hints, _ in _MARKERS.values() for hint in hints))


def template_markers(text: str, extra_markers: Iterable[str] = ()) -> set[str]:
    """The kinds of prompt-template words in `text`, by name. `extra_markers` are looked for as they are, any case."""
    found = set(_markers(text))
    if extra_markers:
        lowered = text.lower()
        found.update(marker for marker in extra_markers if marker and marker.lower() in lowered)
    return found


@lru_cache(maxsize=_REMEMBERED)
def _markers(text: str) -> frozenset[str]:
    lowered = text.lower()
    if not any(hint in lowered for hint in _ALL_HINTS):
        return frozenset()
    return frozenset(
        name
        for name, (hints, pattern) in _MARKER_PATTERNS.items()
        if any(hint in lowered for hint in hints) and pattern.search(text if name in _CASED else lowered)
    )


def leaks_template(text: str, extra_markers: Iterable[str] = ()) -> bool:
    """True if words of a rewriting prompt or of a chat template stand in `text`: "#Rewritten Prompt#", fences, ..."""
    return bool(template_markers(text, extra_markers))


# --- chatter ----------------------------------------------------------------------------------------------------------
_KIND = (
    r"(?:rewritten|re-written|revised|new|updated|modified|evolved|enhanced|improved|reworked|reworded|rephrased|adjusted"
    r"|expanded|more \w+|final|challenging|complex|possible|slightly|brand-new|harder|deeper|refined|rewrite)"
)
_THING = r"(?:instructions?|prompts?|rewrites?|rewritten (?:task|question|request|version))"
_OF_IT = r"(?:\s+of (?:the|your|this|that) (?:original |given |provided )*(?:instruction|prompt|question|task|request))"
_ANNOUNCEMENT = (
    rf"(?:here(?:'s| is| are| you go)|below is|this is|the following is)\b[^.:\n]{{0,30}}?\b"
    rf"(?:(?:{_KIND}[,\s]+)+(?:{_THING}|(?:version|task|question){_OF_IT}|version(?=[^.:\n]{{0,40}}:\s*\n))|"
    rf"(?:{_THING}|version{_OF_IT}?)(?=\s*(?:that|with|which|as requested|you asked)[^.\n:]{{0,80}}:|\s*:\s*\n))"
    rf"{_OF_IT}?[^.\n:]{{0,80}}(?:[:.!]|\n|$)"
    rf"|i(?:'ve| have|'ll| will|'d)?\s+(?:now\s+)?(?:rewr(?:itten|ote|ite)|revised?|rephrased?|reworked?|modified"
    rf"|modify|updated?|made|added|expanded)\s[^.\n]{{0,60}}\b(?:instruction|prompt)\b"
    rf"|(?:the\s+)?(?:{_KIND}\s+)+(?:instruction|prompt|version|task|question)\s*\**\s*:"
    rf"|(?:instruction|rewrite)\s*\**\s*:"
)
_ASSENT = (
    r"(?:(?:sure(?: thing)?|certainly|of course|absolutely|definitely|no problem|gladly|you got it|my pleasure)"
    r"(?:\s*[!.,:]|\s+[-–—])"
    r"|(?:i'd be|i would be|i'm|i am)\s+(?:more than\s+)?(?:happy|glad|delighted)\s+to\b"
    r"|thank you for (?:the|your|providing|sharing)\b)"
)
_SOFT_ASSENT = r"(?:okay|ok|great|alright|all right|got it|understood|perfect|yes|right)\s*[!.,:]+\s*"
_PREFACE = re.compile(rf"[\s\"“*_#>]*(?:{_ASSENT}|(?:{_SOFT_ASSENT})?(?:{_ANNOUNCEMENT}))", re.I)
_PREFACE_STARTS = frozenset(
    """sure certainly of absolutely definitely no gladly you my i i'd i'm i've i'll thank okay ok great alright all got
    understood perfect yes right here here's below this the following rewritten re revised new updated modified evolved
    enhanced improved reworked reworded rephrased adjusted expanded more final challenging complex possible slightly
    brand harder deeper refined rewrite instruction""".split()
)
_FIRST_WORD = re.compile(r"[\s\"“*_#>]*([a-z]+(?:'[a-z]+)?)", re.I)
_TAIL_CHARACTERS = 260
_AFTERWORD = re.compile(
    r"(?:[.!?)\]][\"”*_]*\s+|\n\s*)[*_(\[\"“]*"
    r"(?:let me know (?:if|whether|how|what) (?:you|this|that|there|any|it)\b"
    r"|(?:i )?hope (?:this|that|it) (?:helps|meets|works|is what|serves|satisfies|suits)\b"
    r"|feel free to (?:ask(?: me)? (?:if|for (?:any|more|further|changes))|let me|adjust|modify|tweak|reach out)\b"
    r"|would you like me to\b|do you want me to\b|is there anything else\b|if you(?:'d| would) like me to\b"
    r"|(?:please )?note(?: that)?:?\s+(?:that\s+)?(?:i(?:'ve| have)? (?:added|kept|changed|made|included|rewrote"
    r"|rewritten)"
    r"|(?:this|the) (?:rewritten|revised|new|updated|modified|evolved) (?:instruction|prompt|version))\b"
    r"|(?:this|the|my) (?:(?:rewritten|revised|updated|modified|evolved|new) (?:instruction|prompt)|rewrite)"
    r"\s+(?:now\s+)?(?:adds?|requires?|asks?|includes?|introduces?|keeps?|makes?|increases?|is|contains?|has)\b"
    r"|i(?:'ve| have)? (?:added|rewritten|rewrote|changed|kept|included|increased|made) [^\n]{0,60}"
    r"\b(?:constraints?|requirements?|complexity|instruction|prompt|original)\b)",
    re.I,
)
_AFTERWORD_HINTS = (
    *("let me know", "hope ", "feel free", "like me to", "want me to", "anything else", "instruction", "prompt"),
    *("rewrite", "constraint", "requirement", "complexity", "original", "note"),
)


@lru_cache(maxsize=_REMEMBERED)
def has_chatter(text: str) -> bool:
    """True if a rewrite has talk around it: "Sure, here is ...", "Rewritten instruction:", "... Let me know if you".

    A preface counts where the text begins with it; an instruction that begins with its own material ("Here is a
    table of ... Compute ...") has none. An afterword counts if it begins a sentence of the last 260 characters.
    """
    head = text[:_HEAD_CHARACTERS].replace("’", "'")
    first = _FIRST_WORD.match(head)
    if first is not None and first[1].lower() in _PREFACE_STARTS and _PREFACE.match(head):
        return True
    tail = text[-_TAIL_CHARACTERS:].lower().replace("’", "'")
    return any(hint in tail for hint in _AFTERWORD_HINTS) and _AFTERWORD.search(tail) is not None
