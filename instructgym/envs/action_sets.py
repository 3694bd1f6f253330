"""The action sets that come with InstructGym. Their words are ours; docs/papers.md names the operations' sources."""

from __future__ import annotations

from instructgym.envs.operations import ActionSet, Rewrite

__all__ = ["BUILTIN_ACTION_SETS"]

_ADD_CONSTRAINTS = "Make the instruction harder by adding one more constraint or requirement that the answer must meet."
_DEEPEN = "Make the instruction ask for more: widen and deepen the inquiry into the subject it is already about."
_CONCRETIZE = "Replace the general notions in the instruction by specific ones: names, numbers, places, cases."
_REASON = (
    "Rewrite the instruction so that it cannot be answered in one step: it must ask explicitly for reasoning over "
    "several steps."
)
_COMPLICATE = (
    "Make the instruction work on structured data: a table, code, XML, JSON, SQL or the like, which you supply with it."
)
_BREADTH = (
    "Write a brand-new instruction in the same domain as the given one, about something rarer. Its length and "
    "difficulty should be like the given one's."
)


def _depth_and_breadth(deepen: str, concretize: str, increase_reasoning: str) -> dict[str, Rewrite]:
    operations = (
        Rewrite("add_constraints", _ADD_CONSTRAINTS),
        Rewrite(deepen, _DEEPEN),
        Rewrite(concretize, _CONCRETIZE),
        Rewrite(increase_reasoning, _REASON),
        Rewrite("complicate_input", _COMPLICATE, writes_input=True),
        Rewrite("breadth", _BREADTH, writes_input=True, changes_topic=True, words=None),
    )
    return {operation.name: operation for operation in operations}


_EVOL = _depth_and_breadth("deepen", "concretize", "increase_reasoning")
_TEAMS = _depth_and_breadth("deepening", "concretizing", "increase_reasoning_steps")

BUILTIN_ACTION_SETS: dict[str, ActionSet] = {
    action_set.name: action_set
    for action_set in (
        ActionSet("evol_instruct", tuple(_EVOL.values())),
        ActionSet("core", tuple(_EVOL[name] for name in ("add_constraints", "deepen", "concretize", "breadth"))),
        ActionSet(
            "teams_rl",
            tuple(
                _TEAMS[name]
                for name in (
                    "breadth",
                    "add_constraints",
                    "deepening",
                    "concretizing",
                    "increase_reasoning_steps",
                    "complicate_input",
                )
            ),
        ),
    )
}
