import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.train.alignment.pair_report import PairReport
from instructgym.train.alignment.pairs import demo_pairs, make_pairs
from instructgym.train.alignment.records import Candidate, Judgement, Pair, Prompt
from instructgym.train.alignment.settings import PairSettings


def prompt(name="p", **fields):
    return Prompt(name, f"Instruction {name}", **fields)


def answers(*texts, of="p", **fields):
    return [Candidate(of, index, text, "M1@0a", **fields) for index, text in enumerate(texts)]


def scores(*values, of="p"):
    return [Judgement(of, index, "judge", value, (value,), ("",)) for index, value in enumerate(values)]


def paired(texts, values, **options):
    return make_pairs([prompt()], answers(*texts), scores(*values), PairSettings(**options))


def test_the_best_is_chosen_and_the_worst_rejected():
    report = paired(["a", "bb", "ccc", "d"], [3.0, 5.0, 1.0, 2.0])
    assert report.pairs == (Pair("p", "Instruction p", "", "bb", "ccc", "M1@0a/1", "M1@0a/2", 5.0, 1.0),)
    assert report.as_dict() == {
        "prompts": 1,
        "pairs": 1,
        "dropped": {},
        "answers_out": {},
        "scores": {"all": {"1": 1, "2": 1, "3": 1, "5": 1}, "chosen": {"5": 1}, "rejected": {"1": 1}},
        "lengths": {
            "chosen": {"mean": 2.0, "median": 2.0, "max": 2.0},
            "rejected": {"mean": 3.0, "median": 3.0, "max": 3.0},
        },
        "margin": 4.0,
        "longer_chosen": 0.0,
    }
    assert report.explain() == "The one prompt gave a pair."


def test_of_equal_scores_the_lowest_index_is_taken():
    [pair] = paired(["a", "b", "c", "d"], [1.0, 5.0, 5.0, 1.0]).pairs
    assert (pair.chosen, pair.rejected) == ("b", "a")


def test_order_of_the_candidates_does_not_matter():
    own, judged = answers("a", "b", "c"), scores(2.0, 2.0, 1.0)
    assert make_pairs([prompt()], own[::-1], judged[::-1]) == make_pairs([prompt()], own, judged)


@pytest.mark.parametrize(
    ("own", "judged", "options", "reason", "out"),
    [
        ([], [], {}, "no_answer", {}),
        (answers("a"), scores(1.0), {}, "no_answer", {}),
        (answers("", "", failure="CallTimeout: late"), [], {}, "failed", {"failed": 2}),
        (answers("a", " \n"), scores(1.0), {}, "empty", {"empty": 1}),
        (answers("a", "b", cut=True), [], {}, "cut", {"cut": 2}),
        (answers("a", "b"), scores(1.0), {}, "unjudged", {"unjudged": 1}),
        (answers("a", "b"), scores(1.0, None), {}, "unparsed", {"unparsed": 1}),
        (answers("a", "b"), scores(2.0, 2.0), {}, "tie", {}),
        (answers("a", "b"), scores(2.0, 2.0 + 1e-12), {}, "tie", {}),
        (answers("a", " a "), scores(1.0, 2.0), {}, "equal_texts", {}),
        (answers("a", "b"), scores(1.0, 1.5), {"min_margin": 1.0}, "margin", {}),
    ],
)
def test_a_prompt_without_a_pair_has_one_reason(own, judged, options, reason, out):
    report = make_pairs([prompt()], own, judged, PairSettings(**options))
    assert (report.pairs, dict(report.dropped), dict(report.answers_out)) == ((), {reason: 1}, out)


def test_the_reason_is_the_filter_after_which_there_were_fewer_than_two():
    own = answers("a", "b", "c", "d")
    own[0], own[1] = replace(own[0], cut=True), replace(own[1], failure="x", text="")
    report = make_pairs([prompt()], own, scores(None, None, 3.0, None))
    assert dict(report.dropped) == {"unparsed": 1}
    assert dict(report.answers_out) == {"failed": 1, "cut": 1, "unparsed": 1}


