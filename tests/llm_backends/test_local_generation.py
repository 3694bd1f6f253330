"""Batches on real tiny models: what comes out, and that neighbours change nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from instructgym.errors import BadRequest, ConfigError, ContextOverflow
from instructgym.llm_backends.local_transformers.decoding import Generation
from instructgym.llm_backends.local_transformers.loading import LoadedModel, wrap
from instructgym.llm_backends.local_transformers.rows import Row, answer, rows_of
from instructgym.types import Completion, Request, Usage

from .tiny_models import TEXTS, make_model, make_tokenizer, question

FAMILIES = ["llama", "qwen2", "phi3", "gemma3", "gpt2", "bloom"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap(make_model(), make_tokenizer(), name="tiny")


def run(loaded: LoadedModel, requests: list[Request], batch: int) -> list[Completion]:
    """All the requests' rows in batches of `batch`, in order."""
    rows = [rows_of(request, loaded, run_seed=5) for request in requests]
    flat = [row for mine in rows for row in mine]
    for start in range(0, len(flat), batch):
        run_batch(loaded, flat[start : start + batch])
    return [answer(mine, loaded) for mine in rows]


def run_batch(loaded: LoadedModel, rows: list[Row]) -> int:
    """The steps that it took."""
    generation = Generation(loaded, rows)
    steps = 0
    while generation.rows:
        generation.step()
        steps += 1
    return steps


