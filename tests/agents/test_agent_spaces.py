import json

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space, iterate

from instructgym.agents.spaces import Flattener, num_actions, space_from_json, space_to_json, stack_rows
from instructgym.errors import ConfigError

SPACES = [
    spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    spaces.Box(0, 255, (4,), np.int64),
    spaces.Box(np.array([-np.inf, 0.0], np.float32), np.array([1.0, np.inf], np.float32)),
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiBinary(5),
    spaces.MultiDiscrete([2, 3]),
    spaces.Dict(
        {"z": spaces.Discrete(2), "a": spaces.MultiBinary([2, 2]), "in": spaces.Dict({"x": spaces.Box(0.0, 1.0, (2,))})}
    ),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_flattening_a_batch_equals_gymnasiums_row_by_row(space):
    space.seed(0)
    batched = batch_space(space, 5)
    batched.seed(0)
    batch = batched.sample()
    rows = list(iterate(batched, batch))
    expected = np.stack([flatten(space, row) for row in rows]).astype(np.float32)
    flattener = Flattener(space)
    assert np.array_equal(flattener(batch), expected)
    assert np.array_equal(flattener(stack_rows(space, rows)), expected)
    assert flattener(batch).dtype == np.float32
    assert flattener.dim == expected.shape[1]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_survives_json(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False))) == space


def test_spaces_that_do_not_fit_are_named():
    with pytest.raises(ConfigError) as error:
        Flattener(spaces.Text(5))
    assert str(error.value) == (
        "observation space Text cannot be flattened; expected Box, Discrete, MultiBinary, MultiDiscrete or a Dict of "
        "these."
    )
    with pytest.raises(ConfigError) as error:
        num_actions(spaces.Box(0.0, 1.0))
    assert str(error.value) == "action space Box(0.0, 1.0, (1,), float32); expected Discrete(n), counted from 0."
