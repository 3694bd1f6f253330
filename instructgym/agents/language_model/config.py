"""Hyperparameters of the instructor that is a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from instructgym.agents.policy_gradient.config import PPOConfig
from instructgym.llm_backends.tokenizing import BYTES

__all__ = ["LMConfig"]


@dataclass(frozen=True)
class LMConfig(PPOConfig):
    """Hyperparameters of `LMInstructor`, beside those of `PPOConfig`; `net_arch` are the hidden layers of its heads.

    What is read, and by what:

    - `model`: a folder, or a name of transformers; or a table ``{"model_type": "bert", "hidden_size": 64, ...}``, the
      fields of its config, for a model that starts from random weights.
    - `tokenizer`: ``bytes``, or a name or a folder; None is the model's own, and bytes for one from a table.
    - `head`: ``classifier`` has a policy and a value on the pooled state. ``names`` takes the log-probability of an
      operation's name after the prompt as its logit (a causal model), and has a value on the prompt's last state.
    - `pooling`, of ``classifier``: ``mean``, ``first`` or ``last`` token; ``auto`` is mean for masked language models
      and last for others.
    - `name_score`, of ``names``: ``mean`` or ``sum`` over a name's tokens; `name_temperature` divides it.

    What is trained: `tune` ``frozen`` leaves the model as it is and trains the heads (``names`` gets a linear
    correction of the scores, which starts at 0); ``lora`` trains low-rank adapters (peft) of rank `lora_r` and scale
    `lora_alpha` / `lora_r` on `lora_targets` (names of modules, or ``all-linear``), and the heads; ``full`` all.

    `device` ``auto`` is CUDA where there is one; `dtype` is what is computed in, ``auto``: float32 on a CPU, bfloat16
    elsewhere; what is trained is kept in float32. A pass without gradients has at most `batch_tokens` tokens.

    Raises `ConfigError` for values that make no sense.
    """

    agent: ClassVar[str] = "lm"

    n_steps: int = 64
    n_epochs: int = 4
    net_arch: tuple[int, ...] = ()
    model: str | Mapping[str, Any] = ""
    tokenizer: str | None = None
    head: str = "classifier"
    pooling: str = "auto"
    name_score: str = "mean"
    name_temperature: float = 1.0
    tune: str = "frozen"
    lora_r: int = 8
    lora_alpha: int = 16
    lora_targets: str | tuple[str, ...] = "all-linear"
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int = 16_384
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.lora_targets, str):
            object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        self._require("network", "'mlp', which it does not use: its network is the language model", _is("mlp"))
        self._require("normalize_obs", "false: tokens are no measurements", _is(False))
        self._require(
            "model",
            "a folder, a name of transformers, or a table with a model_type",
            lambda v: bool(v.strip()) if isinstance(v, str) else bool(v.get("model_type")),
        )
        self._require("tokenizer", "'bytes', a name, a folder, or none", lambda v: v is None or bool(v.strip()))
        self._require_one_of("head", "classifier", "names")
        self._require_one_of("pooling", "auto", "mean", "first", "last")
        if self.head == "names":
            self._require("pooling", "'auto' or 'last', since head = 'names'", lambda v: v in ("auto", "last"))
        self._require_one_of("name_score", "mean", "sum")
        self._require_one_of("tune", "frozen", "lora", "full")
        self._require_counts("lora_r", "lora_alpha", "batch_tokens")
        self._require_positive("name_temperature")

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer that is read: ``bytes``, or a model's."""
        return tokenizer_of(self.model, self.tokenizer)


def tokenizer_of(model: object, tokenizer: object) -> str:
    """The name of the tokenizer, by the arguments `model` and `tokenizer`."""
    if tokenizer is not None:
        return str(tokenizer)
    return model if isinstance(model, str) else BYTES


def _is(expected: object) -> Any:
    return lambda value: value is expected or (isinstance(expected, str) and value == expected)
