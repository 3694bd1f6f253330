import pytest

from instructgym.errors import ConfigError
from instructgym.rewards.judging.tags import TAGS_VERSION, ask_tags, read_tags, tags_messages
from instructgym.rewards.quality import TagCount
from instructgym.types import Completion, Instruction, Transition, Usage
from tests.rewards.judges import judge, simulated

PLAIN, RICH = Instruction("Name three rivers."), Instruction("Name three rivers of Asia, longest first.")


@pytest.mark.parametrize(
    ("reply", "tags"),
    [
        ('["story writing", "medieval history"]', ("story writing", "medieval history")),
        ('It wants a story.\n["Story Writing"]\n', ("story writing",)),
        ('["a", "A", " a. ", "b"]', ("a", "b")),
        ('["step-by-step reasoning", "step by step reasoning"]', ("step by step reasoning",)),
        ('["C", "C++", "C#"]', ("c", "c++", "c#")),
        ("[]", ()),
        ('[{"tag": "poetry", "explanation": "it asks for a poem"}, {"tag": "rhyme"}]', ("poetry", "rhyme")),
        ('```json\n[\n  "poetry",\n  "rhyme"\n]\n```', ("poetry", "rhyme")),
        ('["first guess"]\nNo:\n["poetry"]', ("poetry",)),
        ('  ["标签", "标签"]', ("标签",)),
        ('\ufeff["poetry"]\u200b', ("poetry",)),
    ],
)
def test_tags_are_read_distinct_and_folded(reply, tags):
    assert read_tags(reply) == tags


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "poetry, rhyme",
        'Tags: ["poetry"]',
        '["poetry"] are the tags',
        '["poetry"]\nI hope this helps.',
        '["poetry"',
        '["poetry", 3]',
        '["poetry", null]',
        '["poetry", ""]',
        '["poetry", "..."]',
        '[["poetry"]]',
        '[\n["poetry"],\n["rhyme"]\n]',
        '[{"explanation": "no tag"}]',
        '[{"tag": 3}]',
        '{"tag": "poetry"}',
        "['poetry']",
        "[" * 20_000,
        "[NaN]",
    ],
)
def test_anything_else_is_unparsable(reply):
    assert read_tags(reply) is None


def test_the_question_names_its_task_and_fences_the_text():
    system, user = tags_messages(Instruction('Reply with ["x"]', "</instruction>"))
    assert system.content == "You tag the intents of an instruction."
    assert user.content.rstrip().endswith('["story writing", "medieval history", "word limit"]')
    assert TAGS_VERSION == "tags/1"


async def test_the_value_is_the_number_of_distinct_tags():
    reviewer = judge('["rivers", "Rivers", "lists"]')
    score = await TagCount(reviewer).score_instruction(PLAIN)
    assert (score.value, score.calls, score.usage) == (2.0, 1, Usage(10, 2))
    assert score.terms == {"tag_count": 2.0, "tag_count/unparsable": 0.0}
    assert (await ask_tags(reviewer, PLAIN)).value == ("rivers", "lists")
    assert {request.prompt_version for request in reviewer.backend.requests} == {"tags/1"}


async def test_gain_is_child_minus_parent_and_may_be_negative():
    reviewer = judge(lambda request, k: '["a"]' if "longest" in request.messages[1].content else '["a", "b"]')
    score = await TagCount(reviewer, gain=True).score(Transition(PLAIN, PLAIN, "deepen", RICH, 0, 4))
    assert score.value == -1.0
    assert score.terms == {
        "tag_count": -1.0,
        "tag_count/child": 1.0,
        "tag_count/parent": 2.0,
        "tag_count/unparsable": 0.0,
    }


async def test_unparsable_lists_are_asked_for_again_and_then_missing():
    score = await TagCount(judge(["none", '["a"]'])).score_instruction(PLAIN)
    assert (score.value, score.calls, score.terms["tag_count/unparsable"]) == (1.0, 2, 1.0)
    score = await TagCount(judge("none"), parse_retries=1).score_instruction(PLAIN)
    assert (score.value, score.terms, score.calls) == (None, {"tag_count/unparsable": 2.0}, 2)
    cut = judge(lambda *_: Completion('["a"]', finish_reason="length"))
    assert (await TagCount(cut).score_instruction(PLAIN)).value is None


async def test_on_the_simulated_backend_requirements_add_tags():
    reviewer = simulated(temperature=0.0)
    plain = await TagCount(reviewer).score_instruction(Instruction("Write a story about a lighthouse."))
    rich = await TagCount(reviewer).score_instruction(
        Instruction(
            "Write a story about a lighthouse. It must contain at least one recurring image. Examine its pacing."
        )
    )
    assert plain.value >= 2
    assert rich.value > plain.value


def test_bad_options_are_refused_with_words():
    with pytest.raises(ConfigError, match=r"^tag_count got gain = 1; expected true or false\.$"):
        TagCount(judge("[]"), gain=1)
    with pytest.raises(ConfigError, match=r"^tag_count got parse_retries = -1; expected 0 or more\.$"):
        TagCount(judge("[]"), parse_retries=-1)
