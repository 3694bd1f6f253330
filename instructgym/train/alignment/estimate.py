"""What an alignment would ask of each model, and train, before it begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instructgym.rewards.judging.asking import PARSE_RETRIES
from instructgym.train.alignment.anchors import split_anchors
from instructgym.train.alignment.config import TESTBED, AlignmentConfig
from instructgym.train.alignment.context import Round
from instructgym.train.alignment.eft_files import RankedAnswers, read_eft
from instructgym.train.alignment.meta_judge import most_judge_pairs
from instructgym.train.alignment.plan import plan
from instructgym.train.alignment.questions import question_of
from instructgym.train.alignment.stages.prompts import evolved_prompts
from instructgym.train.seed_files import read_seeds
from instructgym.train.tuning.settings import TrainingSettings

__all__ = ["StageEstimate", "estimate"]

_PER_COMPARISON = 2 * (PARSE_RETRIES + 1)  # in both orders, and again where a reply cannot be read


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """A stage, and what it would do at most.

    `role` is ``student``, ``teacher`` or ``judge``, `model` whom that means; both are empty for a stage that asks
    nobody. `answer_tokens` is None where answers have no limit. `examples` and `steps` are of stages that train.
    """

    stage: str
    role: str = ""
    model: str = ""
    calls: int = 0
    answer_tokens: int | None = 0
    examples: int = 0
    steps: int = 0


def estimate(config: AlignmentConfig) -> tuple[StageEstimate, ...]:
    """Every stage of a config in its order; a stage that asks two models is there twice.

    Reads the data, and looks at no model. Numbers are upper bounds: the judge's gate may halt the run, and pairs fall
    away. Raises `ConfigError` and `SeedError`.
    """
    own = _Estimate(config)
    rows: list[StageEstimate] = []
    for step in plan(config):
        found = list(own.of(step.name, step.round))
        rows += found or [StageEstimate(step.name)]
    return tuple(rows)


class _Estimate:
    """The numbers of one config."""

    def __init__(self, config: AlignmentConfig) -> None:
        self.config = config
        self.question = question_of(config)
        self.ift = self._ift()
        self.eft_asked, self.eft, self.anchors = self._eft()

    def of(self, stage: str, round_: Round | None) -> Iterator[StageEstimate]:
        config, name = self.config, stage.rpartition(".")[2]
        prompts = 0 if round_ is None else self._prompts(round_)
        answers = config.candidates.count if round_ is not None and round_.pipeline.judged else 1
        tokens = config.candidates.max_tokens
        if name == "student":
            yield StageEstimate(stage, steps=0 if config.testbed.base_model else config.testbed.steps)
        elif name == "eft_baseline":
            yield self._training(stage, config.sft, self.ift)
        elif name == "eft" and self.eft_asked:
            if config.eft.writer == "teacher":
                yield self._guide(stage, "teacher", self.eft_asked, config.eft.max_tokens)
            else:
                yield self._student(stage, "baseline", self.eft_asked, config.eft.max_tokens)
        elif name == "sft":
            yield self._training(stage, config.sft, self.ift + self.eft)
        elif name == "check":
            yield self._student(stage, stage.partition(".")[0], config.testbed.held_out, tokens)
        elif round_ is None:
            return
        elif name == "prompts" and config.prompts.source == "generated":
            section = config.prompts
            calls = int(section.max_attempts * section.count)
            if section.writer == "teacher":
                yield self._guide(stage, "teacher", calls, section.max_tokens)
            else:
                yield self._student(stage, "M1" if section.writer == "M1" else round_.before, calls, section.max_tokens)
        elif name == "candidates":
            yield self._student(stage, round_.before, prompts * answers, tokens)
        elif name == "demonstrations":
            yield self._guide(stage, "teacher", prompts, None)
        elif name == "judge":
            compared = answers * (answers - 1) // 2 * _PER_COMPARISON if config.judging.break_ties else 0
            yield self._judge(stage, round_, prompts * (answers * self._draws(round_) + compared))
        elif name == "gate":
            yield self._judge(stage, round_, 2 * self.anchors * self._draws(round_))
        elif name == "meta_judge":
            meta = config.meta_judge
            compared = meta.samples * (meta.samples - 1) * (meta.parse_retries + 1)
            yield self._judge(stage, round_, min(meta.answers, prompts * answers) * (meta.samples + compared))
        elif name == "dpo":
            share = config.rounds.eft_replay
            judging = most_judge_pairs(prompts, config.meta_judge.share) if self._is_meta(round_) else 0
            replayed = int(share / (1 - share) * prompts)
            if replayed:
                yield self._student(stage, round_.before, replayed, config.judging.max_tokens)
            yield self._training(stage, config.dpo, prompts + judging + replayed)
        elif name == "compare":
            compared = min(config.rounds.compare_prompts, prompts)
            for model in (round_.model, round_.before):
                yield self._student(stage, model, compared, tokens)
            if config.rounds.compare_judge == "judge":
                yield self._guide(stage, "judge", _PER_COMPARISON * compared, None)
            else:
                yield self._student(stage, round_.before, _PER_COMPARISON * compared, config.judging.max_tokens)

    def _ift(self) -> int:
        ift = self.config.ift
        if self.config.in_testbed and ift.path == TESTBED:
            return self.config.testbed.ift
        found = read_seeds(
            ift.path,
            format=ift.format,
            instruction_field=ift.instruction_field,
            skip_bad=ift.skip_bad,
            limit=ift.limit,
        )
        return sum(bool(seed.output.strip()) for seed in found.seeds)

    def _eft(self) -> tuple[int, int, int]:
        """(calls that write judge examples, examples, anchor pairs)."""
        eft = self.config.eft
        if not eft.path:
            return 0, 0, 0
        if eft.path == TESTBED:
            return 0, self.config.testbed.eft, self.config.testbed.anchors
        found = read_eft(eft.path, skip_bad=eft.skip_bad, limit=eft.limit)
        rows, anchors = split_anchors(found.rows, eft.anchors, np.random.default_rng([self.config.run.seed, 1]))
        examples = sum(len(row.answers) if isinstance(row, RankedAnswers) else 1 for row in rows)
        return eft.draws * examples, examples, len(anchors)

    def _prompts(self, round_: Round) -> int:
        section = self.config.prompts
        if section.source in ("generated", TESTBED):
            return section.count
        if section.source == "ift":
            there = self.ift
        elif section.source == "evolved":
            there = len(evolved_prompts(Path(section.path)))
        else:
            there = len(read_seeds(section.path).seeds)
        return max(0, min(section.count, there - round_.index * section.count))

    def _draws(self, round_: Round) -> int:
        """Calls to judge one answer."""
        judging = self.config.judging
        judges = 1 + (len(judging.panel) if round_.pipeline.judge == "judge" else 0)
        return judges * judging.samples * (judging.parse_retries + 1)

    def _is_meta(self, round_: Round) -> bool:
        meta = self.config.meta_judge
        return meta.enabled and round_.pipeline.judge == "student" and round_.index < meta.rounds

    def _judge(self, stage: str, round_: Round, calls: int) -> StageEstimate:
        if round_.pipeline.judge == "student":
            return self._student(stage, round_.before, calls, self.config.judging.max_tokens)
        return self._guide(stage, "judge", calls, None)

    def _guide(self, stage: str, role: str, calls: int, tokens: int | None) -> StageEstimate:
        settings = self.config.llm.for_role(role)
        most = settings.max_tokens if tokens is None else tokens
        model = settings.model or settings.backend
        return StageEstimate(stage, role, model, calls, None if most is None else calls * most)

    def _student(self, stage: str, model: str, calls: int, tokens: int | None) -> StageEstimate:
        return StageEstimate(stage, "student", model, calls, None if tokens is None else calls * tokens)

    def _training(self, stage: str, settings: TrainingSettings, examples: int) -> StageEstimate:
        trained = examples - min(round(settings.eval_share * examples), max(examples - 1, 0))
        per_epoch = math.ceil(math.ceil(trained / settings.batch_size) / settings.gradient_accumulation)
        steps = settings.max_steps or math.ceil(settings.epochs * per_epoch)
        return StageEstimate(stage, examples=examples, steps=steps)
