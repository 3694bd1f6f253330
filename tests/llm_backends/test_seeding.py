from instructgym.llm_backends.seeding import request_seed


def test_seed_is_31_bits_of_run_seed_and_sample_alone():
    assert request_seed(0, (0,)) == request_seed(0, (0,))
    assert request_seed(0, (12, 3)) == 1_625_573_846
    seeds = {request_seed(run, (i, j)) for run in range(5) for i in range(50) for j in range(50)}
    assert len(seeds) > 12_490
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(1, (2, 3)) != request_seed(1, (23,)) != request_seed(12, (3,))
