"""Where failures of HTTP, and of the layers under it, become ours: once, most specific first. Pure functions."""

from __future__ import annotations

import email.utils
import errno
import json
import math
import re
import reprlib
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
from instructgym.llm_backends.secret import public_url

__all__ = ["connection_error", "retry_after_s", "status_error"]

_CONTEXT = re.compile(
    r"context[ _](length|window|size)|maximum context|prompt is too long|too many tokens"
    r"|exceeds? the (model'?s )?max(imum)?|input is too long",
    re.I,
)
_FILTER = re.compile(r"content[ _](filter|policy|management)", re.I)
_NOBODY_THERE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SHOWN_CHARACTERS = 300

_brief = reprlib.Repr()
_brief.maxstring = _SHOWN_CHARACTERS


def connection_error(error: BaseException, url: str, timeout_s: float) -> BackendError:
    """What to raise for a call to `url` that ended without a whole reply.

    aiohttp wraps the system's errors and ssl's; the one that says the most decides.
    """
    chain = list(_causes(error))
    names = {type(cause).__name__ for cause in chain}
    if names & {"ClientProxyConnectionError", "ClientHttpProxyError"}:
        return EndpointUnreachable(
            f"the proxy that the environment names for {url} gives no connection; "
            "check HTTP_PROXY and HTTPS_PROXY, or set NO_PROXY to the endpoint's host"
        )
    if names & {"ClientConnectorCertificateError", "ClientConnectorSSLError"}:
        # The innermost: aiohttp's are of ssl's classes as well, without their words.
        told = [cause for cause in chain if isinstance(cause, ssl.SSLError)][-1]
        if isinstance(told, ssl.SSLCertVerificationError):
            return EndpointUnreachable(
                f"no trusted connection to {url}: {told.verify_message}; check the endpoint's certificate "
                "(SSL_CERT_FILE names certificate authorities of your own)"
            )
        return EndpointUnreachable(
            f"no encrypted connection to {url}: {told.reason or told}; does the endpoint speak https?"
        )
    for cause in chain:
        if isinstance(cause, socket.gaierror):
            return EndpointUnreachable(f"the host of {url} is not known; check the base URL and the network")
        if isinstance(cause, OSError) and cause.errno in _NOBODY_THERE:
            return EndpointUnreachable(f"nobody answers at {url}: connection refused; is the server running there?")
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return ConnectionLost("too many open files; lower the concurrency or raise the limit (ulimit -n)")
    if names & {"InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError"}:
        return EndpointUnreachable(f"{url} is not a URL that can be asked; expected such as http://localhost:8000/v1")
    if "ServerDisconnectedError" in names:
        return ConnectionLost(f"{url} closed the connection before it answered")
    if "ClientPayloadError" in names:
        return ConnectionLost(f"the connection to {url} was lost in the middle of the reply")
    if "TimeoutError" in names:
        return CallTimeout(f"no answer from {url} within {timeout_s:g} s")
    if "ClientResponseError" in names:
        return ConnectionLost(f"{url} answered with something that is not HTTP")
    return ConnectionLost(f"the connection to {url} was lost: {type(chain[-1]).__name__}")


def status_error(
    status: int, content: bytes, headers: Mapping[str, str], *, url: str, model: str, key_variable: str
) -> BackendError:
    """What to raise for an HTTP status that is not a success. `content` is the reply's body."""
    body = _error_object(content)
    words = _words(body)
    code = _field(body, "code") + " " + _field(body, "type")
    said = f"HTTP {status}" + (f": {words}" if words else "")
    if status in _REDIRECTS:
        return BadRequest(
            f"{url} redirects to {_printable(_place(headers.get('location', '')))} (HTTP {status}), and the key is not "
            "sent on; set the base URL to where the endpoint is",
            status=status,
        )
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
            seconds = float(text) * scale
        except ValueError:
            seconds = _seconds_until(text)
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None


def _seconds_until(date: str) -> float:
    """Seconds from now to an HTTP date; NaN if it is none."""
    try:
        parsed = email.utils.parsedate_tz(date)
        return math.nan if parsed is None else email.utils.mktime_tz(parsed) - time.time()
    except (IndexError, OverflowError, TypeError, ValueError):  # parsedate_tz trips over some texts
        return math.nan


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


def _error_object(content: bytes) -> object:
    """The ``error`` of the body where there is one, else the body: decoded, or as text."""
    try:
        body = json.loads(content)
    except (RecursionError, ValueError):
        return content[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")
    return body.get("error", body) if isinstance(body, dict) else body


def _field(body: object, name: str) -> str:
    value = body.get(name) if isinstance(body, dict) else None
    return _text(value)


def _words(body: object) -> str:
    """What the endpoint says of its error, on one line."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        text = _field(inner, "message") or _field(body, "detail") if isinstance(inner, dict) else _text(inner)
    else:
        text = _text(body)
    text = " ".join(text.split())
    if text.startswith("<"):
        return "a web page"
    return _printable(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


def _text(value: object) -> str:
    """`value` as text; of an object or list only the first levels, for it may be nested beyond Python's stack."""
    if isinstance(value, str):
        return value
    return "" if value is None else _brief.repr(value)


def _printable(text: str) -> str:
    """No control characters: a message ends up on a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _place(location: str) -> str:
    try:
        return public_url(location)[:_SHOWN_CHARACTERS] or "nowhere"
    except ValueError:
        return "nowhere"
