"""Tiny language models from a config, a tokenizer of whole words, and envs whose best operation stands in the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from instructgym.llm_backends.tokenizing import ByteTokenizer, Tokenizer

NAMES = ("add", "write", "draw", "bake")
TOPICS = ("sum", "poem", "map", "cake")

_SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 96}
BERT = {"model_type": "bert", "hidden_size": 32, "intermediate_size": 48, **_SMALL}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 1, **_SMALL}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 96}


def save_tokenizer(folder: Path, special: bool = False) -> Path:
    """A tokenizer that knows the words of prompts and envs here; with `special`, it puts [CLS] and [SEP] around."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    text = (
        "Make Write Do a sum poem map cake . Instruction : Operations so far none , Next operation add write draw bake "
        "An instruction is made more demanding step by one of these operations"
    )
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\n", *text.split()])
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"\n|[.,:]"), "isolated")]
    )
    if special:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | ({"cls_token": "[CLS]"} if special else {})
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder


def save_model(folder: Path, table: dict[str, Any], *, causal: bool = False, vocab_size: int = 64) -> Path:
    """A model with random weights as transformers saves it."""
    import torch
    import transformers

    values = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, **table}
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        auto.from_config(config).save_pretrained(folder)
    return folder


class Topics(gymnasium.Env[Any, Any]):
    """Reward 1 for the operation that fits the topic of the text; two texts an episode."""

    def __init__(self, tokenizer: Tokenizer | None = None, length: int = 8, horizon: int = 2) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()
        self.length, self.horizon = length, horizon
        self.action_space = spaces.Discrete(len(NAMES))
        self.observation_space = spaces.Dict(
            {
                "history": spaces.MultiDiscrete([len(NAMES) + 1] * horizon),
                "ids": spaces.Box(0, self.tokenizer.vocab_size - 1, (length,), np.int64),
                "mask": spaces.Box(0, 1, (length,), np.int64),
                "step": spaces.Discrete(horizon + 1),
            }
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.history: list[int] = []
        return self.show(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.best)
        self.history.append(int(action))
        return self.show(), reward, len(self.history) >= self.horizon, False, self.info()

    def info(self) -> dict[str, Any]:
        return {}

    def show(self) -> Any:
        self.best = int(self.np_random.integers(len(TOPICS)))
        verb = ("Make", "Write", "Do")[int(self.np_random.integers(3))]
        return self.observation(f"{verb} a {TOPICS[self.best]} .")

    def observation(self, text: str) -> Any:
        found = list(self.tokenizer.encode(text))[: self.length]
        ids, mask = np.zeros(self.length, np.int64), np.zeros(self.length, np.int64)
        ids[: len(found)], mask[: len(found)] = found, 1
        history = np.full(self.horizon, len(NAMES), np.int64)
        history[: len(self.history)] = self.history
        return {"history": history, "ids": ids, "mask": mask, "step": np.int64(len(self.history))}


class MaskedTopics(Topics):
    """The operation after the one that fits pays, and the one that fits is illegal."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action != self.shown, "an illegal action was taken"
        return super().step(action)

    def show(self) -> Any:
        seen = super().show()
        self.shown, self.best = self.best, (self.best + 1) % len(NAMES)
        return seen

    def info(self) -> dict[str, Any]:
        return {"action_mask": np.array([action != self.shown for action in range(len(NAMES))], np.int8)}


class Rounds(Topics):
    """The text says nothing; the operation after the last one in the circle pays, `add` at first."""

    def show(self) -> Any:
        self.best = (self.history[-1] + 1) % len(NAMES) if self.history else 0
        return self.observation("Do a map .")
