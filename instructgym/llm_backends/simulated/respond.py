"""The simulated expert's answers: plausible in shape, empty of knowledge, with the failures that filters look for."""

from __future__ import annotations

from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.reading import read

__all__ = ["respond"]

_OPENINGS = ("In short:", "A brief account:", "To begin with,", "The main point is this:", "Put simply,")
_LINES = (
    "{a} comes first, because it decides how {b} is to be treated.",
    "Consider {c}: there, {a} can be seen at work.",
    "A sound treatment includes {b}, and says plainly what it leaves out.",
    "Where {a} and {b} pull in different directions, state which one was preferred.",
    "As for {c}, the usual figure should be checked against a second source.",
    "Finally, {b} lets a reader verify the result.",
)
_REFUSAL = "I'm sorry, but I can't help with that."
_LEAK = "### Response:\nThe given prompt asks for an answer. {x}"
FAILURES = (("refusal", 0.02), ("leak", 0.02), ("echo", 0.01), ("empty", 0.005))


def respond(prompt: str, draws: Draws) -> str:
    """An answer to a plain instruction (simulated: it says nothing that a reader could use)."""
    left = draws.uniform()
    failure = ""
    for name, probability in FAILURES:
        left -= probability
        if left < 0:
            failure = name
            break
    if failure == "refusal":
        return _REFUSAL
    if failure == "echo":
        return prompt
    if failure == "empty":
        return "..."
    text, _, data = prompt.partition("\n\n")
    topic = read(text, data).topic
    lines = [draws.choice(_OPENINGS)]
    count = 2 + int(draws.uniform() * 3)
    for _ in range(count):
        a, b, c = draws.choice(topic.aspects), draws.choice(topic.parts), draws.choice(topic.cases)
        line = draws.choice(_LINES).format(a=a, b=b, c=c)
        lines.append(line[0].upper() + line[1:])
    answer = f"(simulated) {' '.join(lines)}"
    return _LEAK.format(x=answer) if failure == "leak" else answer
