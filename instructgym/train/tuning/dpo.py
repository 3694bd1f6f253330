"""Direct preference optimisation: TRL's trainer with losses of our own, so that pairs can have weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.train.tuning.encoding import encode_pairs
from instructgym.train.tuning.examples import PreferenceExample
from instructgym.train.tuning.losses import Logps, pair_losses
from instructgym.train.tuning.settings import DPOSettings
from instructgym.train.tuning.student import open_student
from instructgym.train.tuning.trainer import (
    TuningResult,
    arguments_of,
    check_finite,
    lora_config,
    need_training_packages,
    open_job,
    set_dropout,
    split_off,
)

__all__ = ["train_dpo"]


def train_dpo(
    model: str | Path,
    examples: Sequence[PreferenceExample],
    settings: DPOSettings,
    out: Path,
    *,
    chat_template: str = "",
    seed: int = 0,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> TuningResult:
    """Train a model on preferences; the reference is the model as it is given. The result is ``out/model``.

    Goes on, or gives what is there, as `train_sft` does. Pairs that do not fit into `max_length` are left out and
    counted, and so are pairs of equal answers. Weights are taken relative to their mean.

    Raises as `train_sft` does.
    """
    need_training_packages()
    job = open_job("dpo", model, examples, settings, out, chat_template=chat_template, seed=seed)
    done = job.finished()
    if done is not None:
        return done
    student = open_student(
        model,
        chat_template=chat_template,
        device=device,
        trust_remote_code=trust_remote_code,
        quantization=settings.quantization,
    )
    limit = min(settings.max_length, student.context or settings.max_length)
    encoded, dropped = encode_pairs(student, examples, limit)
    if not encoded:
        raise ConfigError(
            f"none of the {len(examples)} pairs can be learned from "
            f"({', '.join(f'{count} {reason}' for reason, count in dropped.items()) or 'there are none'}; at most "
            f"{limit} tokens); raise max_length, or give other data."
        )
    total = sum(each.weight for each in encoded)
    if not total > 0:
        raise ConfigError(f"the weights of all {len(encoded)} pairs are 0; expected some above 0.")
    scale = len(encoded) / total
    import datasets

    rows = [
        {
            "prompt_ids": each.prompt_ids,
            "chosen_ids": each.chosen_ids,
            "rejected_ids": each.rejected_ids,
            "weight": each.weight * scale,
        }
        for each in encoded
    ]
    train, held = split_off(len(rows), settings.eval_share, seed)
    set_dropout(student.model, settings.dropout)
    with_copy = settings.lora is None and not settings.precompute_reference
    trainer = _trainer_class()(
        model=student.model,
        ref_model=open_student(
            model, chat_template=chat_template, device=device, trust_remote_code=trust_remote_code
        ).model
        if with_copy
        else None,
        args=_arguments(student, settings, out, seed),
        train_dataset=datasets.Dataset.from_list([rows[place] for place in train]),
        eval_dataset=datasets.Dataset.from_list([rows[place] for place in held]) if held else None,
        data_collator=_collator(student.tokenizer.pad_token_id),
        processing_class=student.tokenizer,
        peft_config=lora_config(settings),
        losses=settings.losses,
    )
    return job.run(trainer, student, settings, {"pairs": len(train), "eval": len(held), **dropped})


def _arguments(student: Any, settings: DPOSettings, out: Path, seed: int) -> Any:
    from trl.trainer.dpo_config import DPOConfig

    return DPOConfig(
        **arguments_of(student, settings, out, seed),
        max_length=None,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=settings.precompute_reference and settings.lora is None,
        disable_dropout=settings.dropout == 0.0,
    )


def _collator(pad_token_id: int) -> Any:
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class WeightedCollator(DataCollatorForPreference):  # type: ignore[misc]
        """TRL's, and the pairs' weights."""

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            batch["weight"] = torch.tensor([example["weight"] for example in examples], dtype=torch.float32)
            return batch

    return WeightedCollator(pad_token_id=pad_token_id)


def _trainer_class() -> Any:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer, use_adapter

    class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]  # TRL is not followed
        """TRL's data, reference and loop; the loss is ours: several by name, pairs with weights, lengths in the log."""

        def __init__(self, *args: Any, losses: dict[str, float], **kwargs: Any) -> None:
            self._losses = {name: weight for name, weight in losses.items() if weight > 0}
            super().__init__(*args, **kwargs)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # it holds ids already

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            check_finite(loss, self.state.global_step)
            return loss

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != "weight"})

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            mode = "train" if self.model.training else "eval"
            mask = inputs["completion_mask"]
            own = self._log_probs(model, inputs)
            if self.precompute_ref_logps:
                reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
            else:
                with torch.no_grad(), self._reference() as other:
                    reference = self._log_probs(other, inputs)
            tokens = mask[..., 1:].sum(dim=1).chunk(2, dim=0)
            logps = Logps(*own, *reference, *tokens)
            weight = inputs["weight"].to(own[0].device)
            loss = torch.zeros((), device=own[0].device)
            values = {}
            for name, share in self._losses.items():
                of_pairs = pair_losses(name, logps, beta=self.beta, label_smoothing=self.label_smoothing)
                values[f"loss/{name}"] = (weight * of_pairs).mean()
                loss = loss + share * values[f"loss/{name}"]
            chosen = self.beta * (logps.chosen - logps.reference_chosen).detach()
            rejected = self.beta * (logps.rejected - logps.reference_rejected).detach()
            values |= {
                "logps/chosen": logps.chosen.mean(),
                "logps/rejected": logps.rejected.mean(),
                "rewards/chosen": chosen.mean(),
                "rewards/rejected": rejected.mean(),
                "rewards/margins": (chosen - rejected).mean(),
                "rewards/accuracies": (chosen > rejected).float().mean(),
                "tokens/chosen": tokens[0].float().mean(),
                "tokens/rejected": tokens[1].float().mean(),
            }
            for name, value in values.items():
                self._metrics[mode][name].append(self.accelerator.gather(value.detach()).mean().item())
            return (loss, {}) if return_outputs else loss

        def _log_probs(self, model: Any, inputs: Any) -> tuple[Any, Any]:
            """Summed log-probabilities of the chosen and of the rejected answers, (n,) each."""
            ids, mask = inputs["input_ids"], inputs["completion_mask"]
            labels = ids.masked_fill(mask == 0, -100)
            outputs = model(
                input_ids=ids,
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                labels=labels,
                fused_lm_head=True,
            )
            chosen, rejected = outputs.log_probs[:, -(ids.shape[1] - 1) :].sum(dim=1).chunk(2, dim=0)
            return chosen, rejected

        def _reference(self) -> Any:
            """The model as it was at the start: the copy, or the trained one without its adapter."""
            import contextlib

            @contextlib.contextmanager
            def opened() -> Any:
                if self.ref_model is not None:
                    yield self.ref_model
                    return
                with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                    was_training = self.model.training
                    self.model.eval()
                    try:
                        yield self.model
                    finally:
                        self.model.train(was_training)

            return opened()

    return PreferenceTrainer
