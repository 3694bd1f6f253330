"""What a ledger holds: keys, rows, failures and counts, apart from how they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from instructgym import errors
from instructgym.errors import BackendError, RunFolderError
from instructgym.types import Choice, Completion, Message, Request, Sampling, TokenLogprob, Usage

__all__ = [
    "AttemptRow",
    "CallRow",
    "Failure",
    "LedgerRow",
    "Store",
    "Tally",
    "TallyKey",
    "completion_from_json",
    "completion_from_value",
    "completion_to_json",
    "completion_to_value",
    "request_from_canonical",
    "request_key",
]

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_encode_ascii = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def _dump(value: object) -> tuple[str, bytes]:
    """`value` as JSON text and its UTF-8 bytes; half of a surrogate pair, which UTF-8 lacks, is escaped."""
    text = _encode(value)
    try:
        return text, text.encode()
    except UnicodeEncodeError:
        text = _encode_ascii(value)
        return text, text.encode()


def request_key(request: Request) -> tuple[bytes, str]:
    """The request's identity: 16 bytes of a hash of its canonical JSON, and that JSON.

    It holds role, model, messages, sampling parameters, prompt version and sample; not the stage.
    """
    sampling = request.sampling
    parameters = [
        sampling.temperature,
        sampling.top_p,
        sampling.max_tokens,
        sampling.stop,
        sampling.top_logprobs,
        sorted(sampling.extra),
    ]
    if sampling.n != 1:
        parameters.append(sampling.n)
    text, data = _dump(
        [
            request.role,
            request.model,
            [[message.role, message.content] for message in request.messages],
            parameters,
            request.prompt_version,
            request.sample,
        ]
    )
    return hashlib.blake2b(data, digest_size=16).digest(), text


def request_from_canonical(canonical: Sequence[Any], stage: str) -> Request:
    """The request whose canonical JSON, decoded, this is: the inverse of `request_key`."""
    role, model, messages, parameters, prompt_version, sample = canonical
    temperature, top_p, max_tokens, stop, top_logprobs, extra, *n = parameters
    return Request(
        role=role,
        model=model,
        messages=tuple(Message(who, content) for who, content in messages),
        sampling=Sampling(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            stop=tuple(stop),
            top_logprobs=top_logprobs,
            extra=tuple((name, text) for name, text in extra),
            n=n[0] if n else 1,
        ),
        prompt_version=prompt_version,
        sample=tuple(sample),
        stage=stage,
    )


def completion_to_json(completion: Completion) -> str:
    """The completion as the ledger stores it."""
    return _dump(completion_to_value(completion))[0]


def completion_to_value(completion: Completion) -> dict[str, object]:
    """The completion as a JSON object; what is missing or empty is left out."""
    value: dict[str, object] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "model": completion.model,
    }
    if completion.usage is not None:
        value["usage"] = [completion.usage.prompt_tokens, completion.usage.completion_tokens]
    if completion.logprobs:
        value["logprobs"] = _logprob_rows(completion.logprobs)
    if completion.others:
        value["others"] = [
            [choice.text, choice.finish_reason, _logprob_rows(choice.logprobs)] for choice in completion.others
        ]
    return value


def _logprob_rows(logprobs: Sequence[TokenLogprob]) -> list[list[object]]:
    return [[item.token, item.logprob, item.top] for item in logprobs]


def _logprobs(rows: Sequence[Any]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(token, logprob, tuple((other, value) for other, value in top)) for token, logprob, top in rows
    )


def completion_from_json(text: str) -> Completion:
    """The inverse of `completion_to_json`."""
    return completion_from_value(json.loads(text))


def completion_from_value(value: Mapping[str, Any]) -> Completion:
    """The inverse of `completion_to_value`."""
    usage = value.get("usage")
    return Completion(
        text=value["text"],
        finish_reason=value["finish_reason"],
        usage=None if usage is None else Usage(*usage),
        model=value["model"],
        logprobs=_logprobs(value.get("logprobs", ())),
        others=tuple(
            Choice(other, finish_reason, _logprobs(rows)) for other, finish_reason, rows in value.get("others", ())
        ),
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed for good: the error's class name, its message and HTTP status."""

    error: str
    message: str
    status: int | None = None

    @classmethod
    def of(cls, error: BackendError) -> Failure:
        return cls(type(error).__name__, str(error), error.status)

    def to_error(self) -> BackendError:
        """The error as it was raised when the call failed."""
        kind = getattr(errors, self.error, None)
        if not (isinstance(kind, type) and issubclass(kind, BackendError)):
            raise RunFolderError(f"the ledger holds a failure of unknown kind '{self.error}': {self.message}")
        return kind(self.message, status=self.status)

    def to_json(self) -> str:
        return _dump({"message": self.message, "status": self.status})[0]

    @classmethod
    def from_json(cls, error: str, text: str) -> Failure:
        value = json.loads(text)
        return cls(error, value["message"], value["status"])


class AttemptRow(NamedTuple):
    """One attempt: how it ended, what the endpoint counted (None: it did not say), what a budget counts for it."""

    key: bytes
    role: str
    stage: str
    model: str
    status: str
    usage: Usage | None
    charged: Usage


class CallRow(NamedTuple):
    """The outcome of a call. `request` is its canonical JSON; `replaces` is the failure that it takes the place of."""

    key: bytes
    role: str
    stage: str
    model: str
    request: str
    outcome: Completion | Failure
    replaces: bool = False


@dataclass(slots=True)
class Tally:
    """Counts of one (role, stage, model). Tokens as reported by the endpoint; charged is what a budget counts."""

    calls: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    charged_prompt_tokens: int = 0
    charged_completion_tokens: int = 0

    def add(self, other: Tally) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add_attempt(self, attempt: AttemptRow) -> None:
        self.attempts += 1
        if attempt.usage is not None:
            self.prompt_tokens += attempt.usage.prompt_tokens
            self.completion_tokens += attempt.usage.completion_tokens
        self.charged_prompt_tokens += attempt.charged.prompt_tokens
        self.charged_completion_tokens += attempt.charged.completion_tokens

    def add_call(self, call: CallRow) -> None:
        if isinstance(call.outcome, Failure):
            self.failed += 1
        else:
            self.calls += 1


TallyKey = tuple[str, str, str]
"""(role, stage, model)"""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A call as `Store.rows` yields it, for people and for export."""

    key: str
    request: Request
    outcome: Completion | Failure


class Store(Protocol):
    """Where a ledger keeps its rows. Errors of the store are `RunFolderError`."""

    def get(self, key: bytes) -> Completion | Failure | None:
        """The outcome of a call, or None. Takes microseconds."""
        ...

    async def put(self, call: CallRow | None, attempts: Sequence[AttemptRow]) -> None:
        """Write in one piece; returns once it is committed."""
        ...

    def put_soon(self, attempt: AttemptRow) -> None:
        """Write without waiting for the commit."""
        ...

    def tallies(self) -> Mapping[TallyKey, Tally]:
        """Counts of all that is committed, earlier runs included."""
        ...

    def rows(self) -> Iterator[LedgerRow]:
        """Every call that is held, in the order of commit."""
        ...

    def close(self) -> None:
        """Commit what is queued and let go of the file. Closing twice does nothing."""
        ...
