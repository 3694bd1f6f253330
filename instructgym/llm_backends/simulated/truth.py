"""What is true of a simulated rewrite: whether it gained what its operation asks for. For benchmarks alone."""

from __future__ import annotations

from collections.abc import Collection

from instructgym.llm_backends.simulated.expert import (
    CLAUSES,
    DATA_CLAUSES,
    NEW_INSTRUCTIONS,
    NEW_LONG,
    OPERATIONS,
    append_clause,
)
from instructgym.llm_backends.simulated.reading import Topic, read
from instructgym.types import Instruction

__all__ = ["gained"]


def gained(operation: str, parent: Instruction, child: Instruction) -> bool:
    """True if `child` is what the simulated expert writes when `operation` succeeds on `parent`.

    The grammar is finite, so this is no judgement: the child must be the parent with a clause of the operation about
    its topic that the parent does not hold (``breadth``: a new instruction of the topic), and nothing around it.
    """
    operation = OPERATIONS.get(operation, "add_constraints")
    topic = read(parent.text, parent.input).topic
    if operation == "breadth":
        return _is_new(topic, parent, child)
    if operation == "complicate_input":
        texts = {append_clause(parent.text, clause) for clause in DATA_CLAUSES}
        return child.text in texts and len(child.input) > len(parent.input)
    clauses, kind = CLAUSES[operation]
    options = [option for option in getattr(topic, kind) if option.lower() not in parent.text.lower()]
    return child.input == parent.input and any(
        child.text == append_clause(parent.text, clause.format(x=option)) for clause in clauses for option in options
    )


def _is_new(topic: Topic, parent: Instruction, child: Instruction) -> bool:
    """A first sentence on a rare subject of the topic, then nothing but clauses of the grammar."""
    form = read(parent.text, parent.input).form
    clauses = {clause.format(x=each) for of, kind in CLAUSES.values() for clause in of for each in getattr(topic, kind)}
    clauses.update(DATA_CLAUSES)
    for new in NEW_INSTRUCTIONS[form]:
        for subject in topic.rare:
            text = new.format(x=subject)
            for longer in ("", *(f" {more}" for more in NEW_LONG)):
                first = f"{text[:-1]}{longer}{text[-1]}"
                if child.text.startswith(first) and _all_clauses(child.text[len(first) :], clauses):
                    return child.text != parent.text
    return False


def _all_clauses(text: str, clauses: Collection[str]) -> bool:
    while text:
        clause = next((clause for clause in clauses if text.startswith(f" {clause}")), None)
        if clause is None:
            return False
        text = text[len(clause) + 1 :]
    return True
