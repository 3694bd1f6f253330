"""Real models of a hundred thousand parameters, with a byte-level BPE trained on the spot: nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from instructgym.types import Message, Request, Sampling

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = [
    "Write a story about a ship that sails to the north.",
    "Explain in three sentences why the sky is blue, then name a book about it.",
    "Translate the following text into French: good morning, and thank you.",
    "Sort the numbers, add a constraint, and say what the sum of the first two is.",
]


@cache
def tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer.to_str()


def make_tokenizer(template: str | None = CHATML) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()), eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(family: str = "llama", *, spread: float = 0.3, context: int = 256) -> Any:
    """A random decoder of two layers; `spread` is the standard deviation of its weights."""
    import torch
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "initializer_range": spread,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "bos_token_id": None,
    }
    match family:
        case "llama":
            config = transformers.LlamaConfig(**sizes)
        case "qwen2":
            config = transformers.Qwen2Config(**sizes)
        case "phi3":
            config = transformers.Phi3Config(**sizes, sliding_window=24)
        case "gemma3":  # one layer sees 16 tokens back, the other all
            layers = ["sliding_attention", "full_attention"]
            sizes |= {"head_dim": 16, "sliding_window": 16, "tie_word_embeddings": False}
            config = transformers.Gemma3TextConfig(**sizes, layer_types=layers)
        case "gpt2":
            config = transformers.GPT2Config(
                vocab_size=400,
                n_embd=64,
                n_layer=2,
                n_head=4,
                n_positions=context,
                initializer_range=spread,
                eos_token_id=0,
                bos_token_id=0,
            )
        case "bloom":  # takes no position ids, and names no context
            config = transformers.BloomConfig(
                vocab_size=400,
                hidden_size=64,
                n_layer=2,
                n_head=4,
                initializer_range=spread,
                eos_token_id=0,
                bos_token_id=0,
            )
        case _:
            raise ValueError(family)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def save(folder: Path, family: str = "llama", template: str | None = CHATML, **model: Any) -> Path:
    make_model(family, **model).save_pretrained(folder)
    make_tokenizer(template).save_pretrained(folder)
    return folder


def question(text: str, sample: int = 0, **sampling: Any) -> Request:
    """A request at temperature 0 for at most 16 tokens, unless `sampling` says otherwise."""
    parameters = Sampling(**{"temperature": 0.0, "top_p": 1.0, "max_tokens": 16, **sampling})
    return Request("expert", "tiny", (Message("user", text),), parameters, "test/1", (sample,))
