from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from instructgym.llm_backends.local_transformers.sampling import ROUNDING, Draw, choose

LOGITS = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0]])


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """The truncated distribution, by sorting: (V,) float64."""
    p = np.exp(logits.double().numpy() / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    kept = np.zeros_like(p)
    kept[order[before < top_p]] = p[order[before < top_p]]
    return kept / kept.sum()


def tokens(draws: list[Draw], logits: torch.Tensor = LOGITS) -> list[int]:
    return choose(logits.expand(len(draws), -1), draws)[0].tolist()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.6, 0.2])
def test_frequencies_are_those_of_the_truncated_distribution(temperature: float, top_p: float) -> None:
    seeds = range(4000)
    drawn = tokens([Draw(temperature, top_p, seed, 3) for seed in seeds])
    expected = nucleus(LOGITS[0], temperature, top_p)
    counts = np.bincount(drawn, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    if inside.sum() > 1:
        assert chisquare(counts[inside], expected[inside] * len(seeds)).pvalue > 1e-3


def test_positions_of_one_seed_are_independent_draws() -> None:
    drawn = tokens([Draw(1.0, 1.0, 7, position) for position in range(4000)])
    counts = np.bincount(drawn, minlength=8)
    assert chisquare(counts, nucleus(LOGITS[0], 1.0, 1.0) * 4000).pvalue > 1e-3
    pairs = np.histogram2d(drawn[:-1], drawn[1:], bins=8)[0]
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.06
    assert pairs.sum() == 3999


def test_seed_and_position_fix_a_draw_and_each_of_them_matters() -> None:
    flat = torch.zeros(1, 1000)
    draws = [Draw(1.0, 1.0, seed, position) for seed in range(20) for position in range(20)]
    first = tokens(draws, flat)
    assert tokens(draws, flat) == first
    assert len(set(first)) > 250


def test_temperature_zero_takes_the_likeliest_whatever_the_seed() -> None:
    assert set(tokens([Draw(0.0, 0.9, seed, 0) for seed in range(20)])) == {0}


def test_tiny_temperature_and_tiny_top_p_are_greedy() -> None:
    assert set(tokens([Draw(1e-300, 1.0, seed, 0) for seed in range(20)])) == {0}
    assert set(tokens([Draw(1.0, 1e-9, seed, 0) for seed in range(20)])) == {0}


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, torch.finfo(torch.float32).min, 0.0, -math.inf]])
    for rounding in (0.0, ROUNDING):
        draws = [Draw(1.0, 1.0, seed, 0) for seed in range(200)]
        drawn, unsure = choose(logits.expand(200, -1), draws, rounding)
        assert set(drawn.tolist()) == {1, 3}
        assert unsure.float().mean() < 0.05


def test_neighbours_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 300, generator=generator) * 3
    draws = [Draw([0.0, 0.7, 1.3][row % 3], [1.0, 0.9, 0.3][row % 5 % 3], row, row % 7) for row in range(64)]
    together = choose(logits, draws)[0].tolist()
    assert together == [int(choose(logits[row : row + 1], [draws[row]])[0]) for row in range(64)]


def test_a_sure_draw_survives_any_rounding_and_unsure_ones_are_rare() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2000, 300, generator=generator) * 3
    draws = [Draw([0.0, 0.2, 0.7, 1.3][row % 4], [1.0, 0.9, 0.5][row % 3], row, 0) for row in range(2000)]
    drawn, unsure = choose(logits, draws, ROUNDING)
    assert 0 < unsure.sum() < 0.02 * len(draws)
    half = ROUNDING / 2 * logits.abs().amax(dim=1, keepdim=True)
    changed = torch.zeros_like(unsure)
    for _ in range(10):
        moved = logits + half * torch.empty_like(logits).uniform_(-1, 1, generator=generator).sign()
        changed |= choose(moved, draws)[0] != drawn
    assert changed.any()  # else the test shows nothing
    assert not (changed & ~unsure).any()


def test_without_rounding_no_row_is_unsure() -> None:
    logits = torch.zeros(4, 10)
    draws = [Draw(temperature, 0.5, 0, 0) for temperature in (0.0, 1.0, 0.0, 1.0)]
    assert not choose(logits, draws)[1].any()
    assert choose(logits, draws, ROUNDING)[0].shape == (4,)


def test_exact_ties_are_unsure_at_temperature_zero() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [1.0, 2.0, 3.0]])
    drawn, unsure = choose(logits, [Draw(0.0, 1.0, 0, 0)] * 2, ROUNDING)
    assert drawn.tolist() == [1, 2]
    assert unsure.tolist() == [True, False]
