"""The language model as a `Network`: policy and value of flat observations, and what is trained of it in one vector."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from instructgym.agents.language_model.base_model import BaseModel
from instructgym.agents.language_model.config import LMConfig
from instructgym.agents.language_model.prompts import PromptWriter, TokenReader
from instructgym.agents.language_model.reading import NameScorer, Prompt, Reader, StatePooler, batches
from instructgym.agents.policy_gradient.adam import Adam
from instructgym.agents.policy_gradient.parameters import FlatParameters

__all__ = ["DeviceAdam", "LMNetwork"]

_CACHE_BYTES = 256 * 2**20


class LMNetwork(FlatParameters):
    """Policy and value over what a language model makes of instruction and history.

    Heads read the pooled state, normalised to mean 0 and variance 1 (a layer norm without weights), and beside it
    `TokenReader.facts`. `flat` holds the trained parameters of the model and those of the heads, in float32 on the
    model's device; what goes in and comes out is on the CPU.

    A frozen model reads each prompt once, and what it made of it is kept (256 MiB, those not seen for longest go). On a
    CPU it reads one prompt at a time: the numbers of a row hang in their last bits on the rows beside it, and a run
    that goes on from a checkpoint would meet others. What acting computed of a state is kept until `forget`.
    """

    def __init__(
        self, base: BaseModel, reader: TokenReader, writer: PromptWriter, config: LMConfig, actions: int, seed: int
    ) -> None:
        self.base = base
        self._reader = reader
        self._writer = writer
        self._names = config.head == "names"
        self._temperature = config.name_temperature
        self._frozen = not base.trainable
        self._tokens = config.batch_tokens
        scorer = NameScorer(base, writer.continuations, mean=config.name_score == "mean") if self._names else None
        self._model: Reader = scorer or StatePooler(base)
        seen = base.width + 1 + 2 * actions
        heads = {"value": [seen, *config.net_arch, 1]}
        if not self._names or self._frozen:
            heads["policy"] = [seen, *config.net_arch, actions]
        given = dict(base.model.named_parameters())
        shapes = {f"model.{name}": tuple(given[name].shape) for name in base.trainable}
        for head, sizes in sorted(heads.items()):
            shapes |= _shapes(head, sizes)
        with torch.device(base.device):
            super().__init__(shapes)
        for name in base.trainable:
            self._adopt(f"model.{name}", given[name])
        layers = len(config.net_arch) + 1
        self._heads = {head: _Head(self.parameters, head, layers) for head in heads}
        generator = torch.Generator().manual_seed(seed)
        self._heads["value"].initialise(generator, 1.0)
        if "policy" in self._heads:
            # A correction of scores starts at nothing, a policy of its own near the uniform one.
            self._heads["policy"].initialise(generator, 0.0 if self._names else 0.01)
        self._read_before: OrderedDict[bytes, Any] = OrderedDict()
        self._capacity = max(1, _CACHE_BYTES // (4 * self._model.features))
        self._known: dict[bytes, tuple[NDArray[np.float32], np.float32]] = {}

    def forward(self, obs: Any) -> tuple[Any, Any]:  # (B, D) -> logits (B, A), values (B,)
        flat = obs.detach().cpu().numpy()
        prompts = self._prompts(flat)
        features = self._kept(prompts) if self._frozen else self._model.read(prompts)
        logits, values = self._decide(features, flat)
        return logits.cpu(), values.cpu()

    def logits(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N, A)
        return np.stack([logits for logits, _ in self._outcomes(obs)])

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        return np.array([value for _, value in self._outcomes(obs)], np.float32)

    def forget(self) -> None:
        """The weights have changed: what acting computed holds no longer."""
        self._known.clear()

    def state_dict(self) -> dict[str, NDArray[np.float32]]:
        return {name: parameter.detach().cpu().numpy().copy() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.forget()

    def _adopt(self, name: str, parameter: Any) -> None:
        """Let a parameter of the model be the view of `flat` that was made for it."""
        view = self.parameters[name]
        view.detach().copy_(parameter.detach())
        parameter.data = view.detach()
        parameter.grad = view.grad
        self.parameters[name] = parameter.requires_grad_()

    def _prompts(self, flat: NDArray[np.float32]) -> list[Prompt]:
        return [self._writer.write(ids, history) for ids, history in self._reader(flat)]

    def _decide(self, features: Any, flat: NDArray[np.float32]) -> tuple[Any, Any]:
        """(B, F) and flat observations (B, D) -> logits (B, A), values (B,), on the model's device."""
        width = self.base.width
        facts = torch.from_numpy(self._reader.facts(flat)).to(features.device)
        seen = torch.cat([F.layer_norm(features[:, :width], (width,)), facts], dim=1)
        values = self._heads["value"](seen).squeeze(1)
        if not self._names:
            return self._heads["policy"](seen), values
        logits = features[:, width:] / self._temperature
        return (logits + self._heads["policy"](seen) if "policy" in self._heads else logits), values

    def _outcomes(self, flat: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], np.float32]]:
        prompts = self._prompts(flat)
        keys = [_key(prompt) for prompt in prompts]
        first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._known}
        new = sorted(first.values())
        if new:
            with torch.no_grad():
                wanted = [prompts[place] for place in new]
                features = self._kept(wanted) if self._frozen else self._all(wanted, self._tokens)
                logits, values = (part.float().cpu().numpy() for part in self._decide(features, flat[new]))
            for row, place in enumerate(new):
                self._known[keys[place]] = logits[row], values[row]
        return [self._known[key] for key in keys]

    def _all(self, prompts: Sequence[Prompt], tokens: int) -> Any:
        """What the model makes of prompts, in batches by length; without gradients."""
        out = torch.empty((len(prompts), self._model.features), device=self.base.device)
        lengths = [len(prompt) + self._model.extra_tokens for prompt in prompts]
        with torch.no_grad():
            for places in batches(lengths, tokens):
                out[places] = self._model.read([prompts[place] for place in places])
        return out

    def _kept(self, prompts: Sequence[Prompt]) -> Any:
        """The same of a frozen model, from memory where it has read them before."""
        keys = [_key(prompt) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._read_before}
        if new:
            alone = self.base.device.type == "cpu"
            found = self._all(list(new.values()), 1 if alone else self._tokens)
            self._read_before.update(zip(new, found, strict=True))
        for key in keys:
            self._read_before.move_to_end(key)
        rows = torch.stack([self._read_before[key] for key in keys])
        while len(self._read_before) > self._capacity:
            self._read_before.popitem(last=False)
        return rows


