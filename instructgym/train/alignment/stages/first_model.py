"""M0 and M1: the base model where the testbed makes it, the IFT and EFT sets, and supervised fine-tuning."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.llm_backends.answering import answer_messages
from instructgym.train.alignment.context import FIRST, AlignmentContext
from instructgym.train.alignment.judge_examples import BASELINE, judge_examples
from instructgym.train.alignment.records import Prompt
from instructgym.train.seed_files import read_seeds
from instructgym.train.stage import StageOutput
from instructgym.train.tuning.examples import SFTExample
from instructgym.train.tuning.settings import SFTSettings
from instructgym.types import Message

__all__ = [
    "ANCHORS",
    "EFT",
    "IFT",
    "ift_examples",
    "run_eft",
    "run_eft_baseline",
    "run_ift",
    "run_sft",
    "run_student",
]

IFT, EFT, ANCHORS = "M1/ift.jsonl", "M1/eft.jsonl", "M1/anchors.jsonl"


def run_student(context: AlignmentContext) -> StageOutput:
    """Trains M0 of the testbed from nothing, or takes the one that is given."""
    from instructgym.train.testbed.model import BaseModelSettings, build_base_model

    own, folder = context.config.testbed, context.folder.path / "M0/model"
    context.progress.started("student", own.steps)
    if own.base_model:
        if not (Path(own.base_model) / "config.json").is_file():
            raise ConfigError(f"testbed.base_model '{own.base_model}' holds no model; expected M0/model of a run.")
        shutil.copytree(own.base_model, folder, dirs_exist_ok=True)
        return StageOutput(("M0/model",))
    build_base_model(
        folder,
        rng_seed=context.config.run.seed,
        settings=BaseModelSettings(
            hidden_size=own.hidden_size, layers=own.layers, steps=own.steps, careless=own.careless
        ),
        on_step=lambda step, _loss: context.progress.advance("student", step + 1),
    )
    return StageOutput(("M0/model",))


def run_ift(context: AlignmentContext) -> StageOutput:
    """Writes `M1/ift.jsonl`: instructions with an answer."""
    ift = context.config.ift
    if context.config.in_testbed and ift.path == "testbed":
        from instructgym.train.alignment.in_testbed import ift_prompts

        prompts = ift_prompts(context.config)
        without = 0
    else:
        found = read_seeds(
            ift.path,
            format=ift.format,
            instruction_field=ift.instruction_field,
            skip_bad=ift.skip_bad,
            limit=ift.limit,
        )
        with_answer = [seed for seed in found.seeds if seed.output.strip()]
        without = len(found.seeds) - len(with_answer)
        if not with_answer:
            raise ConfigError(
                f"none of the {len(found.seeds)} records of '{ift.path}' has an answer; supervised fine-tuning needs "
                "instructions with answers (Alpaca's `output`, or an assistant's turn)."
            )
        prompts = [
            Prompt(seed.id, seed.instruction.text, seed.instruction.input, source="seed", reference=seed.output.strip())
            for seed in with_answer
        ]
    context.write(IFT, prompts)
    return StageOutput((IFT,), {"examples": len(prompts), "without_answer": without})


def ift_examples(prompts: Sequence[Prompt]) -> list[SFTExample]:
    return [
        SFTExample((*answer_messages(prompt.as_instruction), Message("assistant", prompt.reference)))
        for prompt in prompts
    ]


def run_eft_baseline(context: AlignmentContext) -> StageOutput:
    """Trains the model that writes judge examples, on IFT alone."""
    return _fine_tune(context, BASELINE, ift_examples(context.read(Prompt, IFT)), context.config.sft, "eft_baseline")


def run_eft(context: AlignmentContext) -> StageOutput:
    """Writes `M1/eft.jsonl` (judge examples as chats) and `M1/anchors.jsonl` (pairs whose better answer is known)."""
    examples, anchors, counts = judge_examples(context)
    context.write_rows(EFT, [example.as_row() for example in examples])
    context.write_rows(ANCHORS, anchors)
    scores = Counter(f"{example.score:g}" for example in examples)
    result: dict[str, Any] = {
        **counts,
        "examples": len(examples),
        "anchors": len(anchors),
        "scores": dict(sorted(scores.items())),
    }
    if context.connection.connected:
        result["accounting"] = context.connection.accounting("eft")
    return StageOutput((EFT, ANCHORS), result, lost=int(counts.get("failed", 0)))


def run_sft(context: AlignmentContext) -> StageOutput:
    """Trains M1 = SFT(M0; IFT + EFT)."""
    ift = ift_examples(context.read(Prompt, IFT))
    eft = [
        SFTExample(tuple(Message(each["role"], each["content"]) for each in row["messages"]))
        for row in context.folder.read_lines(EFT)
    ]
    return _fine_tune(context, FIRST, [*ift, *eft], context.config.sft, "sft")


def _fine_tune(
    context: AlignmentContext, name: str, examples: Sequence[SFTExample], settings: SFTSettings, stage: str
) -> StageOutput:
    from instructgym.train.tuning.sft import train_sft

    context.progress.started(stage, None)
    context.free_device()
    config = context.config
    result = train_sft(
        context.models.place("M0"),
        examples,
        settings,
        context.folder.path / name,
        chat_template=config.student.chat_template,
        seed=config.run.seed,
        device=config.student.device,
        trust_remote_code=config.student.trust_remote_code,
    )
    context.models.add(name, result.model)
    facts = {"steps": result.steps, "train_loss": result.train_loss, "eval_loss": result.eval_loss}
    return StageOutput((f"{name}/model", f"{name}/log.jsonl"), {**facts, "counts": dict(result.counts)})
