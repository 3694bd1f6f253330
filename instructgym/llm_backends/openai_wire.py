"""The chat-completions format: a request's body, and the strict reading of a reply. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from instructgym.errors import ConfigError, ContentFiltered, MalformedReply
from instructgym.types import Completion, Request, TokenLogprob, Usage

__all__ = ["parse_models", "parse_reply", "request_body"]

_SHOWN_CHARACTERS = 120


def request_body(request: Request, seed: int | None) -> dict[str, Any]:
    """The body of ``POST /chat/completions``.

    `Sampling.extra` is laid over it: it adds fields, replaces them, and takes away those whose value is ``null``; with
    ``max_completion_tokens`` there, ``max_tokens`` is left out.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
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
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"sampling.extra '{name}' is {text!r}; expected JSON text, such as 'true' or '\"low\"'"
        ) from error


def parse_reply(content: bytes, content_type: str) -> Completion:
    """The first choice of a reply with HTTP status 200.

    An empty or length-cut text is an answer. Raises `ContentFiltered` if the endpoint withheld the text, and
    `MalformedReply` for whatever is not a reply.
    """
    data = _json_object(content, content_type)
    choices = data.get("choices")
    if not isinstance(choices, list):
        raise MalformedReply(f"the reply has no list of choices: {_shown(content)}")
    if not choices:
        raise MalformedReply("the reply's list of choices is empty")
    try:
        choice = choices[0]
        finish_reason = choice.get("finish_reason") or "stop"
        text = _text(choice["message"], finish_reason)
        model = data.get("model")
        return Completion(
            text=text,
            finish_reason=str(finish_reason),
            usage=_usage(data.get("usage")),
            model=model if isinstance(model, str) else "",
            logprobs=_logprobs(choice.get("logprobs")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MalformedReply(f"the reply's first choice is not a chat message: {_shown(content)}") from error


def parse_models(content: bytes) -> list[str]:
    """The model names of ``GET /models``; empty if the endpoint answers it with something else."""
    try:
        data = json.loads(content)
        return [entry["id"] for entry in data["data"] if isinstance(entry["id"], str)]
    except (KeyError, TypeError, ValueError):
        return []


def _json_object(content: bytes, content_type: str) -> Mapping[str, Any]:
    try:
        data = json.loads(content)
    except ValueError as error:
        if "html" in content_type.lower() or content.lstrip()[:1] == b"<":
            raise MalformedReply(
                "the endpoint answered with a web page instead of JSON; is the base URL right (does it end in /v1)?"
            ) from error
        raise MalformedReply(f"the reply is broken or cut JSON, {len(content)} bytes: {_shown(content)}") from error
    if not isinstance(data, dict):
        raise MalformedReply(f"the reply is JSON, but not an object: {_shown(content)}")
    return data


def _text(message: Mapping[str, Any], finish_reason: str) -> str:
    if finish_reason == "content_filter":
        raise ContentFiltered("the endpoint's content filter withheld the answer")
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
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return Usage(prompt, completion)


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not logprobs or not logprobs.get("content"):
        return ()
    return tuple(
        TokenLogprob(
            item["token"],
            float(item["logprob"]),
            tuple((other["token"], float(other["logprob"])) for other in item.get("top_logprobs") or ()),
        )
        for item in logprobs["content"]
    )


def _shown(content: bytes) -> str:
    text = content[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
