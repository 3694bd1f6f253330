"""From answers to preference pairs: the best against the worst of a prompt's, or a demonstration against one of them.

Whatever cannot be trusted is out and counted: answers that failed, are empty or were cut, scores that are missing,
ties, and texts that are equal. (Of the pairs of one published study 18% had the same text on both sides.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from instructgym.train.alignment.judgements import TIED
from instructgym.train.alignment.pair_report import PAIR_REASONS, PairReport, report_of
from instructgym.train.alignment.records import Candidate, Judgement, Pair, Prompt
from instructgym.train.alignment.settings import PairSettings

__all__ = ["PAIR_REASONS", "PairReport", "demo_pairs", "make_pairs"]


def make_pairs(
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    judgements: Sequence[Judgement],
    settings: PairSettings | None = None,
) -> PairReport:
    """One pair a prompt: the best of its answers by `judgements` against the worst, as `settings` say.

    Of equal scores the answer with the lowest index is taken, under length control the shortest (as chosen) or the
    longest (as rejected). An answer that says the same as the chosen one is never the rejected one; the next is taken.

    Raises ValueError for a prompt's id, an answer or a judgement that is there twice (make one of several judges with
    `panel`), and for records of a prompt that is not among `prompts`.
    """
    settings = settings or PairSettings()
    answers = _by_prompt(prompts, candidates)
    scores = _scores(prompts, judgements)
    out: Counter[str] = Counter()

    def pair_of(prompt: Prompt) -> Pair | str:
        scored, reason = _scored(answers[prompt.id], scores, out)
        return reason or _best_and_worst(prompt, scored, settings)

    report = _collect(prompts, pair_of, out, settings, [score for score in scores.values() if score is not None])
    return _weighted(report) if settings.weights == "margin" else report


def demo_pairs(
    prompts: Sequence[Prompt],
    own: Sequence[Candidate],
    demonstrations: Sequence[Candidate] | None = None,
    settings: PairSettings | None = None,
) -> PairReport:
    """One pair a prompt: a demonstration as chosen, the first usable answer of the student as rejected.

    `demonstrations` None takes the prompts' known answers (SPIN, arXiv 2401.01335), else the first of them for a
    prompt. Nobody judges, so of `settings` only `dedup` matters, and every weight is 1. Raises as `make_pairs` does.
    """
    settings = settings or PairSettings()
    answers = _by_prompt(prompts, own)
    shown = None if demonstrations is None else _by_prompt(prompts, demonstrations)
    out: Counter[str] = Counter()

    def pair_of(prompt: Prompt) -> Pair | str:
        chosen = _reference(prompt) if shown is None else _demonstration(shown[prompt.id])
        if isinstance(chosen, str):
            return chosen
        usable, reason = _usable(answers[prompt.id], out, least=1)
        if reason:
            return reason
        other = next((each for each in usable if each.text.strip() != chosen.text.strip()), None)
        if other is None:
            return "equal_texts"
        return Pair(
            prompt.id,
            prompt.instruction,
            prompt.input,
            chosen.text,
            other.text,
            f"{chosen.model}/{chosen.index}" if shown is not None else chosen.model,
            _name(other),
        )

    return _collect(prompts, pair_of, out, settings, [])


@dataclass(frozen=True, slots=True)
class _Scored:
    """An answer that may be in a pair."""

    answer: Candidate
    score: float

    @property
    def text(self) -> str:
        return self.answer.text.strip()

    @property
    def index(self) -> int:
        return self.answer.index


def _best_and_worst(prompt: Prompt, scored: Sequence[_Scored], settings: PairSettings) -> Pair | str:
    """The pair, or the filter that left none. `scored` are two answers or more, in the order of their index."""
    if len({each.text for each in scored}) < 2:
        return "equal_texts"
    best, worst = max(each.score for each in scored), min(each.score for each in scored)
    if best - worst <= TIED:
        return "tie"
    reach = settings.length_control * (best - worst)
    chosen = _shortest(each for each in scored if each.score >= best - reach - TIED) if reach else _first(scored, best)
    lower = [each for each in scored if each.score < chosen.score - TIED and each.text != chosen.text]
    if not lower:
        # Whatever scores less is the chosen answer's own text.
        return "equal_texts"
    low = _low_score(scored, lower, settings)
    rejected = (
        _longest(each for each in lower if abs(each.score - low) <= reach + TIED) if reach else _first(lower, low)
    )
    if chosen.score - rejected.score < settings.min_margin - TIED:
        return "margin"
    return Pair(
        prompt.id,
        prompt.instruction,
        prompt.input,
        chosen.answer.text,
        rejected.answer.text,
        _name(chosen.answer),
        _name(rejected.answer),
        chosen.score,
        rejected.score,
    )


def _low_score(scored: Sequence[_Scored], lower: Sequence[_Scored], settings: PairSettings) -> float:
    """The score to reject: the lowest, or the one nearest to two (population) standard deviations below the mean."""
    if settings.rejected == "worst":
        return min(each.score for each in lower)
    values = [each.score for each in scored]
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    target = mean - 2 * spread
    return min((each.score for each in lower), key=lambda score: (abs(score - target), score))


def _first(scored: Sequence[_Scored], score: float) -> _Scored:
    return next(each for each in scored if abs(each.score - score) <= TIED)


def _shortest(scored: Iterable[_Scored]) -> _Scored:
    return min(scored, key=lambda each: (len(each.text), -each.score, each.index))


def _longest(scored: Iterable[_Scored]) -> _Scored:
    return min(scored, key=lambda each: (-len(each.text), each.score, each.index))


def _scored(
    answers: Sequence[Candidate], scores: Mapping[tuple[str, int], float | None], out: Counter[str]
) -> tuple[list[_Scored], str]:
    """(the answers with a score, "" or the filter after which there were fewer than two)."""
    usable, reason = _usable(answers, out, least=2)
    judged = [each for each in usable if (each.prompt, each.index) in scores]
    found = []
    for each in judged:
        score = scores[each.prompt, each.index]
        if score is not None:
            found.append(_Scored(each, score))
    out["unjudged"] += len(usable) - len(judged)
    out["unparsed"] += len(judged) - len(found)
    if not reason and len(found) < 2:
        reason = "unjudged" if len(judged) < 2 else "unparsed"
    return found, reason


def _usable(answers: Sequence[Candidate], out: Counter[str], *, least: int) -> tuple[list[Candidate], str]:
    """(the whole answers, "" or the filter after which there were fewer than `least`)."""
    tests: dict[str, Callable[[Candidate], bool]] = {
        "failed": lambda each: each.failure is not None,
        "cut": lambda each: each.cut,
        "empty": lambda each: not each.text.strip(),
    }
    usable = sorted(answers, key=lambda each: each.index)
    reason = "" if len(usable) >= least else "no_answer"
    for name, is_out in tests.items():
        kept = [each for each in usable if not is_out(each)]
        out[name] += len(usable) - len(kept)
        if not reason and len(kept) < least:
            reason = name
        usable = kept
    return usable, reason


def _reference(prompt: Prompt) -> Candidate | str:
    if not prompt.reference.strip():
        return "no_reference"
    return Candidate(prompt.id, 0, prompt.reference, "human")


def _demonstration(shown: Sequence[Candidate]) -> Candidate | str:
    """The first whole demonstration as the teacher's, or why there is none."""
    usable, reason = _usable(shown, Counter(), least=1)
    if reason:
        return "no_demonstration" if reason == "no_answer" else f"demonstration_{reason}"
    return replace(usable[0], model="teacher")


