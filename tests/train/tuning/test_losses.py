"""The preference losses against hand-made numbers."""

from __future__ import annotations

import math

import pytest
import torch

from instructgym.train.tuning.losses import Logps, pair_losses


def logps(*rows: tuple[float, float, float, float, int, int]) -> Logps:
    return Logps(*(torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # d = (-10 - -12) - (-9 - -8) = 3; by lengths 2/4 - -1/5 = 0.7
        ("sigmoid", -math.log(sigmoid(0.5 * 3))),
        ("sigmoid_norm", -math.log(sigmoid(0.5 * 0.7))),
        ("hinge", 0.0),
        ("ipo", (0.7 - 1) ** 2),
        ("robust", (-0.8 * math.log(sigmoid(1.5)) + 0.2 * math.log(sigmoid(-1.5))) / 0.6),
        ("sft", 2.5),
    ],
)
def test_a_loss_is_what_its_paper_says(name: str, expected: float) -> None:
    rows = logps((-10.0, -9.0, -12.0, -8.0, 4, 5))
    assert pair_losses(name, rows, beta=0.5, label_smoothing=0.2).tolist() == pytest.approx([expected])


def test_a_hinge_is_there_while_the_margin_is_small_and_strangers_are_refused() -> None:
    rows = logps((-10.0, -9.0, -12.0, -8.0, 4, 5))
    assert pair_losses("hinge", rows, beta=0.1).tolist() == pytest.approx([0.7])
    with pytest.raises(ValueError, match="there is no preference loss 'dpo'"):
        pair_losses("dpo", rows, beta=0.1)
