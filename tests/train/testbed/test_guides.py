"""A teacher and a judge that are right at the rates they state, and an M0 that is made the same twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instructgym.errors import BadRequest, ConfigError
from instructgym.rewards.judging.additive import additive_messages, read_additive
from instructgym.train.testbed import judging_question
from instructgym.train.testbed.backends import TestbedJudge, TestbedTeacher
from instructgym.train.testbed.model import BaseModelSettings, base_tokenizer, build_base_model, documents
from instructgym.train.testbed.tasks import check, make_tasks, task_of
from instructgym.types import Completion, Instruction, Message, Request, Sampling


def request(content: str, sample: int = 0, temperature: float = 0.7) -> Request:
    return Request("judge", "testbed", (Message("user", content),), Sampling(temperature), "test/1", (sample,))


@pytest.mark.parametrize("accuracy", [0.0, 0.8, 1.0])
async def test_the_teacher_is_right_at_its_rate(accuracy: float) -> None:
    tasks = make_tasks(800, 0)
    teacher = TestbedTeacher(accuracy)
    replies = [await teacher.complete(request(task.prompt, row)) for row, task in enumerate(tasks)]
    right = np.mean([check(task, reply.text) for task, reply in zip(tasks, replies, strict=True)])
    assert right == pytest.approx(accuracy, abs=0.05)
    assert replies == [await TestbedTeacher(accuracy).complete(request(t.prompt, row)) for row, t in enumerate(tasks)]


@pytest.mark.parametrize("reliability", [0.5, 0.9, 1.0])
async def test_the_judge_takes_right_for_right_at_its_rate_in_both_questions(reliability: float) -> None:
    judge = TestbedJudge(reliability)
    agreed = []
    for row, task in enumerate(make_tasks(400, 1)):
        answer = task.answer if row % 2 else "no idea"
        asked = Instruction(task.prompt)
        short = judging_question.read(
            await judge.complete(request(judging_question.messages(asked, answer)[0].content))
        )
        long = read_additive(await judge.complete(request(additive_messages(asked, answer)[-1].content)))
        assert short is not None
        assert long is not None
        assert (short > 2.5) == (long.value > 2.5)
        agreed.append((short > 2.5) == bool(row % 2))
    assert np.mean(agreed) == pytest.approx(reliability, abs=0.06)


async def test_asking_a_judge_again_does_not_cure_its_mistakes() -> None:
    judge = TestbedJudge(0.7)
    for task in make_tasks(40, 2):
        question = judging_question.messages(Instruction(task.prompt), task.answer)[0].content
        scores = {judging_question.read(await judge.complete(request(question, sample))) for sample in range(8)}
        assert max(scores) - min(scores) <= 1.0  # type: ignore[operator, type-var]


async def test_what_a_judge_cannot_read_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match=r"reads its own short question and the additive one; got another"):
        await TestbedJudge().complete(request("Which is better?"))
    with pytest.raises(ConfigError, match=r"TestbedTeacher got 1\.5; expected a share from 0 to 1"):
        TestbedTeacher(1.5)


def test_the_question_is_read_back() -> None:
    asked = judging_question.messages(Instruction("sort rurer"), "errru")[0].content
    assert judging_question.judged_answer(asked) == ("sort rurer", "errru")
    assert judging_question.judged_answer("sort rurer") is None
    assert judging_question.read(Completion(judging_question.reply(5))) == 5.0
    assert judging_question.read(Completion("Score: 9")) is None


def test_what_m0_reads_gets_careless() -> None:
    settings = BaseModelSettings(judging=0.0)
    rates = []
    for done in (0.0, 0.5, 1.0):
        texts = documents(400, np.random.default_rng(0), settings, done)
        right = []
        for question, answer in texts:
            task = task_of(question.removeprefix("<user>").removesuffix("<assistant>"))
            assert task is not None
            right.append(check(task, answer.removesuffix("<end>")))
        rates.append(1 - np.mean(right))
    assert rates == pytest.approx([0.15, 0.15, 0.85], abs=0.06)


def test_answers_survive_the_tokenizer() -> None:
    tokenizer = base_tokenizer()
    for task in make_tasks(200, 3):
        ids = tokenizer(task.answer, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == task.answer
        assert tokenizer.unk_token_id not in tokenizer(task.prompt, add_special_tokens=False)["input_ids"]


def test_m0_is_the_same_twice(tmp_path: Path) -> None:
    small = BaseModelSettings(hidden_size=16, layers=1, heads=2, steps=4, batch_size=8)
    one, two = (build_base_model(tmp_path / name, settings=small) for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    other = build_base_model(tmp_path / "other", rng_seed=1, settings=small)
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
