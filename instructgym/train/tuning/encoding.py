"""Conversations as token ids, by the code that writes prompts when a model answers.

A prompt's ids are those of inference, and the answer's are what the model has to write after them: its text as the
chat template shows it, up to and with the token that ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from instructgym.train.tuning.examples import PreferenceExample, SFTExample
from instructgym.train.tuning.student import Student
from instructgym.types import Message

__all__ = ["EncodedPair", "EncodedText", "encode_pairs", "encode_texts"]

IGNORED = -100


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Ids of a whole conversation; `labels` are the ids where the loss counts, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    weight: float


def encode_texts(
    student: Student, examples: Sequence[SFTExample], max_length: int
) -> tuple[list[EncodedText], dict[str, int]]:
    """(what fits, how many do not by reason). Nothing is cut: half an answer teaches to stop in the middle."""
    kept, dropped = [], Counter[str]()
    for example in examples:
        encoded = _conversation(student, example.messages)
        reason = _too_long(len(encoded.input_ids), _first_label(encoded), max_length)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(encoded)
    return kept, dict(dropped)


def encode_pairs(
    student: Student, examples: Sequence[PreferenceExample], max_length: int
) -> tuple[list[EncodedPair], dict[str, int]]:
    """(what fits, how many do not by reason): a prompt or an answer that is too long, answers that are equal."""
    kept, dropped = [], Counter[str]()
    for example in examples:
        prompt = student.prompts.ids(example.prompt, {})
        chosen = answer_ids(student, example.prompt, example.chosen)
        rejected = answer_ids(student, example.prompt, example.rejected)
        reason = _too_long(len(prompt) + max(len(chosen), len(rejected)), len(prompt), max_length)
        if chosen == rejected:
            reason = "equal answers"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(EncodedPair(prompt, chosen, rejected, example.weight))
    return kept, dict(dropped)


def answer_ids(student: Student, prompt: Sequence[Message], answer: str) -> list[int]:
    """What the model has to write after the prompt's ids, the token that ends it included."""
    return _ids(student, _answer_text(student, prompt, answer))


def _answer_text(student: Student, prompt: Sequence[Message], answer: str) -> str:
    before = student.prompts.text(prompt)
    whole = student.prompts.text([*prompt, Message("assistant", answer)], is_open=False)
    # Where a template shows an answer in another way once it is given, the answer itself is what is learned.
    text = whole[len(before) :] if whole.startswith(before) else answer
    end = max((text.rfind(token) + len(token) for token in _ends(student) if token in text), default=0)
    return text[:end] if end else text + str(student.tokenizer.eos_token)


def _ends(student: Student) -> list[str]:
    """The tokens that end an answer, as text."""
    tokenizer = student.tokenizer
    end = getattr(student.model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [] if end is None else [end])}
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids)) if token]


def _ids(student: Student, text: str) -> list[int]:
    return list(student.tokenizer(text, add_special_tokens=False)["input_ids"])


def _conversation(student: Student, messages: Sequence[Message]) -> EncodedText:
    input_ids: list[int] = []
    labels: list[int] = []
    shown = ""  # what of the conversation has been turned into ids
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = student.prompts.text(messages[:place])
        answer = _answer_text(student, messages[:place], message.content)
        prompt = _ids(student, before[len(shown) :] if before.startswith(shown) else before)
        ids = _ids(student, answer)
        input_ids += [*prompt, *ids]
        labels += [*[IGNORED] * len(prompt), *ids]
        shown = before + answer
    return EncodedText(input_ids, labels)


def _first_label(encoded: EncodedText) -> int:
    return next((place for place, label in enumerate(encoded.labels) if label != IGNORED), len(encoded.labels))


def _too_long(length: int, prompt: int, max_length: int) -> str:
    if prompt >= max_length:
        return "prompt too long"
    return "answer too long" if length > max_length else ""
