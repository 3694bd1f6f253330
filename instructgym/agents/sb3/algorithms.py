"""What differs between the algorithms of Stable-Baselines3: how each is built, asked, and read back from its zip."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.errors import ConfigError

__all__ = ["ALGORITHMS", "ActorCritic", "Family", "Look"]

ROLLOUT = 2048
"""The transitions of a rollout over all envs, at most, where nobody says `n_steps`."""


@dataclass(frozen=True)
class Look:
    """What a policy says of N rows: probabilities float32 (N, A) and values float32 (N,).

    `values` is None for a policy that has but one choice a row; its probabilities are then 1 for the best legal one.
    """

    probs: NDArray[np.float32]
    values: NDArray[np.float32] | None
    state: Any = None


class Family:
    """Algorithms that are treated alike. `masked`: they know which actions are legal while they learn."""

    masked = False
    off_policy = False

    def __init__(self, module: str, class_name: str) -> None:
        self.module = module
        self.class_name = class_name

    def load_class(self) -> Any:
        return getattr(import_module(self.module), self.class_name)

    def policy_for(self, space: Any, policy_kwargs: Mapping[str, Any]) -> str:
        """The name of the policy class for observations of `space`. Raises `ConfigError` for a space it cannot take."""
        return "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"

    def defaults(self, theirs: Mapping[str, Any], envs: int, total_steps: int) -> dict[str, Any]:
        """Arguments that fit a run of `total_steps`, where nobody gives them."""
        return {}

    def log_interval(self, envs: int) -> int:
        """Rollouts (off policy: episodes) between two reports."""
        return 1

    def steps_within(self, theirs: Mapping[str, Any], model: Any, bound: int, envs: int) -> int:
        """The steps up to `bound` that ``learn`` takes without taking more; `model` is None before the first."""
        return bound // envs * envs

    def look(self, policy: Any, obs: Any, legal: NDArray[np.bool_], state: Any) -> Look:
        """Ask an SB3 policy about a tensor of N observations; `legal` is (N, A)."""
        raise TypeError(f"{type(self).__name__} does not define look()")

    def read_back(self, model: Any) -> None:
        """Mend a model that was loaded from its zip, where the zip lacks something."""

    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What SB3's class takes."""
        return inspect.signature(self.load_class()).parameters

    def argument(self, theirs: Mapping[str, Any], name: str) -> Any:
        """What is given as `name`, or SB3's default."""
        return theirs.get(name, self.parameters()[name].default)


