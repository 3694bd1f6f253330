"""Any OpenAI-compatible endpoint: OpenAI, vLLM, Ollama, llama.cpp, Together, Gemini's compatible endpoint, ..."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any
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
from instructgym.llm_backends.openai_errors import connection_error, status_error
from instructgym.llm_backends.openai_wire import parse_models, parse_reply, request_body
from instructgym.llm_backends.secret import Secret, public_url, read_key
from instructgym.llm_backends.seeding import request_seed
from instructgym.types import Completion, Request

if TYPE_CHECKING:
    import openai

__all__ = ["OpenAICompatibleBackend"]

_CHECK_TIMEOUT_S = 5.0
_KEEPALIVE_S = 30.0
_log = logging.getLogger(__name__)


class OpenAICompatibleBackend:
    """A transport: one HTTP request a call, no retries, no limits (see `open_stack` for those).

    The key is read from the environment variable `api_key_env` at the first call, and from nowhere else.
    `timeout_s` runs from the send to the last byte. With `send_seed` each request carries ``seed``, 31 bits of
    hash(`run_seed`, sample). `max_connections` is the pool's size: at least the concurrency of the limits above.
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
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url is {base_url!r}; expected a URL such as 'http://localhost:8000/v1'")
        if "@" in urlsplit(base_url).netloc:
            raise ConfigError(
                f"base_url {public_url(base_url)} carries a user name or password; "
                f"take it out, and put the key into the environment variable {api_key_env}"
            )
        if timeout_s <= 0:
            raise ConfigError(f"timeout_s is {timeout_s}; expected a positive number of seconds")
        if max_connections < 1:
            raise ConfigError(f"max_connections is {max_connections}; expected at least 1")
        self._base_url = base_url
        self._url = public_url(base_url)
        self._api_key_env = api_key_env
        self._timeout_s = timeout_s
        self._send_seed = send_seed
        self._max_connections = max_connections
        self._run_seed = run_seed
        self._deadlines = Deadlines()
        self._key: Secret | None = None
        self._client: openai.AsyncOpenAI | None = None
        self._opening: asyncio.Task[openai.AsyncOpenAI] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"OpenAICompatibleBackend({self._url!r})"

    async def complete(self, request: Request) -> Completion:
        client = self._client
        if client is None or self._loop is not asyncio.get_running_loop():
            client = await self._open()
        seed = request_seed(self._run_seed, request.sample) if self._send_seed else None
        body = request_body(request, seed)
        response = await self._ask(client, "/chat/completions", body, self._timeout_s, request.model)
        return parse_reply(response.content, response.headers.get("content-type", ""))

    async def check(self) -> list[str]:
        """Ask ``GET /models`` once, for at most 5 seconds, and return the model names.

        Empty if the endpoint lists none or does not know the question. Raises `EndpointUnreachable` if nobody
        answers, and `AuthenticationFailed` if there is no key or it is refused.
        """
        client = await self._open()
        try:
            response = await self._ask(client, "/models", None, _CHECK_TIMEOUT_S, "")
        except (AuthenticationFailed, EndpointUnreachable):
            raise
        except CallTimeout as error:
            raise EndpointUnreachable(f"{self._url} did not answer within {_CHECK_TIMEOUT_S:g} s") from error
        except BackendError as error:
            if error.status is None:
                raise EndpointUnreachable(f"{self._url} accepts connections and does not answer: {error}") from error
            _log.debug("%s does not list its models: %s", self._url, error)
            return []
        return parse_models(response.content)

    async def aclose(self) -> None:
        client, self._client, self._loop, self._opening = self._client, None, None, None
        if client is not None:
            await client.close()

    async def _ask(
        self, client: openai.AsyncOpenAI, path: str, body: dict[str, Any] | None, timeout_s: float, model: str
    ) -> Any:
        """The raw response to a POST of `body`, or to a GET without one. Every failure leaves as a `BackendError`."""
        import aiohttp
        import httpx2
        import openai

        try:
            with self._deadlines.clock(timeout_s):
                if body is None:
                    return await client.get(path, cast_to=httpx2.Response)
                return await client.post(path, cast_to=httpx2.Response, body=body)
        except openai.APIStatusError as error:
            mapped = status_error(
                error.status_code,
                error.body,
                error.response.headers,
                url=self._url,
                model=model,
                key_variable=self._api_key_env,
            )
            cause: Exception = error
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, aiohttp.ClientError, OSError) as error:
            mapped = connection_error(error, self._url, timeout_s)
            cause = error
        raise self._without_key(mapped) from self._showable(cause)

    def _without_key(self, error: BackendError) -> BackendError:
        """The error with the key hidden in its message: endpoints quote the key that they refuse."""
        if self._key is not None:
            error.args = (self._key.redact(str(error)),)
        return error

    def _showable(self, cause: Exception) -> Exception | None:
        """`cause`, unless a traceback of it and of what lies under it would show the key (some quote the headers)."""
        layer: BaseException | None = cause
        while layer is not None:
            if self._key is not None and self._key.within(f"{layer} {layer!r}"):
                return None
            layer = layer.__cause__ or layer.__context__
        return cause

    async def _open(self) -> openai.AsyncOpenAI:
        """The client, made once: importing openai and loading certificates take a second, so not on the loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise UsageError(f"{self!r} is open in another event loop; close it there before it is used in this one")
        self._loop = loop
        if self._opening is None:
            self._opening = loop.create_task(asyncio.to_thread(self._make_client))
        try:
            self._client = await asyncio.shield(self._opening)
        except BackendError:
            self._loop = self._opening = None
            raise
        return self._client

    def _make_client(self) -> openai.AsyncOpenAI:
        self._key = read_key(self._api_key_env)
        import httpx2
        import openai

        logger = logging.getLogger("httpx2")
        if logger.level == logging.NOTSET:  # it logs every request at INFO
            logger.setLevel(logging.WARNING)
        limits = httpx2.Limits(
            max_connections=self._max_connections,
            max_keepalive_connections=self._max_connections,
            keepalive_expiry=_KEEPALIVE_S,
        )
        return openai.AsyncOpenAI(
            api_key=self._key.reveal(),
            base_url=self._base_url,
            max_retries=0,
            timeout=None,  # `_ask` has one that covers the whole request
            http_client=openai.DefaultAioHttpClient(limits=limits, timeout=None),
        )
