"""`LMInstructor`: our PPO on a language model that reads the instruction and what was chosen so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gymnasium import spaces

from instructgym.agents.language_model.base_model import BaseModel, open_base
from instructgym.agents.language_model.config import LMConfig, tokenizer_of
from instructgym.agents.language_model.network import DeviceAdam, LMNetwork
from instructgym.agents.language_model.prompts import PromptWriter, TokenReader
from instructgym.agents.policy_gradient.config import LearnerConfig
from instructgym.agents.policy_gradient.networks import Network
from instructgym.agents.policy_gradient.ppo import PPO
from instructgym.agents.rollout import Rollout
from instructgym.agents.spaces import num_actions
from instructgym.errors import ConfigError

__all__ = ["LMInstructor"]

_MODEL, _HEADS = 0, 1


class LMInstructor(PPO):
    """a language model that reads the instruction and its history, learned by our PPO

    See `LMConfig` for its options. It reads observation ``tokens``, made by its own tokenizer. A checkpoint holds what
    was trained, and a fingerprint of what was not: the base model is found again by its folder or name.

    Args:
        action_names: the operations' names, in the order of the actions; numbers if there are none.

    Raises:
        ConfigError: a model that cannot be loaded or does not fit its tokenizer, another observation, or an option that
            makes no sense.
        MissingDependencyError: `tune` is ``lora`` and peft is not installed.
    """

    name = "lm"
    observation = "tokens"
    config_type: ClassVar[type[LearnerConfig]] = LMConfig
    config: LMConfig
    network: LMNetwork

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: LMConfig | None = None,
        seed: int = 0,
        *,
        action_names: Sequence[str] = (),
        **options: Any,
    ) -> None:
        names = tuple(action_names) or tuple(map(str, range(num_actions(action_space))))
        if len(names) != num_actions(action_space):
            raise ConfigError(f"agent 'lm': {len(names)} action_names for {num_actions(action_space)} actions.")
        self.action_names = names
        super().__init__(obs_space, action_space, config, seed, **options)
        self.observation_tokenizer = self.config.tokenizer_name
        self.optimiser = DeviceAdam(self.network.flat.numel(), self.config.adam_eps, self.base.device)

    @classmethod
    def reads(cls, kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
        return cls.observation, tokenizer_of(kwargs.get("model", ""), kwargs.get("tokenizer")) or None

    @property
    def base(self) -> BaseModel:
        """The model, and what is known of it."""
        return self.network.base

    def make_network(self, seed: int) -> Network:
        config = self.config
        base = open_base(config, seed + _MODEL)
        reader = TokenReader(self.obs_space, self.actions, base.tokenizer.vocab_size, config.tokenizer_name)
        before, after = base.special
        writer = PromptWriter(
            base.tokenizer,
            self.action_names,
            reader.horizon,
            says_names=config.head == "names",
            before=before,
            after=after,
            context=base.context,
        )
        return LMNetwork(base, reader, writer, config, self.actions, seed + _HEADS)

    def update(self, rollout: Rollout) -> dict[str, float]:
        try:
            return super().update(rollout)
        finally:
            self.network.forget()

    def restart(self, num_envs: int) -> None:
        self.network.forget()
        super().restart(num_envs)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"base": {"name": self.base.name, "fingerprint": self.base.fingerprint}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state["base"]["fingerprint"]
        if saved != self.base.fingerprint:
            raise ConfigError(
                f"agent 'lm' was trained on weights {saved} of '{state['base']['name']}', and '{self.base.name}' now "
                f"has {self.base.fingerprint}; expected the model that it was trained on. Its folder or name stands in "
                "agent.json, under kwargs.model."
            )
        super().load_state_dict(state)
