"""The model that is trained: opened with its tokenizer and chat template, or refused in words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.llm_backends.local_transformers.loading import context_of, device_of, fetched, model_source, place_of
from instructgym.llm_backends.local_transformers.prompts import Prompts
from instructgym.plugins import require

__all__ = ["PLAIN_TEMPLATE", "Student", "model_digest", "open_student"]

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{{ 'User: ' + message.content + '\\n\\n' }}"
    "{%- elif message.role == 'assistant' -%}"
    "{{ 'Assistant:' }}{% generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{%- else -%}{{ message.content + '\\n\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)
"""The plain prompt (`llm_backends.local_transformers.prompts`) as a template, for a base model that has none."""

_DECIDES = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Student:
    """A causal language model with its tokenizer, which has a chat template, an end token and a padding token.

    `context` is how many positions it has; None if it does not say. `dtype` is the type of its weights where they
    stand, which may not be the one that they were opened in.
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: Prompts
    context: int | None
    dtype: Any
    trust_remote_code: bool = False


def open_student(
    model: str | Path,
    *,
    chat_template: str = "",
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> Student:
    """Load a model to train.

    Args:
        model: a folder or a hub's name.
        chat_template: ``""`` is the tokenizer's own, ``"plain"`` ours, anything else a file with a Jinja template. The
            trained model is saved with it, so that whoever asks the model writes prompts as it has learned them.
        device, dtype: ``auto`` is CUDA where there is one, and the weights' own type, float32 on a CPU.
        quantization: ``"nf4"`` loads the weights in four bits, on a GPU.

    Raises `ConfigError` for what is no causal language model, has no tokenizer, or no chat template.
    """
    import torch
    import transformers

    source = model_source(model, device=device, dtype=dtype, revision=None, trust_remote_code=trust_remote_code)
    place, target = place_of(source), device_of(device)
    tokenizer = fetched(
        place,
        "tokenizer",
        lambda: transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code),
    )
    _give_template(tokenizer, place, chat_template)
    options: dict[str, Any] = {"dtype": "float32" if dtype == "auto" and target.type == "cpu" else dtype}
    own = fetched(
        place, "config", lambda: transformers.AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    ).get_text_config()
    if quantization is not None:
        options |= _four_bits(target)
    loaded, report = fetched(
        place,
        "model",
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            place, output_loading_info=True, trust_remote_code=trust_remote_code, **options
        ),
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ConfigError(
            f"the weights of '{place}' lack {len(missing)} of the tensors that {type(loaded).__name__} needs, such as "
            f"'{missing[0]}'; expected a complete causal language model"
        )
    rows = loaded.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer of '{place}' has {len(tokenizer)} tokens and the model has embeddings for {rows}; they do "
            "not belong together"
        )
    if target.type != "cpu" and quantization is None:
        try:
            loaded.to(target)
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"'{place}' does not fit onto {target}; take a smaller model, or lora.") from error
    return Student(
        name=place,
        model=loaded,
        tokenizer=tokenizer,
        prompts=Prompts(tokenizer, place),
        context=context_of(own),
        dtype=own.dtype if isinstance(own.dtype, torch.dtype) else loaded.dtype,
        trust_remote_code=trust_remote_code,
    )


def _give_template(tokenizer: Any, name: str, chat_template: str) -> None:
    """Set the template, and the tokens that every example needs. Raises `ConfigError`."""
    if chat_template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the chat template '{chat_template}' cannot be read: {error}; expected '', 'plain' or a Jinja file"
            ) from error
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of '{name}' has no chat template, so nobody would know how it was trained to be asked; "
            "set chat_template = 'plain', or a file with a Jinja template"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of '{name}' has no end token (eos), so an answer could never end; add one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _four_bits(target: Any) -> dict[str, Any]:
    import torch
    import transformers

    if target.type != "cuda":
        raise ConfigError(f"quantization = 'nf4' needs a CUDA device, and this is {target}; leave it out.")
    require("bitsandbytes", extra="qlora")
    return {
        "quantization_config": transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
        "device_map": {"": target},
    }


def model_digest(folder: Path) -> str:
    """Sixteen hex digits of what decides a model's answers: names and bytes of its weights, tokenizer and configs."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in _DECIDES:
            with file.open("rb") as stream:
                own = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.relative_to(folder).as_posix()}\x1f{own}\x1e".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
