"""Direct preference optimisation: TRL's data, reference and loop, with losses of our own: pairs have weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.train.progress import Progress
from instructgym.train.tuning.arguments import (
    arguments_of,
    lora_config,
    need_training_packages,
    on_one_gpu,
    student_to_train,
)
from instructgym.train.tuning.encoding import EncodedPair, encode_pairs
from instructgym.train.tuning.examples import PreferenceExample
from instructgym.train.tuning.job import CHECKPOINTS, TuningResult, open_job
from instructgym.train.tuning.losses import Logps, pair_losses
from instructgym.train.tuning.settings import DPOSettings
from instructgym.train.tuning.student import Student
from instructgym.train.tuning.trainer import guarded, own_draws, quiet_libraries, run_trainer, split_off

__all__ = ["dpo_trainer", "train_dpo"]


def train_dpo(
    model: str | Path,
    examples: Sequence[PreferenceExample],
    settings: DPOSettings,
    out: Path,
    *,
    chat_template: str = "",
    seed: int = 0,
    eval_examples: Sequence[PreferenceExample] = (),
    device: str = "auto",
    trust_remote_code: bool = False,
    replace: bool = True,
    progress: Progress | None = None,
) -> TuningResult:
    """Train a model on preferences; the reference is the model as it is given. The result is ``out/model``.

    Goes on, or gives what is there, as `train_sft` does. Pairs that do not fit into `max_length` are left out and
    counted, and so are pairs of equal answers. Weights are taken relative to their mean.

    Takes and raises what `train_sft` does.
    """
    need_training_packages()
    job = open_job(
        "dpo",
        model,
        examples,
        settings,
        out,
        chat_template=chat_template,
        seed=seed,
        eval_examples=eval_examples,
        replace=replace,
    )
    with job.hold():
        done = job.finished()
        if done is not None:
            return done
        with own_draws(), quiet_libraries():

            def opened() -> Student:
                return student_to_train(
                    model, settings, chat_template=chat_template, device=device, trust_remote_code=trust_remote_code
                )

            student = opened()
            train, held, counts = _pairs(student, examples, eval_examples, settings, seed)
            with_copy = settings.lora is None and not settings.precompute_reference
            reference = opened().model if with_copy else None
            trainer = dpo_trainer(student, reference, train, held, settings, job.out / CHECKPOINTS, seed)
            return run_trainer(job, trainer, student, counts, progress)


def dpo_trainer(
    student: Student,
    reference: Any,
    train: Sequence[EncodedPair],
    held: Sequence[EncodedPair],
    settings: DPOSettings,
    folder: Path,
    seed: int,
) -> Any:
    """The trainer on finished ids; checkpoints go into `folder`.

    `reference` is another model, or None: then it is the student without its adapter, or (with
    `precompute_reference`) the student before the first step.
    """
    import datasets
    from trl.trainer.dpo_config import DPOConfig

    def dataset(pairs: Sequence[EncodedPair]) -> Any:
        columns = ("prompt_ids", "chosen_ids", "rejected_ids", "weight")
        return datasets.Dataset.from_list([{name: getattr(pair, name) for name in columns} for pair in pairs])

    return _trainer_class()(
        model=student.model,
        ref_model=reference,
        args=on_one_gpu(
            DPOConfig(
                **arguments_of(student, settings, folder, seed),
                max_length=None,
                beta=settings.beta,
                label_smoothing=settings.label_smoothing,
                precompute_ref_log_probs=settings.precompute_reference and settings.lora is None,
                disable_dropout=False,  # it would switch off the adapters', too; the model's own is set already
            )
        ),
        train_dataset=dataset(train),
        eval_dataset=dataset(held) if held else None,
        data_collator=_collator(student.tokenizer.pad_token_id),
        processing_class=student.tokenizer,
        peft_config=lora_config(settings, student),
        losses=settings.losses,
    )


def _pairs(
    student: Student,
    examples: Sequence[PreferenceExample],
    eval_examples: Sequence[PreferenceExample],
    settings: DPOSettings,
    seed: int,
) -> tuple[list[EncodedPair], list[EncodedPair], Mapping[str, int]]:
    """(pairs to train on, those of the eval loss, counts). Raises `ConfigError` if there is nothing to learn from."""
    limit = min(settings.max_length, student.context or settings.max_length)
    encoded, dropped = encode_pairs(student, examples, limit)
    if not encoded:
        raise ConfigError(
            f"none of the {len(examples)} pairs can be learned from "
            f"({', '.join(f'{count} {reason}' for reason, count in dropped.items()) or 'there are none'}; at most "
            f"{limit} tokens); raise max_length, or give other data."
        )
    if not sum(each.weight for each in encoded) > 0:
        raise ConfigError(f"the weights of all {len(encoded)} pairs are 0; expected some above 0.")
    if eval_examples:
        train, held = encoded, encode_pairs(student, eval_examples, limit)[0]
    else:
        places, rest = split_off(len(encoded), settings.eval_share, seed)
        train, held = [encoded[place] for place in places], [encoded[place] for place in rest]
    counts = {"pairs": len(train), "eval": len(held), **dropped}
    return _mean_one(train), _mean_one(held), counts


def _mean_one(pairs: Sequence[EncodedPair]) -> list[EncodedPair]:
    """The pairs with weights of mean 1, so that weights do not change the rate."""
    total = sum(pair.weight for pair in pairs)
    return [changed(pair, weight=pair.weight * len(pairs) / total) for pair in pairs] if total > 0 else list(pairs)


def _collator(pad_token_id: int) -> Any:
    import torch
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class WeightedCollator(DataCollatorForPreference):  # type: ignore[misc]  # TRL is not followed
        """TRL's, and the pairs' weights."""

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            batch["weight"] = torch.tensor([example["weight"] for example in examples], dtype=torch.float32)
            return batch

    return WeightedCollator(pad_token_id=pad_token_id)


def _trainer_class() -> Any:
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer, use_adapter

    class PreferenceTrainer(guarded(DPOTrainer)):  # type: ignore[misc]  # TRL is not followed
        """The loss is ours: several by name, pairs with weights; the log tells chosen and rejected answers apart."""

        def __init__(self, *args: Any, losses: Mapping[str, float], **kwargs: Any) -> None:
            self._losses = {name: weight for name, weight in losses.items() if weight > 0}
            super().__init__(*args, **kwargs)

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # it holds ids already

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super().compute_ref_log_probs(model, {k: v for k, v in inputs.items() if k != "weight"})

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            mode = "train" if self.model.training else "eval"
            (chosen, rejected), auxiliary = self._log_probs(model, inputs)
            if self.precompute_ref_logps:
                reference = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
            else:
                with torch.no_grad(), self._reference() as other:
                    reference, _ = self._log_probs(other, inputs)
            tokens = inputs["completion_mask"][..., 1:].sum(dim=1).chunk(2, dim=0)
            logps = Logps(chosen, rejected, *reference, *tokens)
            loss = torch.zeros((), device=chosen.device)
            values = {}
            for name, share in self._losses.items():
                of_pairs = pair_losses(name, logps, beta=self.beta, label_smoothing=self.label_smoothing)
                values[f"loss/{name}"] = (inputs["weight"] * of_pairs).mean()
                loss = loss + share * values[f"loss/{name}"]
            if auxiliary is not None:
                values["loss/router"] = auxiliary
                loss = loss + self.router_aux_loss_coef * auxiliary
            gain = self.beta * (logps.chosen - logps.reference_chosen).detach()
            lost = self.beta * (logps.rejected - logps.reference_rejected).detach()
            values |= {
                "logps/chosen": logps.chosen.mean(),
                "logps/rejected": logps.rejected.mean(),
                "rewards/chosen": gain.mean(),
                "rewards/rejected": lost.mean(),
                "rewards/margins": (gain - lost).mean(),
                "rewards/accuracies": (gain > lost).float().mean(),
                "tokens/chosen": tokens[0].float().mean(),
                "tokens/rejected": tokens[1].float().mean(),
            }
            gathered = self.accelerator.gather(torch.stack([value.detach().float() for value in values.values()])[None])
            for name, value in zip(values, gathered.mean(dim=0).tolist(), strict=True):
                self._metrics[mode][name].append(value)
            return (loss, {}) if return_outputs else loss

        def _log_probs(self, model: Any, inputs: Any) -> tuple[tuple[Any, Any], Any]:
            """Summed log-probabilities of the chosen and of the rejected answers, (n,) each; the router's loss if any.

            A token is predicted at the position before it: n tokens have n - 1 predictions.
            """
            ids, mask = inputs["input_ids"], inputs["completion_mask"]
            router = {"output_router_logits": True} if self.aux_loss_enabled and torch.is_grad_enabled() else {}
            outputs = model(
                input_ids=ids,
                attention_mask=inputs["attention_mask"],
                use_cache=False,
                labels=ids.masked_fill(mask == 0, -100),
                fused_lm_head=True,
                **router,
            )
            chosen, rejected = outputs.log_probs[:, -(ids.shape[1] - 1) :].sum(dim=1).chunk(2, dim=0)
            return (chosen, rejected), outputs.aux_loss if router else None

        @contextlib.contextmanager
        def _reference(self) -> Iterator[Any]:
            """The model as it was at the start: the copy, or the trained one without its adapter and its dropout."""
            if self.ref_model is not None:
                yield self.ref_model
                return
            training = self.model.training
            with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name=None):
                self.model.eval()
                try:
                    yield self.model
                finally:
                    self.model.train(training)

    return PreferenceTrainer
