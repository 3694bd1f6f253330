"""How a model is trained: what supervised fine-tuning and DPO have in common, and what each has of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from instructgym.train.config import Section

__all__ = ["LOSSES", "DPOSettings", "LoraSettings", "SFTSettings", "TrainingSettings"]

LOSSES = ("sigmoid", "sigmoid_norm", "ipo", "robust", "hinge", "sft")


class LoraSettings(Section):
    """Low-rank adapters (arXiv 2106.09685). ``auto`` puts them on every linear layer but the head."""

    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    target_modules: Literal["auto"] | tuple[str, ...] = "auto"


class TrainingSettings(Section):
    """A run over the data in batches of `batch_size` x `gradient_accumulation` examples.

    The rate goes up for `warmup_steps` and then as `scheduler` says, down to `min_lr` if that is given. `dropout` is
    the model's own; 0 switches it off. `lora` trains adapters, which are merged in the saved model. `quantization`
    holds the frozen weights in four bits (QLoRA): with `lora`, and on a GPU only.
    """

    epochs: float = Field(default=1.0, gt=0.0)
    max_steps: int | None = Field(default=None, ge=1, description="optimiser steps; over epochs where it is given")
    lr: float = Field(default=1e-5, gt=0.0)
    min_lr: float | None = Field(default=None, ge=0.0, description="where a cosine ends")
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    batch_size: int = Field(default=8, ge=1, description="examples a forward pass")
    gradient_accumulation: int = Field(default=1, ge=1)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    max_length: int = Field(default=1024, ge=2, description="tokens of prompt and answer; longer examples are dropped")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    lora: LoraSettings | None = None
    quantization: Literal["nf4"] | None = None
    bf16: Literal["auto"] | bool = "auto"
    gradient_checkpointing: bool = False
    eval_share: float = Field(default=0.0, ge=0.0, lt=1.0, description="examples kept apart for the eval loss")
    eval_every: int | None = Field(default=None, ge=1, description="steps; null: at the end")
    save_every: int | None = Field(default=200, ge=1, description="steps between checkpoints, where it goes on")
    log_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainingSettings:
        if self.min_lr is not None and self.scheduler != "cosine":
            raise ValueError(f"min_lr is given, and scheduler '{self.scheduler}' does not go down to it; take 'cosine'")
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr is {self.min_lr:g}, above lr, which is {self.lr:g}")
        if self.quantization is not None and self.lora is None:
            raise ValueError("quantization freezes the weights, so nothing would be trained; give lora, too")
        return self


class SFTSettings(TrainingSettings):
    """Supervised fine-tuning; the loss is on answers only. `packing` fills batches with several examples a row."""

    lr: float = Field(default=2e-5, gt=0.0)
    packing: bool = False


class DPOSettings(TrainingSettings):
    """Direct preference optimisation (arXiv 2305.18290); the reference is the model as it was at the start.

    `losses` are names of `LOSSES` with weights: ``{sigmoid = 1, sft = 1}`` is DPO with the likelihood of the chosen
    answer (Iterative RPO, arXiv 2404.19733). `label_smoothing` is the share of wrong labels that ``robust`` assumes.
    """

    lr: float = Field(default=1e-6, gt=0.0)
    beta: float = Field(default=0.1, gt=0.0)
    losses: dict[str, float] = Field(default_factory=lambda: {"sigmoid": 1.0})
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    precompute_reference: bool = Field(default=False, description="no second model in memory; one pass more")

    @field_validator("losses")
    @classmethod
    def _losses_by_name(cls, losses: dict[str, float]) -> dict[str, float]:
        if strangers := sorted(set(losses) - set(LOSSES)):
            raise ValueError(f"there is no loss '{strangers[0]}'; there are {', '.join(LOSSES)}")
        if not any(weight > 0 for weight in losses.values()) or any(weight < 0 for weight in losses.values()):
            raise ValueError(f"got {losses}; expected weights of 0 or more, one above 0")
        return losses
