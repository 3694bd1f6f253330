"""An alignment's data where the student is the testbed's: its tasks, right answers, verdicts and guides."""

from __future__ import annotations

import numpy as np

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLMBackend
from instructgym.train.alignment.config import AlignmentConfig
from instructgym.train.alignment.eft import JudgeExample
from instructgym.train.alignment.judgements import JudgeQuestion
from instructgym.train.alignment.records import Prompt
from instructgym.train.testbed import judging_question
from instructgym.train.testbed.backends import TestbedJudge, TestbedTeacher
from instructgym.train.testbed.tasks import Task, make_tasks, wrong_answer
from instructgym.types import Completion, Instruction, Message

__all__ = ["SHORT_QUESTION", "anchors", "guide", "held_out", "ift_prompts", "judge_rows", "round_prompts"]


def _read(completion: Completion) -> float | None:
    return judging_question.read(completion)


SHORT_QUESTION = JudgeQuestion(
    "testbed", judging_question.SHORT_VERSION, judging_question.SHORT_SCALE, judging_question.messages, _read
)


def guide(config: AlignmentConfig, role: str) -> LLMBackend:
    """Who answers as teacher or judge. In pipeline ``oracle_reward`` the judge is a checker."""
    own = config.testbed
    if role == "teacher":
        return TestbedTeacher(own.teacher_accuracy, run_seed=config.run.seed)
    names = {pipeline.name for pipeline in config.rounds.pipelines}
    if {"oracle_reward", "teacher_reward"} <= names:
        raise ConfigError("rounds.schedule has 'oracle_reward' and 'teacher_reward', and a run has one judge.")
    return TestbedJudge(1.0 if "oracle_reward" in names else own.judge_reliability, run_seed=config.run.seed)


def _tasks(config: AlignmentConfig) -> list[Task]:
    """The run's training tasks: IFT, EFT, anchors and rounds take one part each, so that none is there twice."""
    own = config.testbed
    rounds = len(config.rounds.pipelines) * config.prompts.count
    return make_tasks(own.ift + own.eft + own.anchors + rounds, config.run.seed)


def ift_prompts(config: AlignmentConfig) -> list[Prompt]:
    """Tasks with right answers."""
    tasks = _tasks(config)[: config.testbed.ift]
    return [Prompt(task.id, task.prompt, source="seed", reference=task.answer) for task in tasks]


def judge_rows(config: AlignmentConfig) -> list[JudgeExample]:
    """Verdicts on right and wrong answers, of which a stated share is right."""
    own = config.testbed
    rng = np.random.default_rng([config.run.seed, 11])
    examples = []
    for task in _tasks(config)[own.ift : own.ift + own.eft]:
        is_right = bool(rng.random() < 0.5)
        answer = task.answer if is_right else wrong_answer(task, rng)
        verdict = is_right if rng.random() < own.eft_accuracy else not is_right
        score = 5 if verdict else 0
        question = judging_question.messages(Instruction(task.prompt), answer)
        reply = Message("assistant", judging_question.reply(score))
        examples.append(JudgeExample(task.id, 0, (*question, reply), float(score)))
    return examples


def anchors(config: AlignmentConfig) -> list[dict[str, str]]:
    """Pairs of a right and a wrong answer to tasks that no judge example has."""
    own = config.testbed
    start = own.ift + own.eft
    rng = np.random.default_rng([config.run.seed, 12])
    return [
        {"instruction": task.prompt, "input": "", "better": task.answer, "worse": wrong_answer(task, rng)}
        for task in _tasks(config)[start : start + own.anchors]
    ]


def round_prompts(config: AlignmentConfig) -> list[Prompt]:
    """Tasks of no other part; their right answers are what pipeline ``spin`` takes for a person's."""
    own = config.testbed
    tasks = _tasks(config)[own.ift + own.eft + own.anchors :]
    return [Prompt(task.id, task.prompt, source="testbed", reference=task.answer) for task in tasks]


def held_out(config: AlignmentConfig) -> list[Task]:
    """What every model is measured on: new instances, and templates that nobody was trained on, half each."""
    half = config.testbed.held_out // 2
    seed = config.run.seed + 1
    return [
        *make_tasks(config.testbed.held_out - half, seed, split="held_out_instances"),
        *make_tasks(half, seed, split="held_out_templates"),
    ]
