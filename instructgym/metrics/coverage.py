"""What a set of instructions is about, and what it asks to be done."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from instructgym.metrics.text import STOP_WORDS, words

__all__ = ["Coverage", "category_coverage", "verb_noun", "verb_noun_coverage"]


@dataclass(frozen=True)
class Coverage:
    """How a set spreads over categories.

    `evenness` is the entropy over its largest possible value for as many
    categories (1 for equal shares; None for fewer than two), `effective` the exponential of the entropy; `counted`
    items have a category, `uncounted` have none. `share` is the share of the known categories that occur, None where
    none were given.
    """

    distinct: int
    effective: float | None
    evenness: float | None
    counted: int
    uncounted: int
    most_common: tuple[tuple[Hashable, int], ...]
    share: float | None = None


def category_coverage(
    categories: Iterable[Hashable | None], *, known: Iterable[Hashable] = (), top: int = 10
) -> Coverage:
    """The spread over categories (topics, tags, verb-noun pairs); None is an item without one.

    Args:
        known: the categories that there are, for `Coverage.share` (the topics of a seed file; InsTag's unique-tag
            coverage, arXiv 2308.07074).
        top: how many of the most common are named.
    """
    every = list(categories)
    counts = Counter(category for category in every if category is not None)
    total = counts.total()
    there = set(known)
    entropy = -math.fsum(count / total * math.log(count / total) for count in counts.values())
    return Coverage(
        distinct=len(counts),
        effective=math.exp(entropy) if total else None,
        evenness=entropy / math.log(len(counts)) if len(counts) > 1 else None,
        counted=total,
        uncounted=len(every) - total,
        most_common=tuple(counts.most_common(top)),
        share=len(there & counts.keys()) / len(there) if there else None,
    )


def verb_noun_coverage(texts: Iterable[str], *, top: int = 10) -> Coverage:
    """The spread over (verb, noun) pairs, as in Self-Instruct's figure 2 (arXiv 2212.10560), by `verb_noun`."""
    return category_coverage(map(verb_noun, texts), top=top)


# What instructions ask for. No parser: Self-Instruct's figure takes the root verb and its object of a constituency
# parse.
VERBS = frozenset(
    """add adapt analyse analyze answer argue arrange assess brainstorm build calculate categorise categorize change
    check choose cite clarify classify code collect combine compare compile complete compose compute condense
    construct contrast convert convince correct count create critique debug decide define derive describe design
    detect determine develop devise diagnose differentiate discuss draft edit elaborate estimate evaluate examine
    expand explain explore extract fill find fix format formulate generate give guess help highlight identify
    illustrate imagine implement improve infer interpret introduce invent justify label list locate make match
    model modify name note offer optimise optimize order organise organize outline paraphrase pick plan point
    predict prepare present produce propose prove provide punctuate rank rate read recommend reconstruct reduce
    refactor rename reorder rephrase replace report represent research respond restate review revise rewrite rhyme
    say search select sentence separate show simplify simulate sketch solve sort specify split state structure
    substitute suggest summarise summarize teach tell test think trace transform translate turn underline
    unscramble update use verify visualise visualize weigh write""".split()
)
_LEADS = frozenset(
    "please kindly now first then next can could would will you i we need want like to help me us".split()
)
_FILLERS = frozenset(
    """following given short brief simple detailed new good great best main major different various several some one two
    three four five six seven eight nine ten first second last small large long possible many own specific clear concise
    creative original unique list set kind type number piece example examples way ways""".split()
)
_SENTENCE_END = re.compile(r"[.?!:;\n]")
_NEAR = 12


def verb_noun(text: str) -> tuple[str, str] | None:
    """(what is asked for, of what) by a rule of thumb in English, or None.

    The verb is the first word of the first sentence that has a known imperative one at its head, courtesies aside; the
    noun is the next content word after it that is no common quantity or adjective. It is no parse: about what a reader
    would say for plain imperatives, nothing for questions.
    """
    for sentence in _SENTENCE_END.split(text):
        tokens = words(sentence)
        place = next((i for i, token in enumerate(tokens[:8]) if token not in _LEADS or token in ("help",)), None)
        if place is None or tokens[place] not in VERBS:
            continue
        content = [
            token
            for token in tokens[place + 1 : place + 1 + _NEAR]
            if token not in STOP_WORDS and not token[0].isdigit()
        ]
        nouns = [token for token in content if token not in _FILLERS] or content
        return (tokens[place], nouns[0]) if nouns else None
    return None
