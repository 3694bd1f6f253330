"""Texts as token ids, for whoever reads tokens: bytes, which need nothing, or the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from instructgym.errors import ConfigError

__all__ = ["BYTES", "ByteTokenizer", "ModelTokenizer", "Tokenizer", "open_tokenizer"]

BYTES = "bytes"
"""The name of the `ByteTokenizer`."""


class Tokenizer(Protocol):
    """A tokenizer of transformers or tokenizers fits, wrapped if need be (`ModelTokenizer`)."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Sequence[int]: ...


class ByteTokenizer:
    """UTF-8 bytes, moved up by one; 0 is left to padding."""

    vocab_size = 257

    def encode(self, text: str) -> Sequence[int]:
        return [byte + 1 for byte in text.encode("utf-8", "surrogatepass")]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. A character that is cut at the end is left out."""
        raw = bytes(number - 1 for number in ids)
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            return raw[: error.start].decode("utf-8", "surrogatepass")


class ModelTokenizer:
    """A tokenizer of transformers. A text that spells a special token is text: it gets no special token.

    `vocab_size` counts the added tokens. `before` and `after` are the special tokens that the model wants around a
    text ([CLS] and [SEP] of BERT); `encode` adds none.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name = name
        self.vocab_size = len(tokenizer)
        self.pad: int = tokenizer.pad_token_id or 0  # masked, so any token will do
        self.longest: int = tokenizer.model_max_length  # an absurdly large number if it does not say
        self._tokenizer = tokenizer
        plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(tokenizer("a", add_special_tokens=True)["input_ids"])
        starts = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
        start = starts[0] if starts else len(whole)
        self.before: tuple[int, ...] = tuple(whole[:start]) if starts else ()
        self.after: tuple[int, ...] = tuple(whole[start + len(plain) :])

    def encode(self, text: str) -> Sequence[int]:
        clean = text.encode("utf-8", "replace").decode()  # no tokenizer takes lone surrogates
        found: Sequence[int] = self._tokenizer(
            clean, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return found


def open_tokenizer(name: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """``bytes``, or the tokenizer of a model of transformers by its name or folder; one of a name is kept.

    Raises `ConfigError` if there is no such tokenizer.
    """
    if not name.strip():
        raise ConfigError("the tokenizer's name is empty; expected 'bytes', or the name or folder of a model.")
    return ByteTokenizer() if name == BYTES else _of_model(name, trust_remote_code)


@lru_cache(maxsize=8)
def _of_model(name: str, trust_remote_code: bool) -> ModelTokenizer:
    from transformers import AutoTokenizer

    from instructgym.llm_backends.local_transformers.loading import fetched, model_source, place_of

    folder = Path(name).expanduser()
    if folder.is_dir():
        place = str(folder)  # a tokenizer may lie there without its model
    else:
        source = model_source(name, device="auto", dtype="auto", revision=None, trust_remote_code=trust_remote_code)
        place = place_of(source)
    tokenizer = fetched(
        place,
        "tokenizer",
        lambda: AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code),
    )
    return ModelTokenizer(tokenizer, name)
