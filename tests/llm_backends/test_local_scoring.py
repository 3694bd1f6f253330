"""Losses of given texts under a local model: which tokens count, batches, the cache, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgym.errors import BadRequest, ConfigError, ServerError, UsageError
from instructgym.llm_backends.local_transformers import LocalScorer, TextLoss, Unscored, close_scorers, open_scorer
from instructgym.llm_backends.local_transformers import scoring as scoring_module
from instructgym.llm_backends.local_transformers.loading import LoadedModel, wrap
from instructgym.llm_backends.local_transformers.scoring_rows import ScoredRow, chosen_passes

from .tiny_models import CHATML, make_model, make_tokenizer, save

PAIRS = [
    ("", "Write a story about a ship."),
    ("Explain why the sky is blue.", "Because of the air, and thank you."),
    ("Sort the numbers.", "1, 2, 3"),
    ("", "Translate good morning into French, add a constraint, then say what the sum of the first two numbers is."),
    ("Explain why the sky is blue." * 3, "A book about it."),
]


def by_hand(model: Any, tokenizer: Any, prefix: str, text: str) -> tuple[float, int]:
    """The mean loss and its tokens, without batches, padding or anything of the package."""
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if not prefix:
        head = bos
    elif tokenizer.chat_template is None:
        head = bos + tokenizer(prefix + "\n\n", add_special_tokens=False)["input_ids"]
    else:
        written = tokenizer.apply_chat_template(
            [{"role": "user", "content": prefix}], tokenize=False, add_generation_prompt=True
        )
        head = tokenizer(written, add_special_tokens=False)["input_ids"]
    counted = body if bos else body[1:]
    total, ids = 0.0, head + body
    for place in range(len(ids) - len(counted), len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        total -= float(logits[ids[place]] - torch.logsumexp(logits, 0))
    return total / len(counted), len(counted)


def tokenizer_with(template: str | None, bos: bool) -> Any:
    tokenizer = make_tokenizer(template)
    if bos:
        tokenizer.bos_token = "<|system|>"
    return tokenizer


@dataclass
class Watched:
    """A model in memory that notes the rows of each pass, and can be held, crashed, or be short of memory."""

    loaded: LoadedModel
    passes: list[int] = field(default_factory=list)
    loads: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    inside: threading.Event = field(default_factory=threading.Event)
    rows_that_fit: int = 1000
    crash: Exception | None = None
    broken: bool = False

    def load(self, source: Any) -> LoadedModel:
        self.loads += 1
        return self.loaded

    async def entered(self) -> None:
        """Until the model computes."""
        assert await asyncio.to_thread(self.inside.wait, 60)


def watch(model: Any, tokenizer: Any) -> Watched:
    watched = Watched(wrap(model, tokenizer, name="tiny"))
    watched.gate.set()
    forward = model.forward

    def watching(**inputs: Any) -> Any:
        rows = len(inputs["input_ids"])
        watched.passes.append(rows)
        watched.inside.set()
        assert watched.gate.wait(60)
        if rows > watched.rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if watched.crash is not None:
            raise watched.crash
        output = forward(**inputs)
        if watched.broken:
            output.logits[0] = float("nan")
        return output

    model.forward = watching
    return watched


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = watch(make_model(), make_tokenizer())
    monkeypatch.setattr(scoring_module, "load", watched.load)
    yield watched
    watched.gate.set()


@pytest.fixture
async def scorer(watched: Watched) -> AsyncIterator[LocalScorer]:
    scorer = LocalScorer("tiny", max_batch=8)
    yield scorer
    watched.gate.set()
    await asyncio.to_thread(scorer.close)


def near(loss: TextLoss | Unscored, expected: tuple[float, int] | TextLoss) -> bool:
    mean, tokens = (expected.mean_nats, expected.tokens) if isinstance(expected, TextLoss) else expected
    return isinstance(loss, TextLoss) and abs(loss.mean_nats - mean) < 1e-5 and loss.tokens == tokens


@pytest.mark.parametrize("max_batch", [None, 8])
@pytest.mark.parametrize("bos", [False, True], ids=["no-bos", "bos"])
@pytest.mark.parametrize("template", [CHATML, None], ids=["template", "plain"])
async def test_losses_equal_those_computed_token_by_token(
    template: str | None, bos: bool, max_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = make_model(), tokenizer_with(template, bos)
    loaded = wrap(model, tokenizer, name="tiny")
    monkeypatch.setattr(scoring_module, "load", lambda source: loaded)
    scorer = LocalScorer("tiny", max_batch=max_batch)
    losses = await scorer.losses(PAIRS)
    scorer.close()
    for pair, loss in zip(PAIRS, losses, strict=True):
        assert near(loss, by_hand(model, tokenizer, *pair)), pair


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gemma3", "gpt2", "bloom"])
async def test_a_loss_depends_on_no_neighbour_in_any_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_model(family), tokenizer_with(None, True)
    loaded = wrap(model, tokenizer, name="tiny")
    monkeypatch.setattr(scoring_module, "load", lambda source: loaded)
    scorer = LocalScorer("tiny", max_batch=8)
    together = await scorer.losses(PAIRS)
    scorer.close()
    for pair, loss in zip(PAIRS, together, strict=True):
        assert near(loss, by_hand(model, tokenizer, *pair)), pair


async def test_without_bos_the_first_token_is_left_out_after_every_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Write a story."
    for bos, left_out in ((False, 1), (True, 0)):
        tokenizer = tokenizer_with(CHATML, bos)
        loaded = wrap(make_model(), tokenizer, name="tiny")
        monkeypatch.setattr(scoring_module, "load", lambda source, loaded=loaded: loaded)
        scorer = LocalScorer("tiny")
        alone, after = await scorer.losses([("", text), ("Sort the numbers.", text)])
        scorer.close()
        assert isinstance(alone, TextLoss)
        assert isinstance(after, TextLoss)
        assert alone.tokens == after.tokens == len(tokenizer(text)["input_ids"]) - left_out


async def test_a_row_runs_alone_on_the_cpu_and_repeats_to_the_last_bit(watched: Watched) -> None:
    scorer = LocalScorer("tiny")
    together = await scorer.losses(PAIRS)
    scorer.close()
    assert watched.passes == [1] * len(PAIRS)
    alone = []
    for pair in PAIRS:
        scorer = LocalScorer("tiny")
        alone += await scorer.losses([pair])
        scorer.close()
    assert alone == together


async def test_what_waits_is_joined_and_gives_what_it_gives_alone(scorer: LocalScorer, watched: Watched) -> None:
    watched.gate.clear()
    first = asyncio.create_task(scorer.losses([("", "the first")]))
    await watched.entered()
    rest = [asyncio.create_task(scorer.losses([pair])) for pair in PAIRS]
    await asyncio.sleep(0.01)
    watched.gate.set()
    await first
    joined = [loss for (loss,) in await asyncio.gather(*rest)]
    assert watched.passes == [1, 5]
    alone = LocalScorer("tiny", max_batch=1)
    for loss, expected in zip(joined, await alone.losses(PAIRS), strict=True):
        assert isinstance(expected, TextLoss)
        assert near(loss, expected)
    alone.close()


async def test_a_caller_that_is_cancelled_while_it_waits_costs_nothing(scorer: LocalScorer, watched: Watched) -> None:
    watched.gate.clear()
    first = asyncio.create_task(scorer.losses([("", "the first")]))
    await watched.entered()
    rest = [asyncio.create_task(scorer.losses([("", f"number {index}")])) for index in range(3)]
    await asyncio.sleep(0.01)
    rest[1].cancel()
    await asyncio.sleep(0.01)
    watched.gate.set()
    await asyncio.gather(first, rest[0], rest[2])
    assert watched.passes == [1, 2]


def rows(*lengths: int) -> list[ScoredRow]:
    return [ScoredRow(tuple(range(length + 1)), 1) for length in lengths]


def test_passes_hold_alike_lengths_within_rows_and_tokens() -> None:
    assert chosen_passes(rows(5, 90, 6, 80, 5), max_rows=8, max_tokens=180) == [[0, 4, 2], [3, 1]]
    assert chosen_passes(rows(5, 90, 6, 80, 5), max_rows=2, max_tokens=180) == [[0, 4], [2, 3], [1]]
    assert chosen_passes(rows(5, 500, 6), max_rows=8, max_tokens=100) == [[0, 2], [1]]
    assert chosen_passes([], max_rows=8, max_tokens=100) == []


async def test_a_known_pair_is_not_computed_again(scorer: LocalScorer, watched: Watched) -> None:
    pair = ("Sort.", "1, 2, 3")
    one, two = await scorer.losses([pair, pair])
    assert one == two
    assert await scorer.losses([pair]) == [one]
    assert watched.passes == [1]
    scorer.close()
    assert await scorer.losses([pair]) == [one]  # closing forgets the model, not the losses
    assert watched.loads == 1


async def test_the_cache_forgets_what_was_asked_for_least_recently(watched: Watched) -> None:
    scorer = LocalScorer("tiny", cache_pairs=2)
    for text in ("one text", "two texts", "one text", "three texts", "one text"):
        await scorer.losses([("", text)])
    assert len(watched.passes) == 3
    await scorer.losses([("", "two texts")])
    assert len(watched.passes) == 4
    scorer.close()


async def test_a_text_without_a_loss_says_why(scorer: LocalScorer, watched: Watched) -> None:
    losses = await scorer.losses([("", ""), ("Sort.", ""), ("", "a"), ("", "a b c " * 200), ("a b c " * 200, "Sort.")])
    no_token, overflow = Unscored.NO_TOKEN, Unscored.OVERFLOW
    assert losses == [no_token, no_token, no_token, overflow, overflow]  # one token, and no BOS before it
    assert watched.passes == []


async def test_the_last_token_needs_no_place_in_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    length = len(tokenizer("Write a story about a ship.")["input_ids"])
    for context, scored in ((length - 1, True), (length - 2, False)):
        loaded = wrap(make_model(context=context), tokenizer, name="tiny")
        monkeypatch.setattr(scoring_module, "load", lambda source, loaded=loaded: loaded)
        scorer = LocalScorer("tiny")
        (loss,) = await scorer.losses([("", "Write a story about a ship.")])
        scorer.close()
        assert (loss is not Unscored.OVERFLOW) == scored


async def test_a_pass_that_does_not_fit_goes_on_in_halves(
    scorer: LocalScorer, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.rows_that_fit = 2
    losses = await scorer.losses(PAIRS)
    assert all(isinstance(loss, TextLoss) for loss in losses)
    assert watched.passes == [5, 2, 3, 1, 2]
    assert caplog.messages == [
        "cpu ran out of memory on a pass of 5 rows; it goes on in halves",
        "cpu ran out of memory on a pass of 3 rows; it goes on in halves",
    ]
    watched.rows_that_fit = 0
    with pytest.raises(BadRequest) as error:
        await scorer.losses([("", "Write a ship.")])
    tokens = len(make_tokenizer()("Write a ship.")["input_ids"])
    assert str(error.value) == (
        f"cpu has too little memory for one text of {tokens} tokens, prefix included, on 'tiny'; "
        "choose a smaller dtype or model, or another device"
    )


async def test_a_crash_is_a_transient_error_and_the_thread_goes_on(scorer: LocalScorer, watched: Watched) -> None:
    watched.crash = RuntimeError("a kernel failed")
    with pytest.raises(ServerError, match=r"^a pass on 'tiny' failed: RuntimeError: a kernel failed$"):
        await scorer.losses(PAIRS)
    watched.crash = None
    assert isinstance((await scorer.losses(PAIRS))[0], TextLoss)


async def test_log_probabilities_that_are_no_numbers_are_an_error(scorer: LocalScorer, watched: Watched) -> None:
    watched.broken = True
    with pytest.raises(BadRequest) as error:
        await scorer.losses([("", "Write a ship.")])
    tokens = len(make_tokenizer()("Write a ship.")["input_ids"]) - 1
    assert str(error.value) == (
        f"'tiny' failed on a text of {tokens} tokens: its log-probabilities are not finite (torch.float32); "
        "float16 overflows in some models: set dtype = 'bfloat16' or 'float32'"
    )


async def test_a_prefix_that_the_template_refuses_fails_its_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no bad words') }}{% endif %}" + CHATML
    watched = watch(make_model(), make_tokenizer(template))
    monkeypatch.setattr(scoring_module, "load", watched.load)
    scorer = LocalScorer("tiny", max_batch=8)
    good, bad = await asyncio.gather(
        scorer.losses([("good", "1, 2, 3")]), scorer.losses([("bad", "1, 2, 3")]), return_exceptions=True
    )
    scorer.close()
    assert isinstance(good, list)
    assert isinstance(bad, BadRequest)
    assert str(bad) == "the chat template of 'tiny' refuses messages of the roles user: no bad words"


async def test_a_model_that_cannot_be_loaded_is_a_config_error_and_may_be_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    scorer = LocalScorer(folder)
    with pytest.raises(ConfigError) as error:
        await scorer.losses(PAIRS)
    assert (
        str(error.value)
        == f"there is no folder {folder}; expected a folder with a model, or a name such as 'org/model'"
    )
    save(folder)
    assert isinstance((await scorer.losses(PAIRS))[0], TextLoss)
    scorer.close()


async def test_close_fails_what_waits_and_the_scorer_may_be_used_again(scorer: LocalScorer, watched: Watched) -> None:
    watched.gate.clear()
    first = asyncio.create_task(scorer.losses([("", "the first")]))
    await watched.entered()
    second = asyncio.create_task(scorer.losses([("", "the second")]))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(asyncio.to_thread(scorer.close))
    await asyncio.sleep(0.01)
    watched.gate.set()
    await closing
    assert isinstance((await first)[0], TextLoss)
    with pytest.raises(UsageError, match=r"^the model 'tiny' was closed before it answered$"):
        await second
    assert isinstance((await scorer.losses([("", "the second")]))[0], TextLoss)
    assert watched.loads == 2


async def test_another_process_is_refused(scorer: LocalScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: here + 1)
        with pytest.raises(UsageError) as error:
            await scorer.losses(PAIRS)
    assert str(error.value) == (
        f"LocalScorer('tiny') was opened in process {here} and used in process {here + 1}; "
        "open it inside the worker, and spawn workers instead of forking them"
    )


def test_a_scorer_serves_one_loop_after_another(watched: Watched) -> None:
    scorer = LocalScorer("tiny")
    first = asyncio.run(scorer.losses([("", "the first")]))
    second = asyncio.run(scorer.losses([("", "the second"), ("", "the first")]))
    scorer.close()
    assert second[1] == first[0]


async def test_one_scorer_a_model_is_shared_in_a_process(watched: Watched) -> None:
    one = open_scorer("shared/model")
    assert open_scorer("shared/model") is one
    assert open_scorer("shared/model", dtype="bfloat16") is not one
    await one.losses(PAIRS)
    close_scorers()
    close_scorers()
    await one.losses([("", "one more")])
    assert watched.loads == 2
    close_scorers()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": " "}, "the model's name is empty; expected a folder, or a name such as 'org/model'"),
        ({"device": "the gpu"}, "device is 'the gpu'; expected 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of auto, float32, bfloat16, float16"),
        ({"max_batch": 0}, "max_batch is 0; expected at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"cache_pairs": 0}, "cache_pairs is 0; expected at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        LocalScorer(**{"model": "tiny", **options})
    assert str(error.value) == message


def test_a_script_that_never_closes_ends(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from instructgym.llm_backends.local_transformers import open_scorer\n"
        "assert 'torch' not in sys.modules\n"
        "print(asyncio.run(open_scorer(sys.argv[1]).losses([('Sort.', '1, 2, 3')]))[0].tokens)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(save(tmp_path / "tiny"))], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout.strip().isdigit()) == (0, True), ended.stderr
