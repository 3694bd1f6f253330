"""Judge examples among a round's pairs, so that the student does not unlearn to judge (EFT replay)."""

from __future__ import annotations

import numpy as np

from instructgym.errors import BackendError
from instructgym.llm_backends.seeding import messages_index
from instructgym.train.alignment.context import AlignmentContext, Round, words_of
from instructgym.train.alignment.questions import question_of
from instructgym.train.tuning.examples import PreferenceExample
from instructgym.types import Message, Sampling

__all__ = ["replayed"]


def replayed(context: AlignmentContext, round_: Round, count: int) -> list[PreferenceExample]:
    """At most `count` pairs: the EFT reply as chosen, a reply of the student with another score as rejected.

    Where the student already judges like the example there is nothing to prefer, and no pair. The reply that was never
    read (no score) is as good a rejected one as a wrong score.
    """
    from instructgym.train.alignment.stages.first_model import EFT

    rows = context.folder.read_lines(EFT)
    rng = np.random.default_rng([context.config.run.seed, round_.number, 2])
    chosen = [rows[place] for place in rng.permutation(len(rows))[:count].tolist()]
    judging, question = context.config.judging, question_of(context.config)
    stage = f"{round_.model}.dpo"
    sampling = Sampling(judging.temperature, judging.top_p, judging.max_tokens)
    student = context.ask_student(round_.before, stage, sampling)

    async def own_reply(row: dict[str, object]) -> PreferenceExample | None:
        turns = [Message(each["role"], each["content"]) for each in row["messages"]]  # type: ignore[attr-defined]
        try:
            completion = await student.ask(
                turns[:-1], prompt_version=question.version, sample=(messages_index(turns[:-1]), 0)
            )
        except BackendError as error:
            words_of(error)
            return None
        if completion.finish_reason != "length" and question.read(completion) == row["score"]:
            return None
        return PreferenceExample(tuple(turns[:-1]), turns[-1].content, completion.text.strip())

    found = context.each(stage, own_reply, chosen)
    return [pair for pair in found if pair is not None and pair.rejected and pair.rejected != pair.chosen]
