"""What the data side of an alignment can be told: judge examples, judging, pairs, the gate, and the meta-judge."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from instructgym.train.config import Section

__all__ = ["EFTSettings", "GateSettings", "JudgingSettings", "MetaJudgeSettings", "PairSettings"]


class EFTSettings(Section):
    """Judge examples, made of answers that people have ranked or scored. An empty `path` makes none.

    `writer` writes reasons and score: the student fine-tuned on IFT alone, or the teacher. Of `draws` attempts a prompt
    the first is kept whose scores agree with people. `order`: ``strict`` wants every pair of unequal ranks in the human
    order, ``weak`` allows equal scores as long as no pair is reversed and one is right. `rebalance`: the commonest
    score keeps at most so many times the examples of the second; null keeps all. `label_scale` is the scale of score
    labels, where it is not the judge's.
    """

    path: str = Field(default="", description="JSON lines; '' makes no judge examples")
    writer: Literal["baseline", "teacher"] = "baseline"
    draws: int = Field(default=3, ge=1)
    order: Literal["strict", "weak"] = "strict"
    rebalance: float | None = Field(default=1.0, ge=1.0)
    label_scale: tuple[float, float] | None = None
    anchors: int = Field(default=100, ge=0, description="pairs held out, on which the gate measures the judge")
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False
    temperature: float = Field(default=0.7, ge=0.0)
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _a_scale_goes_up(self) -> EFTSettings:
        if self.label_scale is not None and not self.label_scale[0] < self.label_scale[1]:
            raise ValueError(f"label_scale is {list(self.label_scale)}; expected [low, high] with low < high")
        return self


class JudgingSettings(Section):
    """How an answer is judged: the mean of `samples` draws that could be read, of which `min_valid` must be.

    `expectation` takes the mean over the score tokens' probabilities instead of the written score. `reference_guided`
    shows the judge the prompt's known answer, where there is one. `break_ties` compares answers of equal score in both
    orders. `panel` names more judges, models of the judge's own backend; an answer's score is the mean over the judges,
    of which `quorum` must have one. A student that judges itself judges alone. Temperature, top-p and tokens are those
    of a student that judges itself; `llm.judge` has its own.
    """

    question: str = Field(default="additive", min_length=1, description="a name, or path/to/file.py:NAME")
    samples: int = Field(default=3, ge=1)
    min_valid: int | None = Field(default=None, ge=1, description="null: 2, or 1 of 1")
    expectation: bool = False
    reference_guided: bool = False
    break_ties: bool = False
    panel: tuple[str, ...] = Field(default=(), description="models that judge beside llm.judge.model")
    quorum: int | None = Field(default=None, ge=1, description="judges of a panel; null: more than half")
    parse_retries: int = Field(default=0, ge=0, description="how often an unreadable draw is asked for again")
    temperature: float = Field(default=0.7, ge=0.0)
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    max_tokens: int | None = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _no_more_valid_than_drawn(self) -> JudgingSettings:
        if self.min_valid is not None and self.min_valid > self.samples:
            raise ValueError(f"min_valid is {self.min_valid}, of {self.samples} samples; expected at most as many")
        return self

    @model_validator(mode="after")
    def _a_panel_of_different_judges(self) -> JudgingSettings:
        if len(set(self.panel)) < len(self.panel) or "" in self.panel:
            raise ValueError(f"panel is {list(self.panel)}; expected each model once")
        if self.quorum is not None and self.quorum > len(self.panel) + 1:
            raise ValueError(f"quorum is {self.quorum}, of {len(self.panel) + 1} judges; expected at most as many")
        return self


class PairSettings(Section):
    """Which of a prompt's answers are the pair.

    `length_control` is Meta-Rewarding's rho (arXiv 2407.19594): chosen is the shortest answer within rho of the best,
    rejected the longest within rho of the worst, rho being a share of the range of the prompt's scores; 0 takes the
    best and the worst. `rejected`: ``worst``, or ``mean-2sd``, the answer nearest to two standard deviations below the
    mean (arXiv 2502.16825), for many answers a prompt. `weights`: ``margin`` weighs a pair by its margin, 1 on average.
    """

    min_margin: float = Field(default=0.0, ge=0.0, description="points between chosen and rejected")
    length_control: float = Field(default=0.0, ge=0.0, lt=0.5)
    rejected: Literal["worst", "mean-2sd"] = "worst"
    weights: Literal["none", "margin"] = "none"
    dedup: bool = Field(default=True, description="one pair for prompts of equal text")


class GateSettings(Section):
    """When a judge is not believed, and the run halts.

    Agreement is measured on anchor pairs, whose better answer is known. It is at chance if its exact (Clopper-Pearson)
    interval does not lie above one half; fewer than `min_anchors` say nothing and are not judged by. `min_spread` is of
    the scores' standard deviation, as a share of the scale.
    """

    enabled: bool = True
    min_parse_rate: float = Field(default=0.95, ge=0.0, le=1.0)
    min_anchors: int = Field(default=20, ge=1)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    max_tie_rate: float = Field(default=0.8, gt=0.0, le=1.0, description="share of anchor pairs with equal scores")
    max_same_score: float = Field(default=0.9, gt=0.0, le=1.0, description="share of answers with the commonest score")
    min_spread: float = Field(default=0.05, ge=0.0, lt=0.5)


class MetaJudgeSettings(Section):
    """Judgements that are judged themselves, and become pairs too (arXiv 2407.19594).

    In the first `rounds` rounds only, and at most `share` of a batch. `answers` is how many answers a round are taken:
    those whose judgements disagree most, one a prompt.
    """

    enabled: bool = False
    rounds: int = Field(default=2, ge=1)
    share: float = Field(default=0.15, gt=0.0, lt=1.0)
    samples: int = Field(default=5, ge=2, description="judgements of an answer that are compared")
    answers: int = Field(default=200, ge=1)
    parse_retries: int = Field(default=0, ge=0)
