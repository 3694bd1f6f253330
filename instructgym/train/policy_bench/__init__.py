"""Policies compared fairly: the same number of expert calls, held-out seeds, the same draws, statistics over runs."""

from instructgym.train.policy_bench.bench import PolicyBench, bench_policies
from instructgym.train.policy_bench.plan import BEST_FIXED, Cell, Plan, Policy, Task, make_plan

__all__ = ["BEST_FIXED", "Cell", "Plan", "Policy", "PolicyBench", "Task", "bench_policies", "make_plan"]