class ActorCritic(Family):
    """PPO, A2C, TRPO: rollouts of `n_steps` an env, probabilities and values."""

    def defaults(self, theirs: Mapping[str, Any], envs: int, total_steps: int) -> dict[str, Any]:
        if not self._has_batches():
            return {}
        batch = int(self.argument(theirs, "batch_size"))
        rollouts = max(1, math.ceil(total_steps / ROLLOUT))
        # A whole number of minibatches (SB3 warns otherwise), rounded up so that no rollout is for the last few steps.
        unit = batch // math.gcd(batch, envs)
        return {"n_steps": max(1, math.ceil(total_steps / (rollouts * envs * unit))) * unit}

    def steps_within(self, theirs: Mapping[str, Any], model: Any, bound: int, envs: int) -> int:
        if model is not None:
            unit = int(model.n_steps) * envs
        elif "n_steps" in theirs or not self._has_batches():
            unit = max(1, int(self.argument(theirs, "n_steps"))) * envs
        else:
            # The first `learn` chooses n_steps by its length, in whole minibatches.
            unit = math.lcm(max(1, int(self.argument(theirs, "batch_size"))), envs)
            steps = bound // unit * unit
            while steps > 0 and steps % (unit * -(-steps // ROLLOUT)):  # unequal rollouts would be rounded up
                steps -= unit
            return steps
        return bound // unit * unit

    def look(self, policy: Any, obs: Any, legal: NDArray[np.bool_], state: Any) -> Look:
        masks = {"action_masks": legal} if self.masked else {}
        probs = policy.get_distribution(obs, **masks).distribution.probs.numpy()
        return Look(probs, _flat(policy.predict_values(obs)), state)

    def _has_batches(self) -> bool:
        return "batch_size" in self.parameters()


class Masked(ActorCritic):
    """MaskablePPO."""

    masked = True


class Recurrent(ActorCritic):
    """RecurrentPPO. The state is float32 (N, 4, layers, hidden): hidden and cell of the actor, then of the critic.

    Zeros are the start of an episode, as in sb3-contrib.
    """

    def policy_for(self, space: Any, policy_kwargs: Mapping[str, Any]) -> str:
        return "MultiInputLstmPolicy" if isinstance(space, spaces.Dict) else "MlpLstmPolicy"

    def look(self, policy: Any, obs: Any, legal: NDArray[np.bool_], state: Any) -> Look:
        from sb3_contrib.common.recurrent.type_aliases import RNNStates

        rows = len(legal)
        if state is None:
            lstm = policy.lstm_actor
            state = np.zeros((rows, 4, lstm.num_layers, lstm.hidden_size), np.float32)
        parts = [part.contiguous() for part in torch.as_tensor(np.asarray(state, np.float32)).permute(1, 2, 0, 3)]
        held = RNNStates((parts[0], parts[1]), (parts[2], parts[3]))
        starts = torch.zeros(rows)
        distribution, _ = policy.get_distribution(obs, held.pi, starts)
        # The mode, so that SB3's global generator is left alone: only the values and the next state are wanted.
        _, values, _, after = policy.forward(obs, held, starts, deterministic=True)
        kept = torch.stack([*after.pi, *after.vf]).permute(2, 0, 1, 3).numpy()
        return Look(distribution.distribution.probs.numpy(), _flat(values), np.ascontiguousarray(kept))


class ActionValues(Family):
    """DQN and QR-DQN: the legal action of the highest value."""

    off_policy = True

    def defaults(self, theirs: Mapping[str, Any], envs: int, total_steps: int) -> dict[str, Any]:
        # SB3 counts train_freq in steps of all envs: with gradient_steps = 1, 16 envs would learn a sixteenth as often
        # as one. This keeps its update for every four transitions, and gives a short run twenty target networks.
        return {
            "buffer_size": min(1_000_000, max(total_steps, 1_000)),
            "gradient_steps": envs,
            "target_update_interval": min(10_000, max(envs, total_steps // 20)),
        }

    def log_interval(self, envs: int) -> int:
        return max(4, envs)

    def steps_within(self, theirs: Mapping[str, Any], model: Any, bound: int, envs: int) -> int:
        every = self.argument(theirs, "train_freq")
        unit = (every if isinstance(every, int) and every > 0 else 1) * envs
        return bound // unit * unit

    def look(self, policy: Any, obs: Any, legal: NDArray[np.bool_], state: Any) -> Look:
        return Look(_best(self._values(policy, obs), legal), None, state)

    def _values(self, policy: Any, obs: Any) -> NDArray[np.float32]:  # (N, A)
        return np.asarray(policy.q_net(obs), np.float32)


class ActionQuantiles(ActionValues):
    """QR-DQN: the value is the mean of the quantiles. Explores over a tenth of the run, as DQN does by default."""

    def defaults(self, theirs: Mapping[str, Any], envs: int, total_steps: int) -> dict[str, Any]:
        return {**super().defaults(theirs, envs, total_steps), "exploration_fraction": 0.1}

    def _values(self, policy: Any, obs: Any) -> NDArray[np.float32]:
        return np.asarray(policy.quantile_net(obs).mean(dim=1), np.float32)


class RandomSearch(Family):
    """ARS: perturbs the weights and keeps what earns more in whole episodes.

    Every candidate resets the envs and plays `n_eval_episodes`, by default one an env: SB3 steps all envs until the
    last of these has ended, so fewer would be paid for and not counted. It takes whole populations of ``2 n_delta``
    candidates. SB3's evaluator in processes of its own is not used: a vector env is one batch.
    """

    def policy_for(self, space: Any, policy_kwargs: Mapping[str, Any]) -> str:
        if isinstance(space, spaces.Dict):
            raise ConfigError(
                f"agent 'sb3:ars' takes flat observations, got {space}. Set its normalize_obs = true, which flattens "
                "them, or choose another agent."
            )
        return "MlpPolicy" if policy_kwargs.get("net_arch") else "LinearPolicy"

    def defaults(self, theirs: Mapping[str, Any], envs: int, total_steps: int) -> dict[str, Any]:
        return {"n_eval_episodes": envs}

    def look(self, policy: Any, obs: Any, legal: NDArray[np.bool_], state: Any) -> Look:
        scores = policy.action_net(policy.extract_features(obs, policy.features_extractor))
        return Look(_best(scores.numpy(), legal), None, state)

    def read_back(self, model: Any) -> None:
        # ARS.load leaves `weights`, where the search goes on, at zero; the policy has them.
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def _flat(values: Any) -> NDArray[np.float32]:
    return np.asarray(values.numpy()[:, 0], np.float32)


def _best(scores: NDArray[np.float32], legal: NDArray[np.bool_]) -> NDArray[np.float32]:  # each (N, A)
    best = np.where(legal, scores, -np.inf).argmax(axis=1)
    return np.asarray(np.eye(legal.shape[1], dtype=np.float32)[best])


ALGORITHMS: dict[str, Family] = {
    "sb3:ppo": ActorCritic("stable_baselines3", "PPO"),
    "sb3:a2c": ActorCritic("stable_baselines3", "A2C"),
    "sb3:dqn": ActionValues("stable_baselines3", "DQN"),
    "sb3:qrdqn": ActionQuantiles("sb3_contrib", "QRDQN"),
    "sb3:maskable_ppo": Masked("sb3_contrib", "MaskablePPO"),
    "sb3:recurrent_ppo": Recurrent("sb3_contrib", "RecurrentPPO"),
    "sb3:trpo": ActorCritic("sb3_contrib", "TRPO"),
    "sb3:ars": RandomSearch("instructgym.agents.sb3.ars", "CountingARS"),
}
