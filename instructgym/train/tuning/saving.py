"""A trained model as a folder that any tool opens: weights, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instructgym.train.tuning.job import ADAPTER, MODEL, is_main_process
from instructgym.train.tuning.student import Student

__all__ = ["NotANumber", "all_finite", "save_whole"]


class NotANumber(FloatingPointError):
    """A loss, a gradient or a weight that is no number; the weights after `step` steps are the ones in question."""

    def __init__(self, words: str, step: int) -> None:
        super().__init__(words)
        self.step = step


def all_finite(model: Any) -> bool:
    """Whether the weights are numbers; those of this process, where the model is spread over several."""
    return all(_is_finite(parameter.detach()) for parameter in model.parameters())


def _is_finite(tensor: Any) -> bool:
    import torch

    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(torch.isfinite(own).all())


def save_whole(trainer: Any, student: Student, out: Path) -> None:
    """Write ``out/model``, and with LoRA ``out/adapter`` before it. Every process has to call it.

    The model is written beside its place and then put there, so that it is never half a model. Its weights are of the
    type that they came in. Raises `NotANumber` for weights that are none, before the model is in its place.
    """
    alone = trainer.accelerator.num_processes == 1
    gathered = {} if alone else {"state_dict": trainer.accelerator.get_state_dict(trainer.model)}
    if not is_main_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    step = trainer.state.global_step
    if not (all_finite(model) if alone else all(_is_finite(value) for value in gathered["state_dict"].values())):
        raise NotANumber("the weights are no longer numbers", step)
    beside = out / f"{MODEL}.new"
    shutil.rmtree(beside, ignore_errors=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(out / ADAPTER, **gathered)
        whole = _merged(student, out / ADAPTER)
        _check_range(whole.parameters(), student.dtype, step)
        _take_special_tokens(whole, model)
        whole.save_pretrained(beside)
    elif alone:
        whole = model.to(student.dtype)
        _check_range(whole.parameters(), student.dtype, step)
        whole.save_pretrained(beside)
    else:
        state = _cast(gathered["state_dict"], student.dtype)
        _check_range(state.values(), student.dtype, step)
        model.save_pretrained(beside, state_dict=state)
        _name_type(beside / "config.json", student.dtype)
    student.tokenizer.save_pretrained(beside)
    shutil.rmtree(out / MODEL, ignore_errors=True)
    beside.rename(out / MODEL)


def _check_range(tensors: Iterable[Any], dtype: Any, step: int) -> None:
    """They were numbers where they were trained: here the type that they are saved in may be too narrow for them."""
    if not all(_is_finite(tensor.detach()) for tensor in tensors):
        name = str(dtype).removeprefix("torch.")
        raise NotANumber(f"the weights are too large for {name}, the type that the model came in", step + 1)


def _merged(student: Student, adapter: Path) -> Any:
    """The weights as they were, with the adapter's change: four-bit weights and shards cannot take it in themselves."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(
        student.name, dtype=student.dtype, trust_remote_code=student.trust_remote_code
    )
    return peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()


def _take_special_tokens(whole: Any, trained: Any) -> None:
    """Those that training has settled on between model and tokenizer."""
    for config, own in (
        (whole.generation_config, trained.generation_config),
        (whole.config.get_text_config(), trained.config.get_text_config()),
    ):
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            setattr(config, name, getattr(own, name, None))


def _cast(state: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Tensors of another type; what was one tensor under two names stays one."""
    made: dict[int, Any] = {}
    for value in state.values():
        if value.is_floating_point():
            made.setdefault(value.data_ptr(), value.to(dtype))
    return {name: made.get(value.data_ptr(), value) for name, value in state.items()}


def _name_type(config: Path, dtype: Any) -> None:
    values = json.loads(config.read_text("utf-8"))
    values["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
