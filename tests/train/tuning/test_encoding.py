"""Training sees the ids of inference: of every prompt, and of every answer up to the token that ends it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.local_transformers import TransformersBackend
from instructgym.llm_backends.local_transformers.loading import load, model_source
from instructgym.train.tuning.encoding import IGNORED, answer_ids, encode_pairs, encode_texts
from instructgym.train.tuning.examples import PreferenceExample, SFTExample
from instructgym.train.tuning.settings import SFTSettings
from instructgym.train.tuning.sft import train_sft
from instructgym.train.tuning.student import open_student
from instructgym.types import Message
from tests.llm_backends.tiny_models import CHATML, question, save

from .conftest import conversations, turn

HEADERS = (  # Llama 3's way: a header line, the text trimmed
    "{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
SHORT_HISTORY = (  # what reasoning models do: thoughts of turns that are over are left out
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = (
    Message("system", "Be brief."),
    Message("user", "Name a ship."),
    Message("assistant", " the north "),
    Message("user", "And a book?"),
    Message("assistant", "<think>which one</think>a story"),
    Message("user", "Thank you."),
    Message("assistant", "Good morning."),
)


@pytest.mark.parametrize("template", [CHATML, HEADERS, SHORT_HISTORY, NO_END, NO_SYSTEM, "plain"])
def test_every_prompt_has_the_ids_of_inference_and_every_answer_ends(tmp_path: Path, template: str) -> None:
    folder = save(tmp_path / "m0", template=None if template == "plain" else template)
    student = open_student(folder, chat_template="plain" if template == "plain" else "")
    (rows,), dropped = encode_texts(student, [SFTExample(TURNS)], 256)
    assert dropped == {}
    student.tokenizer.save_pretrained(folder)  # as a trained model is saved
    asked = load(model_source(folder, device="cpu", dtype="auto", revision=None, trust_remote_code=False))
    learned = []
    for row in rows:
        place = 0
        while place < len(row.labels):
            if row.labels[place] == IGNORED:
                place += 1
                continue
            end = place
            while end < len(row.labels) and row.labels[end] != IGNORED:
                assert row.labels[end] == row.input_ids[end]
                end += 1
            learned.append((row.input_ids[:place], row.input_ids[place:end]))
            place = end
    at = [number for number, message in enumerate(TURNS) if message.role == "assistant"]
    assert [prompt for prompt, _ in learned] == [asked.prompts.ids(TURNS[:number], {}) for number in at]
    for (_, answer), number in zip(learned, at, strict=True):
        assert answer[-1] in asked.eos
        assert not set(answer[:-1]) & asked.eos
        assert student.tokenizer.decode(answer[:-1]).strip() == TURNS[number].content.strip()
    assert len(rows) == {SHORT_HISTORY: 2, NO_END: 3}.get(template, 1)


def test_a_pair_has_the_ids_of_inference(tiny: Path) -> None:
    student = open_student(tiny)
    prompt = (Message("system", "Be brief."), Message("user", "Name a ship."))
    (pair,), _ = encode_pairs(student, [PreferenceExample(prompt, "north", "south", 2.0)], 256)
    asked = load(model_source(tiny, device="cpu", dtype="auto", revision=None, trust_remote_code=False))
    assert pair.prompt_ids == asked.prompts.ids(prompt, {})
    assert student.tokenizer.decode(pair.chosen_ids) == "north<|end|>"
    assert student.tokenizer.decode(pair.rejected_ids) == "south<|end|>"
    assert pair.weight == 2.0


def test_a_trained_model_answers_what_it_has_learned_and_stops(tiny: Path, tmp_path: Path) -> None:
    settings = SFTSettings(lr=3e-3, batch_size=8, max_steps=40, save_every=None)
    result = train_sft(tiny, conversations(8), settings, tmp_path / "out", device="cpu")

    async def ask() -> tuple[str, str]:
        backend = TransformersBackend(result.model, device="cpu")
        completion = await backend.complete(question("say 2"))
        await backend.aclose()
        return completion.text, completion.finish_reason

    assert asyncio.run(ask()) == ("it is ship", "stop")


def test_what_does_not_fit_is_left_out_and_counted_never_cut(tiny: Path) -> None:
    student = open_student(tiny)
    examples = [turn("ship", "sky"), turn("ship " * 40, "sky"), turn("ship", "sky " * 40), turn("ship", " ")]
    kept, dropped = encode_texts(student, examples, 40)
    assert [student.tokenizer.decode(row.input_ids) for rows in kept for row in rows] == [
        "<|user|>ship<|end|><|assistant|>sky<|end|>"
    ]
    assert dropped == {"prompt too long": 1, "answer too long": 1, "empty answer": 1}
    prompt = (Message("user", "ship"),)
    rows = [("sky", "book"), ("sky", "sky"), ("", "book"), ("sky " * 40, "book"), ("sky", "")]
    found, left_out = encode_pairs(student, [PreferenceExample(prompt, *row) for row in rows], 40)
    assert len(found) == 2  # an empty answer may well be the worse one
    assert left_out == {"equal answers": 1, "empty chosen answer": 1, "answer too long": 1}
    exact = len(student.prompts.ids(prompt, {})) + len(answer_ids(student, prompt, "sky"))
    assert encode_texts(student, [turn("ship", "sky")], exact)[1] == {}
    assert encode_texts(student, [turn("ship", "sky")], exact - 1)[1] == {"answer too long": 1}


def test_a_template_that_refuses_an_example_names_it(tmp_path: Path) -> None:
    picky = "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('only users') }}{% endif %}{% endfor %}"
    student = open_student(save(tmp_path / "m0", template=picky))
    expected = (
        f"example 1: the chat template of '{tmp_path / 'm0'}' refuses messages of the roles user, assistant: only users"
    )
    with pytest.raises(ConfigError) as caught:
        encode_texts(student, [turn("ship", "sky")], 40)
    assert str(caught.value) == expected
    with pytest.raises(ConfigError) as caught:
        encode_pairs(student, [PreferenceExample((Message("user", "ship"),), "sky", "book")], 40)
    assert str(caught.value) == expected


def test_the_template_that_was_given_is_saved_with_the_model(tmp_path: Path) -> None:
    folder = save(tmp_path / "m0", template=None)
    own = tmp_path / "own.jinja"
    own.write_text(CHATML, "utf-8")
    settings = SFTSettings(max_steps=1, save_every=None)
    result = train_sft(folder, conversations(4), settings, tmp_path / "out", chat_template=str(own), device="cpu")
    assert (result.model / "chat_template.jinja").read_text("utf-8") == CHATML
    assert json.loads((result.model / "generation_config.json").read_text("utf-8"))["eos_token_id"] == 0
