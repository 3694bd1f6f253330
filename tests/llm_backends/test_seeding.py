from instructgym.llm_backends.seeding import messages_index, request_seed
from instructgym.types import Message


def test_seed_is_31_bits_of_run_seed_and_sample_alone():
    assert request_seed(0, (0,)) == request_seed(0, (0,))
    assert request_seed(0, (12, 3)) == 1_625_573_846
    seeds = {request_seed(run, (i, j)) for run in range(5) for i in range(50) for j in range(50)}
    assert len(seeds) > 12_490
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(1, (2, 3)) != request_seed(1, (23,)) != request_seed(12, (3,))


def test_messages_have_an_index_of_their_own():
    texts = [[Message("user", f"text {number}")] for number in range(2000)]
    found = {messages_index(messages) for messages in texts}
    assert len(found) == 2000
    assert all(0 <= index < 2**31 for index in found)
    assert messages_index(texts[3]) == messages_index([Message("user", "text 3")])
    assert messages_index([Message("system", "text 3")]) not in found
    assert messages_index([Message("user", "a"), Message("user", "b")]) != messages_index([Message("user", "ab")])
