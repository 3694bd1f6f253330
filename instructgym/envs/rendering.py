"""A chain as text for people."""

from __future__ import annotations

from instructgym.envs.dynamics import State
from instructgym.types import Instruction

__all__ = ["render_chain"]


def render_chain(state: State) -> str:
    """The seed, every attempt with what came of it, and where the chain stands."""
    seed = state.seed
    topic = f" ({seed.topic})" if seed.topic else ""
    lines = [f"seed {seed.id}{topic}", _indented(seed.instruction)]
    for transition in state.history:
        head = f"{transition.step + 1}/{state.horizon} {transition.operation}"
        if transition.elimination is not None:
            detail = f": {transition.elimination.detail}" if transition.elimination.detail else ""
            lines.append(f"{head}: eliminated, {transition.elimination.reason}{detail}")
        elif transition.child is None:
            lines.append(f"{head}: the instruction stays as it is")
        else:
            lines += [head, _indented(transition.child)]
    if state.over:
        lines.append("end: stopped" if state.stopped else "end: horizon")
    return "\n".join(lines)


def _indented(instruction: Instruction) -> str:
    return "\n".join(f"    {line}" for line in instruction.render().split("\n"))
