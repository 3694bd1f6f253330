"""The backend: its thread, its queue, the stack around it, and what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from instructgym.errors import BadRequest, ConfigError, ContextOverflow, ServerError, UsageError
from instructgym.llm_backends import Limits, ReplayBackend, open_stack
from instructgym.llm_backends.clock import Deadlines, current_clock
from instructgym.llm_backends.local_transformers import TransformersBackend, backend, failures
from instructgym.llm_backends.local_transformers.loading import LoadedModel, wrap
from instructgym.types import Completion

from .tiny_models import make_model, make_tokenizer, question, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "tiny")


@dataclass
class Watched:
    """A model in memory that notes the rows of each prefill, and can be held, crashed, or be short of memory."""

    loaded: LoadedModel
    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    inside: threading.Event = field(default_factory=threading.Event)
    rows_that_fit: int = 1000
    crash: Exception | None = None

    async def entered(self) -> None:
        """Until the model computes."""
        assert await asyncio.to_thread(self.inside.wait, 60)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    model = make_model()
    watched = Watched(wrap(model, make_tokenizer(), name="tiny"))
    watched.gate.set()
    forward = model.forward

    def watch(**inputs: Any) -> Any:
        rows, width = inputs["input_ids"].shape
        if inputs["past_key_values"] is not None and width > 1:
            watched.batches.append(rows)
        watched.inside.set()
        assert watched.gate.wait(60)
        if rows > watched.rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if watched.crash is not None:
            raise watched.crash
        return forward(**inputs)

    model.forward = watch
    monkeypatch.setattr(backend, "load", lambda source: watched.loaded)
    yield watched
    watched.gate.set()


@pytest.fixture
async def local(watched: Watched) -> AsyncIterator[TransformersBackend]:
    async with aclosing(TransformersBackend("tiny")) as local:
        yield local


async def first_alone(local: TransformersBackend, watched: Watched, *requests: Any) -> list[asyncio.Task[Completion]]:
    """Tasks for the requests, of which the first is in a batch that is held and the others wait."""
    watched.gate.clear()
    tasks = [asyncio.create_task(local.complete(requests[0]))]
    await watched.entered()
    tasks += [asyncio.create_task(local.complete(request)) for request in requests[1:]]
    await asyncio.sleep(0.01)
    return tasks


async def test_a_folder_answers(folder: Path) -> None:
    async with aclosing(TransformersBackend(folder)) as local:
        completion = await local.complete(question("Write a story."))
    assert completion.model == "tiny"
    assert completion.finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16
    assert completion.text


async def test_what_waits_is_joined_into_one_batch_and_the_answers_are_those_of_one_by_one(
    local: TransformersBackend, watched: Watched
) -> None:
    requests = [question("Write. " * (index % 3), index, temperature=0.9) for index in range(9)]
    alone = [await local.complete(request) for request in requests]
    assert watched.batches == [1] * 9
    watched.batches.clear()
    watched.inside.clear()
    tasks = await first_alone(local, watched, *requests)
    watched.gate.set()
    assert await asyncio.gather(*tasks) == alone
    assert watched.batches == [1, 8]


async def test_choices_share_a_batch(local: TransformersBackend, watched: Watched) -> None:
    completion = await local.complete(question("Write.", temperature=1.0, n=5))
    assert watched.batches == [5]
    assert len({completion.text, *(other.text for other in completion.others)}) > 1


async def test_more_choices_than_rows_take_several_batches(watched: Watched) -> None:
    async with aclosing(TransformersBackend("tiny", max_batch=4)) as local:
        completion = await local.complete(question("Write.", temperature=1.0, n=10))
    assert len(completion.others) == 9
    assert watched.batches == [4, 4, 2]


async def test_batch_tokens_bound_a_batch(watched: Watched) -> None:
    request = question("Write.", max_tokens=10)
    length = 10 + len(watched.loaded.prompts.ids(request.messages, {}))
    async with aclosing(TransformersBackend("tiny", batch_tokens=3 * length + 1)) as local:
        tasks = await first_alone(local, watched, *(question("Write.", index, max_tokens=10) for index in range(8)))
        watched.gate.set()
        await asyncio.gather(*tasks)
    assert watched.batches == [1, 3, 3, 1]


async def test_a_request_that_is_cancelled_while_it_waits_never_runs(
    local: TransformersBackend, watched: Watched
) -> None:
    tasks = await first_alone(local, watched, *(question("Write.", index) for index in range(4)))
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    watched.gate.set()
    await asyncio.gather(tasks[0], tasks[1], tasks[3])
    assert watched.batches == [1, 2]


async def test_a_request_that_is_cancelled_in_its_batch_leaves_it(local: TransformersBackend, watched: Watched) -> None:
    (task,) = await first_alone(local, watched, question("Write.", max_tokens=200))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    watched.gate.set()
    steps = []
    forward = watched.loaded.model.forward
    watched.loaded.model.forward = lambda **inputs: (steps.append(1), forward(**inputs))[1]
    await local.complete(question("Write.", 1, max_tokens=2))
    assert len(steps) <= 4


async def test_the_clock_of_a_call_stands_still_while_it_waits_for_a_batch(
    local: TransformersBackend, watched: Watched
) -> None:
    (held,) = await first_alone(local, watched, question("Write."))
    sent = []

    async def ask() -> None:
        with Deadlines().clock(30.0) as clock:
            current_clock.set(clock)
            task = asyncio.ensure_future(local.complete(question("Write.", 1)))
            await asyncio.sleep(0.01)
            sent.append(clock.sent)
            watched.gate.set()
            await task
            sent.append(clock.sent)

    await asyncio.gather(asyncio.create_task(ask()), held)
    assert sent == [False, True]


async def test_out_of_memory_halves_the_batches_and_loses_nothing(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [question("Write.", index, temperature=0.8) for index in range(9)]
    async with aclosing(TransformersBackend("tiny")) as local:
        alone = [await local.complete(request) for request in requests]
        watched.batches.clear()
        watched.inside.clear()
        watched.rows_that_fit = 3
        with caplog.at_level(logging.WARNING):
            tasks = await first_alone(local, watched, *requests)
            watched.gate.set()
            assert await asyncio.gather(*tasks) == alone
    assert watched.batches == [1, 8, 4, 2, 2, 2, 2]
    size = 16 + len(watched.loaded.prompts.ids(requests[0].messages, {}))
    assert [record.getMessage() for record in caplog.records] == [
        f"cpu ran out of memory on a batch of {rows} rows; batches hold at most {rows * size // 2} tokens from now on "
        "(set batch_tokens to begin with that)"
        for rows in (8, 4)
    ]


async def test_a_single_request_beyond_memory_fails_with_advice(local: TransformersBackend, watched: Watched) -> None:
    watched.rows_that_fit = 0
    with pytest.raises(BadRequest) as error:
        await local.complete(question("Write."))
    prompt = len(watched.loaded.prompts.ids(question("Write.").messages, {}))
    assert str(error.value) == (
        f"cpu has too little memory for one request of {prompt} prompt tokens and up to 16 new ones on 'tiny'; "
        "lower max_tokens, choose a smaller dtype or model, or another device"
    )
    watched.rows_that_fit = 1
    assert (await local.complete(question("Write."))).text


async def test_a_real_allocation_failure_of_the_cpu_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert failures.is_out_of_memory(error.value)
    assert not failures.is_out_of_memory(RuntimeError("shapes do not match"))


async def test_a_crash_fails_its_batch_and_the_thread_goes_on(local: TransformersBackend, watched: Watched) -> None:
    tasks = await first_alone(local, watched, *(question("Write.", index) for index in range(3)))
    watched.crash = RuntimeError("a kernel failed")
    watched.gate.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, ServerError)
        assert str(outcome) == "a batch on 'tiny' failed: RuntimeError: a kernel failed"
    watched.crash = None
    assert (await local.complete(question("Write."))).text


async def test_one_bad_request_fails_alone(local: TransformersBackend, watched: Watched) -> None:
    tasks = await first_alone(
        local,
        watched,
        question("Write."),
        question("Go.", max_tokens=1000),
        question("Go.", top_p=2.0),
        question("Go."),
    )
    watched.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Completion, ContextOverflow, BadRequest, Completion]


async def test_logits_that_are_not_numbers_are_said_with_the_remedy(
    local: TransformersBackend, watched: Watched
) -> None:
    with torch.no_grad():
        watched.loaded.model.lm_head.weight[:] = float("nan")
    with pytest.raises(BadRequest) as error:
        await local.complete(question("Write."))
    assert str(error.value) == (
        "'tiny' failed on this request: its logits are not numbers (torch.float32); "
        "float16 overflows in some models: set dtype = 'bfloat16' or 'float32'"
    )


async def test_closing_fails_what_runs_and_what_waits_and_a_closed_backend_may_be_used_again(watched: Watched) -> None:
    local = TransformersBackend("tiny")
    tasks = await first_alone(local, watched, *(question("Write.", index, max_tokens=200) for index in range(3)))
    closing = asyncio.create_task(local.aclose())
    await asyncio.sleep(0.01)
    watched.gate.set()
    await closing
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, UsageError)
        assert str(outcome) == "the model 'tiny' was closed before it answered"
    for thread in threading.enumerate():
        if thread.name == "model tiny":
            thread.join(10)
            assert not thread.is_alive()
    assert (await local.complete(question("Write."))).text
    await local.aclose()
    await local.aclose()


def test_two_event_loops_are_refused_and_closing_lets_the_next_in(watched: Watched) -> None:
    local = TransformersBackend("tiny")
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(local.complete(question("Write.")))
        with pytest.raises(UsageError) as error:
            second.run(local.complete(question("Write.")))
        assert str(error.value) == (
            "TransformersBackend('tiny') is open in another event loop; close it there before it is used in this one"
        )
        first.run(local.aclose())
        assert second.run(local.complete(question("Write."))).text
        second.run(local.aclose())


async def test_another_process_is_refused(local: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    await local.complete(question("Write."))
    opened = local._process
    with monkeypatch.context() as patch:
        patch.setattr(backend.os, "getpid", lambda: 1)
        with pytest.raises(UsageError) as error:
            await local.complete(question("Write."))
    assert str(error.value) == (
        f"TransformersBackend('tiny') was opened in process {opened} and used in process 1; "
        "open it inside the worker, and spawn workers instead of forking them"
    )


async def test_through_the_stack_with_a_ledger_and_replayed_from_it(folder: Path, tmp_path: Path) -> None:
    requests = [question("Write. " * (index % 4), index, temperature=0.9, max_tokens=12) for index in range(12)]
    ledger = tmp_path / "ledger.sqlite"
    stack = open_stack(TransformersBackend(folder), ledger_path=ledger, limits=Limits(concurrency=8))
    first = await asyncio.gather(*(stack.backend.complete(request) for request in requests))
    again = await asyncio.gather(*(stack.backend.complete(request) for request in requests))
    await stack.aclose()
    assert again == first
    replay = ReplayBackend(ledger)
    assert [await replay.complete(request) for request in requests] == first
    await replay.aclose()


async def test_the_event_loop_goes_on_while_the_model_loads_and_runs(folder: Path) -> None:
    async with aclosing(TransformersBackend(folder)) as local:
        task = asyncio.create_task(local.complete(question("Write.", max_tokens=60)))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
    assert turns > 5


def test_a_script_that_never_closes_ends(folder: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from instructgym.llm_backends.local_transformers import TransformersBackend\n"
        "from instructgym.types import Message, Request, Sampling\n"
        "local = TransformersBackend(sys.argv[1])\n"
        "request = Request('expert', 'm', (Message('user', 'hi'),), Sampling(max_tokens=3), 'v')\n"
        "print(asyncio.run(local.complete(request)).usage.completion_tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_the_package_loads_no_torch() -> None:
    code = (
        "import sys, instructgym.llm_backends.local_transformers as package\n"
        "package.TransformersBackend('org/model')\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'jinja2'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": " "}, "the model's name is empty; expected a folder, or a name such as 'org/model'"),
        ({"device": "CUDA 0"}, "device is 'CUDA 0'; expected 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of auto, float32, bfloat16, float16"),
        ({"batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"max_batch": 0}, "max_batch is 0; expected at least 1"),
    ],
)
def test_wrong_settings_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TransformersBackend(**{"model": "tiny", **arguments})
    assert str(error.value) == message


async def refusal(model: str | Path, **options: Any) -> str:
    async with aclosing(TransformersBackend(model, **options)) as local:
        with pytest.raises(ConfigError) as error:
            await local.complete(question("Write."))
    return str(error.value)


async def test_a_missing_folder(tmp_path: Path) -> None:
    assert await refusal(tmp_path / "none") == (
        f"there is no folder {tmp_path / 'none'}; expected a folder with a model, or a name such as 'org/model'"
    )
    assert await refusal("./none") == (
        "there is no folder none; expected a folder with a model, or a name such as 'org/model'"
    )


async def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert await refusal(tmp_path) == (
        f"the folder {tmp_path} holds no config.json; expected a model saved with save_pretrained, or its name"
    )


async def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    message = await refusal(tmp_path)
    assert message.startswith(f"the tokenizer of '{tmp_path}' cannot be loaded: ")
    assert message.endswith("; expected a tokenizer saved there with save_pretrained")


async def test_a_folder_without_weights(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    message = await refusal(tmp_path)
    assert message.startswith(f"the model of '{tmp_path}' cannot be loaded: Error no file named model.safetensors")
    assert message.endswith("; expected a model saved there with save_pretrained")


async def test_incomplete_weights_are_not_filled_with_random_ones(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert await refusal(tmp_path) == (
        f"the weights of '{tmp_path}' lack 1 of the tensors that LlamaForCausalLM needs, such as 'model.norm.weight'; "
        "expected a complete causal language model"
    )


async def test_a_name_that_is_not_in_the_cache_while_offline() -> None:
    assert await refusal("instructgym/no-such-model") == (
        "the tokenizer of 'instructgym/no-such-model' cannot be loaded: We couldn't connect to "
        "'https://huggingface.co' to load the files, and couldn't find them in the cached files; check the name; "
        "if it is right, fetch it once where there is a network (hf download instructgym/no-such-model), "
        "or give a folder"
    )


async def test_a_device_that_is_not_there(folder: Path) -> None:
    message = await refusal(folder, device="cuda:99")
    assert message.startswith("device is 'cuda:99', which cannot be used here: ")
    assert message.endswith("; expected 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")
    assert (await refusal(folder, device="gpu")).startswith("device is 'gpu', which cannot be used here: ")


async def test_a_tokenizer_of_another_model() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<|extra {number}|>" for number in range(401 - len(tokenizer))])
    with pytest.raises(ConfigError) as error:
        wrap(make_model(), tokenizer, name="tiny")
    assert str(error.value) == (
        "the tokenizer of 'tiny' has 401 tokens and the model has embeddings for 400; they do not belong together"
    )


async def test_a_model_without_a_key_value_cache() -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError) as error:
        wrap(transformers.AutoModelForCausalLM.from_config(config), make_tokenizer(), name="tiny")
    assert str(error.value) == (
        "'tiny' is a MambaForCausalLM, which keeps no key-value cache; "
        "expected a decoder such as Llama, Qwen, Phi or Gemma. Serve it with vLLM and use the openai backend."
    )


async def test_loading_is_tried_again_after_a_failure(tmp_path: Path) -> None:
    async with aclosing(TransformersBackend(tmp_path / "later")) as local:
        with pytest.raises(ConfigError):
            await local.complete(question("Write."))
        save(tmp_path / "later")
        assert (await local.complete(question("Write."))).text


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype(folder: Path, dtype: str, expected: torch.dtype) -> None:
    from instructgym.llm_backends.local_transformers.loading import ModelSource, load

    loaded = load(ModelSource(str(folder), "cpu", dtype))
    assert loaded.model.dtype == expected
    assert loaded.steady == (dtype == "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
async def test_on_cuda(folder: Path) -> None:
    async with aclosing(TransformersBackend(folder, device="cuda", dtype="bfloat16")) as local:
        requests = [question("Write. " * index, index, temperature=0.8, top_logprobs=2) for index in range(8)]
        completions = await asyncio.gather(*(local.complete(request) for request in requests))
    assert all(completion.usage and completion.usage.completion_tokens for completion in completions)
