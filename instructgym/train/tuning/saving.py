"""A trained model as a folder that any tool opens: weights, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructgym.train.tuning.job import ADAPTER, MODEL, is_main_process
from instructgym.train.tuning.student import Student

__all__ = ["save_whole"]


def save_whole(trainer: Any, student: Student, out: Path) -> None:
    """Write ``out/model``, and with LoRA ``out/adapter`` before it. Every process has to call it.

    The model is written beside its place and then put there, so that it is never half a model. Its weights are of the
    type that they came in.
    """
    alone = trainer.accelerator.num_processes == 1
    gathered = {} if alone else {"state_dict": trainer.accelerator.get_state_dict(trainer.model)}
    if not is_main_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    beside = out / f"{MODEL}.new"
    shutil.rmtree(beside, ignore_errors=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(out / ADAPTER, **gathered)
        whole = _merged(student, out / ADAPTER)
        _take_special_tokens(whole, model)
        whole.save_pretrained(beside)
    elif alone:
        model.to(student.dtype).save_pretrained(beside)
    else:
        model.save_pretrained(beside, state_dict=_cast(gathered["state_dict"], student.dtype))
        _name_type(beside / "config.json", student.dtype)
    student.tokenizer.save_pretrained(beside)
    shutil.rmtree(out / MODEL, ignore_errors=True)
    beside.rename(out / MODEL)


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
