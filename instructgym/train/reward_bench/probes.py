"""Transitions with known truth: what a reward must tell apart to be worth learning from.

Half of every kind is **tuned**: rules, prompts and thresholds of the package may have been tried on it. No part was
tuned on the **held-out** half. The written kinds are files of the package; the mechanical ones are made here from any
seeds, with different words in each half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TypeVar

import numpy as np

from instructgym.errors import SeedError
from instructgym.metrics.text import count_words
from instructgym.rewards.control.validity import MAX_WORDS
from instructgym.types import Instruction, Seed, Transition

__all__ = ["BAD", "GOOD", "HALVES", "KINDS", "MECHANICAL", "Probe", "ProbeSet", "probe_set", "written_probes"]

T = TypeVar("T")

GOOD = ("constraint", "deepening", "breadth")
"""Rewrites that gained what their operation asks for."""
WRITTEN_BAD = ("synonyms", "translation", "drift", "answered")
MECHANICAL = (
    "copy",
    "case_spacing",
    "junk_clause",
    "repeated_constraint",
    "padding",
    "gibberish",
    "leaked_template",
    "near_duplicate",
)
BAD = (*WRITTEN_BAD, *MECHANICAL)
"""Rewrites that gained nothing, or are no rewrites."""
KINDS = (*GOOD, *BAD)
HALVES = ("tuned", "held_out")

HORIZON = 4
MADE = 48
"""Cases of each mechanical kind, half of them in each half."""
_LEAST_WORDS = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """A transition, what kind it is of, and the half that it belongs to."""

    id: str
    kind: str
    half: str
    transition: Transition

    @property
    def good(self) -> bool:
        """True if the rewrite gained something."""
        return self.kind in GOOD


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The probes, and the transitions that an archive has to hold before they are scored ("near_duplicate")."""

    probes: tuple[Probe, ...]
    archived: tuple[Transition, ...]


