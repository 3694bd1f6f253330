"""Where the openai package's failures, and those of what lies under it, become ours: once, most specific first."""

from __future__ import annotations

import email.utils
import errno
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping

from instructgym.errors import (
    AuthenticationFailed,
    BackendError,
    BadRequest,
    CallTimeout,
    ConnectionLost,
    ContentFiltered,
    ContextOverflow,
    EndpointUnreachable,
    ModelNotFound,
    RateLimited,
    ServerError,
)

__all__ = ["connection_error", "retry_after_s", "status_error"]

_CONTEXT = re.compile(
    r"context[ _](length|window|size)|maximum context|prompt is too long|too many tokens"
    r"|exceeds? the (model'?s )?max(imum)?|input is too long",
    re.I,
)
_FILTER = re.compile(r"content[ _](filter|policy|management)", re.I)
_NOBODY_THERE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})


def connection_error(error: BaseException, url: str, timeout_s: float) -> BackendError:
    """What to raise for a call to `url` that ended without a complete reply.

    The HTTP layers wrap each other's errors, and name some of them wrongly (a refused connection arrives as a
    timeout), so the innermost that says something decides.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, (ssl.SSLError, ssl.CertificateError)):
            return EndpointUnreachable(f"no trusted connection to {url}: {cause}; check the endpoint's certificate")
        if isinstance(cause, socket.gaierror):
            return EndpointUnreachable(f"the host of {url} is not known; check the base URL and the network")
        if isinstance(cause, OSError) and cause.errno in _NOBODY_THERE:
            return EndpointUnreachable(f"nobody answers at {url}: connection refused; is the server running there?")
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return ConnectionLost("too many open files; lower the concurrency or raise the limit (ulimit -n)")
    names = {type(cause).__name__ for cause in chain}
    if names & {"InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "UnsupportedProtocol"}:
        return EndpointUnreachable(f"{url} is not a URL that can be asked; expected such as http://localhost:8000/v1")
    if "ServerDisconnectedError" in names:
        return ConnectionLost(f"{url} closed the connection before it answered")
    if names & {"ClientPayloadError", "ReadError", "RemoteProtocolError", "IncompleteRead", "ContentLengthError"}:
        return ConnectionLost(f"the connection to {url} was lost in the middle of the reply")
    if "TimeoutError" in names or (any("Timeout" in name for name in names) and not names & {"ClientOSError"}):
        return CallTimeout(f"no answer from {url} within {timeout_s:g} s")
    return ConnectionLost(f"the connection to {url} was lost: {type(chain[-1]).__name__}")


def status_error(
    status: int, body: object, headers: Mapping[str, str], *, url: str, model: str, key_variable: str
) -> BackendError:
    """What to raise for an HTTP error status. `body` is the reply's error object, decoded, or its text."""
    words = _words(body)
    code = _field(body, "code") + " " + _field(body, "type")
    said = f"HTTP {status}" + (f": {words}" if words else "")
    if status == 429:
        if "insufficient_quota" in code:
            return AuthenticationFailed(f"the account of {key_variable} has no quota left ({said})", status=status)
        return RateLimited(f"rate limited ({said})", status=status, retry_after_s=retry_after_s(headers))
    if status in (408, 409) or status >= 500:
        return ServerError(f"the server failed ({said})", status=status, retry_after_s=retry_after_s(headers))
    if status in (401, 403):
        return AuthenticationFailed(f"the endpoint refuses the key in {key_variable} ({said})", status=status)
    if status == 404:
        return ModelNotFound(
            f"{url} has no model '{model}', or no chat completions under that URL ({said}); "
            "check the model's name, and that the base URL ends in /v1",
            status=status,
        )
    if _CONTEXT.search(code) or _CONTEXT.search(words) or status == 413:
        return ContextOverflow(f"the prompt does not fit the model's context ({said})", status=status)
    if _FILTER.search(code) or _FILTER.search(words):
        return ContentFiltered(f"the endpoint's content filter refused the prompt ({said})", status=status)
    return BadRequest(f"the endpoint refuses the request ({said})", status=status)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for by ``Retry-After-Ms`` or ``Retry-After`` (a number or an HTTP date); None if unsaid."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            return max(0.0, float(text) * scale)
        except ValueError:
            date = email.utils.parsedate_tz(text)
            if date is not None:
                return max(0.0, email.utils.mktime_tz(date) - time.time())
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies under it, outermost first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        inner = getattr(cause, "os_error", None)  # aiohttp's connector errors carry it beside the chain
        if isinstance(inner, OSError) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            if inner.__cause__ is not None or inner.__context__ is not None:
                yield from (deeper for deeper in _causes(inner) if deeper is not inner)
        cause = cause.__cause__ or cause.__context__


def _field(body: object, name: str) -> str:
    value = body.get(name) if isinstance(body, dict) else None
    return str(value) if value is not None else ""


def _words(body: object) -> str:
    """What the endpoint says of its error, on one line."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        text = _field(inner, "message") or _field(body, "detail") if isinstance(inner, dict) else str(inner)
    else:
        text = "" if body is None else str(body)
    text = " ".join(text.split())
    if text.startswith("<"):
        return "a web page"
    return text if len(text) <= 300 else text[:300] + "..."