class _Head:
    """An MLP over named parameters, in torch on any device."""

    def __init__(self, parameters: Mapping[str, Any], name: str, layers: int) -> None:
        self._layers = [(parameters[f"{name}.{i}.weight"], parameters[f"{name}.{i}.bias"]) for i in range(layers)]

    def __call__(self, x: Any) -> Any:
        *hidden, (weight, bias) = self._layers
        for w, b in hidden:
            x = torch.tanh(F.linear(x, w, b))
        return F.linear(x, weight, bias)

    def initialise(self, generator: Any, last_gain: float) -> None:
        for layer, (weight, _) in enumerate(self._layers):
            gain = last_gain if layer == len(self._layers) - 1 else math.sqrt(2.0)
            drawn = torch.nn.init.orthogonal_(torch.empty(weight.shape), gain=gain, generator=generator)
            weight.detach().copy_(drawn)


class DeviceAdam(Adam):
    """`Adam` for a vector that may lie on another device."""

    def __init__(self, size: int, eps: float, device: Any) -> None:
        super().__init__(size, eps)
        self.mean, self.square = self.mean.to(device), self.square.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.cpu().numpy().copy(), "square": self.square.cpu().numpy().copy(), "steps": self.steps}


def _shapes(head: str, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    pairs = list(pairwise(sizes))
    return {f"{head}.{i}.weight": (out, into) for i, (into, out) in enumerate(pairs)} | {
        f"{head}.{i}.bias": (out,) for i, (_, out) in enumerate(pairs)
    }


def _key(prompt: Prompt) -> bytes:
    return hashlib.blake2b(np.array(prompt, np.int32).tobytes(), digest_size=16).digest()