def probe_set(seeds: Sequence[Seed], *, made: int = MADE) -> ProbeSet:
    """All probes: the written ones, and `made` of each mechanical kind from `seeds`.

    Raises `SeedError` if fewer than eight seeds have four words or more.
    """
    parents = [
        seed.instruction
        for seed in seeds
        if count_words(seed.instruction.text) >= _LEAST_WORDS
        and count_words(seed.instruction.render()) <= MAX_WORDS // 3
    ]
    if len(parents) < 8:
        raise SeedError(f"probes need 8 seeds of 4 to {MAX_WORDS // 3} words or more, got {len(parents)}.")
    # Those in even places are archived, the others are rewritten.
    archived, rewritten = parents[0::2], parents[1::2]
    probes = [*written_probes()]
    for place, kind in enumerate(MECHANICAL):
        for number in range(made):
            half = HALVES[number % 2]
            parent = rewritten[(number * len(rewritten) // made + place) % len(rewritten)]
            rng = np.random.default_rng([place, number])
            other = archived[(number * len(archived) // made + place) % len(archived)]
            probes.append(_made(kind, number, half, parent, other, rng))
    held = tuple(Transition(each, each, "breadth", each, 0, HORIZON) for each in archived)
    return ProbeSet(tuple(probes), held)


def written_probes() -> list[Probe]:
    """The cases that people and language models write: files of the package, one a half."""
    probes = []
    for half in HALVES:
        text = (resources.files("instructgym") / "data" / f"reward_probes_{half}.jsonl").read_text("utf-8")
        for row in map(json.loads, text.splitlines()):
            parent = Instruction(row["parent"], row["input"])
            child = Instruction(row["child"], row["child_input"])
            transition = Transition(parent, parent, row["operation"], child, 0, HORIZON)
            probes.append(Probe(row["id"], row["kind"], half, transition))
    return probes


# --- mechanical kinds -------------------------------------------------------------------------------------------------
_Rng = np.random.Generator


def _made(kind: str, number: int, half: str, parent: Instruction, other: Instruction, rng: _Rng) -> Probe:
    operation = ("add_constraints", "deepen", "concretize", "increase_reasoning")[number // 2 % 4]
    words = _WORDS[half]
    match kind:
        case "copy":
            child = parent
        case "case_spacing":
            child = _with_text(parent, _CASES[number // 2 % len(_CASES)](parent.text))
        case "junk_clause":
            child = _appended(parent, _pick(words.junk, rng))
        case "repeated_constraint":
            constraint, again = _pick(words.constraints, rng)
            parent = _appended(parent, constraint)
            child = _appended(parent, again)
            operation = "add_constraints"
        case "padding":
            child = _padded(parent, words.padding, rng)
        case "gibberish":
            child = _with_text(parent, _gibberish(parent.text, half, rng))
        case "leaked_template":
            child = _with_text(parent, _pick(words.leaks, rng).format(x=parent.text))
        case _:
            child = _with_text(other, _edited(other.text, half, rng))
            operation = "breadth"
    transition = Transition(parent, parent, operation, child, 0, HORIZON)
    return Probe(f"{kind}-{half[0]}{number // 2 + 1:02d}", kind, half, transition)


def _with_text(instruction: Instruction, text: str) -> Instruction:
    return Instruction(text, instruction.input)


def _appended(instruction: Instruction, sentence: str) -> Instruction:
    text = instruction.text.rstrip()
    return _with_text(instruction, f"{text} {sentence}" if text[-1] in ".?!:。？！" else f"{text}. {sentence}")


def _pick(items: Sequence[T], rng: _Rng) -> T:
    return items[int(rng.integers(len(items)))]


def _padded(parent: Instruction, sentences: Sequence[str], rng: _Rng) -> Instruction:
    child, wanted = parent, 2 * count_words(parent.text)
    order = rng.permutation(len(sentences))
    place = 0
    while count_words(child.text) < wanted:
        child = _appended(child, sentences[int(order[place % len(order)])])
        place += 1
    return child


_CASES: tuple[Callable[[str], str], ...] = (
    str.upper,
    str.lower,
    lambda text: "  ".join(text.split(" ")) + " ",
    str.title,
    lambda text: text.rstrip(".?!") + " !",
    lambda text: f'"{text}"',
)
_SYLLABLES = ("ba", "kor", "lim", "ne", "oft", "pra", "qui", "ran", "sul", "tev", "um", "vex", "wil", "yo", "zan")


def _gibberish(text: str, half: str, rng: _Rng) -> str:
    """Half of the tuned ones are the text's own words shuffled; the held-out ones are words that there are not."""
    words = text.split()
    if half == "tuned":
        order = rng.permutation(len(words))
        return " ".join(words[int(place)] for place in [*order, *order[: len(words) // 2]])
    made = ("".join(rng.choice(_SYLLABLES, int(rng.integers(1, 4)))) for _ in range(len(words) + 4))
    return " ".join(made).capitalize() + "."


def _edited(text: str, half: str, rng: _Rng) -> str:
    """One small change that keeps the meaning."""
    if half == "tuned":
        return f"Please {text[0].lower()}{text[1:]}"
    words = text.split(" ")
    place = int(rng.integers(len(words)))
    words[place] = words[place].replace("the", "this") if "the" in words[place] else f"{words[place]},"
    return f"{' '.join(words).rstrip('.')} (thanks)."


@dataclass(frozen=True)
class _Words:
    """What the mechanical kinds of one half say; `constraints` with the same in other words."""

    junk: Sequence[str]
    constraints: Sequence[tuple[str, str]]
    padding: Sequence[str]
    leaks: Sequence[str]


_WORDS = {
    "tuned": _Words(
        junk=(
            "Please answer carefully.",
            "Make sure that your answer is correct.",
            "Take a deep breath first.",
            "Be as helpful as you can.",
            "Provide a detailed and complete response.",
            "Think about it thoroughly before you answer.",
            "Your answer should be clear and well written.",
            "This is very important to me.",
            "Do your best.",
            "Write in good English.",
        ),
        constraints=(
            ("The answer must include a table.", "Make sure to put a table into the answer."),
            ("Use no more than 100 words.", "Keep the answer within a hundred words."),
            ("Name at least two sources.", "Two or more sources must be named."),
            ("Write it for children.", "The readers are children, so write for them."),
            ("Give three examples.", "Include three examples."),
        ),
        padding=(
            "It goes without saying that a good answer is one that answers what was asked.",
            "As everybody knows, this is a matter that many people have thought about at some time or other.",
            "In this connection it may be said that things are as they are and not otherwise.",
            "What is meant here is just what the words say and nothing besides.",
            "There are many ways to say this, and this is one of them.",
        ),
        leaks=(
            "#Rewritten Prompt#: {x}",
            "{x} The rewritten prompt should not exceed 2048 words.",
            "#Given Prompt#: {x} #Created Prompt#:",
            "### Instruction: {x} ### Response:",
            "{x}\n\n#Rewritten Prompt#:",
        ),
    ),
    "held_out": _Words(
        junk=(
            "I would be grateful for a really great reply.",
            "Remember to stay on point and cover what matters.",
            "Kindly respond at your earliest convenience.",
            "Quality counts here, so no shortcuts.",
            "A thoughtful reply is appreciated.",
            "You are an expert, so act like one.",
            "Let's see what you come up with!",
            "Please and thank you.",
            "Give it everything you have got.",
            "Do not disappoint me.",
        ),
        constraints=(
            ("Mention the year in which it began.", "Say in which year it started."),
            ("End with a question to the reader.", "The last sentence should ask the reader something."),
            ("Avoid technical terms.", "Do not use any jargon."),
            ("Split it into numbered steps.", "Number the steps that you split it into."),
            ("State one drawback.", "One disadvantage has to be stated."),
        ),
        padding=(
            "All of this is said with the thought in mind that one ought to begin somewhere, and why not here.",
            "Some would put it at greater length and some at less, yet the gist of it stays what it was before.",
            "Bear in mind that what was written above was written above on purpose.",
            "Needless to add, the request stands the way it stands, for the reasons for which it was made.",
            "One could go on about how such requests are made every day in all sorts of places.",
        ),
        leaks=(
            "Evolved instruction: {x}",
            "{x} (Your rewriting cannot omit the non-text parts of the given prompt.)",
            "Here is the rewritten version of the prompt as requested:\n{x}",
            "<|im_start|>user\n{x}<|im_end|>",
            "{x} [INST] Rewrite the above prompt into a more complex version. [/INST]",
        ),
    ),
}


def kinds_of(probes: Iterable[Probe]) -> tuple[str, ...]:
    """The kinds that there are cases of, in the order of `KINDS`."""
    present = {probe.kind for probe in probes}
    return tuple(kind for kind in KINDS if kind in present)
