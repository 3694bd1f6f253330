"""From what a config says of a reward to the reward.

Wherever a reward is expected there may stand a name, a table whose ``type`` is a name and whose other keys are options,
or a reward. The words are those of Python: ``{type = "gate", validity = "validity", reward = "novelty"}`` is
``Gate(validity=Validity(...), reward=Novelty(...))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.base import Reward
from instructgym.rewards.composition import Gate, WeightedSum
from instructgym.rewards.encoders import Encoder
from instructgym.rewards.registry import NEEDS, REWARDS, RewardInfo, find_reward, label_of

__all__ = ["check_definitions", "make_reward", "requires"]

Table = Mapping[str, Any]
ChangesTopic = Collection[str] | Callable[[str], bool]


def requires(spec: str | Table, define: Mapping[str, Table] | None = None) -> frozenset[str]:
    """What a spec needs: a subset of `NEEDS`. Loads the user's files; raises `ConfigError` for unknown names."""
    builder = _Builder(define or {})
    builder.read(spec)
    return frozenset(builder.needed)


def make_reward(
    spec: str | Table,
    *,
    expert: LLM | None = None,
    reviewer: LLM | None = None,
    encoder: Encoder | None = None,
    options: Mapping[str, Table] | None = None,
    define: Mapping[str, Table] | None = None,
    changes_topic: ChangesTopic = ("breadth",),
) -> Reward:
    """The reward that `spec` describes.

    Args:
        spec: a name; a table with ``type``; or names with weights, which are a `WeightedSum`: name -> weight, or
            name -> table with ``weight`` and the reward's options. The key ``gate`` puts that sum inside a `Gate`:
            True (= "validity"), the name of a reward, or {name: threshold}; False or None is no gate. A name is one
            of `reward_names()`, one of `define`, or ``path/to/file.py:NAME``.
        expert, reviewer, encoder: what the rewards get that have a parameter of that name.
        options: options of the sum's terms by name, as if they stood in the spec.
        define: rewards by names of the user's own, each a table with ``type``; they may speak of each other.
        changes_topic: the operations that are meant to leave the parent's subject, for rewards that ask.

    Raises:
        ConfigError: an unknown name (with the nearest), a bad weight or option, options for what is no term,
            definitions in a circle, or a part that is needed and not given.
    """
    given = {"expert": expert, "reviewer": reviewer, "encoder": encoder, "changes_topic": changes_topic}
    builder = _Builder(define or {}, given, options or {})
    builder.read(spec)  # every name is looked up before anything is built
    builder.check_options(spec)
    for need in sorted(builder.needed):
        if given[need] is None:
            raise ConfigError(f"the reward needs a{'n' if need[0] in 'aeiou' else ''} {need}, got None; pass one.")
    return builder.build(spec)


def check_definitions(define: Mapping[str, Table]) -> None:
    """Raise `ConfigError` for a definition without a type, or one that takes a name of the package."""
    for name, table in define.items():
        if name in REWARDS:
            raise ConfigError(f"reward.define.{name}: '{name}' is a reward of the package; choose another name.")
        if not isinstance(table, Mapping) or not isinstance(table.get("type"), str):
            raise ConfigError(f'reward.define.{name} has no type; expected a reward\'s name, e.g. type = "gate".')


