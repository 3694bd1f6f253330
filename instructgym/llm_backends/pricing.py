"""What an attempt can cost at most, what it is charged with, and the price of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from instructgym.errors import (
    AuthenticationFailed,
    BadRequest,
    ConfigError,
    ContextOverflow,
    EndpointUnreachable,
    ModelNotFound,
    RateLimited,
)
from instructgym.types import Request, Sampling, Usage

__all__ = ["Price", "TokenBound", "charged_tokens", "price_of", "tokens_at_most"]

_TEMPLATE_TOKENS = 16
_TEMPLATE_TOKENS_A_MESSAGE = 8
_TURNED_AWAY = frozenset(
    error.__name__
    for error in (AuthenticationFailed, BadRequest, ContextOverflow, EndpointUnreachable, ModelNotFound, RateLimited)
)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million prompt tokens and a million completion tokens."""

    prompt_usd_per_mtok: float
    completion_usd_per_mtok: float

    def __post_init__(self) -> None:
        if self.prompt_usd_per_mtok < 0 or self.completion_usd_per_mtok < 0:
            raise ConfigError(f"a price is negative: {self}")

    def picodollars(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The cost in 1e-12 US dollars. Whole numbers, so that sums and differences are exact."""
        prompt, completion = round(self.prompt_usd_per_mtok * 1e6), round(self.completion_usd_per_mtok * 1e6)
        return prompt * prompt_tokens + completion * completion_tokens


_FREE = Price(0.0, 0.0)


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """What `prices` say, 0 for a simulated model, else None.

    No vendor's prices stand here: they change, and a budget in dollars at last year's prices is none.
    """
    return prices.get(model) or (_FREE if model.startswith("simulated") else None)


@dataclass(frozen=True, slots=True)
class TokenBound:
    """Tokens that a request cannot exceed. `completion` is None if it sets no `max_tokens`."""

    prompt: int
    completion: int | None

    @property
    def total(self) -> int:
        return self.prompt + (self.completion or 0)


def tokens_at_most(request: Request) -> TokenBound:
    """UTF-8 bytes of the prompt and the template's overhead; n x max_tokens for the answer.

    A byte-level tokenizer, the worst there is, makes one token of a byte.
    """
    prompt = _TEMPLATE_TOKENS
    for message in request.messages:
        content = message.content
        size = len(content) if content.isascii() else len(content.encode("utf-8", "surrogatepass"))
        prompt += size + _TEMPLATE_TOKENS_A_MESSAGE
    sampling = request.sampling
    longest = _longest_answer(sampling) if sampling.extra else sampling.max_tokens
    return TokenBound(prompt, None if longest is None else sampling.n * longest)


def _longest_answer(sampling: Sampling) -> int | None:
    """`max_tokens`, or what `Sampling.extra` puts in its place."""
    limits: list[int | None] = [sampling.max_tokens]
    for name, text in sampling.extra:
        if name in ("max_tokens", "max_completion_tokens"):
            limits.append(int(text) if text.strip().isdecimal() else None)
    return limits[-1]


def charged_tokens(request: Request, status: str, usage: Usage | None) -> Usage:
    """What a budget counts for an attempt that ended with `status` (see `Attempt`), beside the call itself.

    The endpoint's usage block where there is one. Without one it is not known what was generated, and the whole bound
    stays charged, with one exception: an HTTP status that turns a request away (429, 400, 401, 403, 404, 413) is given
    before anything is generated, so it *is* the knowledge that no token was spent. The reservation was held until that
    reply, so at every moment what is held covers what can have been spent, and no interleaving exceeds the budget;
    charging the bound instead would let an endpoint that is merely busy eat up a budget of which nothing was used.
    """
    if usage is not None:
        return usage
    if status in _TURNED_AWAY:
        return Usage()
    bound = tokens_at_most(request)
    return Usage(bound.prompt, bound.completion or 0)
