"""Instructors side by side: what they reach, how fast they learn, and whether what they learn transfers.

Parts (all, or those of `--only`):

- `cartpole`: our PPO solves CartPole-v1; beside Stable-Baselines3's with the same network and hyperparameters, returns
  and speed on one thread;
- `share`: every learned instructor between uniform random (0) and the exhaustive optimum (1) of `learning.py`, and the
  learner's time of our PPO and of Stable-Baselines3's, which is all but the env's;
- `transfer`: a policy that was trained on six operations chooses from seven.

Speed is of process time and in turns, so that other load on the machine tells less.

    python benchmarks/agents.py [--quick] [--only PART,...] [--jobs N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from _report import Report, parser
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorWrapper
from learning import DRAW, UNSEEN_TOPICS, agent_returns, bounds, interval, parts, tree_of

from instructgym.agents import PPO, PPOConfig, Task, evaluate, load_agent, make_agent, save_agent
from instructgym.envs.dynamics import Dynamics
from instructgym.envs.elimination import DEFAULT_RULES, EliminationRules
from instructgym.envs.loading import load_action_set
from instructgym.envs.observations import Observer
from instructgym.envs.operations import ActionSet, Rewrite
from instructgym.envs.spec import REVIEWER_SAMPLING, EnvConfig
from instructgym.envs.vector_env import InstructionEvolutionVectorEnv
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.simulated import SIMULATOR_VERSION, SimulatedBackend
from instructgym.rewards.building import make_reward
from instructgym.rewards.encoders import open_encoder
from instructgym.train.chains import ChainJob, run_chains
from instructgym.train.config_text import load_config
from instructgym.train.seed_files import read_seeds, split_seeds
from instructgym.types import Seed

PARTS = ("cartpole", "share", "transfer")

# --- CartPole ---------------------------------------------------------------------------------------------------------
SOLVED = 475.0
SOLVER = PPOConfig(
    learning_rate=1e-3,
    lr_schedule="linear",
    n_steps=32,
    batch_size=256,
    n_epochs=20,
    gamma=0.98,
    gae_lambda=0.8,
)
SAME = {"n_steps": 256, "batch_size": 64, "n_epochs": 10}


def cartpole_env(envs: int) -> Any:
    return gymnasium.make_vec(
        "CartPole-v1",
        envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


def solve(seed: int, steps: int) -> float:
    env = cartpole_env(8)
    ppo = PPO(env.single_observation_space, env.single_action_space, SOLVER, seed)
    ppo.learn(env, steps - steps % (8 * SOLVER.n_steps))
    return float(evaluate(ppo, cartpole_env(50), 100, seed=10_000 + seed).mean())


def ours(seed: int, steps: int) -> tuple[float, float]:
    """Mean return of 50 episodes, and steps a second."""
    env = cartpole_env(8)
    ppo = PPO(env.single_observation_space, env.single_action_space, PPOConfig(**SAME), seed)
    speed = _speed(lambda: ppo.learn(env, steps), steps)
    return float(evaluate(ppo, cartpole_env(50), 50, seed=10_000 + seed).mean()), speed


def theirs(seed: int, steps: int) -> tuple[float, float]:
    from stable_baselines3 import PPO as TheirPPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.logger import Logger

    model = TheirPPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=seed), device="cpu", seed=seed, **SAME)
    model.set_logger(Logger(folder=None, output_formats=[]))
    speed = _speed(lambda: model.learn(steps), steps)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=50, seed=10_000 + seed), 50)
    return float(mean), speed


def _speed(learn: Callable[[], Any], steps: int) -> float:
    started = time.process_time()
    learn()
    return steps / (time.process_time() - started)


def cartpole(report: Report) -> None:
    quick = report.quick
    seeds, steps = (1, 30_000) if quick else (3, 150_000)
    returns = [solve(seed, steps) for seed in range(seeds)]
    solved = sum(value >= SOLVED for value in returns)
    found = ", ".join(f"{value:.0f}" for value in returns)
    report.row(f"CartPole, tuned, {steps:,} steps: {found}", solved, f"of {seeds} solved", str(seeds), solved == seeds)
    turns, steps = (1, 4_096) if quick else (5, 51_200)
    ours(0, 2_048), theirs(0, 2_048)
    pairs = [(ours(seed, steps), theirs(seed, steps)) for seed in range(turns)]
    for name, side in (("our PPO", 0), ("Stable-Baselines3's PPO", 1)):
        values = np.array([[pair[side][0]] for pair in pairs])
        case = f"CartPole, same hyperparameters, {steps:,} steps, {name}: return {values.mean():.0f} {interval(values)}"
        report.row(case, median(pair[side][1] for pair in pairs), "steps/s")
    ratio = median(one[1] / other[1] for one, other in pairs)
    report.row("CartPole: our steps/s / Stable-Baselines3's", ratio, "times", ">= 1.8", ratio >= 1.8)


# --- the share of the way ---------------------------------------------------------------------------------------------
ROLLOUT: dict[str, Any] = {"n_steps": 64, "batch_size": 256, "learning_rate": 1e-3, "ent_coef": 0.03}
LEARNERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ppo": ("ppo", ROLLOUT),
    "ppo, linear rate": (
        "ppo",
        {**ROLLOUT, "gamma": 0.95, "gae_lambda": 0.9, "lr_schedule": "linear"},
    ),
    "ppo, gru": (
        "ppo",
        {**ROLLOUT, "gamma": 0.95, "gae_lambda": 0.9, "lr_schedule": "linear", "network": "gru"},
    ),
    "trpo": ("trpo", {"n_steps": 32, "target_kl": 0.03}),
    "linucb": ("linucb", {}),
    "linear_thompson": ("linear_thompson", {}),
    "sb3:ppo": ("sb3:ppo", ROLLOUT),
    "sb3:maskable_ppo": ("sb3:maskable_ppo", ROLLOUT),
    "sb3:trpo": ("sb3:trpo", {"n_steps": 32, "target_kl": 0.03}),
    "sb3:dqn": ("sb3:dqn", {}),
}
QUICK_LEARNERS = ("ppo", "linucb", "sb3:ppo")


class Timed(VectorWrapper):
    """Adds up the process time that the env takes."""

    seconds = 0.0

    def step(self, actions: Any) -> Any:
        started = time.process_time()
        try:
            return self.env.step(actions)
        finally:
            self.seconds += time.process_time() - started

    def reset(self, **options: Any) -> Any:
        started = time.process_time()
        try:
            return self.env.reset(**options)
        finally:
            self.seconds += time.process_time() - started


def env_of(train: tuple[Seed, ...], seed: int, observation: str, action_set: str | ActionSet = "evol_instruct") -> Any:
    config = load_config("quickstart")
    return InstructionEvolutionVectorEnv(
        config.train.num_envs,
        EnvConfig(
            action_set=action_set,
            seeds=train,
            reward=config.reward.spec,
            encoder=config.env.encoder,
            observation=observation,
            run_seed=seed,
        ),
    )


def _learned(task: tuple[str, int, int, tuple[Seed, ...], dict[str, tuple[Seed, ...]]]) -> dict[str, Any]:
    """Returns by group of seeds, and the process seconds of the learner a step."""
    torch.set_num_threads(1)
    name, seed, steps, train, groups = task
    agent_name, kwargs = LEARNERS[name]
    env = Timed(env_of(train, seed, load_config("quickstart").env.observation))
    try:
        agent: Any = make_agent(
            agent_name,
            env.single_observation_space,
            env.single_action_space,
            kwargs=kwargs,
            seed=seed,
            action_names=load_action_set("evol_instruct").names,
        )
        started = time.process_time()
        agent.learn(env, steps)
        learner = time.process_time() - started - env.seconds
    finally:
        env.close()
    return {"seconds": learner / steps, **{group: agent_returns(agent, seeds) for group, seeds in groups.items()}}


def share(report: Report, jobs: int, names: tuple[str, ...]) -> None:
    train, groups = seeds_of(report.quick)
    seeds, steps = (1, 2_048) if report.quick else (5, 20_000)
    tasks = [(name, seed, steps, train, groups) for seed in range(seeds) for name in names]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = pool.map(_learned, tasks)
        trees = {group: list(pool.map(tree_of, members)) for group, members in groups.items()}
        found = dict(zip([(name, seed) for name, seed, *_ in tasks], runs, strict=True))
    for group, grown in trees.items():
        table = np.stack([tree.returns for tree in grown])
        random, optimum = table.mean(), table.max(axis=(1, 2, 3, 4)).mean()
        path = np.unravel_index(int(table.mean(axis=0).argmax()), table.shape[1:])
        fixed = (table[(slice(None), *path)] - random) / (optimum - random)
        report.row(f"{group}: best fixed sequence {interval(fixed[None])}", float(fixed.mean()), "of the scale")
        best = 0.0
        for name in names:
            own = np.stack([(found[name, seed][group] - random) / (optimum - random) for seed in range(seeds)])
            best = max(best, float(own.mean()))
            apart = bounds(own)[0] > bounds(fixed[None])[1]
            case = f"{group}: {name}, {steps:,} steps, {seeds} seeds, 95% {interval(own)}"
            if group == "known topics":
                report.row(case, float(own.mean()), "of the scale", "above the best fixed sequence, apart", apart)
            else:
                report.row(case, float(own.mean()), "of the scale")
        if group == "known topics":
            report.row(f"{group}: best learned instructor", best, "of the scale", ">= 0.85", best >= 0.85)
    if not {"ppo", "sb3:ppo"} <= set(names):
        return
    ratios = [found["sb3:ppo", seed]["seconds"] / found["ppo", seed]["seconds"] for seed in range(seeds)]
    for name in ("ppo", "sb3:ppo"):
        value = 1e6 * median(found[name, seed]["seconds"] for seed in range(seeds))
        report.row(f"{name}: the learner's time a step", value, "us")
    ratio = median(ratios)
    report.row("learner's time, Stable-Baselines3 / ours", ratio, "times", ">= 1.8", ratio >= 1.8)


def seeds_of(quick: bool) -> tuple[tuple[Seed, ...], dict[str, tuple[Seed, ...]]]:
    """The seeds of `learning.py`: to train on, and to be measured on by group."""
    seeds = read_seeds("default").seeds
    known = tuple(seed for seed in seeds if seed.topic not in UNSEEN_TOPICS)
    train, held_out = split_seeds(known, 0.25, 0)
    unseen = tuple(seed for seed in seeds if seed.topic in UNSEEN_TOPICS)
    if quick:
        held_out, unseen = held_out[::8], unseen[::12]
    return train, {"known topics": held_out, "unseen topics": unseen}


# --- transfer ---------------------------------------------------------------------------------------------------------
EVOL = load_action_set("evol_instruct")
ELABORATE = Rewrite(
    "elaborate",
    "Make the instruction ask for more: add one more requirement, or widen the inquiry by one more aspect.",
)
SEVEN = ActionSet("seven", (*EVOL.operations, ELABORATE))
SIX = ActionSet("six", tuple(EVOL.operations))
ATTENTIVE = {**ROLLOUT, "network": "cross_attention", "gamma": 0.95, "gae_lambda": 0.9, "lr_schedule": "linear"}


def task_of(action_set: ActionSet) -> Task:
    encoder = open_encoder("hashing")
    texts = [f"{each.name.replace('_', ' ')}: {each.description}" for each in action_set.operations]
    features = asyncio.run(encoder.encode(texts))
    space = Observer("features_dict", action_set, 4, encoder=encoder).space
    return Task(space, spaces.Discrete(len(action_set)), action_set.names, features)


def _attentive(task: tuple[str, int, int, tuple[Seed, ...], tuple[Seed, ...]]) -> dict[str, Any]:
    """Returns where the policy chooses from seven operations, and how often it takes the seventh."""
    torch.set_num_threads(1)
    trained_on, seed, steps, train, held_out = task
    action_set = SEVEN if trained_on == "seven" else SIX
    own = task_of(action_set)
    env = env_of(train, seed, "features_dict", action_set)
    try:
        agent: Any = make_agent(
            "ppo",
            own.obs_space,
            own.action_space,
            kwargs=ATTENTIVE,
            seed=seed,
            action_features=own.action_features,
        )
        agent.learn(env, steps)
    finally:
        env.close()
    if trained_on == "six":
        with tempfile.TemporaryDirectory() as folder:
            save_agent(agent, folder, action_set_hash=SIX.hash, action_set_names=SIX.names)
            agent = load_agent(folder, expected_action_set_hash=SEVEN.hash, task=task_of(SEVEN))
    return _among_seven(agent, held_out)


def _among_seven(agent: Any, held_out: tuple[Seed, ...], draws: int = 4) -> dict[str, Any]:
    config, encoder, backend = load_config("quickstart"), open_encoder("hashing"), SimulatedBackend()
    reviewer = LLM(backend, "reviewer", "simulated", REVIEWER_SAMPLING)
    exempt = [operation.name for operation in SEVEN.operations if operation.changes_topic]
    dynamics = Dynamics(
        expert=LLM(backend, "expert", "simulated"),
        action_set=SEVEN,
        reward=make_reward(config.reward.spec, reviewer=reviewer, encoder=encoder, changes_topic=exempt),
        elimination=EliminationRules(DEFAULT_RULES, encoder=encoder, reviewer=reviewer, changes_topic=exempt),
        horizon=config.env.horizon,
        penalty=config.env.penalty,
    )
    jobs = [
        ChainJob(number, seed, DRAW + draw, agent)
        for number, (draw, seed) in enumerate((draw, seed) for draw in range(draws) for seed in held_out)
    ]
    observer = Observer("features_dict", SEVEN, config.env.horizon, encoder=encoder)
    chains = asyncio.run(
        run_chains(jobs, dynamics=dynamics, observer=observer, run_seed=0, width=16, deterministic=True)
    )
    taken = [step for chain in chains for step in chain.steps]
    pay: dict[bool, list[float]] = {True: [], False: []}  # of the seventh, and of the others
    for step in taken:
        pay[step.transition.operation == ELABORATE.name].append(step.reward or 0.0)
    return {
        "returns": np.array([chain.total_reward for chain in chains]).reshape(draws, len(held_out)).mean(axis=0),
        "share": len(pay[True]) / len(taken),
        "paid": float(np.mean(pay[True])) if pay[True] else float("nan"),
        "paid others": float(np.mean(pay[False])) if pay[False] else float("nan"),
    }


def transfer(report: Report, jobs: int) -> None:
    train, groups = seeds_of(report.quick)
    held_out = groups["known topics"]
    seeds, steps = (1, 2_048) if report.quick else (5, 20_000)
    tasks = [(kind, seed, steps, train, held_out) for seed in range(seeds) for kind in ("six", "seven")]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip([(kind, seed) for kind, seed, *_ in tasks], pool.map(_attentive, tasks), strict=True))
    random = _among_seven(make_agent("random", None, spaces.Discrete(7)), held_out)["returns"].mean()
    report.row("seven operations: uniform random, mean return", float(random), "reward")
    means = {}
    for kind, words in (("seven", "trained on all seven"), ("six", "trained on six, the seventh unseen")):
        runs = [found[kind, seed] for seed in range(seeds)]
        means[kind] = float(np.mean([run["returns"] for run in runs]))
        report.row(f"seven operations, {words}: mean return", means[kind], "reward")
        report.row("... takes the seventh in", 100 * float(np.mean([run["share"] for run in runs])), "% of steps")
        report.row("... what the seventh pays then", float(np.nanmean([run["paid"] for run in runs])), "reward")
        report.row("... what the others pay", float(np.nanmean([run["paid others"] for run in runs])), "reward")
    ratio = means["six"] / means["seven"]
    report.row("return of six to seven, of seven", ratio, "times", ">= 0.9", ratio >= 0.9)


def main() -> None:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--only", default=",".join(PARTS), help=f"parts of {', '.join(PARTS)}")
    options.add_argument("--jobs", type=int, default=2, help="processes of parts 'share' and 'transfer'")
    options.add_argument("--learners", help=f"of part 'share', between semicolons: {'; '.join(LEARNERS)}")
    arguments = options.parse_args()
    named = [name.strip() for name in (arguments.learners or "").split(";")]
    learners = tuple(name for name in named if name) or tuple(LEARNERS)
    if arguments.quick and not arguments.learners:
        learners = QUICK_LEARNERS
    if unknown := sorted(set(learners) - set(LEARNERS)):
        options.error(f"--learners names {'; '.join(unknown)}; expected some of {'; '.join(LEARNERS)}")
    chosen = arguments.only.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        options.error(f"--only names {', '.join(unknown)}; expected parts of {', '.join(PARTS)}")
    torch.set_num_threads(1)
    parts()  # warm: what follows is timed
    report = Report("agents", arguments.quick, {"simulator": SIMULATOR_VERSION})
    if "cartpole" in chosen:
        cartpole(report)
    if "share" in chosen:
        share(report, arguments.jobs, learners)
    if "transfer" in chosen:
        transfer(report, arguments.jobs)
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
