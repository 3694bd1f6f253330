"""What the simulated judge sees in instructions and answers: levels, points and faults, from the words alone."""

from __future__ import annotations

import math
import re

from instructgym.llm_backends.simulated.reading import Topic, content_words, names_a_task, read
from instructgym.metrics.faults import has_chatter, leaks_template, refuses
from instructgym.metrics.text import STOP_WORDS, count_words, has_only_stop_words, normalise, words

__all__ = ["answer_level", "answer_points", "complexity_level", "gain_level", "intents", "unanswerable"]

_REFERENCE = re.compile(
    r"\b(?:the (?:following|attached|given|provided|supplied)|(?:this|these|that) (?:passage|article|paragraph|table"
    r"|sentence|text|code|data ?set|list|conversation|review|email)|(?:table|text|code|passage|list|article|data"
    r"|sentence|records?|rows|figures) (?:below|above|in the input|supplied)|in the input)\b",
    re.I,
)
_AT_LEAST = re.compile(r"\b(?:at least|no (?:less|fewer) than|(?<!no )more than)\s+(\d+)\s+(\w+)", re.I)
_AT_MOST = re.compile(r"\b(?:at most|no more than|(?<!no )(?:less|fewer) than|under)\s+(\d+)\s+(\w+)", re.I)
_STATEMENT = re.compile(r"\s*(?:the|a|an|this|these|those|it|its|he|she|they|there|we|my|our|his|her)\b", re.I)
_OWN_MATERIAL = re.compile(r":\s*\S|[\"“‘`]|\n\s*\S")
_SENTENCE = re.compile(r"[^.?!。？！\s][^.?!。？！]*[.?!。？！]")
_TASKS = {
    "produce": "composition",
    "explain": "explanation",
    "short": "short answer",
    "compute": "calculation",
    "transform": "text editing",
}
_SENSELESS_WORDS = 8
_MAX_LEVEL = 6.0


def complexity_level(instruction: str) -> float:
    """1 to 6: what the instruction asks for on top of a plain task, the content words it takes, and some for length."""
    text, data = _parts(instruction)
    if _is_senseless(text):
        return 1.0
    seen = read(text, data)
    asked = (
        0.55 * min(seen.constraints, 4)
        + 0.55 * min(seen.depth, 4)
        + 0.7 * min(seen.reasoning, 2)
        + 0.4 * seen.case
        + 0.3 * seen.figures
        + 0.3 * seen.rare
        + 0.5 * seen.has_input
    )
    size = 0.5 * math.log2(1 + len(content_words(text)) / 5) + 0.15 * math.log2(1 + seen.words / 10)
    return min(1.0 + asked + size, _MAX_LEVEL)


def gain_level(first: str, second: str) -> float:
    """0 to 1: how much the second asks for beyond the first; less where it gives up what the first asked."""
    before, after = content_words(first), content_words(second)
    if _is_senseless(_parts(second)[0]):
        return 0.0
    harder = max(complexity_level(second) - complexity_level(first), 0.0)
    gained, lost = len(after - before), len(before - after)
    new = min(gained / 4, 1.0)
    kept = 1.0 - min(lost / max(len(before), 1), 1.0)
    return min(0.5 * new + 0.8 * harder, 1.0) * (0.3 + 0.7 * kept)


def unanswerable(instruction: str) -> str:
    """Why the instruction cannot be answered as it stands; empty if it can."""
    text, data = _parts(instruction)
    if not text.strip() or has_only_stop_words(text):
        return "It asks for nothing."
    if refuses(text) or has_chatter(text) or leaks_template(text):
        return "It is talk about an instruction."
    if _is_senseless(text):
        return "It makes no sense."
    if _STATEMENT.match(text) and "?" not in text and not names_a_task(text):
        return "It asks for nothing."
    if not data.strip() and _REFERENCE.search(text) and not _OWN_MATERIAL.search(text):
        return "It refers to something that is not there."
    least = {unit.lower(): int(number) for number, unit in _AT_LEAST.findall(text)}
    if any(least.get(unit.lower(), 0) > int(number) for number, unit in _AT_MOST.findall(text)):
        return "It contradicts itself."
    return ""


def answer_level(instruction: str, answer: str) -> float:
    """1 to 6: how much of the answer is on the subject, how long it is (to some 200 words), how laid out."""
    if _says_nothing(instruction, answer):
        return 1.0
    length = min(math.log2(1 + count_words(answer) / 25) / 3, 1.0)
    laid_out = min(len(_SENTENCE.findall(answer)) / 5, 1.0)
    level = 1.7 + 2.0 * _cover(instruction, answer) + 1.5 * length + 0.8 * laid_out
    return max(level - 1.5 * leaks_template(answer), 1.0)


def answer_points(instruction: str, answer: str) -> list[str]:
    """Which of the five points of the additive judge an answer earns, by name and in order; no gaps."""
    if _says_nothing(instruction, answer):
        return []
    cover, size = _cover(instruction, answer), count_words(answer)
    clean = not leaks_template(answer)
    earned = (
        ("relevance", cover > 0),
        ("substance", cover >= 0.3),
        ("use", cover >= 0.5 and size >= 25),
        ("clarity", clean and len(_SENTENCE.findall(answer)) >= 4),
        ("expertise", cover >= 0.9 and size >= 60),
    )
    points = []
    for name, holds in earned:
        if not holds:
            break
        points.append(name)
    return points


def intents(instruction: str) -> list[str]:
    """Tags for what the instruction asks for."""
    text, data = _parts(instruction)
    if _is_senseless(text) or has_only_stop_words(text):
        return []
    seen = read(text, data)
    tags = [_TASKS[seen.form], "general knowledge" if seen.topic.name == "general" else seen.topic.name]
    lowered = text.lower()
    tags += [phrase for phrase in _phrases(seen.topic) if phrase.lower() in lowered]
    for holds, tag in (
        (seen.constraints, "stated requirements"),
        (seen.depth, "in-depth discussion"),
        (seen.reasoning, "step-by-step reasoning"),
        (seen.has_input, "work on given data"),
    ):
        if holds:
            tags.append(tag)
    return list(dict.fromkeys(tags))


def _parts(instruction: str) -> tuple[str, str]:
    """(text, input) of a rendered instruction."""
    text, _, data = instruction.partition("\n\n")
    return text, data


def _is_senseless(text: str) -> bool:
    """Eight words or more of plain ASCII, and not one of them a function word."""
    found = words(text)
    return text.isascii() and len(found) >= _SENSELESS_WORDS and not STOP_WORDS.intersection(found)


def _says_nothing(instruction: str, answer: str) -> bool:
    if not content_words(answer) or refuses(answer):
        return True
    return normalise(answer) in (normalise(instruction), normalise(_parts(instruction)[0]))


def _cover(instruction: str, answer: str) -> float:
    """0 to 1: content words that the answer shares with the instruction or its topic; twelve are enough."""
    topic = read(*_parts(instruction)).topic
    subject = content_words(instruction) | content_words(" ".join(_phrases(topic)))
    return min(len(content_words(answer) & subject) / 12, 1.0)


def _phrases(topic: Topic) -> tuple[str, ...]:
    return (*topic.parts, *topic.aspects, *topic.cases, *topic.rare)
