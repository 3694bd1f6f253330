"""The tasks: short texts with one right answer, and a checker that reads the task back from its prompt alone.

Each family has templates that are trained on and one that never is; words are made of syllables, so that held-out
instances are new words. A careless answer is the typical mistake of its family: what a hasty writer would put.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "FAMILIES",
    "Split",
    "Task",
    "careless_answer",
    "check",
    "make_tasks",
    "random_task",
    "right_answer",
    "task_of",
    "wrong_answer",
]

Split = Literal["train", "held_out_instances", "held_out_templates"]
SPLITS: tuple[Split, ...] = ("train", "held_out_instances", "held_out_templates")

ORDINALS = ("first", "second")
TIMES = {"two": 2, "three": 3}
_WORD = r"([a-z]+)"
_TRIES = 300  # draws in a row that bring nothing new: a family has no more
_SLIPS = 0.2  # of wrong answers; to see them is harder than to see a typical mistake
_HELD_OUT_SHARE = 5  # one word of so many belongs to the held-out splits


@dataclass(frozen=True, slots=True)
class Task:
    """One task. `split` says which it is of; `answer` is the right one."""

    id: str
    family: str
    template: int
    prompt: str
    answer: str
    split: Split

    @property
    def held_out(self) -> bool:
        return self.split != "train"


@dataclass(frozen=True)
class Family:
    """Templates with named places, of which the last is held out; `solve` and `err` take the places' values."""

    templates: tuple[str, ...]
    places: dict[str, str]
    draw: Callable[[np.random.Generator, Callable[[], str]], dict[str, str]]
    solve: Callable[[dict[str, str]], str]
    err: Callable[[dict[str, str]], str]


def _one_word(rng: np.random.Generator, word: Callable[[], str]) -> dict[str, str]:
    return {"x": word()}


def _two_words(rng: np.random.Generator, word: Callable[[], str]) -> dict[str, str]:
    return {"n": str(rng.choice(ORDINALS)), "x": word(), "y": word()}


def _swap(rng: np.random.Generator, word: Callable[[], str]) -> dict[str, str]:
    x = word()
    a = x[int(rng.integers(len(x)))]
    others = [letter for letter in "aeioubdkmt" if letter not in x]
    return {"x": x, "a": a, "b": str(rng.choice(others))}


def _sum(rng: np.random.Generator, word: Callable[[], str]) -> dict[str, str]:
    return {"a": str(rng.integers(1, 16)), "b": str(rng.integers(1, 16))}


def _times(rng: np.random.Generator, word: Callable[[], str]) -> dict[str, str]:
    return {"x": word(), "n": str(rng.choice(list(TIMES)))}


def _picked(places: dict[str, str]) -> str:
    return places["x"] if places["n"] == "first" else places["y"]


def _picked_wrongly(places: dict[str, str]) -> str:
    return places["y"] if places["n"] == "first" else places["x"]


FAMILIES: dict[str, Family] = {
    "case": Family(
        ("write {x} in capitals", "put {x} into capitals", "capitals for {x}", "put {x} in capitals"),
        {"x": _WORD},
        _one_word,
        lambda p: p["x"].upper(),
        lambda p: p["x"].capitalize(),
    ),
    "reverse": Family(
        ("write {x} backwards", "spell {x} backwards", "backwards {x}", "put {x} backwards"),
        {"x": _WORD},
        _one_word,
        lambda p: p["x"][::-1],
        lambda p: p["x"],
    ),
    "sort": Family(
        ("sort the letters of {x}", "sort {x}", "sort all letters in {x}", "write the sort of {x}"),
        {"x": _WORD},
        _one_word,
        lambda p: "".join(sorted(p["x"])),
        lambda p: p["x"][-1] + p["x"][:-1],
    ),
    "count": Family(
        ("count the letters of {x}", "count {x}", "count all letters in {x}", "write the count of {x}"),
        {"x": _WORD},
        _one_word,
        lambda p: str(len(p["x"])),
        lambda p: str(len(p["x"]) + 1),
    ),
    "pick": Family(
        ("the {n} word of {x} {y}", "pick the {n} of {x} {y}", "pick {n} in {x} {y}", "{n} word in {x} {y}"),
        {"n": "(first|second)", "x": _WORD, "y": _WORD},
        _two_words,
        _picked,
        _picked_wrongly,
    ),
    "replace": Family(
        (
            "replace {a} with {b} in {x}",
            "in {x} replace {a} with {b}",
            "replace {a} by {b} in {x}",
            "in {x} replace {a} by {b}",
        ),
        {"a": "([a-z])", "b": "([a-z])", "x": _WORD},
        _swap,
        lambda p: p["x"].replace(p["a"], p["b"]),
        lambda p: p["x"].replace(p["a"], ""),
    ),
    "arithmetic": Family(
        ("what is {a} plus {b}", "{a} plus {b}", "write {a} plus {b}", "count {a} plus {b}"),
        {"a": r"(\d+)", "b": r"(\d+)"},
        _sum,
        lambda p: str(int(p["a"]) + int(p["b"])),
        lambda p: str(int(p["a"]) + int(p["b"]) + 1),
    ),
    "format": Family(
        ("write {x} {n} times", "spell {x} {n} times", "{n} times {x}", "put {x} {n} times"),
        {"x": _WORD, "n": "(two|three)"},
        _times,
        lambda p: ", ".join([p["x"]] * TIMES[p["n"]]),
        lambda p: " ".join([p["x"]] * TIMES[p["n"]]),
    ),
}
WORDS = sorted(
    {
        word
        for family in FAMILIES.values()
        for template in family.templates
        for word in re.sub(r"{.}", "", template).split()
    }
    | set(ORDINALS)
    | set(TIMES)
)
"""The words of templates; no made word is one of them."""
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_ENDS = ["", "", "n", "s", "r"]


