"""How fast SFT and DPO train here: tokens a second, and the share of what the device's matrix product can do.

The student has random weights, of the size that ``--parameters`` names (about; 1e9 on a GPU, 1e7 on a CPU), in its own
folder, as a user's would be. A step's time is the difference between a training of many steps and one of a single step,
so that loading and saving do not count. Work is taken as 6 operations a parameter and token (4 with adapters, whose
training needs no gradient of the weights), and 2 more for DPO's reference; the peak is that of a large matrix product
measured in the same run, in the training's type.

    python benchmarks/training_speed.py [--quick] [--parameters N] [--lora] [--json FILE]
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _report import Report, parser

from instructgym.train.testbed.model import base_tokenizer
from instructgym.train.tuning.dpo import train_dpo
from instructgym.train.tuning.examples import PreferenceExample, SFTExample
from instructgym.train.tuning.job import TuningResult
from instructgym.train.tuning.settings import DPOSettings, LoraSettings, SFTSettings
from instructgym.train.tuning.sft import train_sft
from instructgym.types import Message

WORDS = 60  # of an answer; a letter is a token


@dataclasses.dataclass(frozen=True)
class Size:
    hidden: int
    layers: int

    @property
    def parameters(self) -> int:
        """Those of the layers: attention 4 h^2, and an MLP of three times the width, 9 h^2."""
        return 13 * self.hidden**2 * self.layers


def size_of(parameters: float) -> Size:
    """The smallest of a family of models that has so many parameters."""
    sizes = [Size(64 * width, max(2, width)) for width in range(1, 65)]
    return next((size for size in sizes if size.parameters >= parameters), sizes[-1])


def make_student(folder: Path, size: Size, dtype: torch.dtype) -> Path:
    import transformers

    tokenizer = base_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: the best of five."""
    side = 8192 if device == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        product = one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
        del product
    return 2 * side**3 / best


def a_step(train: Callable[[int, Path], TuningResult], steps: int, folder: Path) -> float:
    """Seconds a step, without loading and saving."""
    train(1, folder / "warm")  # what is imported and compiled once
    seconds = []
    for count in (1, 1 + steps):
        started = time.perf_counter()
        train(count, folder / str(count))
        seconds.append(time.perf_counter() - started)
    return (seconds[1] - seconds[0]) / steps


def main() -> None:
    options = parser("How fast SFT and DPO train here.")
    options.add_argument("--parameters", type=float, help="of the student; default 1e9 on a GPU, 1e7 on a CPU")
    options.add_argument("--batch", type=int, default=8, help="examples a step")
    options.add_argument("--lora", action="store_true", help="adapters only")
    given = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = size_of(given.parameters or (1e9 if device == "cuda" else 1e6 if given.quick else 1e7))
    steps = 2 if given.quick else 20
    answers = [" ".join(["abcdefgh"[number % 8] * 4] * WORDS) for number in range(given.batch)]
    prompt = "write it"
    common: dict[str, Any] = {
        "batch_size": given.batch,
        "lr": 1e-6,
        "save_every": None,
        "lora": LoraSettings() if given.lora else None,
    }
    texts = [SFTExample((Message("user", prompt), Message("assistant", answer))) for answer in answers]
    pairs = [PreferenceExample((Message("user", prompt),), answer, answer[::-1] + " z") for answer in answers]
    report = Report("training_speed", quick=given.quick, facts={"device": device, "dtype": str(dtype)})
    with tempfile.TemporaryDirectory() as scratch:
        student = make_student(Path(scratch) / "student", size, dtype)
        tokens = len(base_tokenizer()(answers[0])["input_ids"])
        fastest = peak(device, dtype)
        report.row(f"student, parameters of its layers ({size.layers} x {size.hidden})", size.parameters, "")
        report.row("matrix product at its best", fastest / 1e12, "TFLOP/s")
        kinds: dict[str, tuple[int, int, Callable[[int, Path], TuningResult]]] = {
            "SFT": (0, 1, lambda n, out: train_sft(student, texts, SFTSettings(**common, max_steps=n), out)),
            "DPO": (2, 2, lambda n, out: train_dpo(student, pairs, DPOSettings(**common, max_steps=n), out)),
        }
        for name, (reference, answers_each, train) in kinds.items():
            seconds = a_step(train, steps, Path(scratch) / name)
            rate = given.batch * answers_each * tokens / seconds
            work = ((4 if given.lora else 6) + reference) * size.parameters * rate
            case = f"{name}{' with adapters' if given.lora else ''}, {given.batch} examples of {tokens} tokens a step"
            report.row(case, rate, "tokens/s")
            report.row(f"{case}: share of the peak", work / fastest, "")
    report.finish(given.json)


if __name__ == "__main__":
    main()
