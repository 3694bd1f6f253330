"""Which stages an alignment has, in their order, and what each hangs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from instructgym.train.alignment.config import TESTBED, AlignmentConfig
from instructgym.train.alignment.context import FIRST, AlignmentContext, Round
from instructgym.train.stage import StageOutput

__all__ = ["Step", "plan"]


@dataclass(frozen=True)
class Step:
    """A stage: the stages whose files it reads, and the config sections that decide its result besides theirs.

    `asks`: it needs models to answer, so the connection has to be open. `round` is None before the rounds.
    """

    name: str
    needs: tuple[str, ...]
    sections: tuple[str, ...]
    run: Callable[[AlignmentContext], StageOutput]
    asks: bool = False
    round: Round | None = None


def plan(config: AlignmentConfig) -> tuple[Step, ...]:
    """Every stage of a config. A stage's sections include those of the stages that it needs."""
    steps = [*_before_rounds(config)]
    for number, pipeline in enumerate(config.rounds.pipelines, start=2):
        steps += _of_round(config, Round(number, pipeline))
    steps.append(_export(config))
    return tuple(_with_inherited(steps))


def _before_rounds(config: AlignmentConfig) -> list[Step]:
    from instructgym.train.alignment.stages import first_model, measuring

    base = ("student",) if config.in_testbed else ()
    steps = []
    if config.in_testbed:
        steps.append(Step("student", (), ("student", "testbed"), first_model.run_student))
    steps.append(Step("ift", (), ("ift", "testbed"), first_model.run_ift))
    asks = config.eft.path not in ("", TESTBED)
    writes = asks and config.eft.writer == "baseline"
    if writes:
        steps.append(Step("eft_baseline", (*base, "ift"), ("student", "sft"), first_model.run_eft_baseline))
    needs = ("ift", *(["eft_baseline"] if writes else []))
    sections = ("eft", "judging", "testbed", *(["llm"] if asks and config.eft.writer == "teacher" else []))
    steps.append(Step("eft", needs, sections, first_model.run_eft, asks=asks))
    steps.append(Step("sft", (*base, "ift", "eft"), ("student", "sft"), first_model.run_sft))
    if config.in_testbed:
        steps += [
            Step(f"{name}.check", (of,), ("candidates", "testbed"), partial(measuring.run_check, model=name), asks=True)
            for name, of in (("M0", "student"), (FIRST, "sft"))
        ]
    return steps


def _of_round(config: AlignmentConfig, round_: Round) -> list[Step]:
    from instructgym.train.alignment.stages import answers, judging, measuring, meta_judging, preferences, prompts

    pipeline, name = round_.pipeline, round_.model
    before = "sft" if round_.before == FIRST else f"{round_.before}.dpo"
    earlier = [f"M{number}.prompts" for number in range(2, round_.number)]
    guided = ("llm",)

    def step(
        stage: str,
        run: Callable[[AlignmentContext, Round], StageOutput],
        needs: list[str],
        sections: tuple[str, ...],
        asks: bool = True,
    ) -> Step:
        return Step(
            f"{name}.{stage}",
            tuple(needs),
            (name, *sections),
            lambda context: run(context, round_),
            asks=asks,
            round=round_,
        )

    generated = config.prompts.source == "generated"
    writer = {"student": [before], "M1": ["sft"], "teacher": []}[config.prompts.writer] if generated else []
    steps = [
        step(
            "prompts",
            prompts.run_prompts,
            ["ift", *writer, *earlier] if generated else ["ift"],
            ("prompts", "testbed", *(guided if generated and config.prompts.writer == "teacher" else ())),
            asks=generated,
        ),
        step("candidates", answers.run_candidates, [f"{name}.prompts", before], ("candidates",)),
    ]
    if pipeline.chosen == "teacher":
        steps.append(step("demonstrations", answers.run_demonstrations, [f"{name}.prompts"], guided))
    if pipeline.judged:
        judge = ("judging", *(guided if pipeline.judge == "judge" else ()))
        steps.append(step("judge", judging.run_judge, [f"{name}.candidates", before], judge))
        steps.append(step("gate", judging.run_gate, [f"{name}.judge", "eft", before], (*judge, "gate")))
    made_of = {"best": [f"{name}.candidates", f"{name}.judge"], "teacher": [f"{name}.demonstrations"]}
    own = [f"{name}.prompts", f"{name}.candidates"]
    sources = list(dict.fromkeys([*own, *made_of.get(pipeline.chosen, [])]))
    steps.append(step("pairs", preferences.run_pairs, sources, ("pairs",), asks=False))
    meta = config.meta_judge
    judges_itself = pipeline.judge == "student" and meta.enabled and round_.index < meta.rounds
    if judges_itself:
        of = [f"{name}.judge", f"{name}.candidates", before]
        steps.append(step("meta_judge", meta_judging.run_meta_judge, of, ("judging", "meta_judge")))
    replays = config.rounds.eft_replay > 0
    more = [*([f"{name}.meta_judge"] if judges_itself else []), *(["eft"] if replays else [])]
    learnt_from = [f"{name}.pairs", before, *more]
    steps.append(step("dpo", preferences.run_dpo, learnt_from, ("dpo", "student"), asks=replays))
    if config.in_testbed:
        check = partial(measuring.run_check, model=name)
        steps.append(Step(f"{name}.check", (f"{name}.dpo",), ("candidates", "testbed"), check, asks=True, round=round_))
    if config.rounds.early_stop:
        steps.append(step("compare", measuring.run_compare, [f"{name}.dpo", before, f"{name}.prompts"], guided))
    return steps


def _export(config: AlignmentConfig) -> Step:
    from instructgym.train.alignment.export import run_export

    rounds = [Round(number, pipeline) for number, pipeline in enumerate(config.rounds.pipelines, start=2)]
    return Step("export", (), ("llm",), partial(run_export, rounds=rounds))


def _with_inherited(steps: list[Step]) -> list[Step]:
    sections: dict[str, tuple[str, ...]] = {}
    found = []
    for step in steps:
        inherited = [section for name in step.needs for section in sections[name]]
        sections[step.name] = tuple(dict.fromkeys(("run", *inherited, *step.sections)))
        found.append(Step(step.name, step.needs, sections[step.name], step.run, step.asks, step.round))
    return found
