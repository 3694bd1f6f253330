"""Conversations as token ids, by the code that writes prompts when a model answers.

A prompt's ids are those of inference, and the answer's are what the model has to write after them: its text as the
chat template shows it, up to and with the token that ends it. In a conversation of several turns this holds for each
answer. Where the turns cannot stand in one row for it (a template that shows an answer in another way once it is
history, a tokenizer that merges over the border of two turns), each answer gets a row of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instructgym.errors import BadRequest, ConfigError
from instructgym.train.tuning.examples import PreferenceExample, SFTExample
from instructgym.train.tuning.student import Student
from instructgym.types import Message

__all__ = ["IGNORED", "EncodedPair", "EncodedText", "answer_ids", "encode_pairs", "encode_texts"]

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Ids of a conversation; `labels` are the ids where the loss counts, `IGNORED` elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Ids of a prompt and of two answers to it, each with the token that ends it."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    weight: float


def encode_texts(
    student: Student, examples: Sequence[SFTExample], max_length: int
) -> tuple[list[list[EncodedText]], dict[str, int]]:
    """(the rows of each example that fits, how many do not by reason).

    Nothing is cut: half an answer teaches to stop in the middle. Raises `ConfigError` if the chat template refuses an
    example.
    """
    kept: list[list[EncodedText]] = []
    dropped = Counter[str]()
    for number, example in enumerate(examples, start=1):
        with _naming(number):
            rows = list(_rows(student, example.messages))
        reason = max(
            (_too_long(len(row.input_ids), _first_label(row), max_length) for row in rows), default="no answer"
        )
        if any(not message.content.strip() for message in example.messages if message.role == "assistant"):
            reason = "empty answer"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(rows)
    return kept, dict(dropped)


def encode_pairs(
    student: Student, examples: Sequence[PreferenceExample], max_length: int
) -> tuple[list[EncodedPair], dict[str, int]]:
    """(what fits, how many do not by reason): a prompt or an answer that is too long, answers that are equal.

    Raises `ConfigError` if the chat template refuses an example.
    """
    kept: list[EncodedPair] = []
    dropped = Counter[str]()
    for number, example in enumerate(examples, start=1):
        with _naming(number):
            prompt = student.prompts.ids(example.prompt, {})
            chosen = answer_ids(student, example.prompt, example.chosen)
            rejected = answer_ids(student, example.prompt, example.rejected)
        reason = _too_long(len(prompt) + max(len(chosen), len(rejected)), len(prompt), max_length)
        if not example.chosen.strip():
            reason = "empty chosen answer"
        if chosen == rejected:
            reason = "equal answers"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(EncodedPair(prompt, chosen, rejected, example.weight))
    return kept, dict(dropped)


def answer_ids(student: Student, prompt: Sequence[Message], answer: str) -> list[int]:
    """What the model has to write after the prompt's ids, the token that ends it included."""
    text = _answer_text(student, prompt, answer)
    return list(student.tokenizer(text, add_special_tokens=False)["input_ids"])


def _answer_text(student: Student, prompt: Sequence[Message], answer: str) -> str:
    before = student.prompts.text(prompt)
    whole = student.prompts.text([*prompt, Message("assistant", answer)], is_open=False)
    # Where a template shows an answer in another way once it is given, the answer itself is what is learned.
    text = whole[len(before) :] if whole.startswith(before) else answer
    end = max((text.rfind(token) + len(token) for token in _ends(student) if token in text), default=0)
    return text[:end] if end else text.rstrip() + str(student.tokenizer.eos_token)


def _ends(student: Student) -> list[str]:
    """The tokens that end an answer, as text."""
    tokenizer = student.tokenizer
    end = getattr(student.model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [] if end is None else [end])}
    return [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids)) if token]


def _rows(student: Student, messages: Sequence[Message]) -> Iterator[EncodedText]:
    input_ids: list[int] = []
    labels: list[int] = []
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = student.prompts.ids(messages[:place], {})
        if prompt[: len(input_ids)] != input_ids:
            yield EncodedText(input_ids, labels)
            input_ids, labels = [], []
        answer = answer_ids(student, messages[:place], message.content)
        labels = [*labels, *[IGNORED] * (len(prompt) - len(input_ids)), *answer]
        input_ids = [*prompt, *answer]
    if input_ids:
        yield EncodedText(input_ids, labels)


class _naming:
    """Says in which example the chat template has refused the messages."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadRequest):
            raise ConfigError(f"example {self._number}: {error}") from error


def _first_label(encoded: EncodedText) -> int:
    return next((place for place, label in enumerate(encoded.labels) if label != IGNORED), len(encoded.labels))


def _too_long(length: int, prompt: int, max_length: int) -> str:
    if prompt >= max_length:
        return "prompt too long"
    return "answer too long" if length > max_length else ""
