"""The simulated backend: pure, text-driven, failing at stated rates."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources

import pytest

from instructgym.envs.action_sets import BUILTIN_ACTION_SETS
from instructgym.llm_backends.prompting import fence
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.expert import OPERATIONS, suits
from instructgym.llm_backends.simulated.reading import lexicon, read
from instructgym.llm_backends.simulated.reviewer import equality
from instructgym.types import Instruction, Message, Request, Sampling

EVOL = BUILTIN_ACTION_SETS["evol_instruct"]
SAMPLING = Sampling()


def _seeds() -> list[Instruction]:
    lines = resources.files("instructgym.data").joinpath("seeds.jsonl").read_text("utf-8").splitlines()
    return [Instruction(record["instruction"], record["input"]) for record in map(json.loads, lines)]


def _rewrite(operation: str, parent: Instruction, seed: int, backend: SimulatedBackend | None = None) -> str:
    messages = tuple(EVOL.operations[EVOL.index(operation)].messages(parent, ()))
    return (backend or SimulatedBackend()).answer(messages, SAMPLING, seed).text


async def test_answer_is_a_pure_function_of_seed_messages_and_request_seed() -> None:
    parent = Instruction("Write a poem about a harbour.")
    request = Request("expert", "m", tuple(EVOL.operations[0].messages(parent, ())), SAMPLING, "rewrite/1", (3, 0))
    first, again = [await SimulatedBackend(run_seed=1).complete(request) for _ in range(2)]
    assert first == again
    texts = {_rewrite("add_constraints", parent, seed) for seed in range(20)}
    assert len(texts) > 3
    others = {_rewrite("add_constraints", parent, 0, SimulatedBackend(seed)) for seed in range(20)}
    assert len(others) > 3


def test_temperature_zero_ignores_the_request_seed() -> None:
    messages = tuple(EVOL.operations[0].messages(Instruction("Write a poem about a harbour."), ()))
    texts = {SimulatedBackend().answer(messages, Sampling(temperature=0.0), seed).text for seed in range(20)}
    assert len(texts) == 1


def test_every_builtin_operation_but_stop_is_known_to_the_simulator() -> None:
    names = {name for action_set in BUILTIN_ACTION_SETS.values() for name in action_set.names}
    assert names <= set(OPERATIONS)


def test_unknown_operation_of_a_user_still_gets_a_rewrite() -> None:
    messages = (
        Message("system", "You rewrite instructions for language models.\nOperation: as_email"),
        Message("user", fence("instruction", "Plan a party.")),
    )
    texts = [SimulatedBackend().answer(messages, SAMPLING, seed).text for seed in range(10)]
    assert any(text.startswith("Plan a party. ") for text in texts)


def test_depth_operation_keeps_the_text_and_adds_a_clause_of_its_topic() -> None:
    parent = Instruction("Write a story about the keeper of a lighthouse and her first winter.")
    rewrites = [_rewrite("add_constraints", parent, seed) for seed in range(50)]
    grown = [text for text in rewrites if text.startswith(parent.text) and len(text) > len(parent.text)]
    assert len(grown) > 40
    parts = lexicon()["writing"].parts
    assert sum(any(part in text for part in parts) for text in grown) > 40


def test_complicate_input_brings_data_after_the_input_line() -> None:
    parent = Instruction("Calculate the probability of two sixes with dice.")
    operation = EVOL.operations[EVOL.index("complicate_input")]
    parsed = [operation.parse(_rewrite("complicate_input", parent, seed), parent) for seed in range(20)]
    with_data = [child for child in parsed if isinstance(child, Instruction) and child.input]
    assert len(with_data) > 15
    assert all("trial" in child.input for child in with_data)


def test_breadth_keeps_topic_length_and_number_of_requirements() -> None:
    parent = Instruction("Write a story about a lighthouse. The answer must include one recurring image.")
    before = read(parent.text, "")
    rewrites = [_rewrite("breadth", parent, seed) for seed in range(60)]
    new = [text for text in rewrites if read(text, "").rare and read(text, "").topic.name == "writing"]
    assert len(new) > 40
    assert abs(sum(read(text, "").words - before.words for text in new) / len(new)) <= 8
    assert all(read(text, "").constraints >= 1 for text in new)


@pytest.mark.parametrize(
    ("operation", "text", "data", "expected"),
    [
        ("concretize", "Write a story.", "", True),
        ("concretize", "Write a story set in Lisbon in 1934.", "", False),
        ("add_constraints", "Write a story.", "", False),
        ("add_constraints", "Write a story about the keeper of a lighthouse and her first winter.", "", True),
        ("add_constraints", "Sort these.", "b\na", True),
        ("increase_reasoning", "Calculate the area of a circle of radius 6.", "", True),
        ("increase_reasoning", "Calculate the area of a circle of radius 6. Work step by step.", "", False),
        ("increase_reasoning", "Calculate the area of a circle.", "", False),
        ("complicate_input", "Calculate the mean.", "", True),
        ("complicate_input", "Calculate the mean.", "1,2,3", False),
        ("complicate_input", "Write a story.", "", False),
        ("deepen", "Explain how volcanoes erupt.", "", True),
        ("deepen", "Explain how volcanoes erupt.", "a table", False),
        ("breadth", "Write a story.", "", True),
        ("breadth", "What is known of the khipu record keepers?", "", False),
    ],
)
def test_suits_follows_from_the_text(operation: str, text: str, data: str, expected: bool) -> None:
    assert suits(operation, read(text, data)) is expected


def test_reviewer_sees_no_difference_in_case_filler_and_order_of_words() -> None:
    same = [
        ("Explain tides.", "explain TIDES!"),
        ("Explain tides.", "Please explain tides carefully and in detail."),
        ("Explain tides.", "Explain tides. Be precise and accurate."),
    ]
    for number, (first, second) in enumerate(same):
        verdicts = Counter(
            equality(first, second, Draws(f"{number}/{i}".encode())).splitlines()[-1] for i in range(200)
        )
        assert verdicts["Equal"] > 190
    differ = Draws(b"other")
    assert equality("Explain tides.", "Explain tides. Include a null hypothesis.", differ).endswith("Not Equal")


def test_failures_occur_at_least_at_the_stated_rates_under_random_choice() -> None:
    markers = {
        "copy": lambda text, parent: text == parent.text,
        "refusal": lambda text, parent: text.startswith(("I'm sorry", "I am sorry", "I cannot", "Sorry, I'm")),
        "chatter": lambda text, parent: (
            text.startswith(("Sure", "Certainly", "Here is the new")) or "Let me know" in text
        ),
        "leak": lambda text, parent: any(
            word in text for word in ("Rewritten Prompt#", "2048 words", "given prompt.)", "New instruction:")
        ),
        "overlong": lambda text, parent: len(text.split()) > 300,
    }
    counts: Counter[str] = Counter()
    total = 0
    for index, parent in enumerate(_seeds()):
        for operation in EVOL.names:
            for draw in range(3):
                text = _rewrite(operation, parent, 10 * index + draw)
                total += 1
                counts.update(name for name, is_one in markers.items() if is_one(text, parent))
    rates = {name: counts[name] / total for name in markers}
    assert min(rates.values()) >= 0.02, rates
    assert sum(rates.values()) >= 0.10


def test_answer_is_cut_at_max_tokens_and_says_so() -> None:
    messages = (Message("user", "Explain how volcanoes erupt."),)
    cut = SimulatedBackend().answer(messages, Sampling(max_tokens=10), 1)
    assert cut.finish_reason == "length"
    assert len(cut.text) == 40
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 11


def test_answers_are_marked_simulated() -> None:
    messages = (Message("user", "Explain how volcanoes erupt."),)
    texts = [SimulatedBackend().answer(messages, SAMPLING, seed).text for seed in range(40)]
    assert sum("(simulated)" in text for text in texts) >= 35


@pytest.mark.parametrize("text", ["", "مرحبا بالعالم", "写一首关于大海的诗。", "🌊🌊🌊", "a" * 5000])
def test_any_text_is_read_without_error(text: str) -> None:
    for operation in EVOL.names:
        assert isinstance(_rewrite(operation, Instruction(text), 1), str)
