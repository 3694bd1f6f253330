import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import BackendError, ConfigError, ContentFiltered, MalformedReply
from instructgym.llm_backends.openai_wire import parse_models, parse_reply, request_body
from instructgym.types import Completion, Sampling, TokenLogprob, Usage

from .fakes import ask


def reply(**choice) -> bytes:
    return json.dumps(
        {"model": "m", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop", **choice}]}
    ).encode()


def test_body_holds_what_the_sampling_says():
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=7, stop=("END",), top_logprobs=2)
    assert request_body(ask("x", sampling=sampling), seed=5) == {
        "model": "simulated",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["END"],
        "seed": 5,
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_extra_fields_add_replace_and_take_away():
    extra = (("max_completion_tokens", "9"), ("temperature", "null"), ("response_format", '{"type": "json_object"}'))
    assert request_body(ask("x", sampling=Sampling(extra=extra)), seed=None) == {
        "model": "simulated",
        "messages": [{"role": "user", "content": "x"}],
        "top_p": 0.95,
        "max_completion_tokens": 9,
        "response_format": {"type": "json_object"},
    }
    with pytest.raises(ConfigError) as caught:
        request_body(ask(sampling=Sampling(extra=(("mood", "happy"),))), seed=None)
    assert str(caught.value) == "sampling.extra 'mood' is 'happy'; expected JSON text, such as 'true' or '\"low\"'"


def test_logprobs_and_usage_are_read():
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2}]
    content = json.dumps(
        {
            "model": "m-1",
            "choices": [
                {
                    "message": {"content": "a"},
                    "finish_reason": "length",
                    "logprobs": {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]},
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        }
    ).encode()
    logprobs = (TokenLogprob("a", -0.1, (("a", -0.1), ("b", -2.0))),)
    assert parse_reply(content, "application/json") == Completion("a", "length", Usage(3, 1), "m-1", logprobs)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (reply(message={"content": ""}), Completion("", "stop", None, "m")),
        (reply(message={"content": None}, finish_reason="length"), Completion("", "length", None, "m")),
        (reply(message={"content": None, "refusal": "I cannot."}), Completion("I cannot.", "stop", None, "m")),
        (reply(finish_reason=None), Completion("hi", "stop", None, "m")),
        (b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "3"}}', Completion("x")),
        (b'{"choices": [{"message": {"content": "x"}}], "usage": null}', Completion("x")),
    ],
)
def test_replies_that_are_answers(content: bytes, expected: Completion):
    assert parse_reply(content, "application/json") == expected


@pytest.mark.parametrize(
    ("content", "content_type", "message"),
    [
        (b'{"choices": []}', "application/json", "the reply's list of choices is empty"),
        (b"{}", "application/json", "the reply has no list of choices: '{}'"),
        (b'{"choices": null}', "application/json", "the reply has no list of choices: '{\"choices\": null}'"),
        (b"[1]", "application/json", "the reply is JSON, but not an object: '[1]'"),
        (b'{"cho', "application/json", "the reply is broken or cut JSON, 5 bytes: '{\"cho'"),
        (b"", "application/json", "the reply is broken or cut JSON, 0 bytes: ''"),
        (b'\xff\xfe{"a"', "application/json", None),
        (
            b"<html>no</html>",
            "text/html; charset=utf-8",
            "the endpoint answered with a web page instead of JSON; is the base URL right (does it end in /v1)?",
        ),
        (reply(message={"content": None}), "application/json", "the reply's message has no content"),
        (reply(message={"content": None, "tool_calls": [1]}), "application/json", "the reply's message has no content"),
        (reply(message=[]), "application/json", None),
        (reply(message={"content": {"a": 1}}), "application/json", None),
        (
            b'{"choices": [5]}',
            "application/json",
            "the reply's first choice is not a chat message: '{\"choices\": [5]}'",
        ),
        (reply(logprobs={"content": [{"token": "a"}]}), "application/json", None),
    ],
)
def test_replies_that_are_none(content: bytes, content_type: str, message: str | None):
    with pytest.raises(MalformedReply) as caught:
        parse_reply(content, content_type)
    if message is not None:
        assert str(caught.value) == message


def test_filtered_answer_is_an_error_of_its_own():
    with pytest.raises(ContentFiltered, match=r"^the endpoint's content filter withheld the answer$"):
        parse_reply(reply(finish_reason="content_filter"), "application/json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "logprobs", "finish_reason", "prompt_tokens"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(json_values | st.fixed_dictionaries({"choices": st.lists(json_values, max_size=2)}))
def test_any_json_is_an_answer_or_a_typed_error(value: object):
    with contextlib.suppress(BackendError):
        assert isinstance(parse_reply(json.dumps(value).encode(), "application/json").text, str)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_an_answer_or_a_typed_error(noise: bytes, cut: int):
    for content in (noise, reply()[:cut], reply()[:cut] + noise):
        with contextlib.suppress(BackendError):
            parse_reply(content, "application/json")


def test_model_lists_are_read_or_empty():
    assert parse_models(b'{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    for content in (b"", b"<html>", b"[]", b'{"data": null}', b'{"data": [{}]}'):
        assert parse_models(content) == []
