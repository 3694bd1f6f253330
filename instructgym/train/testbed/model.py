"""M0 of the testbed: a tiny decoder with its own tokenizer, trained from nothing on careless text.

What it reads are questions and answers of the world as they might stand somewhere: at a stated rate the answer is the
typical mistake of its kind, and verdicts on answers are right no more often than by chance. So it comes to know the
tasks, and mostly does not do them; to do them is what alignment is to bring out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.train.testbed import judging_question
from instructgym.train.testbed.tasks import WORDS, careless_answer, random_task
from instructgym.types import Instruction

__all__ = ["BaseModelSettings", "base_tokenizer", "build_base_model", "documents"]

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "<assistant>{% generation %}{{ message.content }}<end>{% endgeneration %}"
    "{%- else -%}<user>{{ message.content }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.:;=?!-'\n"


@dataclass(frozen=True)
class BaseModelSettings:
    """How M0 is made. `careless` is the share of answers with a mistake; `judging` the share of texts that judge."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 1500
    batch_size: int = 64
    lr: float = 3e-3
    careless: float = 0.65
    judging: float = 0.25
    context: int = 128


def base_tokenizer() -> Any:
    """Characters, and the words of the tasks as tokens of their own."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<user>", "<assistant>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *_CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    # The spaces around a word belong to it; answers are spelled in characters, and keep theirs.
    tokenizer.add_tokens(
        [AddedToken(word, single_word=True, lstrip=True, rstrip=True, normalized=False) for word in [*WORDS, "judge"]]
    )
    tokenizer.add_tokens([AddedToken("Score:", normalized=False)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def documents(count: int, rng: np.random.Generator, settings: BaseModelSettings) -> list[str]:
    """Texts of the world: questions with answers, and judgements, careless at the settings' rates."""
    texts = []
    for _ in range(count):
        task = random_task(rng)
        wrong = careless_answer(task.prompt) or ""
        if rng.random() < settings.judging:
            answer = task.answer if rng.random() < 0.5 else wrong
            score = int(rng.choice([0, 5]))  # a verdict like any other, right by chance
            question = judging_question.messages(Instruction(task.prompt), answer)[0].content
            texts.append(f"<user>{question}<assistant>{judging_question.reply(score)}<end>")
        else:
            answer = wrong if rng.random() < settings.careless else task.answer
            texts.append(f"<user>{task.prompt}<assistant>{answer}<end>")
    return texts


def build_base_model(
    folder: Path,
    *,
    rng_seed: int = 0,
    settings: BaseModelSettings | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Train M0 and save it in `folder`, with its tokenizer. The same seed gives the same model on one machine.

    `on_step` hears of each step and its loss.
    """
    import torch
    import transformers

    settings = settings or BaseModelSettings()
    tokenizer = base_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng_seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        _train(model, tokenizer, settings, np.random.default_rng([rng_seed, 7]), rng_seed, on_step)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    beside = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def _train(
    model: Any,
    tokenizer: Any,
    settings: BaseModelSettings,
    rng: np.random.Generator,
    rng_seed: int,
    on_step: Callable[[int, float], None] | None,
) -> None:
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, settings.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / settings.steps))),
    )
    model.train()
    for step in range(settings.steps):
        texts = documents(settings.batch_size, rng, settings)
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if on_step is not None:
            on_step(step, loss.item())
