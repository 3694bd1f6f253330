"""Train Tianshou's DQN on the environment, with action masks. Install it first, see docs/other_libraries.md."""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import tianshou
import torch
from gymnasium import spaces
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, CollectStats, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

import instructgym  # noqa: F401  registers the ids
from instructgym.envs import BUILTIN_ACTION_SETS, ActionSet, Rewrite, State


class Once(Rewrite):
    """An operation that is legal until a chain has used it."""

    def legal(self, state: State) -> bool:
        return all(transition.operation != self.name for transition in state.history)


ONCE_EACH = ActionSet(
    "once_each", tuple(Once(**vars(operation)) for operation in BUILTIN_ACTION_SETS["evol_instruct"].operations)
)


class MaskInObservation(gym.Wrapper):
    """Puts ``info["action_mask"]`` where Tianshou looks for it, and repeats a step whose call failed."""

    def __init__(self, env: gym.Env, attempts: int = 5) -> None:
        super().__init__(env)
        masks = spaces.MultiBinary(int(env.action_space.n))
        self.observation_space = spaces.Dict({"obs": env.observation_space, "mask": masks})
        self.attempts = attempts

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return {"obs": obs, "mask": info["action_mask"]}, {}  # a replay buffer need not keep the texts

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        for _ in range(self.attempts - 1):
            if info["valid"]:
                break
            obs, reward, terminated, truncated, info = self.env.unwrapped.retry(action)
        if not info["valid"]:
            raise RuntimeError(f"a step failed {self.attempts} times: {info['failure']}")
        return {"obs": obs, "mask": info["action_mask"]}, reward, terminated, truncated, {}


def make_envs(count: int, **options: Any) -> DummyVectorEnv:
    env_id = "instructgym/InstructionEvolution-v0"
    return DummyVectorEnv([lambda: MaskInObservation(gym.make(env_id, **options)) for _ in range(count)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--episodes", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--once", action="store_true", help="forbid what a chain has used: the mask then forbids something"
    )
    args = parser.parse_args()

    np.random.seed(args.seed)  # Tianshou explores with the global generators
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    count, steps_each_time = 8, 64
    options = {"action_set": ONCE_EACH} if args.once else {}
    envs, test_envs = make_envs(count, **options), make_envs(count, **options, run_seed=1)  # other draws of the expert

    space, actions = envs.observation_space[0], envs.action_space[0]  # Tianshou reads those below the wrappers
    model = Net(state_shape=space.shape, action_shape=int(actions.n), hidden_sizes=[64, 64])
    policy = DiscreteQLearningPolicy(model=model, action_space=actions, eps_training=1.0)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.99, target_update_freq=128)
    collector = Collector[CollectStats](algorithm, envs, VectorReplayBuffer(20_000, count), exploration_noise=True)
    test_collector = Collector[CollectStats](algorithm, test_envs, exploration_noise=True)

    def evaluate(eps: float) -> float:
        policy.set_eps_inference(eps)
        test_envs.seed(args.seed + 100)  # by gym_reset_kwargs={"seed": ...} every episode would be the same one
        test_collector.reset()
        return float(test_collector.collect(n_episode=args.episodes).returns.mean())

    def explore(epoch: int, steps: int) -> None:
        policy.set_eps_training(max(0.05, 1.0 - 1.5 * steps / args.steps))

    chance = evaluate(eps=1.0)  # uniform among what the masks allow
    envs.seed(args.seed)
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=args.steps,
            collection_step_num_env_steps=steps_each_time,
            update_step_num_gradient_steps_per_sample=0.5,
            training_fn=explore,
            verbose=False,
            show_progress=False,
        )
    )
    after = evaluate(eps=0.0)
    print(f"mean return over {args.episodes} simulated episodes: {chance:.3f} at random, {after:.3f} after training")
    print(f"{collector.collect_step} steps of DQN, Tianshou {tianshou.__version__}")
    envs.close()
    test_envs.close()
