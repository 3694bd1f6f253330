import numpy as np

from instructgym.agents.draws import derive_seed, row_rng, sample_categorical, uniforms


def test_a_row_generator_starts_with_the_uniform_of_its_index():
    envs, episodes, steps = np.arange(50), np.arange(50) * 7, np.arange(50) % 4
    drawn = uniforms(11, envs, episodes, steps)
    assert drawn.tolist() == [
        row_rng(11, *map(int, index)).random() for index in zip(envs, episodes, steps, strict=True)
    ]


def test_each_part_of_the_index_changes_the_draw():
    assert len({row_rng(*index).random() for index in [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)]}) == 4
    assert row_rng(0, 1).random() != row_rng(0, 1, 0).random()


def test_uniforms_are_uniform_over_any_part_of_the_index():
    for index in ((np.arange(20_000), 0, 0), (3, np.arange(20_000), 1), (3, 1, np.arange(20_000))):
        counts = np.histogram(uniforms(0, *index), bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi squared with 19 degrees of freedom: p about 0.0007
    first = uniforms(0, np.arange(20_000), 0, 0)
    second = uniforms(0, np.arange(20_000), 0, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_a_row_generator_goes_on_to_other_numbers():
    draws = np.array([row_rng(5, i).random(3) for i in range(4000)])
    assert abs(draws.mean(axis=0) - 0.5).max() < 0.02
    assert abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.06


def test_sampling_follows_the_probabilities_and_never_takes_a_probability_of_zero():
    probs = np.array([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    actions = sample_categorical(np.tile(probs, (20_000, 1)), uniforms(1, np.arange(20_000)))
    assert abs(np.bincount(actions, minlength=6) / 20_000 - probs).max() < 0.012
    for edge in (0.0, 0.5, 1.0 - 2.0**-53):
        for total in (1.0, 1.0 + 2.0**-52, 3.0, 1e-30):
            assert sample_categorical(probs[None] * total, np.array([edge]))[0] in (1, 3, 4)


def test_seeds_fit_into_31_bits():
    assert all(0 <= derive_seed(seed, 1, 2) < 2**31 for seed in (0, 1, 2**63, 2**70))
