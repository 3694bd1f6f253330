import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import ConfigError
from instructgym.metrics.rouge import max_rouge_l, rouge_l
from instructgym.metrics.text import normalise, words
from instructgym.train.alignment.contamination import Contamination
from instructgym.train.alignment.prompt_filters import FILTER_REASONS, PromptFilter
from instructgym.train.alignment.rouge_index import RougeIndex

GOOD = "List the capitals of three countries in Asia"

# Few words, so that texts share many of them, often, and in other orders.
texts = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "don't", "水", "x2"]), max_size=14).map(" ".join)
thresholds = st.sampled_from([0.0, 0.3, 0.5, 2 / 3, 0.7, 0.8, 0.99, 1.0])


@given(st.lists(texts, max_size=12), texts, thresholds)
@settings(max_examples=150, deadline=None)
def test_the_index_decides_as_the_loop_over_all_texts(pool, text, threshold):
    index = RougeIndex(threshold)
    for each in pool:
        index.add(each)
    assert index.has_similar(text) == (max_rouge_l(text, map(words, pool)) > threshold)


def test_the_index_decides_as_the_loop_on_long_and_on_many_texts():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{number}" for number in range(60)]
    ranks = 1 / np.arange(1, 61)
    index, pool = RougeIndex(0.7), []
    similar = 0
    for _ in range(800):
        if pool and rng.integers(3) == 0:
            tokens = list(pool[rng.integers(len(pool))])
            for _ in range(rng.integers(0, 1 + len(tokens) // 2)):
                tokens[rng.integers(len(tokens))] = vocabulary[rng.integers(60)]
        else:
            tokens = rng.choice(vocabulary, size=rng.integers(1, 40), p=ranks / ranks.sum()).tolist()
        text = " ".join(tokens)
        expected = max_rouge_l(text, pool) > 0.7
        assert index.has_similar(text) == expected
        similar += expected
        if not expected:
            index.add(text)
            pool.append(tokens)
    assert 50 < similar < 750
    assert len(index) == len(pool)


def test_a_text_at_the_limit_is_kept():
    one, two = "one two three four five six seven x y z", "one two three four five six seven u v w"
    assert rouge_l(one, two) == 0.7
    index = RougeIndex(0.7)
    index.add(one)
    assert not index.has_similar(two)
    assert index.has_similar("one two three four five six seven x v w")


def test_a_text_without_a_word_is_similar_to_none():
    index = RougeIndex(0.0)
    index.add("")
    index.add("?!")
    assert not index.has_similar("?!")
    assert not index.has_similar("word")


def test_a_word_counts_as_often_as_it_stands():
    index = RougeIndex(0.7)
    index.add("a a a a b c")
    assert not index.has_similar("a d e f g h")
    assert index.has_similar("a a a a d e") == (rouge_l("a a a a d e", "a a a a b c") > 0.7)
    assert index.has_similar("a a a a b d")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match="a ROUGE-L threshold is a number from 0 to 1; got"):
        RougeIndex(threshold)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        ("Name three rivers", "too_short"),
        ("Name three long rivers", None),
        ("   ", "too_short"),
        ("? ! ? ! ?", "too_short"),
        ("word " * 150, None),
        ("word " * 151, "too_long"),
        ("Describe the picture that hangs here", "other_media"),
        ("Describe these IMAGES in two words", "other_media"),
        ("Plot the values of this list", "other_media"),
        ("Go to the shop and buy bread", "other_media"),
        ("Go  to the shop and buy bread", "other_media"),
        ("Profile the drawer of these maples", None),  # profile, drawer, maples: whole words only
        ("Write a program that sorts a list", "write_a_program"),
        ("write  a program that sorts a list", "write_a_program"),
        ("Write a programme for a concert tonight", None),
        ("Please write a program that sorts a list", None),
        ('"Hello" is said by whom and when', "starts_with_punctuation"),
        ("- name three rivers of Asia", "starts_with_punctuation"),
        ("« Bonjour » is said by whom", "starts_with_punctuation"),
        ("Écris une phrase sur la mer", "starts_with_non_ascii"),
        ("列出亚洲的三条河流", "starts_with_non_ascii"),
        ("I'm sorry, but I can't help with that request.", "not_a_prompt"),
        ("Sure, here are some new prompts for you", "not_a_prompt"),
        ("<|im_start|>user name three rivers of Asia", "not_a_prompt"),
        ("  " + GOOD + "\n", None),
    ],
)
def test_what_a_prompt_is_dropped_for(text, reason):
    assert PromptFilter(()).check(text) == reason
    assert reason is None or reason in FILTER_REASONS


