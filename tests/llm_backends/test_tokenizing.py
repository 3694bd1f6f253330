from __future__ import annotations

from pathlib import Path

import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.tokenizing import ByteTokenizer, ModelTokenizer, open_tokenizer
from tests.llm_backends.tiny_models import make_tokenizer


@pytest.mark.parametrize("text", ["", "Sort.", "שלום 🙂\n\x00", "lone \udcff surrogate"])
def test_bytes_come_back_as_they_were(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(1 <= number <= 256 for number in ids)
    assert tokenizer.decode(ids) == text


def test_a_character_that_is_cut_at_the_end_is_left_out() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("ab字")
    assert [tokenizer.decode(ids[:length]) for length in range(6)] == ["", "a", "ab", "ab", "ab", "ab字"]


def test_a_text_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = open_tokenizer(str(tmp_path))
    assert isinstance(tokenizer, ModelTokenizer)
    assert tokenizer.vocab_size == len(make_tokenizer())
    assert (tokenizer.before, tokenizer.after, tokenizer.pad) == ((), (), 1)
    found = tokenizer.encode("a<|end|>b")
    assert 0 not in found
    assert make_tokenizer().decode(found) == "a<|end|>b"
    assert tokenizer.encode("a \udcff") == tokenizer.encode("a ?")
    assert open_tokenizer(str(tmp_path)) is tokenizer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (" ", "the tokenizer's name is empty; expected 'bytes', or the name or folder of a model."),
        ("./nowhere", "there is no folder nowhere; expected a folder with a model, or a name such as 'org/model'"),
    ],
)
def test_names_that_nothing_answers_to(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tokenizer(name)
    assert str(caught.value) == message


def test_a_folder_without_a_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tokenizer(str(tmp_path))
    assert str(caught.value).startswith(f"the tokenizer of '{tmp_path}' cannot be loaded: ")
    assert str(caught.value).endswith("; expected a tokenizer saved there with save_pretrained")