@dataclass
class _Builder:
    """Reads a spec for its names and needs, and builds it; both walk the same way."""

    define: Mapping[str, Table]
    given: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Table] = field(default_factory=dict)
    needed: set[str] = field(default_factory=set)
    open: tuple[str, ...] = ()

    def read(self, spec: str | Table) -> None:
        """Look up every name in `spec`, and gather what they need."""
        check_definitions(self.define)
        if _is_one(spec):
            self._read_one(spec)
            return
        terms, gate, _ = self._terms(spec)
        for name, (_, own) in terms.items():
            self._read_one(_named(name, own))
        if gate is not None:
            self._read_one(_named(gate, self.options.get(gate, {})))

    def build(self, spec: str | Table) -> Reward:
        if _is_one(spec):
            return self._one(spec)
        terms, gate, threshold = self._terms(spec)
        total = WeightedSum(
            {label_of(name): (self._one(_named(name, own)), weight) for name, (weight, own) in terms.items()}
        )
        if gate is None:
            return total
        return Gate(self._one(_named(gate, self.options.get(gate, {}))), total, threshold)

    def check_options(self, spec: str | Table) -> None:
        """Raise `ConfigError` for options that nothing in `spec` would read."""
        if _is_one(spec):
            if self.options:
                raise ConfigError(
                    f"options are given for {sorted(self.options)}, but {spec!r} is no sum of terms; put them into its "
                    "table."
                )
            return
        terms, gate, _ = self._terms(spec)
        known = {*terms, *([gate] if gate is not None else [])}
        strangers = sorted(set(self.options) - known)
        if strangers:
            raise ConfigError(f"options are given for {strangers}, but the reward is made of {sorted(known)}.")

    def _terms(self, spec: str | Table) -> tuple[dict[str, tuple[float, dict[str, Any]]], str | None, float]:
        """(name -> (weight, options), name of the gate or None, its threshold)."""
        assert not isinstance(spec, str)
        terms: dict[str, tuple[float, dict[str, Any]]] = {}
        for name, value in spec.items():
            if name != "gate":
                weight, own = _weighted(name, value)
                terms[name] = (weight, {**own, **self.options.get(name, {})})
        if not any(weight for weight, _ in terms.values()):
            raise ConfigError(f"the reward {dict(spec)} has no term whose weight is not 0; name at least one.")
        labels = [label_of(name) for name in terms]
        doubled = sorted({label for label in labels if labels.count(label) > 1})
        if doubled:
            raise ConfigError(f"the reward has more than one term called {doubled}; names must be unique.")
        gate = spec.get("gate")
        if gate is None or gate is False:
            return terms, None, 0.5
        if gate is True:
            return terms, "validity", 0.5
        if isinstance(gate, str):
            return terms, gate, 0.5
        if isinstance(gate, Mapping) and len(gate) == 1:
            ((name, threshold),) = gate.items()
            if isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and math.isfinite(threshold):
                return terms, str(name), float(threshold)
        raise ConfigError(f"the reward's gate is {gate!r}; expected true, a reward's name or {{name = threshold}}.")

    # --- one reward ---------------------------------------------------------------------------------------------------
    def _read_one(self, spec: Any) -> None:
        if isinstance(spec, Reward):
            return
        inner, info, own = self._resolved(spec)
        self.needed |= info.needs
        for option in info.reward_options:
            if option in own:
                inner._each(option, own[option], inner._read_one, info)
        self.needed |= inner.needed

    def _one(self, spec: Any) -> Reward:
        if isinstance(spec, Reward):
            return spec
        inner, info, own = self._resolved(spec)
        built = {
            name: inner._each(name, value, inner._one, info) if name in info.reward_options else value
            for name, value in own.items()
        }
        if isinstance(info.made_of, Reward):
            if own:
                raise ConfigError(f"reward '{info.name}' takes no options, got {own}; options go to Reward classes.")
            return info.made_of
        for part in set(NEEDS) & set(info.parameters) & set(own):
            if isinstance(own[part], (str, int, float, Sequence, Mapping)):
                raise ConfigError(
                    f"reward '{info.name}' got {part} = {own[part]!r}; that part is the run's, leave it out."
                )
        info.check_options(own)
        parts = {part: self.given[part] for part in (*NEEDS, "changes_topic") if part in info.parameters}
        try:
            return info.made_of(**{**parts, **built})
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"reward '{info.name}' cannot be built with options {own}: {type(error).__name__}: {error}"
            ) from error

    def _resolved(self, spec: Any) -> tuple[_Builder, RewardInfo, dict[str, Any]]:
        """(who builds the parts, what the spec names, its options); a definition is followed to its reward."""
        builder = self
        own: dict[str, Any] = {}
        while True:
            name, more = _name_and_options(spec)
            own = {**more, **own}
            if name not in self.define:
                return builder, find_reward(name, tuple(self.define)), own
            if name in builder.open:
                raise ConfigError(f"reward.define goes in a circle: {' -> '.join((*builder.open, name))}.")
            builder = _Builder(self.define, self.given, {}, set(), (*builder.open, name))
            spec = self.define[name]

    def _each(self, option: str, value: Any, do: Callable[[Any], Any], info: RewardInfo | None = None) -> Any:
        """`do` for the one reward, or for each of the named ones, that stands at an option."""
        if isinstance(value, (str, Reward)) or (isinstance(value, Mapping) and "type" in value):
            return do(value)
        weighs = info is not None and info.made_of is WeightedSum
        if isinstance(value, Mapping):
            entries = {}
            for name, entry in value.items():
                if info is not None and not weighs and _has_weight(entry):
                    raise ConfigError(
                        f"reward '{info.name}' got a weight for '{name}' at '{option}'; only 'weighted_sum' weighs: "
                        "put one there, or give a table of options."
                    )
                weight, own = _weighted(name, entry) if not isinstance(entry, Reward) else (1.0, entry)
                built = do(own if isinstance(own, Reward) else _named(name, own))
                entries[label_of(name)] = (built, weight) if weighs else built
            return entries
        if isinstance(value, Sequence):
            labels = [label_of(_name_and_options(entry)[0]) for entry in value]
            if len(set(labels)) != len(labels):
                raise ConfigError(f"the rewards {labels} of one list must have different names; use a table of them.")
            built_each = [do(entry) for entry in value]
            return {label: (built, 1.0) if weighs else built for label, built in zip(labels, built_each, strict=True)}
        raise ConfigError(f"option '{option}' is {value!r}; expected a reward's name, a table with 'type', or several.")


def _is_one(spec: str | Table) -> bool:
    return isinstance(spec, str) or "type" in spec


def _named(name: str, options: Table) -> Table:
    """The table of a term: its ``type`` is the term's own name unless it says another."""
    return {"type": name, **options}


def _name_and_options(spec: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and isinstance(spec.get("type"), str):
        return spec["type"], {key: value for key, value in spec.items() if key != "type"}
    raise ConfigError(f"got {spec!r} where a reward is expected; expected a name or a table with 'type'.")


def _has_weight(entry: Any) -> bool:
    return isinstance(entry, (int, float)) or (isinstance(entry, Mapping) and "weight" in entry)


def _weighted(name: str, value: Any) -> tuple[float, dict[str, Any]]:
    """(weight, options) of a term that is a number or a table."""
    own = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = own.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ConfigError(f"reward '{name}' has weight {weight!r}; expected a finite number.")
    return float(weight), own
