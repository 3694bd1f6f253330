"""A tiny student, and data that it learns in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra align")

import torch

from instructgym.train.tuning.examples import PreferenceExample, SFTExample
from instructgym.types import Message
from tests.llm_backends.tiny_models import save

PLACES = ("north", "south", "ship", "sky", "book", "morning", "story", "sum")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder of two layers with a chat template. Not to be changed by tests."""
    return save(tmp_path_factory.mktemp("models") / "m0", spread=0.05)


def turn(question: str, answer: str) -> SFTExample:
    return SFTExample((Message("user", question), Message("assistant", answer)))


def conversations(count: int) -> list[SFTExample]:
    return [turn(f"say {number}", f"it is {PLACES[number % len(PLACES)]}") for number in range(count)]


def preferences(count: int) -> list[PreferenceExample]:
    """Pairs of weights 0.5 to 1.5, whose rejected answers are the longer ones."""
    return [
        PreferenceExample(
            (Message("user", f"say {number}"),),
            f"it is {PLACES[number % len(PLACES)]}",
            f"it is nothing at all{' again' * (number % 2)}",
            0.5 + 0.5 * (number % 3),
        )
        for number in range(count)
    ]
