"""Encoders by name."""

from __future__ import annotations

import importlib.util
import logging
import os

from instructgym.errors import ConfigError
from instructgym.rewards.encoders.base import Encoder
from instructgym.rewards.encoders.hashing import HashingEncoder
from instructgym.rewards.encoders.sentence import SentenceTransformerEncoder

__all__ = ["open_encoder"]

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def open_encoder(name: str = "auto") -> Encoder:
    """The encoder of that name; what was chosen is logged at INFO.

    Args:
        name: ``hashing`` or ``hashing:DIM``; ``auto`` (all-MiniLM-L6-v2 if it is in the local Hugging Face cache,
            else hashing; never a download); else the name or folder of a sentence-transformers model, which is loaded
            at once.

    Raises:
        ConfigError: the name is malformed or the model cannot be loaded.
    """
    if name == "hashing" or name.startswith("hashing:"):
        encoder: Encoder = HashingEncoder(_dim(name))
        logger.info("encoder: %s", encoder.name)
        return encoder
    if name == "auto":
        return _auto()
    if not name.strip():
        raise ConfigError(
            "the encoder's name is empty; expected 'auto', 'hashing', 'hashing:DIM', a model or a folder."
        )
    model = SentenceTransformerEncoder(name)
    try:
        model.load()
    except BaseException:
        model.close()
        raise
    logger.info("encoder: %s (sentence-transformers, %d dimensions)", model.name, model.dim)
    return model


def _dim(name: str) -> int:
    _, colon, digits = name.partition(":")
    if not colon:
        return 256
    if not digits.isascii() or not digits.isdigit():
        raise ConfigError(f"encoder '{name}' has no number after the colon; expected e.g. 'hashing:256'.")
    return int(digits)


def _auto() -> Encoder:
    reason = "all-MiniLM-L6-v2 is not in the local Hugging Face cache"
    if _in_local_cache(DEFAULT_MODEL):
        model = SentenceTransformerEncoder(DEFAULT_MODEL, local_files_only=True)
        try:
            model.load()
        except ConfigError as error:
            model.close()
            reason = str(error)
        else:
            logger.info("encoder: %s (sentence-transformers, %d dimensions)", model.name, model.dim)
            return model
    encoder = HashingEncoder()
    logger.info("encoder: %s (%s)", encoder.name, reason)
    return encoder


def _in_local_cache(model: str) -> bool:
    """Looked up without importing sentence-transformers, which takes seconds."""
    if importlib.util.find_spec("huggingface_hub") is None or importlib.util.find_spec("sentence_transformers") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "modules.json"), (str, os.PathLike))
