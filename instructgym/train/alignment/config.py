"""The config of an alignment: a student, who guides it, its data, and the rounds.

`load_alignment("testbed")` reads a named config of the package, `load_alignment("my.toml")` a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from instructgym.errors import ConfigError
from instructgym.train.alignment.pipelines import PIPELINES, Pipeline, pipeline_of
from instructgym.train.alignment.settings import (
    EFTSettings,
    GateSettings,
    JudgingSettings,
    MetaJudgeSettings,
    PairSettings,
)
from instructgym.train.config import (
    BackendName,
    LedgerSection,
    LimitsSection,
    LLMOverride,
    LLMSettings,
    PriceSection,
    RetrySection,
    RoleBudgetSection,
    RunSection,
    Section,
)
from instructgym.train.tuning.settings import DPOSettings, SFTSettings

__all__ = ["GUIDES", "TESTBED", "AlignmentConfig", "load_alignment"]

TESTBED = "testbed"
GUIDES = ("teacher", "judge")
"""Who may be asked besides the student."""

GuideBackend = Literal[BackendName, "testbed"]


class StudentSection(Section):
    """M0: a folder, or a name of a hub; 'testbed' trains a tiny one from nothing."""

    model: str = Field(default=TESTBED, min_length=1, description="a folder, a name, or 'testbed'")
    chat_template: str = Field(default="", description="'' (the tokenizer's own), 'plain', or a file")
    device: str = Field(default="auto", min_length=1)
    dtype: str = Field(default="auto", min_length=1)
    batch_tokens: int = Field(default=16_384, ge=1, description="tokens a batch, when it answers")
    max_batch: int = Field(default=64, ge=1, description="answers a batch")
    trust_remote_code: bool = False


class GuideOverride(LLMOverride):
    """What the teacher or the judge has of its own."""

    backend: GuideBackend | None = None  # type: ignore[assignment]  # one backend more than the main job


class JudgeOverride(GuideOverride):
    """A judge is drawn from K times: warm, and no longer than its reasons need."""

    max_tokens: int | None = Field(default=512, ge=1)


class GuidesSection(LLMSettings):
    """Who guides; `llm.teacher` and `llm.judge` override single values."""

    backend: GuideBackend = "simulated"  # type: ignore[assignment]
    teacher: GuideOverride = GuideOverride()
    judge: JudgeOverride = JudgeOverride()

    def for_role(self, role: str) -> GuidesSection:
        """The settings of a role, every override resolved."""
        common = {name: getattr(self, name) for name in LLMSettings.model_fields}
        own: LLMOverride = getattr(self, role)
        return GuidesSection(**{**common, **own.model_dump(exclude_none=True)})


class GuideBudgetSection(RoleBudgetSection):
    """Where a run stops (exit code 3, can go on). The student's own answers are free."""

    teacher: RoleBudgetSection = RoleBudgetSection()
    judge: RoleBudgetSection = RoleBudgetSection()
    prices: dict[str, PriceSection] = Field(default_factory=dict)


class IFTSection(Section):
    """Instructions with answers, in any form that seeds may have; 'testbed' are right answers to its tasks."""

    path: str = Field(default=TESTBED, min_length=1)
    format: str = "auto"
    instruction_field: str | None = None
    limit: int | None = Field(default=None, ge=1)
    skip_bad: bool = False


class PromptsSection(Section):
    """Where a round's prompts come from; no two rounds share one.

    ``generated``: written by `writer` after `shots` examples, by the filters of Self-Instruct. ``evolved``: what
    `instructgym run` made in the folder `path`. ``file``: a seeds file. ``ift``: the IFT prompts, with their answers.
    ``testbed``: its tasks.
    """

    source: Literal["generated", "evolved", "file", "ift", "testbed"] = "generated"
    path: str = ""
    count: int = Field(default=1000, ge=1, description="prompts a round")
    writer: Literal["student", "teacher", "M1"] = "M1"
    shots_from_ift: int = Field(default=6, ge=1)
    shots_generated: int = Field(default=2, ge=0)
    temperature: float = Field(default=0.6, ge=0.0)
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    max_tokens: int = Field(default=256, ge=1)
    max_rouge: float = Field(default=0.7, gt=0.0, le=1.0)
    min_words: int = Field(default=4, ge=1)
    max_words: int = Field(default=150, ge=1)
    decontaminate: tuple[str, ...] = Field(default=(), description="files of evaluation prompts to keep out")
    max_attempts: float = Field(default=4.0, ge=1.0, description="requests to the writer for each prompt wanted")

    @model_validator(mode="after")
    def _a_path_where_one_is_read(self) -> PromptsSection:
        if self.source in ("evolved", "file") and not self.path:
            raise ValueError(f"source '{self.source}' needs a path")
        return self


class CandidatesSection(Section):
    """How the student answers."""

    count: int = Field(default=4, ge=1)
    temperature: float = Field(default=0.7, ge=0.0)
    top_p: float = Field(default=0.9, gt=0.0, le=1.0)
    max_tokens: int = Field(default=256, ge=1)


