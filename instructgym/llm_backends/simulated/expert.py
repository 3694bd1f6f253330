"""The simulated expert: rewrites an instruction, well where the operation suits the text and badly where it does not.

How a real expert behaves is the model: asked for something the text has no room for (a more specific subject when it
is specific already, a requirement on a bare question of fact), an LLM pads, repeats, refuses or leaks its template
instead of gaining anything; asked for what suits, it mostly succeeds. `suits` states that, from the text alone.
"""

from __future__ import annotations

from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.reading import Reading, read

__all__ = [
    "CLAUSES",
    "DATA_CLAUSES",
    "NEW_INSTRUCTIONS",
    "NEW_LONG",
    "OPERATIONS",
    "append_clause",
    "rewrite",
    "suits",
]

# Names of other action sets' operations that mean the same.
OPERATIONS = {
    "add_constraints": "add_constraints",
    "deepen": "deepen",
    "deepening": "deepen",
    "concretize": "concretize",
    "concretizing": "concretize",
    "increase_reasoning": "increase_reasoning",
    "increase_reasoning_steps": "increase_reasoning",
    "complicate_input": "complicate_input",
    "breadth": "breadth",
}

# Topics whose tasks live on figures: the expert can supply data and chains of reasoning there, and elsewhere it can
# find rarer subjects and vivid cases.
_QUANTITATIVE = frozenset({"code", "math", "data", "finance", "science", "health"})

# What comes of a rewrite: (outcome, probability) where the operation suits the text, and where it does not.
_SUITED = (
    ("gain", 0.98),
    ("filler", 0.002),
    ("leak", 0.003),
    ("chatter", 0.003),
    ("copy", 0.003),
    ("overlong", 0.003),
    ("off_topic", 0.003),
    ("refusal", 0.003),
)
_UNSUITED = (
    ("gain", 0.03),
    ("filler", 0.65),
    ("leak", 0.06),
    ("chatter", 0.055),
    ("copy", 0.055),
    ("overlong", 0.05),
    ("off_topic", 0.05),
    ("refusal", 0.05),
)

_CONSTRAINTS = (
    "The answer must include {x}.",
    "It must contain {x}.",
    "Include {x}.",
    "Be sure to include {x}.",
    "Give at least a line to {x}.",
)
_DEPTHS = (
    "Also discuss {x}.",
    "Go into {x} as well.",
    "Examine {x} with an example.",
    "Explore {x}.",
    "Look into {x} too.",
)
_CASES = (
    "Take {x} as the case.",
    "Base it on {x}.",
    "Set it around {x}.",
    "Let it concern {x}.",
)
_REASONS = (
    "Work step by step, weighing {x}.",
    "Show your working, {x} included.",
    "Derive it step by step from {x}.",
    "Reason stage by stage and settle {x}.",
)
DATA_CLAUSES = (
    "Work from the table in the input.",
    "Ground the answer on the records supplied.",
    "Refer to the rows in the input.",
    "Read the figures from the table supplied.",
)
_FILLERS = (
    "Please answer carefully.",
    "Please give a good, clear answer.",
    "Pay attention to detail.",
    "Take your time and be thorough.",
    "Make sure that the answer is complete.",
    "Be precise and accurate.",
    "Provide a helpful response.",
    "Please explain well.",
)
NEW_INSTRUCTIONS = {
    "produce": ("Write a short piece on {x}.", "Create a guide to {x}.", "Design a leaflet about {x}."),
    "explain": ("Explain {x}.", "Describe how {x} came about.", "Compare accounts of {x}."),
    "short": ("What is known of {x}?", "Which facts matter about {x}?", "How is {x} understood?"),
    "compute": ("Estimate how common {x} might be.", "Determine the scale of {x}.", "Calculate a bound for {x}."),
    "transform": ("Rewrite a note on {x}.", "Turn a report of {x} into plain words.", "Edit a text about {x}."),
}
NEW_LONG = (
    "for readers who have never heard of it",
    "as it would be told at a village fair",
    "from the point of view of those who depend on it",
    "so that a newcomer could act on it tomorrow",
)
_CHATTER = (
    "Sure, here is the rewritten instruction:\n\n{x}",
    "Certainly! Here's a more complex version:\n\n{x}",
    "Here is the new instruction you asked for:\n\n{x}",
    "{x}\n\nLet me know if you would like further changes!",
)
_LEAKS = (
    "#Rewritten Prompt#: {x}",
    "{x} The rewritten instruction should not exceed 2048 words.",
    "{x} (This adds 10 to 20 words to the given prompt.)",
    "New instruction: {x}",
)
_REFUSALS = (
    "I'm sorry, but I can't help with rewriting that.",
    "I am sorry, but as an AI language model I cannot make this request harder.",
    "I cannot assist with that request.",
    "Sorry, I'm unable to rewrite this instruction.",
)
_RAMBLE = (
    "it should be understood that the answer ought to be given in a manner that is clear and complete in every way and "
    "that nothing which may be of use is left out of it whatever the circumstances"
)


# What an operation that adds a clause says, and what of the topic it speaks of.
CLAUSES = {
    "add_constraints": (_CONSTRAINTS, "parts"),
    "deepen": (_DEPTHS, "aspects"),
    "concretize": (_CASES, "cases"),
    "increase_reasoning": (_REASONS, "aspects"),
}


