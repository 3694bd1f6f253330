"""One request as rows of a batch, one a choice, and finished rows as one answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instructgym.errors import BadRequest, ConfigError, ContextOverflow
from instructgym.llm_backends.local_transformers.batching import Size
from instructgym.llm_backends.local_transformers.loading import LoadedModel
from instructgym.llm_backends.local_transformers.sampling import Draw
from instructgym.llm_backends.local_transformers.texts import Texts, cut_at_stop
from instructgym.llm_backends.seeding import request_seed
from instructgym.plugins import nearest
from instructgym.types import Choice, Completion, Request, Sampling, TokenLogprob, Usage

__all__ = ["Row", "TokenChances", "answer", "rows_of"]

_EXTRA = ("chat_template_kwargs",)


@dataclass(frozen=True, slots=True)
class TokenChances:
    """Log-probabilities (nats) of a generated token and of the likeliest tokens at its place, by token id."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(eq=False, slots=True)
class Row:
    """One choice that is being generated. `tokens` ends with the end-of-text token if the model wrote one."""

    prompt: Sequence[int]
    max_new: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    tokens: list[int] = field(default_factory=list)
    chances: list[TokenChances] = field(default_factory=list)
    finish_reason: str = ""
    failure: str = ""

    @property
    def size(self) -> Size:
        return Size(len(self.prompt), self.max_new)

    @property
    def draw(self) -> Draw:
        """How the next token is drawn."""
        return Draw(self.temperature, self.top_p, self.seed, len(self.tokens))

    def start_again(self) -> None:
        """Forget what was generated. The same tokens will come, since a draw depends on nothing but the row."""
        self.tokens.clear()
        self.chances.clear()


def rows_of(request: Request, loaded: LoadedModel, run_seed: int) -> list[Row]:
    """The rows of a request, `Sampling.n` of them.

    Raises `BadRequest` for parameters out of range, `ConfigError` for an unknown `Sampling.extra`, and
    `ContextOverflow` if prompt and `max_tokens` exceed the model's context.
    """
    sampling = request.sampling
    template_kwargs = _template_kwargs(sampling)
    _check(sampling)
    prompt = loaded.prompts.ids(request.messages, template_kwargs)
    max_new = _max_new(len(prompt), sampling.max_tokens, loaded)
    seed = request_seed(run_seed, request.sample)
    return [
        Row(
            prompt=prompt,
            max_new=max_new,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed + choice,
            stop=(*sampling.stop, *loaded.prompts.stop),
            top_logprobs=sampling.top_logprobs,
        )
        for choice in range(sampling.n)
    ]


def answer(rows: Sequence[Row], loaded: LoadedModel) -> Completion:
    """The finished rows of one request as its answer.

    `usage` counts the prompt once, and every generated token: those of a stop string and the end-of-text token too.
    """
    first, *others = [_choice(row, loaded) for row in rows]
    return Completion(
        text=first.text,
        finish_reason=first.finish_reason,
        usage=Usage(len(rows[0].prompt), sum(len(row.tokens) for row in rows)),
        model=loaded.name,
        logprobs=first.logprobs,
        others=tuple(others),
    )


def _choice(row: Row, loaded: LoadedModel) -> Choice:
    texts = loaded.texts
    ids = row.tokens[:-1] if row.tokens[-1] in loaded.eos else row.tokens
    text, cut = cut_at_stop(texts.text(ids), row.stop)
    logprobs: tuple[TokenLogprob, ...] = ()
    if row.chances:
        shown = texts.tokens_before(ids, len(text)) if cut else len(ids)
        logprobs = tuple(_logprob(*pair, texts) for pair in zip(ids[:shown], row.chances[:shown], strict=True))
    if loaded.prompts.plain:
        text = text.removeprefix(" ")  # what models write after the plain prompt's colon
    return Choice(text, "stop" if cut else row.finish_reason, logprobs)


def _logprob(token: int, chances: TokenChances, texts: Texts) -> TokenLogprob:
    top = tuple((texts.piece(other), logprob) for other, logprob in chances.top)
    return TokenLogprob(texts.piece(token), chances.logprob, top)


def _template_kwargs(sampling: Sampling) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in sampling.extra:
        if name not in _EXTRA:
            raise ConfigError(f"sampling.extra '{name}' means nothing to a local transformers model; {_known(name)}")
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ConfigError(
                f"sampling.extra '{name}' is {text!r}; expected a JSON object, such as '{{\"enable_thinking\": false}}'"
            )
        values |= value
    return values


def _known(name: str) -> str:
    return nearest(name, _EXTRA)


def _check(sampling: Sampling) -> None:
    wrong = {
        "temperature": (sampling.temperature, "at least 0", 0 <= sampling.temperature < float("inf")),
        "top_p": (sampling.top_p, "above 0 and at most 1", 0 < sampling.top_p <= 1),
        "max_tokens": (sampling.max_tokens, "at least 1", sampling.max_tokens is None or sampling.max_tokens >= 1),
        "n": (sampling.n, "at least 1", sampling.n >= 1),
        "top_logprobs": (sampling.top_logprobs, "0 to 20", sampling.top_logprobs in (None, *range(21))),
        "stop": (sampling.stop, "strings that are not empty", all(sampling.stop)),
    }
    for name, (value, expected, holds) in wrong.items():
        if not holds:
            raise BadRequest(f"sampling.{name} is {value!r}; expected {expected}")


def _max_new(prompt: int, max_tokens: int | None, loaded: LoadedModel) -> int:
    context = loaded.context
    if context is None:
        if max_tokens is None:
            raise BadRequest(f"'{loaded.name}' does not say how long its context is; set sampling.max_tokens")
        return max_tokens
    if prompt + (max_tokens or 1) > context:
        wanted = "max_tokens is not set" if max_tokens is None else f"max_tokens is {max_tokens}"
        raise ContextOverflow(
            f"the prompt has {prompt} tokens and {wanted}, and '{loaded.name}' holds {context} in all; "
            "shorten the prompt or lower sampling.max_tokens"
        )
    return max_tokens or context - prompt