def _collect(
    prompts: Sequence[Prompt],
    pair_of: Callable[[Prompt], Pair | str],
    out: Counter[str],
    settings: PairSettings,
    scores: Sequence[float],
) -> PairReport:
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    paired: set[tuple[str, str]] = set()
    for prompt in prompts:
        text = (prompt.instruction.strip(), prompt.input.strip())
        found = pair_of(prompt)
        if isinstance(found, Pair) and settings.dedup and text in paired:
            found = "duplicate"
        if isinstance(found, str):
            dropped[found] += 1
        else:
            paired.add(text)
            pairs.append(found)
    return report_of(pairs, len(prompts), dropped, out, scores)


def _weighted(report: PairReport) -> PairReport:
    """Each pair weighted by its margin; the mean weight is 1."""
    mean = report.margin
    if mean is None:
        return report
    return replace(report, pairs=tuple(replace(pair, weight=(pair.margin or 0.0) / mean) for pair in report.pairs))


def _name(answer: Candidate) -> str:
    return f"{answer.model}/{answer.index}"


def _by_prompt(prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """The answers of each prompt, checked."""
    answers: dict[str, list[Candidate]] = {prompt.id: [] for prompt in prompts}
    if len(answers) < len(prompts):
        twice = next(one.id for one, two in pairwise(sorted(prompts, key=lambda each: each.id)) if one.id == two.id)
        raise ValueError(f"prompt '{twice}' is there twice; expected an id of its own for each.")
    seen: set[tuple[str, int]] = set()
    for each in candidates:
        if each.prompt not in answers:
            raise ValueError(f"an answer is to prompt '{each.prompt}', which is not among the {len(answers)} prompts.")
        if (each.prompt, each.index) in seen:
            raise ValueError(f"answer {each.index} to prompt '{each.prompt}' is there twice; expected once.")
        seen.add((each.prompt, each.index))
        answers[each.prompt].append(each)
    return answers


def _scores(prompts: Sequence[Prompt], judgements: Sequence[Judgement]) -> dict[tuple[str, int], float | None]:
    known = {prompt.id for prompt in prompts}
    scores: dict[tuple[str, int], float | None] = {}
    for each in judgements:
        if each.prompt not in known:
            raise ValueError(f"a judgement is of prompt '{each.prompt}', which is not among the {len(known)} prompts.")
        if (each.prompt, each.candidate) in scores:
            raise ValueError(
                f"answer {each.candidate} to prompt '{each.prompt}' is judged twice; make one judgement of several "
                "judges with panel()."
            )
        scores[each.prompt, each.candidate] = each.score
    return scores