class RoundsSection(Section):
    """`count` rounds of `pipeline`, or one of each that `schedule` names, in its order.

    `eft_replay` is the share of judge examples among a round's pairs, so that the student does not unlearn to judge.
    With `early_stop` a model that loses head to head against the one before it is the last.
    """

    pipeline: str = "self_reward"
    count: int = Field(default=2, ge=1)
    schedule: tuple[str, ...] = ()
    eft_replay: float = Field(default=0.0, ge=0.0, lt=1.0)
    early_stop: bool = False
    compare_prompts: int = Field(default=64, ge=1, description="prompts of the head-to-head")
    compare_judge: Literal["judge", "student"] = "judge"

    @field_validator("pipeline", "schedule")
    @classmethod
    def _pipelines_by_name(cls, value: Any) -> Any:
        names = (value,) if isinstance(value, str) else value
        try:
            plain = tuple(pipeline_of(name).name for name in names)
        except ConfigError as error:
            raise ValueError(str(error).removesuffix(".")) from None
        return plain[0] if isinstance(value, str) else plain

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """The pipeline of each round, the first of which makes M2."""
        return tuple(PIPELINES[name] for name in self.schedule or (self.pipeline,) * self.count)


class TestbedSection(Section):
    """The world of checkable tasks, where any part is 'testbed'."""

    __test__ = False  # not a class of tests, whatever its name begins with

    base_model: str = Field(default="", description="a folder with an M0 that an earlier run made; '' makes one")
    steps: int = Field(default=1400, ge=1, description="training steps of M0, from nothing")
    hidden_size: int = Field(default=128, ge=8, multiple_of=8)
    layers: int = Field(default=4, ge=1)
    careless: float = Field(default=0.85, ge=0.0, le=1.0, description="share of mistakes in what M0 reads last")
    teacher_accuracy: float = Field(default=0.95, ge=0.0, le=1.0)
    judge_reliability: float = Field(default=0.9, ge=0.0, le=1.0)
    ift: int = Field(default=600, ge=1, description="right answers in the IFT set")
    eft: int = Field(default=1200, ge=0, description="judge examples in the EFT set")
    eft_accuracy: float = Field(default=1.0, ge=0.0, le=1.0, description="share of them with the right verdict")
    anchors: int = Field(default=100, ge=0, description="pairs on which the gate measures the judge")
    held_out: int = Field(default=400, ge=1, description="tasks that measure each model")


class AlignmentConfig(Section):
    """A whole alignment."""

    run: RunSection = RunSection(name="alignment")
    student: StudentSection = StudentSection()
    llm: GuidesSection = GuidesSection()
    limits: LimitsSection = LimitsSection()
    budget: GuideBudgetSection = GuideBudgetSection()
    retry: RetrySection = RetrySection()
    ledger: LedgerSection = LedgerSection()
    ift: IFTSection = IFTSection()
    eft: EFTSettings = EFTSettings()
    sft: SFTSettings = SFTSettings()
    rounds: RoundsSection = RoundsSection()
    prompts: PromptsSection = PromptsSection()
    candidates: CandidatesSection = CandidatesSection()
    judging: JudgingSettings = JudgingSettings()
    gate: GateSettings = GateSettings()
    pairs: PairSettings = PairSettings()
    meta_judge: MetaJudgeSettings = MetaJudgeSettings()
    dpo: DPOSettings = DPOSettings()
    testbed: TestbedSection = TestbedSection()

    @property
    def in_testbed(self) -> bool:
        return self.student.model == TESTBED

    @property
    def guides(self) -> tuple[str, ...]:
        """Who is asked besides the student, by role."""
        pipelines = self.rounds.pipelines
        teacher = any(pipeline.chosen == "teacher" for pipeline in pipelines)
        asks = self.eft.path not in ("", TESTBED)
        teacher = teacher or (asks and self.eft.writer == "teacher")
        teacher = teacher or (self.prompts.source == "generated" and self.prompts.writer == "teacher")
        judge = any(pipeline.judge == "judge" for pipeline in pipelines)
        judge = judge or (self.rounds.early_stop and self.rounds.compare_judge == "judge")
        return tuple(role for role, asked in zip(GUIDES, (teacher, judge), strict=True) if asked)

    @model_validator(mode="after")
    def _what_is_asked_is_there(self) -> AlignmentConfig:
        for role in self.guides:
            settings = self.llm.for_role(role)
            if settings.backend in ("openai", "transformers") and not settings.model:
                raise ValueError(f"backend '{settings.backend}' has no model for the {role}; set llm.{role}.model")
        judge = self.llm.for_role("judge")
        if self.judging.panel and judge.backend == "transformers":
            raise ValueError("judging.panel names models of the judge's backend, and 'transformers' holds one")
        if judge.model in self.judging.panel:
            raise ValueError(f"judging.panel names '{judge.model}', which is llm.judge.model; expected each judge once")
        if not self.in_testbed:
            for name, value in (
                ("prompts.source", self.prompts.source),
                ("ift.path", self.ift.path),
                ("eft.path", self.eft.path),
            ):
                if value == TESTBED:
                    raise ValueError(f"{name} is 'testbed', and student.model is not; name a file of your own")
        if "oracle_reward" in {pipeline.name for pipeline in self.rounds.pipelines} and not self.in_testbed:
            raise ValueError("pipeline 'oracle_reward' needs a checker, and only the testbed has one")
        return self


def load_alignment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> AlignmentConfig:
    """A named alignment of the package, else a TOML file, with ``section.key=value`` overrides.

    Raises `ConfigError`.
    """
    from instructgym.train.config_text import load_config_of

    return load_config_of(AlignmentConfig, name_or_path, overrides, folder="alignment")
