"""What the simulator sees in a text: topic, form, what it already asks for. Computed from the text alone."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

__all__ = ["Reading", "Topic", "content_words", "lexicon", "names_a_task", "read"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.?!](?:\s|$)|\n")

_DIGIT = re.compile(r"\d")

_FORMS = {
    "produce": "write create design generate compose draft suggest plan make develop propose build construct invent "
    "prepare outline organize organise come produce brainstorm pitch sketch formulate",
    "explain": "why how explain describe compare analyze analyse discuss evaluate summarize summarise contrast tell "
    "assess interpret argue teach outline examine",
    "short": "what which who when where name list identify classify give is are does do can state should categorize "
    "pick choose define select",
    "compute": "calculate compute solve find estimate determine count convert sort prove simplify derive add",
    "transform": "rewrite translate edit fix correct paraphrase rephrase change turn shorten reword proofread improve "
    "replace rearrange refactor",
}
_FORM_OF = {word: form for form, words in _FORMS.items() for word in words.split()}
_CONSTRAINT = re.compile(
    r"\b(?:must|at least|at most|no more than|include|contains?|avoid|without|exactly|only)\b", re.I
)
_CLAUSE_END = re.compile(r"[.?!\n]")
_DEPTH = re.compile(r"\b(?:also discuss|go into|examine|shed light|take up|explore|look into)\b", re.I)
_REASONING = re.compile(r"\b(?:step by step|each step|in stages|stage by stage|show your working|derive)\b", re.I)
_FILLER_WORDS = frozenset(
    "please answer answers carefully careful detail detailed details thorough thoroughly clear clearly good great high "
    "quality question task request response respond helpful useful well best possible explain accurate accurately "
    "precise precisely complete completely concise full fully proper properly kindly sure make attention pay take time "
    "given note important consider considering way manner provide nicely could would like write give tell".split()
)
_STOP_WORDS = frozenset(
    "a an the and or but if of in on at to for from by with about as into than then so that this these those it its is "
    "are was were be been do does did has have had will can may must should would could not no nor only also too very "
    "what which who whom whose when where why how there here their they them his her he she i you your my we our us me "
    "one two more most some any all each other such own same".split()
)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the lexicon."""

    name: str
    parts: tuple[str, ...]
    aspects: tuple[str, ...]
    cases: tuple[str, ...]
    rare: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What stands in an instruction. Counts are of marks in the text, `words` of its words."""

    topic: Topic
    form: str
    words: int
    stem_words: int
    constraints: int
    depth: int
    reasoning: int
    question: bool
    case: bool
    figures: bool
    rare: bool
    has_input: bool


@cache
def lexicon() -> dict[str, Topic]:
    """The topics by name; ``general`` is what a text of no known topic is."""
    raw = tomllib.loads(resources.files(__package__).joinpath("lexicon.toml").read_text("utf-8"))
    return {name: _topic(name, entry) for name, entry in raw.items()}


def _topic(name: str, entry: dict[str, Any]) -> Topic:
    return Topic(
        name,
        parts=tuple(entry["parts"]),
        aspects=tuple(entry["aspects"]),
        cases=tuple(entry["cases"]),
        rare=tuple(entry["rare"]),
        columns=tuple(entry["columns"]),
        rows=tuple(tuple(row) for row in entry["rows"]),
    )


@cache
def _keywords() -> dict[str, tuple[str, ...]]:
    raw = tomllib.loads(resources.files(__package__).joinpath("lexicon.toml").read_text("utf-8"))
    found: dict[str, tuple[str, ...]] = {}
    for name, entry in raw.items():
        for word in entry["keywords"]:
            found[word] = (*found.get(word, ()), name)
    return found


@cache
def _phrases(kind: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The topics' phrases: those with a word between spaces by that word, and the short ones."""
    inside: dict[str, tuple[str, ...]] = {}
    short: list[str] = []
    for phrase in dict.fromkeys(phrase.lower() for topic in lexicon().values() for phrase in getattr(topic, kind)):
        between = phrase.split(" ")[1:-1]
        if between:
            word = max(between, key=len)
            inside[word] = (*inside.get(word, ()), phrase)
        else:
            short.append(phrase)
    return inside, tuple(short)


def _holds_phrase(kind: str, lowered: str, spaced: set[str]) -> bool:
    """Whether one of the phrases stands anywhere in a text, given lower-cased and as its parts between spaces."""
    inside, short = _phrases(kind)
    return any(phrase in lowered for word in inside.keys() & spaced for phrase in inside[word]) or any(
        phrase in lowered for phrase in short
    )


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@lru_cache(maxsize=8192)
def content_words(text: str) -> frozenset[str]:
    """The words that carry content: neither stop words nor filler, plural and past endings cut."""
    kept = set()
    for word in words_of(text):
        if word not in _STOP_WORDS and word not in _FILLER_WORDS:
            kept.add(word[:-1] if len(word) > 4 and word.endswith("s") else word)
    return frozenset(kept)


def names_a_task(text: str) -> bool:
    """Whether some sentence opens as a task does (a task's verb or question word among its first four words)."""
    return any(_FORM_OF.get(word) for sentence in _SENTENCE_END.split(text) for word in words_of(sentence)[:4])


@lru_cache(maxsize=8192)
def read(text: str, data: str) -> Reading:
    """Read an instruction and its input."""
    end = _SENTENCE_END.search(text)
    stem, rest = (text[: end.start()], text[end.start() :]) if end else (text, "")
    stem_words = words_of(stem)
    votes: dict[str, float] = {}
    keywords = _keywords()
    for weight, words in ((3.0, stem_words), (1.0, words_of(rest)), (0.25, words_of(data[:400]))):
        for word in words:
            for name in keywords.get(word, ()):
                votes[name] = votes.get(name, 0.0) + weight
    name = max(votes, key=lambda topic: votes[topic]) if votes else "general"
    form = next((_FORM_OF[word] for word in stem_words[:4] if word in _FORM_OF), "")
    if not form:
        form = "short" if "?" in text else "produce"
    lowered = text.lower()
    spaced = set(lowered.split(" "))
    return Reading(
        topic=lexicon()[name],
        form=form,
        words=len(text.split()),
        stem_words=len(stem.split()),
        # A clause counts once, however many of the marks it holds.
        constraints=sum(_CONSTRAINT.search(clause) is not None for clause in _CLAUSE_END.split(rest)),
        depth=len(_DEPTH.findall(text)),
        reasoning=len(_REASONING.findall(text)),
        question="?" in text or "？" in text,
        case=_holds_phrase("cases", lowered, spaced),
        figures=_DIGIT.search(text) is not None,
        rare=_holds_phrase("rare", lowered, spaced),
        has_input=bool(data.strip()),
    )
