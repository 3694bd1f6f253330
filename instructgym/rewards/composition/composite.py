"""What all rewards that are made of rewards share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgym.rewards.base import Reward
from instructgym.types import Score, Transition

__all__ = ["Composite", "terms_under"]


class Composite(Reward):
    """Rewards by name: memory goes to and comes from each of them."""

    def __init__(self, children: Mapping[str, Reward]) -> None:
        self._children = dict(children)

    def commit(self, transitions: Sequence[Transition]) -> None:
        for child in self._children.values():
            child.commit(transitions)

    @property
    def instant(self) -> bool:
        return all(child.instant for child in self._children.values())

    @property
    def remembers(self) -> bool:
        overridden = type(self).commit is not Composite.commit
        return overridden or any(child.remembers for child in self._children.values())

    def state_dict(self) -> Mapping[str, Any]:
        states = {name: child.state_dict() for name, child in self._children.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        strangers = sorted(set(state) - set(self._children))
        if strangers:
            raise ValueError(f"reward '{self.name}' got state for {strangers}; it holds {sorted(self._children)}")
        for name, child in self._children.items():
            child.load_state_dict(state.get(name, {}))


def terms_under(name: str, own_name: str, score: Score) -> dict[str, float]:
    """A reward's terms re-rooted from its own name to the one it has in a composite."""
    terms: dict[str, float] = {}
    for key, term in score.terms.items():
        if key == own_name:
            continue
        rest = key.removeprefix(f"{own_name}/")
        terms[f"{name}/{rest}"] = term
    if score.value is not None:
        terms[name] = score.value
    return terms
