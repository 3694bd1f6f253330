"""The simulated instructor: picks an operation from the list that it is shown, by chance.

It knows nothing of what the simulated expert or reviewer make of an operation, and it now and then names none, as
models do.
"""

from __future__ import annotations

from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.llm_backends.simulated.draws import Draws

__all__ = ["QUESTION", "pick_operation"]

QUESTION = "You choose the next operation for an instruction."
UNREADABLE_RATE = 0.01
_REASONS = (
    "The instruction could still gain from this.",
    "It has not been tried often enough.",
    "A change of another kind would do less here.",
)
_UNREADABLE = "Several of them would do; it depends on what is wanted."


def pick_operation(prompt: str, draws: Draws) -> str:
    """A reply that ends on one of the operations of the prompt's block ``operations``."""
    names = [line.partition(":")[0].strip() for line in fenced_blocks(prompt).get("operations", "").splitlines()]
    names = [name for name in names if name]
    if not names or draws.uniform() < UNREADABLE_RATE:
        return _UNREADABLE
    return f"{draws.choice(_REASONS)}\n{draws.choice(names)}"
