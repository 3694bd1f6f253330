from __future__ import annotations

import pytest

from instructgym.errors import BadRequest
from instructgym.llm_backends.local_transformers.prompts import Prompts, fold_system, plain_prompt
from instructgym.llm_backends.local_transformers.texts import Texts, cut_at_stop
from instructgym.types import Message

from .tiny_models import CHATML, make_tokenizer

SYSTEM = Message("system", "Be brief.")
USER = Message("user", "What is a ship?")
REFUSES = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DROPS = CHATML.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}")


def written(template: str | None, *messages: Message, **kwargs: object) -> str:
    tokenizer = make_tokenizer(template)
    return str(tokenizer.decode(Prompts(tokenizer, "tiny").ids(messages, kwargs)))


def test_chat_template_writes_the_prompt() -> None:
    assert written(CHATML, SYSTEM, USER) == ("<|system|>Be brief.<|end|><|user|>What is a ship?<|end|><|assistant|>")


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_system_text_goes_to_the_user_where_the_template_has_no_place_for_it(template: str) -> None:
    assert written(template, SYSTEM, USER) == "<|user|>Be brief.\n\nWhat is a ship?<|end|><|assistant|>"


def test_folding_without_a_user_message_makes_one() -> None:
    assistant = Message("assistant", "Ahoy.")
    assert fold_system([SYSTEM, assistant]) == [Message("user", "Be brief."), assistant]
    assert fold_system([USER]) == [USER]


def test_plain_prompt_where_there_is_no_template() -> None:
    assistant, more = Message("assistant", "A boat."), Message("user", "How large?")
    expected = "Be brief.\n\nUser: What is a ship?\n\nAssistant: A boat.\n\nUser: How large?\n\nAssistant:"
    assert plain_prompt([SYSTEM, USER, assistant, more]) == expected
    assert written(None, SYSTEM, USER, assistant, more) == expected


def test_plain_prompt_ends_an_answer_at_the_next_turn() -> None:
    assert Prompts(make_tokenizer(None), "tiny").stop == ("\n\nUser:",)
    assert Prompts(make_tokenizer(CHATML), "tiny").stop == ()


def test_template_kwargs_reach_the_template() -> None:
    template = "{% if quiet is defined %}{{ quiet }}{% endif %}" + CHATML
    assert written(template, USER, quiet="hush").startswith("hush<|user|>")


def test_template_kwargs_without_a_template_are_refused() -> None:
    with pytest.raises(BadRequest) as error:
        written(None, USER, enable_thinking=False)
    assert str(error.value) == (
        "the tokenizer of 'tiny' has no chat template that could read chat_template_kwargs; "
        "take them out of sampling.extra"
    )


def test_a_template_that_refuses_the_messages_says_so() -> None:
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Start with the user') }}{% endif %}" + CHATML
    with pytest.raises(BadRequest) as error:
        written(template, Message("assistant", "hello"), USER)
    assert str(error.value) == (
        "the chat template of 'tiny' refuses messages of the roles assistant, user: Start with the user"
    )


def test_pieces_keep_the_space_in_front_and_join_to_the_text() -> None:
    tokenizer = make_tokenizer()
    texts = Texts(tokenizer)
    ids = tokenizer(" the story", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert "".join(texts.piece(token) for token in ids) == " the story" == texts.text(ids)


@pytest.mark.parametrize("stop", [("story",), ("é",), ("about a sh", "xyz")])
def test_a_stop_string_is_seen_with_the_token_that_completes_it(stop: tuple[str, ...]) -> None:
    tokenizer = make_tokenizer()
    texts = Texts(tokenizer)
    ids = tokenizer("Write a story, café, about a ship" + " and more" * 30, add_special_tokens=False)["input_ids"]
    first = next(count for count in range(1, len(ids)) if any(one in texts.text(ids[:count]) for one in stop))
    assert [count for count in range(1, first + 1) if texts.holds_stop(ids[:count], stop)] == [first]


def test_tokens_before_a_cut() -> None:
    tokenizer = make_tokenizer()
    texts = Texts(tokenizer)
    ids = tokenizer("Write a story", add_special_tokens=False)["input_ids"]
    for count in range(len(ids) + 1):
        assert texts.tokens_before(ids, len(texts.text(ids[:count]))) == count


def test_the_first_stop_string_in_the_text_cuts() -> None:
    assert cut_at_stop("one two three", ("three", "two")) == ("one ", True)
    assert cut_at_stop("one", ("two",)) == ("one", False)
    assert cut_at_stop("one", ()) == ("one", False)
