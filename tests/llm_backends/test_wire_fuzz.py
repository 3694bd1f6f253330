"""Whatever an endpoint sends is an answer or a typed error, never another exception."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructgym.errors import BackendError, ContentFiltered, MalformedReply
from instructgym.llm_backends.ledger_rows import Failure, completion_from_json, completion_to_json
from instructgym.llm_backends.openai_errors import retry_after_s, status_error
from instructgym.llm_backends.openai_wire import parse_models, parse_reply
from instructgym.types import Completion, Usage

DEEP = 100_000
NESTED = {
    "lists": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "an open end": b"[" * DEEP,
    "just within the parser's reach": b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b"}}",
}
VALID: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m-1",
    "choices": [
        {
            "index": i,
            "message": {"role": "assistant", "content": f"answer {i}", "refusal": None},
            "finish_reason": "stop",
            "logprobs": {
                "content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.0}]}]
            },
        }
        for i in range(3)
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
ERROR = {"error": {"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded", "param": None}}

texts = st.text(st.characters(), max_size=8)  # half surrogate pairs among them
numbers = st.integers() | st.floats() | st.integers(10**300, 10**301) | st.integers(-(10**40), -1)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
paths = st.lists(st.integers(0, 10), min_size=1, max_size=6)


def changed(value: Any, path: list[int], leaf: Any, *, drop: bool) -> Any:
    """`value` with what `path` leads to replaced by `leaf`, or taken out."""
    if not isinstance(value, dict | list) or not value or not path:
        return leaf
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and drop:
        del copy[key]
    else:
        copy[key] = changed(value[key], path[1:], leaf, drop=drop)
    return copy


mutations = st.lists(st.tuples(paths, json_values, st.booleans()), min_size=1, max_size=3)


def mutated(value: Any, changes: list[tuple[list[int], Any, bool]]) -> bytes:
    for path, leaf, drop in changes:
        value = changed(value, path, leaf, drop=drop)
    return json.dumps(value).encode()


def check_reply(content: bytes, content_type: str = "application/json", n: int = 3) -> None:
    try:
        completion = parse_reply(content, content_type, n)
    except (ContentFiltered, MalformedReply) as error:
        message = str(error)
    else:
        check_completion(completion, n)
        return
    message.encode()  # it can be written anywhere
    assert len(message) < 1000


def check_completion(completion: Completion, n: int) -> None:
    assert type(completion) is Completion
    for choice in (completion, *completion.others):
        assert type(choice.text) is str
        assert type(choice.finish_reason) is str
        assert not any(math.isnan(token.logprob) for token in choice.logprobs)
    assert len(completion.others) < n
    if completion.usage is not None:
        assert min(completion.usage.prompt_tokens, completion.usage.completion_tokens) >= 0
        assert max(completion.usage.prompt_tokens, completion.usage.completion_tokens) < 2**63  # SQLite's integers
    assert completion_from_json(completion_to_json(completion)) == completion


def check_error(status: int, content: bytes, headers: dict[str, str]) -> None:
    error = status_error(status, content, headers, url="http://h/v1", model="m", key_variable="KEY")
    assert isinstance(error, BackendError)
    assert error.status == status
    assert "\n" not in str(error)
    assert len(str(error)) < 1000
    Failure.from_json(type(error).__name__, Failure.of(error).to_json())
    str(error).encode()


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=300), content_type=texts)
def test_any_bytes(content: bytes, content_type: str):
    check_reply(content, content_type)
    parse_models(content)
    check_error(500, content, {})


@settings(max_examples=150, deadline=None)
@given(json_values)
def test_any_json(value: Any):
    content = json.dumps(value).encode()
    check_reply(content)
    parse_models(content)
    check_error(400, content, {})


@settings(max_examples=400, deadline=None)
@given(mutations)
def test_valid_reply_with_parts_replaced_or_taken_out(changes: list[tuple[list[int], Any, bool]]):
    check_reply(mutated(VALID, changes))
    check_error(400, mutated(ERROR, changes), {})
    parse_models(mutated({"data": [{"id": "a"}, {"id": "b"}]}, changes))


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 700), noise=st.binary(max_size=20), at=st.integers(0, 700))
def test_valid_reply_cut_or_with_noise_in_it(cut: int, noise: bytes, at: int):
    content = json.dumps(VALID).encode()
    check_reply(content[:cut])
    check_reply(content[:at] + noise + content[at:])


@pytest.mark.parametrize("content", NESTED.values(), ids=NESTED)
def test_nesting_beyond_pythons_stack(content: bytes):
    with pytest.raises(MalformedReply):
        parse_reply(content)
    reply = json.dumps(VALID).replace('"answer 1"', content.decode()).encode()
    with pytest.raises(MalformedReply):
        parse_reply(reply, n=3)
    assert parse_models(content) == []
    check_error(400, content, {})


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ('"prompt_tokens": 3', '"prompt_tokens": ' + "9" * 5000, MalformedReply),  # beyond what Python converts
        ('"prompt_tokens": 3', '"prompt_tokens": ' + "9" * 400, None),
        ('"prompt_tokens": 3', '"prompt_tokens": -3', None),
        ('"prompt_tokens": 3', '"prompt_tokens": true', None),
        ('"prompt_tokens": 3', '"prompt_tokens": NaN', None),
        ('"prompt_tokens": 3', '"prompt_tokens": 1, "prompt_tokens": 4', Usage(4, 2)),  # the last of two keys counts
        ('"logprob": -0.5', '"logprob": NaN', MalformedReply),
        ('"logprob": -0.5', '"logprob": Infinity', MalformedReply),
        ('"logprob": -0.5', '"logprob": ' + "9" * 400, MalformedReply),
        ('"logprob": -0.5', '"logprob": -Infinity', Usage(3, 2)),  # a token that could not be
        ('"answer 0"', '"\\ud800"', Usage(3, 2)),
        ('"answer 0"', "Infinity", MalformedReply),
        ('"finish_reason": "stop"', '"finish_reason": 1', MalformedReply),
    ],
)
def test_values_that_json_allows_and_a_program_may_not_expect(old: str, new: str, outcome: Any):
    content = json.dumps(VALID).replace(old, new).encode()
    check_reply(content)
    if outcome is MalformedReply:
        with pytest.raises(MalformedReply):
            parse_reply(content, n=3)
    else:
        assert parse_reply(content, n=3).usage == outcome


def test_bytes_that_are_no_utf8():
    content = json.dumps(VALID).replace("answer 0", "answer X").encode()
    for wrong in (b"\xff", b"\xc3", b"\x80", b"\xf0\x28"):
        with pytest.raises(MalformedReply, match=r"broken or cut JSON"):
            parse_reply(content.replace(b"X", wrong))
        check_error(400, b'{"error": "' + wrong + b'"}', {})


@settings(max_examples=300, deadline=None)
@given(texts | st.floats().map(str) | st.dates().map(lambda date: date.strftime("%a, %d %b %Y 07:28:00 GMT")))
@example("inf")
@example("nan")
@example("1e999")
@example("-5")
@example("Wed, 99 Foo 99999999999999999999 99:99:99 GMT")
@example("Mon, 1 Jan 1 0:0:0 +99999999")
@example("9" * 5000)
def test_retry_after_is_seconds_or_nothing(text: str):
    for name in ("retry-after", "retry-after-ms"):
        seconds = retry_after_s({name: text})
        assert seconds is None or 0.0 <= seconds < math.inf
        check_error(503, b"", {name: text})


@settings(max_examples=100, deadline=None)
@given(status=st.integers(300, 999), location=texts | st.just("http://[::1/x") | st.just("https://u:p@h/v1?k=1"))
def test_any_status_and_location(status: int, location: str):
    check_error(status, b"{}", {"location": location})