def suits(operation: str, text: Reading) -> bool:
    """Whether the text has room for the operation. A function of what stands in the text."""
    topic = text.topic.name
    if text.words > 160:
        return operation == "breadth"
    match operation:
        case "add_constraints":
            return (text.stem_words > 10 or text.has_input) and text.constraints < 3
        case "deepen":
            if text.has_input:
                return False
            if text.stem_words > 10:
                return text.question and text.depth < 1
            return text.depth < 3
        case "concretize":
            return not text.figures and not text.case and not text.has_input
        case "increase_reasoning":
            return (text.figures or text.has_input) and not text.reasoning
        case "complicate_input":
            return topic in _QUANTITATIVE and not text.has_input
        case "breadth":
            return topic not in _QUANTITATIVE and not text.rare and not text.has_input
        case _:
            return text.constraints + text.depth < 2


def rewrite(operation: str, text: str, data: str, draws: Draws) -> str:
    """The simulated expert's reply to a rewrite prompt. `operation` may be any name; unknown ones add a clause."""
    operation = OPERATIONS.get(operation, operation)
    reading = read(text, data)
    outcome = _outcome(_SUITED if suits(operation, reading) else _UNSUITED, draws)
    match outcome:
        case "copy":
            return _with_data(operation, text, data)
        case "refusal":
            return draws.choice(_REFUSALS)
        case "filler":
            return _with_data(operation, append_clause(text, draws.choice(_FILLERS)), data)
        case "overlong":
            return text.rstrip() + " " + "; ".join([_RAMBLE] * 12) + "."
        case "off_topic":
            return _elsewhere(reading, draws)
    gained = _gain(operation, text, data, reading, draws)
    if outcome == "chatter":
        return draws.choice(_CHATTER).format(x=gained)
    if outcome == "leak":
        return draws.choice(_LEAKS).format(x=gained)
    return gained


def _outcome(table: tuple[tuple[str, float], ...], draws: Draws) -> str:
    left = draws.uniform()
    for outcome, probability in table:
        left -= probability
        if left < 0:
            return outcome
    return table[0][0]


def _gain(operation: str, text: str, data: str, reading: Reading, draws: Draws) -> str:
    topic = reading.topic
    if operation == "complicate_input":
        table = _table(reading, draws)
        both = f"{data}\n\n{table}" if data.strip() else table
        return f"{append_clause(text, draws.choice(DATA_CLAUSES))}\nINPUT:\n{both}"
    if operation == "breadth":
        return _another(reading, draws)
    clauses, kind = CLAUSES.get(operation, CLAUSES["add_constraints"])
    # The clause is drawn before what it is about: the order of draws is part of the simulator's version.
    clause = draws.choice(clauses)
    return append_clause(text, clause.format(x=_fresh(getattr(topic, kind), text, draws)))


def _fresh(options: tuple[str, ...], text: str, draws: Draws) -> str:
    """One of the options that the text does not hold yet."""
    lowered = text.lower()
    left = [option for option in options if option.lower() not in lowered]
    return draws.choice(left or options)


def append_clause(text: str, clause: str) -> str:
    """`text` with a sentence more."""
    text = text.rstrip()
    return f"{text} {clause}" if text.endswith((".", "?", "!", "。", "？", "！")) else f"{text}. {clause}"


def _with_data(operation: str, text: str, data: str) -> str:
    """The text, and the data below it where the prompt asks for both."""
    return f"{text}\nINPUT:\n{data}" if data.strip() and operation in ("breadth", "complicate_input") else text


def _another(reading: Reading, draws: Draws) -> str:
    """A new instruction of the same topic and form, about as long and as demanding as the one that was read."""
    topic = reading.topic
    subject = draws.choice(topic.rare)
    text = draws.choice(NEW_INSTRUCTIONS[reading.form]).format(x=subject)
    if reading.stem_words > 10:
        text = f"{text[:-1]} {draws.choice(NEW_LONG)}{text[-1]}"
    for clauses, options, count in (
        (_CONSTRAINTS, topic.parts, reading.constraints),
        (_DEPTHS, topic.aspects, reading.depth),
        (_REASONS, topic.aspects, reading.reasoning),
    ):
        for _ in range(min(count, 3)):
            text = append_clause(text, draws.choice(clauses).format(x=_fresh(options, text, draws)))
    if reading.has_input:
        text = f"{append_clause(text, draws.choice(DATA_CLAUSES))}\nINPUT:\n{_table(reading, draws)}"
    return text


def _elsewhere(reading: Reading, draws: Draws) -> str:
    from instructgym.llm_backends.simulated.reading import lexicon

    others = [topic for topic in lexicon().values() if topic.name != reading.topic.name]
    topic = draws.choice(others)
    return draws.choice(NEW_INSTRUCTIONS[draws.choice(tuple(NEW_INSTRUCTIONS))]).format(x=draws.choice(topic.rare))


def _table(reading: Reading, draws: Draws) -> str:
    """Structured data of the topic as CSV, a Markdown table or JSON lines."""
    columns, rows = reading.topic.columns, list(reading.topic.rows)
    start = int(draws.uniform() * len(rows))
    rows = (rows[start:] + rows[:start])[:3]
    match int(draws.uniform() * 3):
        case 0:
            return "\n".join(",".join(row) for row in (columns, *rows))
        case 1:
            lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
            return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])
        case _:
            return "\n".join(
                "{" + ", ".join(f'"{name}": "{value}"' for name, value in zip(columns, row, strict=True)) + "}"
                for row in rows
            )
