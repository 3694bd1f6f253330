"""What rewards reward in truth: probes with known truth, labels of people, hacking, cost."""

from instructgym.train.reward_bench.bench import ALL_OFFLINE, CONFIG_REWARD, Cost, RewardBench, bench_rewards
from instructgym.train.reward_bench.card import FOOLED_BELOW, HalfCard, RewardCard, reward_card
from instructgym.train.reward_bench.hacking import HackingMatrix, hacking_matrix
from instructgym.train.reward_bench.labels import LabelRow, measure_labels
from instructgym.train.reward_bench.probes import BAD, GOOD, HALVES, KINDS, Probe, ProbeSet, probe_set

__all__ = [
    "ALL_OFFLINE",
    "BAD",
    "CONFIG_REWARD",
    "FOOLED_BELOW",
    "GOOD",
    "HALVES",
    "KINDS",
    "Cost",
    "HackingMatrix",
    "HalfCard",
    "LabelRow",
    "Probe",
    "ProbeSet",
    "RewardBench",
    "RewardCard",
    "bench_rewards",
    "hacking_matrix",
    "measure_labels",
    "probe_set",
    "reward_card",
]
