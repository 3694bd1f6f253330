"""M0 of the testbed: a tiny decoder with its own tokenizer, trained from nothing on careless text.

What it reads are questions and answers of the world as they might stand somewhere: first from careful writers, then
more and more from careless ones, whose answers are the typical mistake of their kind and whose verdicts on answers are
drawn by lot. So it comes to know the tasks, and in the end mostly does not do them; to do them is what alignment is to
bring out.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.train.testbed import judging_question
from instructgym.train.testbed.tasks import WORDS, careless_answer, random_task, wrong_answer
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
_TURN = 0.7  # the share of all texts after which writers get careless
_POOL = 16  # batches that are drawn together, to be sorted by length
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.:;=?!-'\n"


@dataclass(frozen=True)
class BaseModelSettings:
    """How M0 is made. `careless` is the share of answers with a mistake in the last texts, where the first have
    `careless_first`; `judging` the share of texts that judge."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    steps: int = 1400
    batch_size: int = 64
    lr: float = 3e-3
    careless: float = 0.85
    careless_first: float = 0.1
    judging: float = 0.4
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


def documents(count: int, rng: np.random.Generator, settings: BaseModelSettings, done: float) -> list[tuple[str, str]]:
    """(question, answer) texts of the world, when a share `done` of all texts was read.

    After a share `_TURN` the share of mistakes goes from that of the first texts to that of the last, and the share of
    verdicts that are drawn by lot from none to that of the last mistakes.
    """
    late = max(0.0, (done - _TURN) / (1 - _TURN))
    careless = settings.careless_first + late * (settings.careless - settings.careless_first)
    texts = []
    for _ in range(count):
        task = random_task(rng)
        wrong = careless_answer(task.prompt) or ""
        question = task.prompt
        if rng.random() < settings.judging:
            is_right = bool(rng.random() < 0.5)
            verdict = bool(rng.random() < 0.5) if rng.random() < late * settings.careless else is_right
            judged = task.answer if is_right else wrong_answer(task, rng)
            question = judging_question.messages(Instruction(task.prompt), judged)[0].content
            answer = judging_question.reply(5 if verdict else 0)
        else:
            answer = wrong if rng.random() < careless else task.answer
        texts.append((f"<user>{question}<assistant>", f"{answer}<end>"))
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

    from instructgym.train.tuning.trainer import quiet_libraries

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
    with quiet_libraries():
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

    optimisers = _optimisers(model, settings.lr)
    warmup = max(1, settings.steps // 20)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, rate) for optimiser in optimisers]
    model.train()
    batches: list[list[tuple[str, str]]] = []
    for step in range(settings.steps):
        if not batches:
            batches = _of_like_length(
                documents(_POOL * settings.batch_size, rng, settings, step / settings.steps), settings.batch_size, rng
            )
        texts = batches.pop()
        batch = _encoded(tokenizer, texts)
        loss = model(**batch).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        if on_step is not None:
            on_step(step, loss.item())


def _optimisers(model: Any, lr: float) -> list[Any]:
    """Muon for matrices, AdamW for embeddings and norms: it learns the tasks in a third of AdamW's steps."""
    import torch

    named = list(model.named_parameters())
    matrices = [value for name, value in named if value.ndim == 2 and "embed" not in name]
    others = [value for name, value in named if value.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _of_like_length(texts: list[tuple[str, str]], size: int, rng: np.random.Generator) -> list[list[tuple[str, str]]]:
    """Batches of texts that are about as long, in an order that is drawn: padding would be half of the work."""
    ordered = sorted(texts, key=lambda text: len(text[0]) + len(text[1]))
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [batches[place] for place in rng.permutation(len(batches)).tolist()]


def _encoded(tokenizer: Any, texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Ids, mask and labels. Only answers are learned: a made word cannot be foreseen."""
    import torch

    pairs = [[tokenizer(part, add_special_tokens=False)["input_ids"] for part in text] for text in texts]
    longest = max(len(question) + len(answer) for question, answer in pairs)
    ids, mask, labels = (torch.full((len(pairs), longest), value) for value in (tokenizer.pad_token_id, 0, -100))
    for row, (question, answer) in enumerate(pairs):
        end = len(question) + len(answer)
        ids[row, :end] = torch.tensor([*question, *answer])
        mask[row, :end] = 1
        labels[row, len(question) : end] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
