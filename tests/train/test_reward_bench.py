"""The reward benchmark: probes, cards, hacking, and the whole on rewards whose truth is known."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest

from instructgym.errors import ConfigError, SeedError
from instructgym.metrics.faults import template_markers
from instructgym.metrics.text import count_words, normalise
from instructgym.train.config_text import load_config
from instructgym.train.pipeline import seeds_of
from instructgym.train.reward_bench import BAD, GOOD, KINDS, bench_rewards, probe_set, reward_card
from instructgym.train.reward_bench.bench import expand_names
from instructgym.train.reward_bench.figure import _heat, draw_bench
from instructgym.train.runtime import Runtime
from instructgym.types import Instruction, Seed

CONFIG = load_config("quickstart", ["evaluate.seeds=6"])
SEEDS = seeds_of(CONFIG)
PROBES = probe_set(SEEDS.all)


# --- probes -----------------------------------------------------------------------------------------------------------
def test_every_kind_has_forty_cases_or_more_half_of_them_in_each_half():
    counts = Counter((probe.kind, probe.half) for probe in PROBES.probes)
    assert {kind for kind, _ in counts} == set(KINDS)
    assert all(count >= 20 for count in counts.values())
    assert all(counts[kind, "tuned"] == counts[kind, "held_out"] for kind in KINDS)
    assert len({probe.id for probe in PROBES.probes}) == len(PROBES.probes)


def test_the_halves_of_the_written_kinds_share_no_parent():
    written = [
        probe for probe in PROBES.probes if probe.kind in (*GOOD, "synonyms", "translation", "drift", "answered")
    ]
    parents = {
        half: {normalise(probe.transition.parent.text) for probe in written if probe.half == half}
        for half in ("tuned", "held_out")
    }
    assert not parents["tuned"] & parents["held_out"]


@pytest.mark.parametrize(
    "probe", [one for one in PROBES.probes if one.kind not in ("copy",)][::11], ids=lambda one: one.id
)
def test_a_probe_differs_from_its_parent(probe):
    assert probe.transition.child != probe.transition.parent


def test_the_mechanical_kinds_are_what_they_say():
    for probe in PROBES.probes:
        parent, child = probe.transition.parent, probe.transition.child
        match probe.kind:
            case "copy":
                assert child == parent
            case "case_spacing":
                assert normalise(child.text) == normalise(parent.text)
            case "padding":
                assert 2 * count_words(parent.text) <= count_words(child.text) <= 2 * count_words(parent.text) + 30
            case "junk_clause" | "repeated_constraint":
                assert child.text.startswith(parent.text.rstrip())
            case "near_duplicate":
                assert any(
                    normalise(kept.child.text)[-20:] in normalise(child.text) or child.text[8:24] in kept.child.text
                    for kept in PROBES.archived
                )
    leaked = [probe for probe in PROBES.probes if probe.kind == "leaked_template"]
    assert sum(bool(template_markers(probe.transition.child.text)) for probe in leaked) > len(leaked) / 2


def test_equal_seeds_are_equal_probes_and_few_seeds_are_refused():
    assert probe_set(SEEDS.all) == PROBES
    with pytest.raises(SeedError, match=r"^probes need 8 seeds of 4 to 106 words or more, got 1\.$"):
        probe_set([Seed("one", Instruction("Describe how bees make honey."))])


# --- cards ------------------------------------------------------------------------------------------------------------
def test_a_reward_that_knows_the_truth_is_fooled_by_nothing():
    card = reward_card("truth", PROBES.probes, [float(probe.good) for probe in PROBES.probes])
    assert [half.auc for half in card.halves.values()] == [1.0, 1.0]
    assert card.fooled_by == ()
    assert card.halves["tuned"].means["breadth"] == 1.0


def test_a_reward_that_pays_for_length_is_told():
    values = [float(count_words(probe.transition.child.render())) for probe in PROBES.probes]
    growth = [
        value / (1 + count_words(probe.transition.parent.render()))
        for value, probe in zip(values, PROBES.probes, strict=True)
    ]
    card = reward_card("length", PROBES.probes, growth)
    assert card.length_correlation > 0.9
    assert "padding" in card.fooled_by
    assert card.halves["held_out"].auc_by_kind["copy"] > 0.8


def test_a_constant_tells_nothing_and_what_is_missing_is_counted():
    values = [None if probe.kind == "drift" else 0.5 for probe in PROBES.probes]
    card = reward_card("constant", PROBES.probes, values)
    held_out = card.halves["held_out"]
    assert (held_out.auc, held_out.missing, held_out.means["drift"]) == (0.5, 24, None)
    assert held_out.auc_by_kind["drift"] is None
    assert card.length_correlation is None
    assert set(card.fooled_by) == set(BAD) - {"drift"}


# --- the whole --------------------------------------------------------------------------------------------------------
@pytest.fixture
def runtime():
    connected = Runtime(CONFIG)
    connected.connect(None)
    yield connected
    connected.close()


def test_the_benchmark_of_three_rewards(runtime, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def words(transition):\n    return len(transition.child.text.split())\n")
    names = ["config", f"{own}:words", "archive_novelty"]
    bench = bench_rewards(names, runtime, SEEDS, hacking_steps=64)
    assert [card.reward for card in bench.cards] == ["config", "words", "archive_novelty"]
    assert bench.facts["simulated"] == ["expert", "reviewer"]
    assert bench.asks["archive_novelty"] == ("encoder",)
    assert bench.asks["config"] == ("encoder", "reviewer")
    by_name = {card.reward: card for card in bench.cards}
    assert by_name["config"].halves["held_out"].auc > by_name["words"].halves["held_out"].auc
    # The archive was filled before the probes were scored: a near-duplicate of what it holds earns less.
    novelty = by_name["archive_novelty"].halves["held_out"].means
    assert novelty["near_duplicate"] < 0.9 * novelty["breadth"]
    assert bench.costs["words"].calls == 0.0 < bench.costs["config"].calls
    assert bench.costs["config"].prompt_tokens > 0
    matrix = bench.hacking
    assert list(matrix.totals) == ["random", "config", "words", "archive_novelty"]
    assert {"true_gain", "eliminated"} < set(matrix.totals["random"])
    assert 0 < matrix.totals["random"]["true_gain"] <= 4
    assert json.loads(json.dumps(bench.as_json()))["cards"][0]["reward"] == "config"
    for suffix in ("png", "svg"):
        draw_bench(bench, tmp_path / f"bench.{suffix}")
        assert (tmp_path / f"bench.{suffix}").stat().st_size > 10_000


def test_what_all_offline_cannot_build_is_skipped_with_a_reason_and_what_was_named_is_an_error(runtime):
    assert {"config", "ifd", "reviewer_gain"} < set(expand_names(["all-offline"]))
    assert not {"weighted_sum", "gate"} & set(expand_names(["all-offline"]))
    with pytest.raises(ConfigError, match=r"^reward 'ifd' needs the option 'model'; it got none\.$"):
        bench_rewards(["ifd"], runtime, SEEDS)
    with pytest.raises(ConfigError, match=r"^unknown reward 'noveltty'; did you mean 'novelty'\?"):
        bench_rewards(["noveltty"], runtime, SEEDS)


def test_two_rewards_of_one_name_are_refused_before_anything_is_measured(runtime, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("def novelty(transition):\n    return 0.0\n")
    with pytest.raises(ConfigError, match=r"^more than one reward is called \['novelty'\]; names must be unique\.$"):
        bench_rewards(["novelty", f"{own}:novelty"], runtime, SEEDS)
    assert expand_names(["novelty", "novelty"]) == ["novelty"]


def test_numbers_in_the_figure_can_be_read_on_dark_cells_and_are_not_minus_zero():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _heat(axes, np.array([[1.0, 0.5, math.nan, -0.0004]]), ["row"], ["a", "b", "c", "d"], "RdYlGn", 0.0, 1.0, "{:+.2f}")
    assert [(text.get_text(), text.get_color()) for text in axes.texts] == [
        ("+1.00", "white"),
        ("+0.50", "black"),
        ("+0.00", "white"),
    ]
