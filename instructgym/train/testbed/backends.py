"""A teacher and a judge of stated reliability: pure functions of seed, messages and the request's sample."""

from __future__ import annotations

import hashlib

from instructgym.errors import BadRequest, ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.llm_backends.seeding import request_seed
from instructgym.train.testbed import judging_question
from instructgym.train.testbed.tasks import careless_answer, check, right_answer, task_of
from instructgym.types import Completion, Request, Usage

__all__ = ["TestbedJudge", "TestbedTeacher"]


class _Guide:
    """Reads the last user message; what it draws depends on the seed, that message and, where said, the sample."""

    name = "testbed"
    instant = True

    def __init__(self, rate: float, *, run_seed: int = 0) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ConfigError(f"{type(self).__name__} got {rate}; expected a share from 0 to 1.")
        self._rate = rate
        self._run_seed = run_seed

    async def complete(self, request: Request) -> Completion:
        question = next((each.content for each in reversed(request.messages) if each.role == "user"), "")
        seed = request_seed(self._run_seed, request.sample) if request.sampling.temperature > 0 else 0
        text = self._reply(question, seed)
        return Completion(text, "stop", Usage(len(question) // 4 + 1, len(text) // 4 + 1), model=self.name)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _reply(self, question: str, seed: int) -> str:
        raise NotImplementedError

    def _uniform(self, *key: object) -> float:
        text = "\x1f".join(map(str, (type(self).__name__, self._run_seed, *key)))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "big") * 2.0**-64


class TestbedTeacher(_Guide):
    """Answers tasks, rightly at a rate of `accuracy` and else with the typical mistake."""

    __test__ = False  # no class of tests, whatever its name begins with
    name = "testbed-teacher"

    def __init__(self, accuracy: float = 0.95, *, run_seed: int = 0) -> None:
        super().__init__(accuracy, run_seed=run_seed)

    def _reply(self, question: str, seed: int) -> str:
        right, wrong = right_answer(question), careless_answer(question)
        if right is None or wrong is None:
            return "That is no task that I know."
        return right if self._uniform(seed, question) < self._rate else wrong


class TestbedJudge(_Guide):
    """Scores answers to tasks with 0 to 5 points, by the testbed's short question or the additive one.

    It takes a right answer for right, and a wrong one for wrong, at a rate of `reliability`: 1 is a checker, one half
    says nothing. Whether it errs hangs on instruction and answer alone, so that asking again does not help: a judge's
    mistakes are its own. The points, 4 or 5 and 0 or 1, differ from draw to draw.
    """

    __test__ = False
    name = "testbed-judge"

    def __init__(self, reliability: float = 0.9, *, run_seed: int = 0) -> None:
        super().__init__(reliability, run_seed=run_seed)

    def _reply(self, question: str, seed: int) -> str:
        asked = judging_question.judged_answer(question)
        if asked is None:
            blocks = fenced_blocks(question)
            if "instruction" not in blocks or "answer" not in blocks:
                raise BadRequest("the testbed's judge reads its own short question and the additive one; got another")
            asked = blocks["instruction"], blocks["answer"]
        instruction, answer = asked
        task = task_of(instruction)
        is_right = task is not None and check(task, answer)
        if self._uniform("verdict", instruction, answer.strip()) >= self._rate:
            is_right = not is_right
        extra = self._uniform("points", instruction, answer, seed) < 0.5
        return judging_question.reply((4 if is_right else 0) + extra)
