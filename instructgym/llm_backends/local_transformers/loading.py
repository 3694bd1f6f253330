"""Opens a causal language model and its tokenizer, by name or folder, or says why it cannot be."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from instructgym.errors import ConfigError
from instructgym.llm_backends.local_transformers.prompts import Prompts
from instructgym.llm_backends.local_transformers.texts import Texts

__all__ = [
    "LoadedModel",
    "ModelSource",
    "context_of",
    "device_of",
    "fetched",
    "load",
    "model_source",
    "place_of",
    "wrap",
]

DTYPES = ("auto", "float32", "bfloat16", "float16")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load, and where to. `device` ``auto`` is CUDA where there is one; see `TransformersBackend`."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False


def model_source(
    model: str | Path, *, device: str, dtype: str, revision: str | None, trust_remote_code: bool
) -> ModelSource:
    """The source, its words checked and nothing opened. Raises `ConfigError`."""
    if not str(model).strip():
        raise ConfigError("the model's name is empty; expected a folder, or a name such as 'org/model'")
    if not re.fullmatch(r"auto|[a-z]+(:\d+)?", device):
        raise ConfigError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    # A Path loses "./" in front, and with it what tells a folder from a name.
    where = str(model.expanduser().absolute()) if isinstance(model, Path) else model
    return ModelSource(where, device, dtype, revision, trust_remote_code)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to generate. `context` is its positions, None if it does not say.

    `steady` is True where one and the same text is promised for every batch (CPU, float32).
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: Prompts
    texts: Texts
    eos: frozenset[int]
    pad: int
    context: int | None
    steady: bool
    forward: frozenset[str]

    @property
    def device(self) -> Any:
        return self.model.device


def load(source: ModelSource) -> LoadedModel:
    """Load the model. Takes seconds to minutes. Raises `ConfigError`."""
    import torch
    import transformers

    name = place_of(source)
    device = device_of(source.device)
    dtype = source.dtype
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    options = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    _log.info("loading '%s' (%s) onto %s", name, dtype, device)
    tokenizer = fetched(name, "tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(name, **options))
    model, report = fetched(
        name,
        "model",
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **options
        ),
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ConfigError(
            f"the weights of '{name}' lack {len(missing)} of the tensors that {type(model).__name__} needs, "
            f"such as '{missing[0]}'; expected a complete causal language model"
        )
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"'{name}' does not fit onto {device}; choose dtype = 'bfloat16', a smaller model, or device = 'cpu'"
        ) from error
    return wrap(model, tokenizer, name=Path(name).name if Path(name).is_dir() else name)


def wrap(model: Any, tokenizer: Any, *, name: str) -> LoadedModel:
    """A model and a tokenizer that are already in memory. Raises `ConfigError` if they do not fit together."""
    import torch

    forward = frozenset(inspect.signature(model.forward).parameters)
    if "past_key_values" not in forward:
        raise ConfigError(
            f"'{name}' is a {type(model).__name__}, which keeps no key-value cache; "
            "expected a decoder such as Llama, Qwen, Phi or Gemma. Serve it with vLLM and use the openai backend."
        )
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer of '{name}' has {len(tokenizer)} tokens and the model has embeddings for {rows}; "
            "they do not belong together"
        )
    model.eval()
    prompts = Prompts(tokenizer, name)
    ends = [getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id]
    eos = {token for end in ends for token in (end if isinstance(end, list) else [end]) if token is not None}
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        texts=Texts(tokenizer),
        eos=frozenset(eos),
        pad=tokenizer.pad_token_id or 0,  # masked, so any token will do
        context=context_of(model.config.get_text_config()),
        steady=model.device.type == "cpu" and model.dtype == torch.float32,
        forward=forward,
    )


def context_of(config: Any) -> int | None:
    """The positions of a model, by its text config; None if that does not say."""
    for name in ("max_position_embeddings", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def place_of(source: ModelSource) -> str:
    """The folder or the hub's name, as `from_pretrained` takes it. Raises `ConfigError`."""
    folder = Path(source.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"the folder {folder} holds no config.json; expected a model saved with save_pretrained, or its name"
            )
        return str(folder)
    if source.model.startswith(("/", ".", "~")) or source.model.count("/") > 1 or "\\" in source.model:
        raise ConfigError(f"there is no folder {folder}; expected a folder with a model, or a name such as 'org/model'")
    return source.model


def device_of(device: str) -> Any:
    """The `torch.device` of a word; ``auto`` is CUDA where there is one. Raises `ConfigError`."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device is '{device}', which cannot be used here: {_reason(error)}; "
            "expected 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'"
        ) from error
    return chosen


def fetched(name: str, what: str, fetch: Callable[[], _T]) -> _T:
    """What `fetch` loads of the model `name`, without a bar of progress. Raises `ConfigError`."""
    from transformers.utils import logging as transformers_logging

    showed_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return fetch()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if Path(name).is_dir():
            advice = f"expected a {what} saved there with save_pretrained"
        else:
            advice = (
                f"check the name; if it is right, fetch it once where there is a network (hf download {name}), "
                "or give a folder"
            )
        raise ConfigError(f"the {what} of '{name}' cannot be loaded: {_reason(error)}; {advice}") from error
    finally:
        if showed_bars:
            transformers_logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".:;")