def _word(rng: np.random.Generator, held_out: bool) -> str:
    """Four or five letters; a word belongs to one side for good."""
    while True:
        word = "".join(rng.choice(_SYLLABLES, size=2)) + str(rng.choice(_ENDS))
        if word not in WORDS and _is_held_out(word) == held_out:
            return word


def _is_held_out(text: str) -> bool:
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % _HELD_OUT_SHARE == 0


def make_tasks(n: int, rng_seed: int, *, split: Split = "train") -> list[Task]:
    """`n` different tasks, the families in turn; one that has no more is left out. No instance is in two splits.

    Raises ValueError if there are not so many.
    """
    rng = np.random.default_rng([rng_seed, SPLITS.index(split)])
    found: dict[str, Task] = {}
    names = list(FAMILIES)
    while len(found) < n:
        if not names:
            raise ValueError(f"the testbed has no {n} different tasks of split '{split}'.")
        for name in names[:]:
            task = next(
                (each for _ in range(_TRIES) if (each := _draw(name, rng, split)) and each.prompt not in found), None
            )
            if task is None:
                names.remove(name)
            elif len(found) < n:
                found[task.prompt] = task
    return list(found.values())


def random_task(rng: np.random.Generator) -> Task:
    """A task of split ``train``; drawn again and again it comes back."""
    while True:
        task = _draw(str(rng.choice(list(FAMILIES))), rng, "train")
        if task is not None:
            return task


def _draw(name: str, rng: np.random.Generator, split: Split) -> Task | None:
    family = FAMILIES[name]
    places = family.draw(rng, lambda: _word(rng, split == "held_out_instances"))
    if name == "arithmetic" and _is_held_out(f"{places['a']}+{places['b']}") != (split == "held_out_instances"):
        return None
    last = len(family.templates) - 1
    template = last if split == "held_out_templates" else int(rng.integers(last))
    prompt = family.templates[template].format(**places)
    return Task(f"{name}:{prompt}", name, template, prompt, family.solve(places), split)


def task_of(prompt: str) -> Task | None:
    """The task that a prompt asks, whoever wrote it; None for what is none."""
    for name, template, places in _readings(" ".join(prompt.split())):
        family = FAMILIES[name]
        held_out = template == len(family.templates) - 1
        split: Split = "held_out_templates" if held_out else "train"
        return Task(f"{name}:{prompt}", name, template, prompt, family.solve(places), split)
    return None


def right_answer(prompt: str) -> str | None:
    """The answer to a prompt; None for what is no task."""
    task = task_of(prompt)
    return None if task is None else task.answer


def careless_answer(prompt: str) -> str | None:
    """The typical wrong answer to a prompt; None for what is no task."""
    for name, _, places in _readings(" ".join(prompt.split())):
        wrong = FAMILIES[name].err(places)
        return wrong if wrong != FAMILIES[name].solve(places) else wrong + wrong[-1]
    return None


def wrong_answer(task: Task, rng: np.random.Generator) -> str:
    """A wrong answer: the typical mistake, or less often the right answer with a slip of one character."""
    careless = careless_answer(task.prompt)
    if careless is not None and rng.random() >= _SLIPS:
        return careless
    place = int(rng.integers(len(task.answer)))
    letter = task.answer[place]
    kind = "0123456789" if letter.isdigit() else "abdegikmnoprstuv"
    other = str(rng.choice([each for each in kind if each != letter.lower()]))
    return task.answer[:place] + (other.upper() if letter.isupper() else other) + task.answer[place + 1 :]


def check(task: Task, answer: str) -> bool:
    """Whether an answer is right: the text itself, spaces at its ends aside."""
    return answer.strip() == task.answer


def _readings(prompt: str) -> Iterator[tuple[str, int, dict[str, str]]]:
    for name, number, pattern, order in _PATTERNS:
        match = pattern.fullmatch(prompt)
        if match is not None:
            places = dict(zip(order, match.groups(), strict=True))
            if all(value not in WORDS or key == "n" for key, value in places.items()):
                yield name, number, places


def _patterns() -> list[tuple[str, int, re.Pattern[str], list[str]]]:
    found = []
    for name, family in FAMILIES.items():
        for number, template in enumerate(family.templates):
            order = re.findall(r"{(.)}", template)
            found.append((name, number, re.compile(template.format(**family.places)), order))
    return found


_PATTERNS = _patterns()