def test_filters_that_suit_english_and_text_only_can_be_switched_off():
    allowed = PromptFilter((), ascii_start=False, other_media=False)
    assert allowed.check("Écris une phrase sur la mer") is None
    assert allowed.check("Describe the picture that hangs here") is None


def test_a_prompt_is_compared_with_seeds_and_with_accepted_ones():
    kept = PromptFilter([GOOD])
    assert kept.check(GOOD.upper() + "!") == "duplicate"
    assert kept.check("List the capitals of four countries in Asia") == "similar"
    other = "Why does bread rise in a warm oven"
    assert kept.check(other) is None
    assert kept.check(other) is None  # a check alone changes nothing
    kept.accept(other)
    assert kept.check(other) == "duplicate"
    assert len(kept) == 2


def test_seeds_are_not_checked_themselves():
    assert PromptFilter(["Draw", GOOD]).check("Draw") == "too_short"


def test_a_max_rouge_of_one_still_drops_copies():
    kept = PromptFilter([GOOD], max_rouge=1.0)
    assert kept.check("List the capitals of four countries in Asia") is None
    assert kept.check(GOOD.lower()) == "duplicate"


@given(st.lists(texts, max_size=25))
@settings(max_examples=50, deadline=None)
def test_a_run_of_prompts_is_decided_as_by_the_plain_loop(prompts):
    kept = PromptFilter((), min_words=1, ascii_start=False)
    known, pool = set(), []
    for text in prompts:
        reason = kept.check(text)
        if words(text):
            copy = normalise(text) in known
            assert (reason is not None) == (copy or max_rouge_l(text, pool) > 0.7)
        else:
            assert reason == "too_short"
        if reason is None:
            kept.accept(text)
            known.add(normalise(text))
            pool.append(words(text))


def test_a_run_of_thirteen_words_is_contamination():
    evaluation = " ".join(f"e{number}" for number in range(40))
    kept = PromptFilter((), decontaminate=[evaluation])
    thirteen = " ".join(f"e{number}" for number in range(10, 23))
    twelve = " ".join(f"e{number}" for number in range(10, 22))
    assert kept.check(f"Tell me about {thirteen.upper()}, please") == "contaminated"
    assert kept.check(f"Tell me about {twelve}, please") is None


def test_short_texts_are_contaminated_as_a_whole():
    found = Contamination(["What is the boiling point of water at sea level", "Hello there", "One two three four five"])
    assert found.holds("what is the boiling point of water at sea level?")
    assert found.holds("Tell me, what is the boiling point of water at sea level, and why?")  # the set's whole text
    assert found.holds("the boiling point of water")  # the whole prompt, within the set's
    assert not found.holds("the boiling point")  # too short to mean anything
    assert not found.holds("Hello there, how are you today")
    assert found.holds("hello there")
    assert not found.holds("")
    assert not Contamination(["", "?"]).holds("?")
    assert len(Contamination(["", "word"])) == 1


def test_contamination_sees_no_run_across_two_texts():
    found = Contamination(["a b c d", "e f g h"])
    assert not found.holds("c d e f")
    assert found.holds("x a b c d y")


@given(st.lists(texts, max_size=4), texts)
@settings(max_examples=100, deadline=None)
def test_contamination_is_what_its_definition_says(evaluation, text):
    n, least = 5, 2

    def runs(tokens, size):
        return {tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}

    own, expected = words(text), False
    for other in map(words, evaluation):
        size = min(n, len(own), len(other))
        if own and other:
            expected |= own == other or (size >= least and bool(runs(own, size) & runs(other, size)))
    assert Contamination(evaluation, n=n, least=least).holds(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"min_words": 5, "max_words": 4},
            "the prompt filter got min_words = 5 and max_words = 4; expected 1 <= min_words <= max_words.",
        ),
        ({"max_rouge": 1.5}, "the prompt filter got max_rouge = 1.5; expected a number from 0 to 1."),
        (
            {"decontaminate_words": 0},
            "the prompt filter got decontaminate_words = 0; expected 1 or more.",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigError) as error:
        PromptFilter((), **arguments)
    assert str(error.value) == message


def test_contamination_refuses_lengths_that_make_no_sense():
    with pytest.raises(ValueError, match=r"decontamination got n = 3 and least = 4; expected 1 <= least <= n\."):
        Contamination([], n=3)