def mixed(count: int, **fixed: Any) -> list[Request]:
    """Requests that differ in length, temperature, top-p, max_tokens, n and stop strings."""
    rng = random.Random(count)
    return [
        question(
            " ".join(rng.choices(TEXTS, k=rng.randint(0, 2)))[: rng.randint(1, 120)],
            sample=index,
            **{
                "temperature": rng.choice([0.0, 0.3, 0.7, 1.2]),
                "top_p": rng.choice([1.0, 0.95, 0.5, 0.1]),
                "max_tokens": rng.randint(1, 24),
                "n": rng.choice([1, 1, 1, 3]),
                "stop": rng.choice([(), ("e",), ("the", "\n"), ("zzz",)]),
                **fixed,
            },
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_and_of_many_write_the_same(family: str) -> None:
    loaded = wrap(make_model(family), make_tokenizer(), name=family)
    requests = mixed(12)
    alone = run(loaded, requests, batch=1)
    assert run(loaded, requests, batch=9) == alone
    assert run(loaded, requests[::-1], batch=5) == alone[::-1]
    texts = [choice.text for one in alone for choice in (one, *one.others)]
    assert len(set(texts)) > len(texts) / 2  # not all alike, or empty


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_even_where_every_token_is_a_near_tie(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token has a twin whose logit differs in the last bits: there, rounding alone would decide."""
    model = make_model()
    with torch.no_grad():
        head = model.lm_head.weight
        head[200:] = head[:200] * (1 + 1e-7 * torch.randn(200, 1, generator=torch.Generator().manual_seed(0)))
    loaded = wrap(model, make_tokenizer(), name="twins")
    requests = mixed(12, temperature=temperature, stop=(), max_tokens=20, n=1)
    alone = run(loaded, requests, batch=1)
    assert run(loaded, requests, batch=12) == alone
    if temperature == 0:  # the recomputation is what it took
        bare = replace(loaded, steady=False)
        assert run(bare, requests, batch=12) != run(bare, requests, batch=1)


def test_greedy_is_what_a_plain_loop_over_the_model_writes(loaded: LoadedModel) -> None:
    request = question("Write a story about a ship.", max_tokens=20)
    (row,) = rows_of(request, loaded, 0)
    run_batch(loaded, [row])
    ids = list(row.prompt)
    with torch.inference_mode():
        for token in row.tokens:
            assert token == int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
    assert row.finish_reason == ("stop" if row.tokens[-1] in loaded.eos else "length")


def test_logprobs_are_the_models_own(loaded: LoadedModel) -> None:
    requests = mixed(8, top_logprobs=4, stop=(), n=1)
    rows = [rows_of(request, loaded, 0)[0] for request in requests]
    run_batch(loaded, rows)
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.tokens]])
        with torch.inference_mode():
            expected = loaded.model(ids).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
        assert len(row.chances) == len(row.tokens)
        for token, chances, truth in zip(row.tokens, row.chances, expected, strict=True):
            assert chances.logprob == pytest.approx(float(truth[token]), abs=1e-4)
            best = truth.topk(4)
            assert [logprob for _, logprob in chances.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        completion = answer([row], loaded)
        assert all(len(one.top) == 4 for one in completion.logprobs)


def test_logprobs_end_where_the_text_does(loaded: LoadedModel) -> None:
    longer = run(loaded, [question("a", max_tokens=30, top_logprobs=0)], 1)[0]
    assert all(one.top == () for one in longer.logprobs)
    stop = longer.text[12:14]
    (row,) = rows_of(question("a", max_tokens=30, top_logprobs=0, stop=(stop,)), loaded, 5)
    run_batch(loaded, [row])
    cut = answer([row], loaded)
    assert cut.text == longer.text[: longer.text.index(stop)]
    shown = len(cut.logprobs)
    assert len(loaded.texts.text(row.tokens[: shown - 1])) < len(cut.text) <= len(loaded.texts.text(row.tokens[:shown]))
    assert shown < len(row.tokens)
    assert not run(loaded, [question("a")], 1)[0].logprobs


def test_frequencies_over_seeds_are_those_of_the_model(loaded: LoadedModel) -> None:
    sampled = question("Sort the numbers.", temperature=1.3, top_p=0.8, max_tokens=1, n=3000)
    rows = rows_of(sampled, loaded, 0)
    run_batch(loaded, rows)
    with torch.inference_mode():
        p = (loaded.model(torch.tensor([list(rows[0].prompt)])).logits[0, -1].double() / 1.3).softmax(0).numpy()
    order = np.argsort(-p)
    nucleus = order[np.cumsum(p[order]) - p[order] < 0.8]
    counts = np.bincount([row.tokens[0] for row in rows], minlength=len(p))
    assert counts[nucleus].sum() == 3000
    expected = p[nucleus] / p[nucleus].sum() * 3000
    common = expected >= 5
    share = counts[nucleus][common].sum() / expected[common].sum()
    assert share == pytest.approx(1, abs=0.05)
    assert chisquare(counts[nucleus][common], expected[common] * share).pvalue > 1e-3


def test_choices_are_separate_draws_and_usage_covers_all(loaded: LoadedModel) -> None:
    (completion,) = run(loaded, [question("Write.", temperature=1.0, n=4, max_tokens=10)], 16)
    texts = {completion.text, *(other.text for other in completion.others)}
    assert len(completion.others) == 3
    assert len(texts) > 1
    rows = rows_of(question("Write.", temperature=1.0, n=4, max_tokens=10), loaded, 5)
    run_batch(loaded, rows)
    assert completion.usage == Usage(len(rows[0].prompt), sum(len(row.tokens) for row in rows))
    (first,) = run(loaded, [question("Write.", temperature=1.0, max_tokens=10)], 1)
    assert first.text == completion.text


def test_run_seed_and_sample_choose_the_draw(loaded: LoadedModel) -> None:
    one = question("Write.", temperature=1.0, max_tokens=10)
    other = question("Write.", sample=1, temperature=1.0, max_tokens=10)
    first, again, different = run(loaded, [one, one, other], 16)
    assert first == again != different


def test_finish_reasons_and_token_counts(loaded: LoadedModel) -> None:
    (row,) = rows_of(question("Explain."), loaded, 0)
    run_batch(loaded, [row])
    by_length = answer([row], loaded)
    assert (by_length.finish_reason, by_length.usage) == ("length", Usage(len(row.prompt), 16))
    ends = replace(loaded, eos=frozenset([row.tokens[4]]))
    first = row.tokens.index(row.tokens[4])
    (ended,) = run(ends, [question("Explain.")], 1)
    assert (ended.finish_reason, ended.usage) == ("stop", Usage(len(row.prompt), first + 1))
    assert ended.text == loaded.texts.text(row.tokens[:first])


def test_nothing_is_generated_after_a_stop_string(loaded: LoadedModel) -> None:
    (row,) = rows_of(question("Explain.", max_tokens=30), loaded, 0)
    run_batch(loaded, [row])
    stop = loaded.texts.text(row.tokens)[10:12]
    (stopped,) = rows_of(question("Explain.", max_tokens=30, stop=("never", stop)), loaded, 0)
    run_batch(loaded, [stopped])
    cut = answer([stopped], loaded)
    assert stop not in cut.text
    assert cut.finish_reason == "stop"
    assert stop in loaded.texts.text(stopped.tokens)
    assert stop not in loaded.texts.text(stopped.tokens[:-1])


def test_finished_rows_leave_and_the_batch_ends_with_its_last_row(loaded: LoadedModel) -> None:
    rows = [rows_of(question("Go.", max_tokens=most), loaded, 0)[0] for most in (3, 9, 3, 6)]
    everlasting = replace(loaded, eos=frozenset())
    generation = Generation(everlasting, rows)
    inside = []
    while generation.rows:
        inside.append(len(generation.rows))
        generation.step()
    assert inside == [4, 4, 4, 2, 2, 2, 1, 1, 1]


def test_a_dropped_row_changes_nothing_for_the_rest(loaded: LoadedModel) -> None:
    requests = mixed(6, stop=(), n=1, max_tokens=20)
    alone = run(loaded, requests, 1)
    rows = [rows_of(request, loaded, 5)[0] for request in requests]
    generation = Generation(loaded, rows)
    for _ in range(3):
        generation.step()
    generation.drop([rows[0], rows[4]])
    while generation.rows:
        generation.step()
    assert len(rows[0].tokens) <= 3
    kept = [1, 2, 3, 5]
    assert [answer([rows[index]], loaded) for index in kept] == [alone[index] for index in kept]


def test_plain_template_drops_the_space_after_the_colon_and_ends_at_the_next_turn() -> None:
    tokenizer = make_tokenizer(None)
    script = tokenizer(" A boat.\n\nUser: More?", add_special_tokens=False)["input_ids"]
    loaded = wrap(scripted(script), tokenizer, name="plain")
    (completion,) = run(loaded, [question("What is a ship?", max_tokens=60)], 1)
    assert (completion.text, completion.finish_reason) == ("A boat.", "stop")


def test_logits_that_are_not_numbers_fail_their_row_alone() -> None:
    model = make_model()
    loaded = wrap(model, make_tokenizer(), name="tiny")
    forward = model.forward

    def broken(**inputs: Any) -> Any:
        output = forward(**inputs)
        if len(output.logits) == 3:
            output.logits[1] = float("nan")
        return output

    model.forward = broken
    rows = [rows_of(question("Go.", sample, temperature=1.0), loaded, 0)[0] for sample in range(3)]
    generation = Generation(loaded, rows)
    assert generation.step() == [rows[1]]
    assert (rows[1].failure, rows[1].tokens) == ("its logits are not numbers", [])
    while generation.rows:
        generation.step()
    assert [row.failure for row in rows] == ["", "its logits are not numbers", ""]


def test_a_context_that_is_too_short_is_said_in_numbers(loaded: LoadedModel) -> None:
    with pytest.raises(ContextOverflow) as error:
        rows_of(question("Write a story about a ship. " * 10, max_tokens=200), loaded, 0)
    tokens = len(loaded.prompts.ids(question("Write a story about a ship. " * 10).messages, {}))
    assert str(error.value) == (
        f"the prompt has {tokens} tokens and max_tokens is 200, and 'tiny' holds 256 in all; "
        "shorten the prompt or lower sampling.max_tokens"
    )


def test_without_max_tokens_the_context_is_the_limit(loaded: LoadedModel) -> None:
    (row,) = rows_of(question("Write.", max_tokens=None), loaded, 0)
    assert row.max_new == 256 - len(row.prompt)
    with pytest.raises(ContextOverflow, match="tokens and max_tokens is not set, and 'tiny' holds 256 in all"):
        rows_of(question("Write a story about a ship. " * 60, max_tokens=None), loaded, 0)
    with pytest.raises(BadRequest) as error:
        rows_of(question("Write.", max_tokens=None), replace(loaded, context=None), 0)
    assert str(error.value) == "'tiny' does not say how long its context is; set sampling.max_tokens"


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1.0}, "sampling.temperature is -1.0; expected at least 0"),
        ({"top_p": 0.0}, "sampling.top_p is 0.0; expected above 0 and at most 1"),
        ({"max_tokens": 0}, "sampling.max_tokens is 0; expected at least 1"),
        ({"n": 0}, "sampling.n is 0; expected at least 1"),
        ({"top_logprobs": 21}, "sampling.top_logprobs is 21; expected 0 to 20"),
        ({"stop": ("a", "")}, "sampling.stop is ('a', ''); expected strings that are not empty"),
    ],
)
def test_parameters_out_of_range_are_refused(loaded: LoadedModel, sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as error:
        rows_of(question("Write.", **sampling), loaded, 0)
    assert str(error.value) == message


def test_unknown_extra_says_what_is_known(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError) as error:
        rows_of(question("Write.", extra=(("response_format", '{"type": "json_object"}'),)), loaded, 0)
    assert str(error.value) == (
        "sampling.extra 'response_format' means nothing to a local transformers model; known: chat_template_kwargs."
    )
    with pytest.raises(ConfigError) as error:
        rows_of(question("Write.", extra=(("chat_template_kwargs", "yes"),)), loaded, 0)
    assert str(error.value) == (
        "sampling.extra 'chat_template_kwargs' is 'yes'; expected a JSON object, such as '{\"enable_thinking\": false}'"
    )


def scripted(script: list[int]) -> Any:
    """A model whose likeliest next token is the script's, by the number of steps since the prompt."""
    model = make_model()
    forward = model.forward
    steps = iter(script)

    def follow(input_ids: Any = None, past_key_values: Any = None, logits_to_keep: int = 0, **inputs: Any) -> Any:
        output = forward(input_ids=input_ids, past_key_values=past_key_values, logits_to_keep=1, **inputs)
        output.logits[:, -1, next(steps)] += 1000.0
        return output

    model.forward = follow
    return model
