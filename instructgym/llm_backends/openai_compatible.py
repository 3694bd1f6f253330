"""Any OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, llama.cpp, Together, Gemini's compatible endpoint, ..."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from instructgym.errors import (
    AuthenticationFailed,
    BackendError,
    CallTimeout,
    ConfigError,
    EndpointUnreachable,
    UsageError,
)
from instructgym.llm_backends.clock import Deadlines
from instructgym.llm_backends.http_session import HttpReply, HttpSession, endpoint_url, read_settings
from instructgym.llm_backends.openai_errors import connection_error, status_error
from instructgym.llm_backends.openai_wire import encode_request, parse_models, parse_reply
from instructgym.llm_backends.secret import layers, public_url, read_key, without_frames
from instructgym.llm_backends.seeding import request_seed
from instructgym.types import Completion, Request

__all__ = ["OpenAICompatibleBackend", "check_url"]

_CHECK_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


class OpenAICompatibleBackend:
    """A transport: one HTTP request a call, no retries, no limits (see `open_stack` for those).

    The key is read from the environment variable `api_key_env` at the first call, and from nowhere else.
    `timeout_s` runs from the send to the last byte. With `send_seed` each request carries ``seed``, 31 bits of
    hash(`run_seed`, sample). `max_connections` is the pool's size: at least the concurrency of the limits above.
    `on_headers` is called with the headers of every reply, whatever its status.
    """

    name = "openai"

    def __init__(
        self,
        base_url: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 120.0,
        send_seed: bool = True,
        max_connections: int = 1000,
        run_seed: int = 0,
    ) -> None:
        check_url(base_url, api_key_env)
        if timeout_s <= 0:
            raise ConfigError(f"timeout_s is {timeout_s}; expected a positive number of seconds")
        if max_connections < 1:
            raise ConfigError(f"max_connections is {max_connections}; expected at least 1")
        self.on_headers: Callable[[Mapping[str, str]], None] | None = None
        self._base_url = base_url
        self._chat_url = endpoint_url(base_url, "/chat/completions")
        self.url = public_url(base_url)
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._send_seed = send_seed
        self._max_connections = max_connections
        self._run_seed = run_seed
        self._deadlines = Deadlines()
        self._session: HttpSession | None = None
        self._opening: asyncio.Task[HttpSession] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told_of_missing_choices = False

    def __repr__(self) -> str:
        return f"OpenAICompatibleBackend({self.url!r})"

    async def complete(self, request: Request) -> Completion:
        """The endpoint's answer.

        With ``sampling.n`` > 1 an endpoint that gives fewer choices than asked is taken at what it gave: it was paid
        for, and asking again would give no more.
        """
        seed = request_seed(self._run_seed, request.sample) if self._send_seed else None
        data = encode_request(request, seed)
        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = await self._open()
        reply = await self._ask(session, "POST", self._chat_url, data, self._timeout_s, request.model)
        n = request.sampling.n
        try:
            completion = parse_reply(reply.content, reply.headers.get("content-type", ""), n)
        except BackendError as error:
            failure = error
            failure.__cause__ = failure.__context__ = None  # the JSON decoder's error holds the whole body
        else:
            if n > 1 and len(completion.others) + 1 < n:
                self._tell_of_missing_choices(len(completion.others) + 1, n)
            return completion
        raise self._publishable(failure, session)

    async def check(self) -> list[str]:
        """Ask ``GET /models`` once, for at most 5 seconds, and return the model names.

        Empty if the endpoint lists none or does not know the question. Raises `EndpointUnreachable` if nobody
        answers, `AuthenticationFailed` if there is no key or it is refused, and `BadRequest` if the URL redirects.
        """
        session = await self._open()
        try:
            reply = await self._ask(session, "GET", endpoint_url(self._base_url, "/models"), None, _CHECK_TIMEOUT_S, "")
        except (AuthenticationFailed, EndpointUnreachable):
            raise
        except CallTimeout as error:
            raise EndpointUnreachable(f"{self.url} did not answer within {_CHECK_TIMEOUT_S:g} s") from error
        except BackendError as error:
            if error.status is None:
                raise EndpointUnreachable(f"{self.url} accepts connections and does not answer: {error}") from error
            if error.status < 400:
                raise
            _log.debug("%s does not list its models: %s", self.url, error)
            return []
        return parse_models(reply.content)

    async def aclose(self) -> None:
        session, opening = self._session, self._opening
        self._session = self._loop = self._opening = None
        if opening is not None:
            opening.cancel()
        if session is not None:
            await session.aclose()

    async def _ask(
        self, session: HttpSession, method: str, url: str, data: bytes | None, timeout_s: float, model: str
    ) -> HttpReply:
        """The reply if its status is 2xx. Every failure leaves as a `BackendError`."""
        import aiohttp

        try:
            with self._deadlines.clock(timeout_s):
                reply = await session.send(method, url, data)
        except (aiohttp.ClientError, OSError) as error:
            mapped = connection_error(error, self.url, timeout_s)
            mapped.__cause__ = error
        else:
            if self.on_headers is not None:
                self.on_headers(reply.headers)
            if 200 <= reply.status < 300:
                return reply
            mapped = status_error(
                reply.status,
                reply.content,
                reply.headers,
                url=self.url,
                model=model,
                key_variable=self._api_key_env,
            )
        raise self._publishable(mapped, session)

    def _publishable(self, error: BackendError, session: HttpSession) -> BackendError:
        """The error with the key hidden in its message, and without causes and frames that would show it.

        Endpoints quote the key that they refuse.
        """
        without_frames(error)
        secrets = session.secrets
        for layer in layers(error):
            if layer is not error and any(secret.within(f"{layer} {layer!r}") for secret in secrets):
                error.__cause__ = error.__context__ = None
                break
        message = str(error)
        for secret in secrets:
            message = secret.redact(message)
        error.args = (message,)
        return error

    def _tell_of_missing_choices(self, got: int, asked: int) -> None:
        if not self._told_of_missing_choices:
            self._told_of_missing_choices = True
            _log.warning("%s gave %d of the %d choices asked for; it may not know 'n'", self.url, got, asked)

    async def _open(self) -> HttpSession:
        """The session, made once for all who wait for it."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise UsageError(f"{self!r} is open in another event loop; close it there before it is used in this one")
        self._loop = loop
        if self._opening is None:
            self._opening = loop.create_task(self._make_session())
        try:
            return await asyncio.shield(self._opening)
        except Exception:
            self._loop = self._opening = None
            raise

    async def _make_session(self) -> HttpSession:
        key = read_key(self._api_key_env)
        try:
            settings = await asyncio.to_thread(read_settings, self._base_url, key)
        except Exception as error:
            without_frames(error)
            raise
        self._session = HttpSession(settings, self._max_connections)
        return self._session


def check_url(base_url: str, api_key_env: str) -> None:
    """Raise `ConfigError` unless `base_url` is one that can be asked and that holds no password."""
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        usable = False
    if not usable:
        shown = base_url.rpartition("@")[2]  # a password stands before it
        raise ConfigError(f"base_url is {shown!r}; expected a URL such as 'http://localhost:8000/v1'")
    if "@" in parts.netloc:
        raise ConfigError(
            f"base_url {public_url(base_url)} carries a user name or password; "
            f"take it out, and put the key into the environment variable {api_key_env}"
        )