def test_a_cut_best_answer_gives_way_to_the_next():
    own = answers("a", "b", "c")
    own[1] = replace(own[1], cut=True)
    [pair] = make_pairs([prompt()], own, scores(1.0, 5.0, 3.0)).pairs
    assert (pair.chosen, pair.rejected) == ("c", "a")


def test_a_worst_answer_that_says_the_same_gives_way_to_the_next():
    [pair] = paired(["a", "b", "a "], [5.0, 3.0, 1.0]).pairs
    assert (pair.chosen, pair.rejected, pair.rejected_score) == ("a", "b", 3.0)
    assert dict(paired(["a", "b", "a "], [5.0, 5.0, 1.0]).dropped) == {"equal_texts": 1}


def test_a_margin_at_the_limit_is_enough():
    assert len(paired(["a", "b"], [1.0, 2.0], min_margin=1.0).pairs) == 1
    assert len(paired(["a", "b"], [1.1, 1.4], min_margin=0.3).pairs) == 1  # but for rounding


def test_length_control_takes_the_short_among_the_best_and_the_long_among_the_worst():
    texts, values = ["x" * 90, "x" * 50, "x" * 10, "y" * 10, "y" * 60], [5.0, 4.6, 4.0, 1.0, 1.4]
    [pair] = paired(texts, values, length_control=0.1).pairs
    assert (pair.chosen_score, pair.rejected_score) == (4.6, 1.4)
    [pair] = paired(texts, values).pairs
    assert (pair.chosen_score, pair.rejected_score) == (5.0, 1.0)


def test_with_many_answers_the_rejected_one_is_two_deviations_below_the_mean():
    values = [float(value) for value in [0, 1, 2, *[5] * 10, *[6] * 10, 7]]
    mean = sum(values) / len(values)
    target = mean - 2 * math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    assert 1.5 < target < 2.0
    [pair] = paired([f"t{number}" for number in range(len(values))], values, rejected="mean-2sd").pairs
    assert (pair.chosen_score, pair.rejected_score) == (7.0, 2.0)


def test_two_deviations_below_the_mean_never_reject_the_best():
    [pair] = paired([f"t{number}" for number in range(100)], [0.0] + [5.0] * 99, rejected="mean-2sd").pairs
    assert (pair.chosen_score, pair.rejected_score) == (5.0, 0.0)


def test_prompts_of_equal_text_give_one_pair():
    prompts = [Prompt("p", "Say a"), Prompt("q", " Say a\n"), Prompt("r", "say A")]
    own = [each for name in "pqr" for each in answers("a", "b", of=name)]
    judged = [each for name in "pqr" for each in scores(1.0, 2.0, of=name)]
    report = make_pairs(prompts, own, judged)
    assert [pair.prompt for pair in report.pairs] == ["p", "r"]
    assert dict(report.dropped) == {"duplicate": 1}
    assert len(make_pairs(prompts, own, judged, PairSettings(dedup=False)).pairs) == 3
    # The first that has a pair is the one that stays.
    without = make_pairs(prompts, own, [*scores(1.0, 1.0), *judged[2:]])
    assert [pair.prompt for pair in without.pairs] == ["q", "r"]


def test_weights_follow_the_margin_and_are_one_on_average():
    prompts = [prompt(name) for name in "pq"]
    own = [each for name in "pq" for each in answers("a", "b", of=name)]
    judged = [*scores(1.0, 2.0), *scores(1.0, 4.0, of="q")]
    assert [pair.weight for pair in make_pairs(prompts, own, judged).pairs] == [1.0, 1.0]
    weighted = make_pairs(prompts, own, judged, PairSettings(weights="margin"))
    assert [pair.weight for pair in weighted.pairs] == [0.5, 1.5]
    assert make_pairs([], [], [], PairSettings(weights="margin")).pairs == ()


