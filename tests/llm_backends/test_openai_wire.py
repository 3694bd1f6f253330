import json

import pytest

from instructgym.errors import ConfigError, ContentFiltered, MalformedReply
from instructgym.llm_backends.openai_wire import encode_request, parse_models, parse_reply, request_body
from instructgym.types import Choice, Completion, Sampling, TokenLogprob, Usage

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


@pytest.mark.parametrize(
    ("name", "instead"),
    [("n", "sampling.n, which the budget counts"), ("stream", "no extra at all; replies are read whole")],
)
def test_extra_fields_that_would_break_the_reading_are_refused(name: str, instead: str):
    with pytest.raises(ConfigError) as caught:
        request_body(ask(sampling=Sampling(extra=((name, "1"),))), seed=None)
    assert str(caught.value) == f"sampling.extra holds '{name}'; use {instead}"


def test_extra_field_that_no_json_holds_is_refused():
    for text in ("NaN", "[" * 100_000):
        with pytest.raises(ConfigError, match=r"^sampling.extra 'x' is .*; expected JSON text"):
            request_body(ask(sampling=Sampling(extra=(("x", text),))), seed=None)


def test_body_is_ascii_whatever_the_prompt_holds():
    encoded = encode_request(ask("指令 \ud83d\x00 🪁", sampling=Sampling(n=3)), seed=None)
    assert encoded.isascii()
    assert json.loads(encoded)["messages"][0]["content"] == "指令 \ud83d\x00 🪁"
    assert json.loads(encoded)["n"] == 3


def choices(*texts: str | None, **first: object) -> bytes:
    rows: list[dict] = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
    rows[0].update(first)
    return json.dumps({"choices": rows, "usage": {"prompt_tokens": 3, "completion_tokens": 9}}).encode()


def test_further_choices_are_read():
    first = {"finish_reason": "length"}
    completion = parse_reply(choices("a", "b", "c", **first), "", n=3)
    assert completion == Completion("a", "length", Usage(3, 9), others=(Choice("b"), Choice("c")))
    assert parse_reply(choices("a", "b", "c"), "", n=2).others == (Choice("b"),)  # no more than asked
    assert parse_reply(choices("a", None), "", n=1) == Completion("a", "stop", Usage(3, 9))
    assert parse_reply(choices("a", "b"), "", n=4).others == (Choice("b"),)  # fewer are taken


def test_one_broken_choice_is_a_malformed_reply():
    with pytest.raises(MalformedReply, match=r"^the reply's message has no content$"):
        parse_reply(choices("a", None), "", n=2)
    with pytest.raises(MalformedReply, match=r"^the reply's choice 2 is not a chat message: "):
        parse_reply(b'{"choices": [{"message": {"content": "a"}}, 5]}', "", n=2)


def test_withheld_choices_are_left_out_while_others_are_there():
    withheld = {"finish_reason": "content_filter"}
    assert parse_reply(choices("a", "b", **withheld), "", n=2) == Completion("b", "stop", Usage(3, 9))
    with pytest.raises(ContentFiltered):
        parse_reply(choices("a", **withheld), "", n=2)


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


def test_model_lists_are_read_or_empty():
    assert parse_models(b'{"data": [{"id": "a"}, {"id": "b"}]}') == ["a", "b"]
    for content in (b"", b"<html>", b"[]", b'{"data": null}', b'{"data": [{}]}'):
        assert parse_models(content) == []
