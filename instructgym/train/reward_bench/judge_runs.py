"""The stored verdicts of real judges on LLMBar, through our own metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgym.metrics.agreement import (
    cohen_kappa,
    llmbar_published_kappa,
    llmbar_published_order_kappa,
    order_agreement,
    preference_accuracy,
)
from instructgym.train.reward_bench.label_files import JudgeRun, Published

__all__ = ["JudgeRunMeasures", "measure_judge_run"]


@dataclass(frozen=True)
class JudgeRunMeasures:
    """A stored run in our numbers.

    `as_published` holds every number the way LLMBar counts: percents, in which what could not be read is wrong and
    agrees with itself, and faulty kappas. `kappa` (mean over the orders) and `kappa_orders` are Cohen's kappa over what
    could be read, None where undefined. `unread` counts the verdicts of both orders that could not be read.
    """

    as_published: Published
    kappa: float | None
    kappa_orders: float | None
    unread: int

    def equals_published(self, published: Published) -> bool:
        """Whether accuracies and agreement are the published ones, to the last digit."""
        own = self.as_published
        return (
            own.accuracy_forward == published.accuracy_forward
            and own.accuracy_backward == published.accuracy_backward
            and own.accuracy_average == published.accuracy_average
            and own.accuracy_both == published.accuracy_both
            and own.agreement == published.agreement
        )


def measure_judge_run(run: JudgeRun) -> JudgeRunMeasures:
    """Our numbers for a run, those that LLMBar published and the correct kappas beside them."""
    labels, forward, backward = _preferences(run.labels), _preferences(run.forward), _preferences(run.backward)
    gold = [label for label in labels if label is not None]
    # Right in both orders: an item whose orders differ is a tie, and a tie is not right.
    both = [
        None if one is None or two is None else (one if one == two else 0.5)
        for one, two in zip(forward, backward, strict=True)
    ]
    forward_kappa, backward_kappa = (
        llmbar_published_kappa(winners, run.labels) for winners in (run.forward, run.backward)
    )
    return JudgeRunMeasures(
        as_published=Published(
            accuracy_forward=_percent(preference_accuracy(forward, gold).of_all),
            accuracy_backward=_percent(preference_accuracy(backward, gold).of_all),
            accuracy_average=_percent(preference_accuracy([*forward, *backward], gold * 2).of_all),
            accuracy_both=_percent(preference_accuracy(both, gold).of_all),
            agreement=_percent(order_agreement(forward, backward, unread_agrees=True)),
            kappa_forward=forward_kappa,
            kappa_backward=backward_kappa,
            kappa_average=_mean(forward_kappa, backward_kappa),
            kappa_orders=llmbar_published_order_kappa(run.forward, run.backward),
        ),
        kappa=_mean(cohen_kappa(run.forward, run.labels), cohen_kappa(run.backward, run.labels)),
        kappa_orders=cohen_kappa(run.forward, run.backward),
        unread=(run.forward + run.backward).count(None),
    )


def _preferences(winners: Sequence[int | None]) -> list[float | None]:
    return [None if winner is None else float(winner == 1) for winner in winners]


def _percent(share: float | None) -> float:
    if share is None:
        raise ValueError("a judge's run has no verdicts; expected at least one.")
    return share * 100


def _mean(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else (first + second) / 2
