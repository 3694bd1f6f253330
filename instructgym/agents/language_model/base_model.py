"""Opens the model that reads: from a folder, by name, or from random weights; and says what of it is trained."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from instructgym.agents.language_model.config import LMConfig
from instructgym.errors import ConfigError
from instructgym.llm_backends.local_transformers.loading import (
    context_of,
    device_of,
    fetched,
    model_source,
    place_of,
)
from instructgym.llm_backends.tokenizing import ModelTokenizer, Tokenizer, open_tokenizer
from instructgym.plugins import require

__all__ = ["BaseModel", "fingerprint", "open_base", "seeded"]

_SAMPLED = 4096
"""Numbers of each tensor that a fingerprint looks at."""
_UNUSED = "pooler."
"""The head that BERT and its like put on their first token; nothing here reads it."""


@dataclass(frozen=True)
class BaseModel:
    """A model in evaluation mode (no dropout), nothing of it trained yet unless `trainable` names it.

    `context` is the number of tokens that it takes, None if it does not say. `fingerprint` is of what is not trained.
    """

    name: str
    model: Any
    tokenizer: Tokenizer
    device: Any
    dtype: Any
    pooling: str
    width: int
    context: int | None
    fingerprint: str
    trainable: tuple[str, ...]
    takes: frozenset[str]

    @property
    def special(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after a prompt. A decoder goes on after it, so it gets none there."""
        if not isinstance(self.tokenizer, ModelTokenizer):
            return (), ()
        return self.tokenizer.before, () if self.pooling == "last" else self.tokenizer.after

    @property
    def pad(self) -> int:
        return self.tokenizer.pad if isinstance(self.tokenizer, ModelTokenizer) else 0


def open_base(config: LMConfig, seed: int) -> BaseModel:
    """The model of a config, on its device. `seed` draws random weights, and those of adapters.

    Raises `ConfigError`, and `MissingDependencyError` for adapters without peft.
    """
    source = model_source("-", device=config.device, dtype=config.dtype, revision=None, trust_remote_code=False)
    device = device_of(source.device)
    on_cpu = device.type == "cpu"
    compute = {"auto": torch.float32 if on_cpu else torch.bfloat16}.get(config.dtype) or getattr(torch, config.dtype)
    # What is trained is kept in float32: steps of the optimiser are too small for less.
    stored = torch.float32 if config.tune == "full" else compute
    tokenizer = open_tokenizer(config.tokenizer_name, trust_remote_code=config.trust_remote_code)
    if isinstance(config.model, str):
        name, model = _loaded(config, config.model, stored)
    else:
        name, model = _from_scratch(config, config.model, tokenizer, seed)
        model.to(stored)
    _check(name, model, tokenizer, config)
    model.eval().requires_grad_(False)
    if config.tune == "lora":
        fixed = fingerprint(model)
        _add_adapters(model, config, seed)
        trainable = tuple(key for key, _ in model.named_parameters() if "lora_" in key)
    elif config.tune == "full":
        trainable = tuple(key for key, _ in model.named_parameters() if not key.startswith(_UNUSED))
        fixed = ""
    else:
        trainable, fixed = (), fingerprint(model)
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"'{name}' does not fit onto {device}; choose dtype = 'bfloat16', a smaller model, or device = 'cpu'"
        ) from error
    text_config = model.config.get_text_config()
    limits = [context_of(text_config)]
    if isinstance(tokenizer, ModelTokenizer):
        limits.append(tokenizer.longest)
    return BaseModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=compute,
        pooling=_pooling(config, model),
        width=int(text_config.hidden_size),
        context=min((limit for limit in limits if limit is not None), default=None),
        fingerprint=fixed,
        trainable=trainable,
        takes=frozenset(inspect.signature(model.forward).parameters),
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's global generators as if `seed` had been set, and leave them as they were."""
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(seed)
        yield


def fingerprint(model: Any) -> str:
    """16 hex digits of a model's weights: of evenly spaced numbers of every tensor, as bfloat16.

    So it is the same on every device and, where the weights were saved in float32 or bfloat16, in both.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(_SAMPLED, flat.numel()), dtype=torch.float64).long()
        sample = flat[places.to(flat.device)].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _loaded(config: LMConfig, model: str, dtype: Any) -> tuple[str, Any]:
    import transformers

    source = model_source(
        model, device=config.device, dtype=config.dtype, revision=None, trust_remote_code=config.trust_remote_code
    )
    place = place_of(source)
    auto = transformers.AutoModelForCausalLM if config.head == "names" else transformers.AutoModel
    found, report = fetched(
        place,
        "model",
        lambda: auto.from_pretrained(
            place, dtype=dtype, output_loading_info=True, trust_remote_code=config.trust_remote_code
        ),
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_UNUSED))
    if missing:
        raise ConfigError(
            f"the weights of '{place}' lack {len(missing)} of the tensors that {type(found).__name__} needs, such as "
            f"'{missing[0]}'; expected a complete model"
        )
    return place, found


def _from_scratch(config: LMConfig, table: Mapping[str, Any], tokenizer: Tokenizer, seed: int) -> tuple[str, Any]:
    import transformers

    values = {
        "vocab_size": tokenizer.vocab_size,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **table,
    }
    kind = str(values.pop("model_type"))
    auto = transformers.AutoModelForCausalLM if config.head == "names" else transformers.AutoModel
    try:
        shape = transformers.AutoConfig.for_model(kind, **values)
        with seeded(seed):
            return f"{kind} from scratch", auto.from_config(shape)
    except (TypeError, ValueError, RuntimeError, KeyError, ZeroDivisionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"agent 'lm': no {auto.__name__} can be made of model = {dict(table)}: {reason}") from error


def _check(name: str, model: Any, tokenizer: Tokenizer, config: LMConfig) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"'{name}' is an encoder and a decoder; expected one of them, such as BERT or Llama")
    rows = model.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > rows:
        raise ConfigError(
            f"the tokenizer '{config.tokenizer_name}' has {tokenizer.vocab_size:,} tokens and '{name}' has embeddings "
            f"for {rows:,}; they do not belong together"
        )
    if config.head == "names" and (_is_masked(model) or "past_key_values" not in _parameters(model)):
        raise ConfigError(
            f"'{name}' is a {type(model).__name__}, which does not continue a text; head = 'names' expects a causal "
            "model such as Llama, Qwen or GPT-2. Use head = 'classifier'."
        )


def _parameters(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


def _pooling(config: LMConfig, model: Any) -> str:
    if config.pooling != "auto":
        return config.pooling
    return "mean" if _is_masked(model) else "last"


def _is_masked(model: Any) -> bool:
    """Whether its kind is a masked language model: an encoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _add_adapters(model: Any, config: LMConfig, seed: int) -> None:
    require("peft", extra="lm")
    import peft

    unused = [name for name, _ in model.named_modules() if name.startswith(_UNUSED)]
    targets = config.lora_targets if isinstance(config.lora_targets, str) else list(config.lora_targets)
    try:
        with warnings.catch_warnings(), seeded(seed):
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sets it right, and says so
            peft.inject_adapter_in_model(
                peft.LoraConfig(
                    r=config.lora_r,
                    lora_alpha=config.lora_alpha,
                    lora_dropout=0.0,
                    target_modules=targets,
                    exclude_modules=unused or None,
                ),
                model,
            )
    except ValueError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConfigError(f"agent 'lm': no adapters for lora_targets = {config.lora_targets!r}: {reason}") from error
