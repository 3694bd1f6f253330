"""The simulated judge: rates, counts, checks and compares, from the words of the texts alone.

It reads marks and counts as the simulated expert does, understands nothing, and has in small the weaknesses that real
judges are known for: it likes length, favours the first of two answers, errs, and now and then says nothing that could
be read. What it looks for in the texts stands in `judge_reading.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.judge_reading import (
    answer_level,
    answer_points,
    complexity_level,
    gain_level,
    intents,
    unanswerable,
)
from instructgym.types import TokenLogprob

__all__ = ["QUESTIONS", "Judged", "judge", "token_logprobs"]

ERROR_RATE = 0.02
"""The share of every judgement's odds that is spread evenly over all verdicts."""
UNPARSABLE_RATE = 0.01
_SCORE_SD = 0.45
_PLACE_BIAS = 0.25
_TIE_SHARE = 0.4
_UNPARSABLE = (
    "That depends on how one looks at it.",
    "It is hard to say, and a fair judgement would need to know more.",
    "As a language model I have no opinion of this.",
)
_SCALE = re.compile(r"\bfrom (\d) to (\d)\b")
_CHUNK = 4  # characters, as everywhere in the simulator

Blocks = Mapping[str, str]
Odds = dict[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """A reply; with `odds`, the token that decides begins at character `place`, and these were its probabilities."""

    text: str
    place: int = 0
    token: str = ""
    odds: tuple[tuple[str, float], ...] = ()


def judge(system: str, prompt: str, draws: Draws) -> Judged | None:
    """The reply to a judge's question about the fenced texts of `prompt`; None if `system` asks none that is known."""
    question = QUESTIONS.get(system.partition("\n")[0].strip())
    if question is None:
        return None
    if draws.uniform() < UNPARSABLE_RATE:
        return Judged(draws.choice(_UNPARSABLE))
    blocks = fenced_blocks(prompt)
    if question is _gain:
        return _gain(blocks, draws, _scale(prompt, blocks))
    return question(blocks, draws)


def token_logprobs(judged: Judged, top: int) -> tuple[TokenLogprob, ...]:
    """The reply as tokens: certain ones of four characters, and the deciding one with its likeliest alternatives."""
    if not judged.odds:
        return _certain(judged.text, top)
    ranked = sorted(((token, math.log(share)) for token, share in judged.odds), key=lambda item: -item[1])
    decided = TokenLogprob(judged.token, dict(ranked)[judged.token], tuple(ranked[:top]))
    end = judged.place + len(judged.token)
    return (*_certain(judged.text[: judged.place], top), decided, *_certain(judged.text[end:], top))


def _certain(text: str, top: int) -> tuple[TokenLogprob, ...]:
    chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    return tuple(TokenLogprob(chunk, 0.0, ((chunk, 0.0),) if top else ()) for chunk in chunks)


# --- replies ----------------------------------------------------------------------------------------------------------
def _scored(level: float, low: int, high: int, draws: Draws, reasons: str = "", label: str = "Score") -> Judged:
    """``Score: N`` (or another label) after the reasons, N being drawn around `level`."""
    weights = {k: math.exp(-((k - level) ** 2) / (2 * _SCORE_SD**2)) for k in range(low, high + 1)}
    return _decided({str(k): weight for k, weight in weights.items()}, f"{reasons}{label}: ", draws)


def _decided(weights: Odds, before: str, draws: Draws, endings: Mapping[str, str] | None = None) -> Judged:
    """A reply whose deciding token is drawn by its weight, errors included; `endings` is what follows a token."""
    total = sum(weights.values())
    odds = {token: (1 - ERROR_RATE) * weight / total + ERROR_RATE / len(weights) for token, weight in weights.items()}
    left, decided = draws.uniform(), ""
    for token, share in odds.items():
        decided = token
        left -= share
        if left < 0:
            break
    text = f"{before}{decided}{(endings or {}).get(decided, '')}"
    return Judged(text, len(before), decided, tuple(odds.items()))


def _complexity(blocks: Blocks, draws: Draws) -> Judged:
    return _scored(complexity_level(blocks.get("instruction", "")), 1, 6, draws)


def _quality(blocks: Blocks, draws: Draws) -> Judged:
    return _scored(answer_level(blocks.get("instruction", ""), blocks.get("answer", "")), 1, 6, draws)


def _additive(blocks: Blocks, draws: Draws) -> Judged:
    points = answer_points(blocks.get("instruction", ""), blocks.get("answer", ""))
    reasons = f"It earns the points for: {', '.join(points)}.\n" if points else "It earns no point.\n"
    return _scored(len(points), 0, 5, draws, reasons)


def _gain(blocks: Blocks, draws: Draws, scale: tuple[int, int] = (0, 5)) -> Judged:
    low, high = scale
    first, second = (*blocks.values(), "", "")[:2]
    return _scored(low + (high - low) * gain_level(first, second), low, high, draws, label="Gain")


def _scale(prompt: str, blocks: Blocks) -> tuple[int, int]:
    """The scale that a question states outside of its fences ("from 0 to 3"); 0 to 5 if it states none."""
    for label, text in blocks.items():
        prompt = prompt.replace(f">\n{text}\n</{label}-", "")
    found = _SCALE.findall(prompt)
    return (int(found[-1][0]), int(found[-1][1])) if found else (0, 5)


def _answerability(blocks: Blocks, draws: Draws) -> Judged:
    fault = unanswerable(blocks.get("instruction", ""))
    weights = {"Not": 1.0, "Answerable": 0.0} if fault else {"Not": 0.0, "Answerable": 1.0}
    return _decided(weights, f"{fault or 'Nothing is missing.'}\n", draws, {"Not": " Answerable"})


def _correctness(blocks: Blocks, draws: Draws) -> Judged:
    instruction, answer = blocks.get("instruction", ""), blocks.get("answer", "")
    right = _logistic(1.5 * (4.0 - complexity_level(instruction)) + 0.8 * (answer_level(instruction, answer) - 4.0))
    return _decided({"Correct": right, "Incorrect": 1.0 - right}, "As far as the words go.\n", draws)


def _preference(blocks: Blocks, draws: Draws) -> Judged:
    instruction = blocks.get("instruction", "")
    ahead = answer_level(instruction, blocks.get("answer_a", "")) - answer_level(
        instruction, blocks.get("answer_b", "")
    )
    tie = _TIE_SHARE * math.exp(-2.0 * abs(ahead))
    first = _logistic(3.0 * (ahead + _PLACE_BIAS))
    weights = {"A": (1 - tie) * first, "B": (1 - tie) * (1 - first), "Tie": tie}
    return _decided(weights, "", draws)


def _tags(blocks: Blocks, draws: Draws) -> Judged:
    tags = intents(blocks.get("instruction", ""))
    if len(tags) > 1 and draws.uniform() < ERROR_RATE:
        tags = tags[:-1]
    return Judged(json.dumps(tags))


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


QUESTIONS: Mapping[str, Callable[[Blocks, Draws], Judged]] = {
    "You rate how complex an instruction is.": _complexity,
    "You rate the quality of an answer.": _quality,
    "You score an answer by adding points.": _additive,
    "You judge how much one instruction adds to another.": _gain,
    "You check whether an instruction can be answered.": _answerability,
    "You check whether an answer is right.": _correctness,
    "You compare two answers.": _preference,
    "You tag the intents of an instruction.": _tags,
}
"""What the judge answers, by the first line of the system message."""
