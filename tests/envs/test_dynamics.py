from __future__ import annotations

import pytest

from instructgym.envs import ActionSet, Rewrite
from instructgym.errors import (
    ActionSetError,
    BudgetExhausted,
    ConnectionLost,
    ContentFiltered,
    ContextOverflow,
    RewardError,
    UsageError,
)
from instructgym.types import Completion, Instruction, Score, Seed, Usage

SKY = Seed("sky", Instruction("Explain why the sky is blue."))
ADD, DEEPEN, COMPLICATE, STOP = 0, 1, 4, 6


async def test_accepted_rewrite_takes_the_parents_place(make_dynamics):
    dynamics, backend = make_dynamics({"add_constraints": Completion("Explain it in ten words.", usage=Usage(30, 6))})
    outcome = await dynamics.step(dynamics.start(SKY, 7), ADD)
    assert outcome.state.instruction == Instruction("Explain it in ten words.")
    assert outcome.state.step == 1
    assert outcome.state.history == (outcome.transition,)
    assert outcome.transition.accepted
    assert outcome.transition.reply == "Explain it in ten words."
    assert outcome.transition.prompt_version == "rewrite/1"
    assert (outcome.reward, outcome.score.terms) == (-1.0, {"words_added": -1.0})
    assert (outcome.terminated, outcome.truncated, outcome.valid, outcome.calls) == (False, False, True, 1)
    assert outcome.usage == Usage(30, 6)
    assert backend.requests[0].sample == (7, 0)


async def test_expert_sample_is_chain_draw_and_step(make_dynamics):
    dynamics, backend = make_dynamics(rules=(), horizon=3)
    state = dynamics.start(SKY, 5)
    while not state.over:
        state = (await dynamics.step(state, ADD)).state
    assert [request.sample for request in backend.requests] == [(5, 0), (5, 1), (5, 2)]


async def test_same_chain_twice_is_equal(make_dynamics):
    states = []
    for _ in range(2):
        dynamics, _ = make_dynamics(horizon=6)
        state = dynamics.start(SKY, 3)
        for action in (0, 1, 2, 3, 4, 5):
            state = (await dynamics.step(state, action)).state
        states.append(state)
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Completion("   \n"), "empty"),
        (Completion("Explain it and", finish_reason="length"), "cut"),
        (Completion("Explain it and", finish_reason="content_filter"), "content_filter"),
        (ContentFiltered("no"), "content_filter"),
        (ContextOverflow("too long"), "context_overflow"),
        (Completion("explain WHY the sky is blue"), "copy"),
    ],
)
async def test_unusable_reply_is_an_elimination_that_goes_on(make_dynamics, reply, reason):
    dynamics, _ = make_dynamics({"deepen": reply})
    outcome = await dynamics.step(dynamics.start(SKY, 0), DEEPEN)
    assert outcome.transition.elimination.reason == reason
    assert outcome.reward == -0.25
    assert outcome.score == Score(-0.25)
    assert outcome.state.instruction == SKY.instruction
    assert outcome.state.step == 1
    assert (outcome.terminated, outcome.truncated, outcome.valid, outcome.calls) == (False, False, True, 1)


async def test_no_penalty_is_zero_and_not_minus_zero(make_dynamics):
    dynamics, _ = make_dynamics({"deepen": Completion("")}, penalty=0.0)
    outcome = await dynamics.step(dynamics.start(SKY, 0), DEEPEN)
    assert str(outcome.reward) == "0.0"


async def test_reply_without_instruction_before_the_input_is_eliminated_by_its_operation(make_dynamics):
    dynamics, _ = make_dynamics({"complicate_input": Completion("INPUT:\na,b\n1,2")})
    outcome = await dynamics.step(dynamics.start(SKY, 0), COMPLICATE)
    assert outcome.transition.elimination.reason == "empty"
    assert outcome.transition.child is None


async def test_horizon_terminates_even_with_an_eliminated_rewrite(make_dynamics):
    dynamics, _ = make_dynamics({"deepen": Completion("")}, horizon=1)
    outcome = await dynamics.step(dynamics.start(SKY, 0), DEEPEN)
    assert (outcome.terminated, outcome.truncated) == (True, False)


async def test_stop_terminates_without_a_call_or_a_reward(make_dynamics):
    dynamics, backend = make_dynamics()
    outcome = await dynamics.step(dynamics.start(SKY, 0), STOP)
    assert (outcome.terminated, outcome.truncated, outcome.valid) == (True, False, True)
    assert (outcome.reward, outcome.calls, outcome.usage) == (0.0, 0, Usage())
    assert outcome.state.stopped
    assert outcome.state.instruction == SKY.instruction
    assert backend.requests == []


@pytest.mark.parametrize("error", [ConnectionLost("gone"), BudgetExhausted("no calls left")])
async def test_backend_failure_is_truncation_not_reward(make_dynamics, error):
    dynamics, _ = make_dynamics({"deepen": error})
    state = dynamics.start(SKY, 0)
    outcome = await dynamics.step(state, DEEPEN)
    assert (outcome.terminated, outcome.truncated, outcome.valid) == (False, True, False)
    assert outcome.reward is None
    assert outcome.state is state
    assert outcome.failure == f"{type(error).__name__}: {error}"
    assert outcome.error is error
    assert outcome.calls == 0


