"""How the simulated endpoint behaves: latency, capacity, rate limit and faults, as functions of seed and prompt."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist

from instructgym.errors import ConfigError
from instructgym.types import Message

__all__ = ["FAULTS", "FAULTS_ON_DEMAND", "ServerBehaviour", "prompt_digest"]

FAULTS = ("429", "429_no_retry_after", "500", "503", "reset", "cut_json", "html", "no_choices", "null_content")
"""What a faulty answer can be; each is as likely as the others. Worth another attempt, all of them."""

FAULTS_ON_DEMAND = ("400", "hang", "large", "no_usage", "slow", "text_plain")
"""Come only where `ServerBehaviour.faults` names them: they are final (400), cost time, or are answers after all.

``hang`` accepts and never answers; ``slow`` answers `slow_s` late; ``large`` is a reply of 10 MB; ``no_usage`` lacks
its usage block; ``text_plain`` is valid JSON under that content type.
"""

_normal = NormalDist()


def prompt_digest(messages: tuple[Message, ...]) -> bytes:
    """What latency and faults go by."""
    text = "\x1e".join([f"{message.role}\x1f{message.content}" for message in messages])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class ServerBehaviour:
    """How the endpoint behaves. `sigma` > 0 makes the latency lognormal with mean `latency_s`.

    More than `capacity` requests at once are answered 429 with ``Retry-After: retry_after_s``. A share `fault_rate`
    of the requests is answered by one of `faults`; a name that stands there twice comes twice as often. With
    `rate_limit`, so many requests are served in each `rate_window_s` seconds and more are answered 429, and the
    headers ``x-ratelimit-limit-requests``, ``-remaining-requests`` and ``-reset-requests`` of every reply say so.
    """

    latency_s: float = 0.0
    sigma: float = 0.0
    capacity: int | None = None
    retry_after_s: float = 1.0
    fault_rate: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    models: tuple[str, ...] = ("simulated",)
    slow_s: float = 60.0
    rate_limit: int | None = None
    rate_window_s: float = 60.0

    def __post_init__(self) -> None:
        if min(self.latency_s, self.sigma, self.retry_after_s, self.slow_s) < 0:
            raise ConfigError("latency, sigma, retry_after_s and slow_s of the server must not be negative")
        if not 0.0 <= self.fault_rate <= 1.0:
            raise ConfigError(f"fault_rate is {self.fault_rate}; expected a share between 0 and 1")
        for name in ("capacity", "rate_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1, or none at all")
        if self.rate_window_s <= 0:
            raise ConfigError(f"rate_window_s is {self.rate_window_s}; expected a positive number of seconds")
        known = (*FAULTS, *FAULTS_ON_DEMAND)
        if unknown := sorted(set(self.faults) - set(known)):
            raise ConfigError(f"unknown fault '{unknown[0]}'; expected one of {', '.join(known)}")

    def latency_of(self, prompt: bytes) -> float:
        """Seconds that the answer to `prompt` (see `prompt_digest`) takes."""
        if self.sigma == 0.0 or self.latency_s == 0.0:
            return self.latency_s
        normal = _normal.inv_cdf(self._uniform("latency", prompt, 0))
        return self.latency_s * math.exp(self.sigma * normal - self.sigma**2 / 2)

    def fault_of(self, prompt: bytes, seen: int) -> str | None:
        """The fault that `prompt` meets when it comes for the `seen`-th time (from 0); None = it is answered."""
        if self.fault_rate == 0.0 or not self.faults or self._uniform("faulty", prompt, seen) >= self.fault_rate:
            return None
        return self.faults[int(self._uniform("fault", prompt, seen) * len(self.faults))]

    def _uniform(self, what: str, prompt: bytes, seen: int) -> float:
        """In the open interval (0, 1)."""
        digest = hashlib.blake2b(f"{what}:{self.seed}:{seen}:".encode() + prompt, digest_size=8).digest()
        return (int.from_bytes(digest, "big") // 2**11 + 0.5) / 2**53
