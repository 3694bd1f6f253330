from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instructgym.llm_backends.local_transformers.batching import Size, batch_area, choose_batch

SIZES = st.lists(st.builds(Size, st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=30)
BUDGETS = st.integers(1, 3000)
ROWS = st.integers(1, 12)


def test_nothing_waits_nothing_runs() -> None:
    assert choose_batch([], batch_tokens=100, max_rows=4) == []
    assert batch_area([]) == 0


def test_area_is_the_padded_rectangle() -> None:
    assert batch_area([Size(10, 5), Size(3, 20)]) == 2 * (10 + 20)


def test_budget_goes_to_the_nearest_in_length() -> None:
    waiting = [Size(10, 10), Size(90, 10), Size(12, 10), Size(9, 10), Size(40, 10)]
    assert choose_batch(waiting, batch_tokens=66, max_rows=8) == [0, 2, 3]


def test_older_goes_first_at_the_same_distance() -> None:
    assert choose_batch([Size(10, 10)] * 5, batch_tokens=60, max_rows=8) == [0, 1, 2]


def test_a_nearer_row_that_does_not_fit_leaves_its_place_to_one_that_does() -> None:
    # The second row is nearest, but its long prompt pads the first one's; the third fits.
    waiting = [Size(10, 50), Size(55, 5), Size(5, 40)]
    assert choose_batch(waiting, batch_tokens=120, max_rows=8) == [0, 2]


def test_oversized_request_runs_alone() -> None:
    assert choose_batch([Size(500, 500), Size(1, 1)], batch_tokens=100, max_rows=8) == [0]
    assert choose_batch([Size(1, 1), Size(500, 500), Size(1, 1)], batch_tokens=100, max_rows=8) == [0, 2]


@given(SIZES, BUDGETS, ROWS)
def test_oldest_is_in_and_the_limits_hold(waiting: list[Size], batch_tokens: int, max_rows: int) -> None:
    chosen = choose_batch(waiting, batch_tokens=batch_tokens, max_rows=max_rows)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= max_rows
    assert len(chosen) == 1 or batch_area([waiting[index] for index in chosen]) <= batch_tokens


@given(SIZES, BUDGETS, ROWS)
def test_no_room_is_left_for_one_that_waits(waiting: list[Size], batch_tokens: int, max_rows: int) -> None:
    chosen = choose_batch(waiting, batch_tokens=batch_tokens, max_rows=max_rows)
    if len(chosen) < max_rows:
        inside = [waiting[index] for index in chosen]
        for index in set(range(len(waiting))) - set(chosen):
            assert batch_area([*inside, waiting[index]]) > batch_tokens


@given(SIZES, BUDGETS, ROWS, st.data())
def test_nobody_starves(waiting: list[Size], batch_tokens: int, max_rows: int, data: st.DataObject) -> None:
    """A row runs after at most as many batches as rows stood before it, whatever arrives meanwhile."""
    target = data.draw(st.integers(0, len(waiting) - 1))
    queue = list(enumerate(waiting))
    batches = 0
    while any(key == target for key, _ in queue):
        chosen = choose_batch([size for _, size in queue], batch_tokens=batch_tokens, max_rows=max_rows)
        queue = [pair for index, pair in enumerate(queue) if index not in chosen]
        queue += [(-1, waiting[target])] * 3  # late-comers, as near as can be to the one we watch
        batches += 1
    assert batches <= target + 1
