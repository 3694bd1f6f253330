from __future__ import annotations

import numpy as np
import pytest

from instructgym.envs import OBSERVATION_MODES, Observer, load_action_set
from instructgym.errors import ConfigError
from instructgym.metrics.surface import SURFACE_FEATURES, surface_features
from instructgym.rewards import HashingEncoder
from instructgym.types import Completion, Instruction, Seed

SKY = Seed("sky", Instruction("Explain why the sky is blue."))
A = 7
D = 32
S = len(SURFACE_FEATURES)


@pytest.fixture
async def chain(make_dynamics):
    """States after: reset, an accepted deepen (twice as many words), an eliminated deepen, an accepted concretize."""
    longer = "Explain why the sky is blue and why the evening is red."
    dynamics, backend = make_dynamics({"deepen": Completion(longer)}, rules=("copy",), horizon=4)
    states = [dynamics.start(SKY, 0)]
    for action in (1, 1):
        states.append((await dynamics.step(states[-1], action)).state)
    backend.script["concretize"] = Completion("Say what Rayleigh found.")
    states.append((await dynamics.step(states[-1], 2)).state)
    return states


def observer(mode, **more):
    return Observer(mode, load_action_set("evol_instruct").with_stop(), 4, encoder=HashingEncoder(D), **more)


async def test_flat_layout(chain):
    encoder = HashingEncoder(D)
    now, seed, parent = await encoder.encode(
        [chain[3].instruction.text, SKY.instruction.text, chain[2].instruction.text]
    )
    flat = await observer("flat").observe(chain[3])
    assert flat.shape == (2 * D + 5 + S + 2 * A,)
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat[:D], now)
    np.testing.assert_allclose(flat[D : 2 * D], now - seed)
    np.testing.assert_allclose(
        flat[2 * D : 2 * D + 5], [3 / 4, np.log(5 / 7), now @ parent, now @ seed, 0.0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(flat[2 * D + 5 : 2 * D + 5 + S], surface_features("Say what Rayleigh found.", ""))
    np.testing.assert_array_equal(flat[2 * D + 5 + S : 2 * D + 5 + S + A], [0, 0.5, 0.25, 0, 0, 0, 0])
    np.testing.assert_array_equal(flat[2 * D + 5 + S + A :], [0, 0, 1, 0, 0, 0, 0])


async def test_first_observation_has_no_last_operation(chain):
    flat = await observer("flat").observe(chain[0])
    np.testing.assert_array_equal(flat[D : 2 * D], np.zeros(D))
    np.testing.assert_allclose(flat[2 * D : 2 * D + 5], [0, 0, 1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(flat[2 * D + 5 + S :], np.zeros(2 * A))


async def test_eliminated_step_counts_as_last_operation_and_is_marked(chain):
    flat = await observer("flat").observe(chain[2])
    assert flat[2 * D + 2] == pytest.approx(1.0)  # the parent stayed
    assert flat[2 * D + 4] == 1.0
    np.testing.assert_array_equal(flat[2 * D + 5 + S + A :], [0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(await observer("last_operation").observe(chain[2]), [0, 1, 0, 0, 0, 0, 0])


async def test_last_operation_is_zeros_at_reset(chain):
    np.testing.assert_array_equal(await observer("last_operation").observe(chain[0]), np.zeros(A))


async def test_dict_has_box_discrete_and_multibinary_only(chain):
    seen = observer("dict")
    assert {type(space).__name__ for space in seen.space.values()} == {"Box", "Discrete", "MultiBinary"}
    first, third = await seen.observe(chain[0]), await seen.observe(chain[3])
    assert first["last_operation"] == A
    assert third["last_operation"] == 2
    np.testing.assert_array_equal(third["used"], [0, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(third["counts"], np.array([0, 2, 1, 0, 0, 0, 0], np.float32) / 4)


async def test_tokens_are_bytes_with_a_mask_and_are_cut(make_dynamics):
    dynamics, _ = make_dynamics(horizon=4)
    state = dynamics.start(Seed("s", Instruction("héh", "x")), 0)
    seen = observer("tokens", length=10)
    found = await seen.observe(state)
    raw = "héh\n\nx".encode()
    np.testing.assert_array_equal(found["ids"], [byte + 1 for byte in raw] + [0] * (10 - len(raw)))
    np.testing.assert_array_equal(found["mask"], [1] * len(raw) + [0] * (10 - len(raw)))
    assert found["step"] == 0
    assert (await observer("tokens", length=3).observe(state))["mask"].tolist() == [1, 1, 1]


async def test_tokens_come_with_the_operations_chosen_so_far(chain):
    seen = observer("tokens")
    assert str(seen.space["history"]) == "MultiDiscrete([8 8 8 8])"
    found = [(await seen.observe(state))["history"].tolist() for state in chain]
    assert found == [[A, A, A, A], [1, A, A, A], [1, 1, A, A], [1, 1, 2, A]]  # the second one was eliminated


async def test_a_tokenizer_can_be_plugged_in(chain):
    class Words:
        vocab_size = 50

        def encode(self, text):
            return [len(word) for word in text.split()]

    seen = observer("tokens", tokenizer=Words(), length=8)
    assert seen.space["ids"].high.max() == 49
    assert (await seen.observe(chain[0]))["ids"].tolist() == [7, 3, 3, 3, 2, 5, 0, 0]


async def test_features_are_all_but_the_embeddings(chain):
    for state in chain:
        flat, features = [await observer(mode).observe(state) for mode in ("flat", "features")]
        assert np.array_equal(features, flat[2 * D :])
        whole, some = [await observer(mode).observe(state) for mode in ("dict", "features_dict")]
        assert sorted(set(whole) - set(some)) == ["embedding", "shift"]
        assert all(np.array_equal(whole[name], some[name]) for name in some)


@pytest.mark.parametrize("mode", OBSERVATION_MODES)
async def test_every_observation_is_in_its_space_and_a_new_object(chain, mode):
    seen = observer(mode)
    for state in chain:
        assert seen.space.contains(await seen.observe(state))
    first, second = await seen.observe(chain[1]), await seen.observe(chain[1])
    if isinstance(first, dict):
        name = "mask" if mode == "tokens" else "counts"
        first, second = first[name], second[name]
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize("text", ["字" * 5000, "word " * 5000, "!", "שלום 🙂"])
async def test_extreme_texts_stay_in_bounds(make_dynamics, text):
    dynamics, _ = make_dynamics({"deepen": Completion(text)}, rules=(), horizon=4, reward=lambda transition: 0.0)
    state = (await dynamics.step(dynamics.start(SKY, 0), 1)).state
    for mode in ("flat", "dict", "tokens"):
        seen = observer(mode)
        assert seen.space.contains(await seen.observe(state))


def test_unknown_mode_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        observer("tokenz")
    assert str(caught.value) == (
        "unknown observation 'tokenz'; did you mean 'tokens'? Known: flat, dict, features, features_dict, tokens, "
        "last_operation."
    )


def test_embedding_modes_need_an_encoder():
    with pytest.raises(ConfigError) as caught:
        Observer("flat", load_action_set("core"), 4)
    assert str(caught.value) == "observation 'flat' needs an encoder, got None; pass one, e.g. HashingEncoder()."