prompt_answers = st.lists(
    st.tuples(
        st.sampled_from(["a", "b ", " b", "ccc", "dddd dd", "", "e" * 20]),
        st.one_of(st.none(), st.integers(0, 15).map(lambda third: third / 3)),
        st.sampled_from(["whole", "whole", "whole", "cut", "failed", "unjudged"]),
    ),
    max_size=8,
)
pair_settings = st.builds(
    PairSettings,
    min_margin=st.sampled_from([0.0, 0.5, 1.0]),
    length_control=st.sampled_from([0.0, 0.1, 0.25, 0.49]),
    rejected=st.sampled_from(["worst", "mean-2sd"]),
    weights=st.sampled_from(["none", "margin"]),
)


@given(st.lists(prompt_answers, max_size=5), pair_settings)
@settings(max_examples=200, deadline=None)
def test_pairs_never_tie_are_never_cut_and_keep_to_the_formulas(rows, chosen_settings):
    prompts = [prompt(str(number)) for number in range(len(rows))]
    own, judged = [], []
    for each, row in zip(prompts, rows, strict=True):
        for index, (text, score, state) in enumerate(row):
            failure = "lost" if state == "failed" else None
            own.append(Candidate(each.id, index, text, "M1", cut=state == "cut", failure=failure))
            if state != "unjudged":
                judged.append(Judgement(each.id, index, "j", score))
    report = make_pairs(prompts, own, judged, chosen_settings)
    by_name = {(each.prompt, f"M1/{each.index}"): each for each in own}
    known = {(each.prompt, f"M1/{each.candidate}"): each.score for each in judged}
    assert len(report.pairs) + sum(report.dropped.values()) == len(prompts)
    assert all(report.dropped.values())
    for pair in report.pairs:
        for name, text, score in (
            (pair.chosen_from, pair.chosen, pair.chosen_score),
            (pair.rejected_from, pair.rejected, pair.rejected_score),
        ):
            answer = by_name[pair.prompt, name]
            assert answer.text == text
            assert text.strip()
            assert not answer.cut
            assert answer.failure is None
            assert known[pair.prompt, name] == score
        assert pair.chosen.strip() != pair.rejected.strip()
        assert pair.margin > 0
        assert pair.margin >= chosen_settings.min_margin - 1e-9
        usable = {
            name: score
            for (of, name), score in known.items()
            if of == pair.prompt
            and score is not None
            and not (answer := by_name[of, name]).cut
            and answer.failure is None
            and answer.text.strip()
        }
        best, worst, rho = max(usable.values()), min(usable.values()), chosen_settings.length_control
        length = {name: len(by_name[pair.prompt, name].text.strip()) for name in usable}
        # chosen = the shortest with S >= (1 - rho) Smax + rho Smin
        bar = (1 - rho) * best + rho * worst - 1e-9
        assert pair.chosen_score >= bar
        if rho:
            assert length[pair.chosen_from] == min(length[name] for name, score in usable.items() if score >= bar)
        # rejected = the longest with S <= (1 - rho) Smin + rho Smax, of the texts that differ from the chosen one
        others = {
            name: score
            for name, score in usable.items()
            if by_name[pair.prompt, name].text.strip() != pair.chosen.strip() and score < pair.chosen_score
        }
        if chosen_settings.rejected == "worst":
            low = min(others.values()) + rho * (best - worst) + 1e-9
            assert pair.rejected_score <= low
            if rho:
                assert length[pair.rejected_from] == max(length[name] for name, score in others.items() if score <= low)
    if report.pairs and chosen_settings.weights == "margin":
        assert math.fsum(pair.weight for pair in report.pairs) == pytest.approx(len(report.pairs))


def test_a_demonstration_is_chosen_over_the_student_own_answer():
    shown = [Candidate("p", 0, "right", "teacher-9b")]
    report = demo_pairs([prompt()], answers("wrong", "worse"), shown)
    assert report.pairs == (Pair("p", "Instruction p", "", "right", "wrong", "teacher/0", "M1@0a/0"),)
    assert report.pairs[0].margin is None
    assert report.margin is None
    assert report.as_dict()["scores"] == {"all": {}, "chosen": {}, "rejected": {}}


