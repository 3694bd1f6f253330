"""The chat-completions format: a request's body, and the strict reading of a reply. Pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeGuard

from instructgym.errors import ConfigError, ContentFiltered, MalformedReply
from instructgym.types import Choice, Completion, Request, TokenLogprob, Usage

__all__ = ["encode_request", "parse_models", "parse_reply", "request_body"]

_SHOWN_CHARACTERS = 120
_MOST_TOKENS = 2**53
_INSTEAD_OF_EXTRA = {
    "n": "sampling.n, which the budget counts",
    "stream": "no extra at all; replies are read whole",
}

_encode = json.JSONEncoder(separators=(",", ":")).encode


def encode_request(request: Request, seed: int | None) -> bytes:
    """`request_body` as JSON, in ASCII: half of a surrogate pair, which UTF-8 lacks, is escaped."""
    return _encode(request_body(request, seed)).encode()


def request_body(request: Request, seed: int | None) -> dict[str, Any]:
    """The body of ``POST /chat/completions``.

    `Sampling.extra` is laid over it: it adds fields, replaces them, and takes away those whose value is ``null``; with
    ``max_completion_tokens`` there, ``max_tokens`` is left out. Raises `ConfigError` for ``n`` and ``stream`` there,
    and for what is not JSON.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.n != 1:
        body["n"] = sampling.n
    if sampling.max_tokens is not None:
        body["max_tokens"] = sampling.max_tokens
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if seed is not None:
        body["seed"] = seed
    if sampling.top_logprobs is not None:
        body["logprobs"] = True
        if sampling.top_logprobs > 0:
            body["top_logprobs"] = sampling.top_logprobs
    if sampling.extra:
        for name, text in sampling.extra:
            body[name] = _extra_value(name, text)
        if "max_completion_tokens" in body:
            body.pop("max_tokens", None)
        body = {name: value for name, value in body.items() if value is not None}
    return body


@lru_cache(maxsize=256)
def _extra_value(name: str, text: str) -> Any:
    if name in _INSTEAD_OF_EXTRA:
        raise ConfigError(f"sampling.extra holds '{name}'; use {_INSTEAD_OF_EXTRA[name]}")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (RecursionError, ValueError) as error:
        raise ConfigError(
            f"sampling.extra '{name}' is {text!r}; expected JSON text, such as 'true' or '\"low\"'"
        ) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parse_reply(content: bytes, content_type: str = "application/json", n: int = 1) -> Completion:
    """The first `n` choices of a reply with a status of success; fewer if it holds fewer.

    An empty or length-cut text is an answer. Choices that the endpoint's filter withheld are left out. Raises
    `ContentFiltered` if that leaves none, and `MalformedReply` for whatever is not a reply.
    """
    data = _json_object(content, content_type)
    choices = data.get("choices")
    if not isinstance(choices, list):
        raise MalformedReply(f"the reply has no list of choices: {_shown(content)}")
    if not choices:
        raise MalformedReply("the reply's list of choices is empty")
    answers = [answer for i in range(min(n, len(choices))) if (answer := _choice(choices[i], i, content)) is not None]
    if not answers:
        raise ContentFiltered("the endpoint's content filter withheld the answer")
    first = answers[0]
    model = data.get("model")
    return Completion(
        text=first.text,
        finish_reason=first.finish_reason,
        usage=_usage(data.get("usage")),
        model=model if isinstance(model, str) else "",
        logprobs=first.logprobs,
        others=tuple(answers[1:]),
    )


def parse_models(content: bytes) -> list[str]:
    """The model names of ``GET /models``; empty if the endpoint answers it with something else."""
    try:
        data = json.loads(content)
        return [entry["id"] for entry in data["data"] if isinstance(entry["id"], str)]
    except (KeyError, RecursionError, TypeError, ValueError):
        return []


def _json_object(content: bytes, content_type: str) -> Mapping[str, Any]:
    try:
        data = json.loads(content)
    except (RecursionError, ValueError) as error:
        if "html" in content_type.lower() or content.lstrip()[:1] == b"<":
            raise MalformedReply(
                "the endpoint answered with a web page instead of JSON; is the base URL right (does it end in /v1)?"
            ) from error
        raise MalformedReply(f"the reply is broken or cut JSON, {len(content)} bytes: {_shown(content)}") from error
    if not isinstance(data, dict):
        raise MalformedReply(f"the reply is JSON, but not an object: {_shown(content)}")
    return data


def _choice(choice: Any, i: int, content: bytes) -> Choice | None:
    """The `i`-th choice of the reply; None if the endpoint withheld it."""
    try:
        finish_reason = choice.get("finish_reason") or "stop"
        if not isinstance(finish_reason, str):
            raise TypeError("finish_reason")
        if finish_reason == "content_filter":
            return None
        return Choice(_text(choice["message"], finish_reason), finish_reason, _logprobs(choice.get("logprobs")))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        which = "first choice" if i == 0 else f"choice {i + 1}"
        raise MalformedReply(f"the reply's {which} is not a chat message: {_shown(content)}") from error


def _text(message: Mapping[str, Any], finish_reason: str) -> str:
    content = message["content"]
    if content is None:
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal:
            return refusal  # a refusal is an answer, and an elimination's or a filter's business
        if finish_reason == "length":
            return ""  # a reasoning model that spent all its tokens before the first word
        raise MalformedReply("the reply's message has no content")
    if not isinstance(content, str):
        raise TypeError("content")
    return content


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    return Usage(prompt, completion)


def _is_count(value: object) -> TypeGuard[int]:
    """False for what would lower what a budget has spent, or what no database holds."""
    return type(value) is int and 0 <= value < _MOST_TOKENS


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not logprobs or not logprobs.get("content"):
        return ()
    return tuple(
        TokenLogprob(*_token(item), tuple(_token(other) for other in item.get("top_logprobs") or ()))
        for item in logprobs["content"]
    )


def _token(item: Mapping[str, Any]) -> tuple[str, float]:
    token, logprob = item["token"], item["logprob"]
    if not isinstance(token, str) or isinstance(logprob, bool):
        raise TypeError("token")
    value = float(logprob)
    if not value < math.inf:
        raise ValueError("logprob")
    return token, value


def _shown(content: bytes) -> str:
    text = content[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