async def test_failed_reviewer_is_invalid_and_keeps_what_the_expert_used(make_dynamics):
    dynamics, _ = make_dynamics(
        {"deepen": Completion("Explain it well.", usage=Usage(9, 4)), "reviewer": ConnectionLost("gone")},
        rules=("no_gain",),
    )
    state = dynamics.start(SKY, 0)
    outcome = await dynamics.step(state, DEEPEN)
    assert not outcome.valid
    assert outcome.state is state
    assert (outcome.usage, outcome.calls) == (Usage(9, 4), 1)
    assert outcome.transition.child == Instruction("Explain it well.")


async def test_usage_holds_the_reviewer_of_an_elimination_and_of_the_reward(make_dynamics):
    async def reward(transition):
        return Score(1.0, usage=Usage(100, 10))

    script = {"deepen": Completion("Explain it well.", usage=Usage(9, 4)), "reviewer": Completion("Not Equal")}
    dynamics, _ = make_dynamics(script, rules=("no_gain",), reward=reward)
    outcome = await dynamics.step(dynamics.start(SKY, 0), DEEPEN)
    assert outcome.usage == Usage(109, 14)
    script["reviewer"] = Completion("Equal", usage=Usage(50, 2))
    dynamics, _ = make_dynamics(script, rules=("no_gain",), reward=reward)
    outcome = await dynamics.step(dynamics.start(SKY, 0), DEEPEN)
    assert outcome.transition.elimination.reason == "no_gain"
    assert outcome.usage == Usage(59, 6)


async def test_missing_reward_is_an_invalid_row(make_dynamics):
    dynamics, _ = make_dynamics({"deepen": Completion("Explain it well.")}, reward=lambda transition: None)
    state = dynamics.start(SKY, 0)
    outcome = await dynamics.step(state, DEEPEN)
    assert (outcome.failure, outcome.error) == ("reward missing", None)
    assert (outcome.valid, outcome.truncated, outcome.reward) == (False, True, None)
    assert outcome.state is state


async def test_a_reward_that_is_no_number_is_an_error_not_a_row(make_dynamics):
    dynamics, _ = make_dynamics({"deepen": Completion("Explain it.")}, reward=lambda transition: float("nan"))
    with pytest.raises(RewardError, match=r"returned nan; expected one float a transition\."):
        await dynamics.step(dynamics.start(SKY, 0), DEEPEN)


async def test_illegal_choice_costs_the_penalty_and_no_call(make_dynamics, only_at_start):
    actions = ActionSet("mine", (Rewrite("deepen", "Deepen it."), only_at_start))
    dynamics, backend = make_dynamics({"deepen": Completion("Explain it well.")}, action_set=actions)
    state = dynamics.start(SKY, 0)
    assert dynamics.action_mask(state).tolist() == [True, True]
    state = (await dynamics.step(state, 0)).state
    assert dynamics.action_mask(state).tolist() == [True, False]
    outcome = await dynamics.step(state, 1)
    assert outcome.transition.elimination.reason == "illegal"
    assert (outcome.reward, outcome.calls, len(backend.requests)) == (-0.25, 0, 1)


async def test_a_state_without_legal_operation_is_an_action_set_error(make_dynamics, only_at_start):
    dynamics, _ = make_dynamics(
        {"only_at_start": Completion("Explain it well.")}, action_set=ActionSet("mine", (only_at_start,)), horizon=2
    )
    state = (await dynamics.step(dynamics.start(SKY, 0), 0)).state
    with pytest.raises(ActionSetError) as caught:
        dynamics.action_mask(state)
    assert str(caught.value) == (
        "action set 'mine' has no legal operation at step 1 of seed 'sky'; expected at least one in every state. "
        "Add one that always is, such as 'stop'."
    )


async def test_mask_of_a_chain_that_is_over_allows_everything(make_dynamics, only_at_start):
    dynamics, _ = make_dynamics(
        {"only_at_start": Completion("Explain it well.")}, action_set=ActionSet("mine", (only_at_start,)), horizon=1
    )
    state = (await dynamics.step(dynamics.start(SKY, 0), 0)).state
    assert dynamics.action_mask(state).tolist() == [True]


async def test_wrong_actions_and_steps_after_the_end_say_what_to_do(make_dynamics):
    dynamics, _ = make_dynamics()
    state = dynamics.start(SKY, 0)
    with pytest.raises(UsageError) as caught:
        await dynamics.step(state, 7)
    assert str(caught.value) == (
        "action 7; expected 0 to 6, an index of action set 'evol_instruct+stop' (add_constraints, deepen, concretize, "
        "increase_reasoning, complicate_input, breadth, stop)."
    )
    over = (await dynamics.step(state, STOP)).state
    with pytest.raises(UsageError) as caught:
        await dynamics.step(over, ADD)
    assert str(caught.value) == (
        "the chain of seed 'sky' is over (step 1 of 3, stopped); call reset() before the next step."
    )