def test_the_known_answer_is_the_demonstration_where_there_is_no_teacher():
    [pair] = demo_pairs([prompt(reference="right")], answers("wrong")).pairs
    assert (pair.chosen, pair.chosen_from) == ("right", "human")


@pytest.mark.parametrize(
    ("fields", "own", "shown", "reason"),
    [
        ({}, answers("a"), None, "no_reference"),
        ({"reference": "a"}, answers(" a"), None, "equal_texts"),
        ({"reference": "b"}, answers("a", cut=True), None, "cut"),
        ({"reference": "b"}, [], None, "no_answer"),
        ({}, answers("a"), [], "no_demonstration"),
        ({}, answers("a"), answers("b", cut=True), "demonstration_cut"),
        ({}, answers("a"), answers("", failure="ContentFiltered: no"), "demonstration_failed"),
        ({}, answers("a"), answers(" "), "demonstration_empty"),
    ],
)
def test_a_prompt_without_a_demonstration_pair_has_one_reason(fields, own, shown, reason):
    report = demo_pairs([prompt(**fields)], own, shown)
    assert (report.pairs, dict(report.dropped)) == ((), {reason: 1})


def test_demonstrations_skip_an_own_answer_that_is_not_whole():
    own = answers("a", "b", "right")
    own[0] = replace(own[0], cut=True)
    [pair] = demo_pairs([prompt(reference="right")], own[::2] + own[1:2]).pairs
    assert pair.rejected == "b"


def test_prompts_of_equal_text_give_one_demonstration_pair():
    prompts = [Prompt("p", "Say a", reference="a"), Prompt("q", "Say a", reference="a")]
    own = [*answers("x"), *answers("x", of="q")]
    assert dict(demo_pairs(prompts, own).dropped) == {"duplicate": 1}


def test_an_empty_set_says_which_filter_emptied_it():
    prompts = [prompt(name) for name in "pqr"]
    own = [*answers("a", "b"), *answers("a", "b", of="q"), *answers("a", "b", of="r", cut=True)]
    report = make_pairs(prompts, own, [*scores(1.0, 1.0), *scores(2.0, 2.0, of="q")])
    assert report.explain() == (
        "Of 3 prompts none gave a pair. Dropped: 2 by 'tie' (the answers got equal scores; take more answers or judge "
        "samples, or break_ties); 1 by 'cut' (an answer met the token limit; raise candidates.max_tokens)."
    )
    assert PairReport((), 0, {}).explain() == "There were no prompts."
    some = make_pairs(prompts[:2], own[:4], [*scores(1.0, 2.0), *scores(2.0, 2.0, of="q")])
    assert some.explain().startswith("Of 2 prompts 1 gave a pair. Dropped: 1 by 'tie' (")
    both = make_pairs(prompts[:2], own[:4], [*scores(1.0, 2.0), *scores(1.0, 2.0, of="q")])
    assert both.explain() == "All 2 prompts gave a pair."


@pytest.mark.parametrize(
    ("prompts", "own", "judged", "message"),
    [
        ([prompt(), prompt()], [], [], "prompt 'p' is there twice; expected an id of its own for each."),
        (
            [prompt()],
            answers("a", of="q"),
            [],
            "an answer is to prompt 'q', which is not among the 1 prompts.",
        ),
        ([prompt()], answers("a") * 2, [], "answer 0 to prompt 'p' is there twice; expected once."),
        ([prompt()], [], scores(1.0, of="q"), "a judgement is of prompt 'q', which is not among the 1 prompts."),
        (
            [prompt()],
            answers("a"),
            scores(1.0) * 2,
            "answer 0 to prompt 'p' is judged twice; make one judgement of several judges with panel().",
        ),
    ],
)
def test_records_that_do_not_fit_are_refused(prompts, own, judged, message):
    with pytest.raises(ValueError, match=r"\.$") as error:
        make_pairs(prompts, own, judged)
    assert str(error.value) == message
