"""The local transformers backend: requests one by one against the micro-batcher, on small random models.

    python benchmarks/local_transformers.py [--quick] [--json FILE]

All requests are there from the start, of mixed length, temperature and `max_tokens`; the random models hardly ever end
an answer by themselves. One by one is the same backend with `max_batch = 1`. On the CPU the texts must be equal.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from _report import Report, parser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from instructgym.llm_backends.local_transformers import TransformersBackend
from instructgym.types import Completion, Message, Request, Sampling

BATCH = 64
GAIN = 3.0


@dataclass(frozen=True)
class Size:
    name: str
    layers: int
    width: int
    vocabulary: int


TINY = Size("tiny", 2, 64, 1_000)
SMALL = Size("small", 8, 512, 32_000)
ON_CUDA = Size("medium", 24, 2_048, 128_000)


def save(folder: Path, size: Size) -> None:
    """A random Llama, and a tokenizer whose tokens are bytes (and names, up to the vocabulary's size)."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"]
    tokens += [f"<{number}>" for number in range(size.vocabulary - len(tokens))]
    raw = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(4, size.width // 64),
        num_key_value_heads=4,
        initializer_range=0.1,
        eos_token_id=256,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def requests(count: int) -> list[Request]:
    rng = random.Random(0)
    return [
        Request(
            role="expert",
            model="local",
            messages=(Message("user", "rewrite " * rng.randint(2, 16)),),
            sampling=Sampling(temperature=rng.choice([0.0, 0.7, 1.0]), max_tokens=rng.randint(16, 64)),
            prompt_version="benchmark/1",
            sample=(index,),
        )
        for index in range(count)
    ]


async def timed(folder: Path, device: str, dtype: str, max_batch: int, count: int) -> tuple[list[Completion], float]:
    """The answers, and the seconds they took once the model was loaded."""
    local = TransformersBackend(folder, device=device, dtype=dtype, max_batch=max_batch)
    asked = requests(count)
    await local.complete(asked[0])
    started = time.perf_counter()
    answers = await asyncio.gather(*(local.complete(request) for request in asked))
    seconds = time.perf_counter() - started
    await local.aclose()
    return answers, seconds


def compare(report: Report, size: Size, device: str, dtype: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(folder, size)
        alone, alone_s = asyncio.run(timed(folder, device, dtype, 1, count))
        joined, joined_s = asyncio.run(timed(folder, device, dtype, BATCH, count))
    case = f"{size.name} ({size.layers} x {size.width}, {size.vocabulary:,} tokens), {device} {dtype}"
    for name, answers, seconds in (("one by one", alone, alone_s), (f"batches of up to {BATCH}", joined, joined_s)):
        tokens = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
        report.row(f"{case}: {name}", count / seconds, "requests/s")
        report.row(f"{case}: {name}", tokens / seconds, "tokens/s")
    gain = alone_s / joined_s
    report.row(f"{case}: gain", gain, "x", f">= {GAIN:g} x", gain >= GAIN)
    differing = sum(one.text != other.text for one, other in zip(alone, joined, strict=True))
    promise: dict[str, Any] = {"target": "0", "holds": differing == 0} if device == "cpu" else {}
    report.row(f"{case}: texts that differ", differing, f"of {count}", **promise)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    options = parser(__doc__.splitlines()[0]).parse_args()
    threads = torch.get_num_threads()
    report = Report(
        "local_transformers", options.quick, {"torch threads": threads, "transformers": transformers.__version__}
    )
    compare(report, TINY, "cpu", "float32", 64 if options.quick else 256)
    if not options.quick:
        compare(report, SMALL, "cpu", "float32", 48)
    if torch.cuda.is_available():
        compare(report, ON_CUDA, "cuda", "bfloat16", 64 if options.quick else 256)
    else:
        report.skip("medium model in bfloat16 on CUDA", "no CUDA device")
    report.finish(options.json)


if __name__ == "__main__":
    main()
