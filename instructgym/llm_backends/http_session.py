"""One HTTP session to one endpoint. It says what the openai package would say, at an eighth of its cost a call."""

from __future__ import annotations

import base64
import io
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from instructgym.errors import ConfigError
from instructgym.llm_backends.secret import Secret, public_url, without_frames

__all__ = ["HttpReply", "HttpSession", "HttpSettings", "endpoint_url", "read_settings"]

_KEEPALIVE_S = 30.0
_WRITTEN_AT_ONCE_BYTES = 2**20  # aiohttp warns of larger ones


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Status, headers and whole body. An endpoint may quote the key in the latter two, so the repr leaves them out."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How an endpoint is reached and who we are to it. What holds a key or a password is left out of the repr."""

    headers: Mapping[str, str] = field(repr=False)
    tls: ssl.SSLContext | None
    proxy: str | None = field(default=None, repr=False)
    proxy_headers: Mapping[str, str] | None = field(default=None, repr=False)
    secrets: tuple[Secret, ...] = ()


def read_settings(base_url: str, key: Secret) -> HttpSettings:
    """The settings of the openai package and of the environment for `base_url`.

    From openai: the authorization, and what ``OPENAI_ORG_ID``, ``OPENAI_PROJECT_ID`` and ``OPENAI_CUSTOM_HEADERS`` say.
    From the environment: ``SSL_CERT_FILE``, ``SSL_CERT_DIR``, ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``,
    ``NO_PROXY`` (and the lower-case names). Takes a second for imports and certificates: not on the event loop.
    """
    target = urlsplit(base_url)
    headers = _headers(base_url, key)
    proxy, password = _proxy_of(target)
    proxy_headers = None
    secrets = [key]
    if password is not None:
        proxy_headers = {"Proxy-Authorization": password.reveal()}
        secrets.append(password)
        if target.scheme == "http":  # no tunnel: the proxy reads the request's own headers
            headers.update(proxy_headers)
    return HttpSettings(
        headers=headers,
        tls=_tls() if target.scheme == "https" else None,
        proxy=proxy,
        proxy_headers=proxy_headers,
        secrets=tuple(secrets),
    )


class HttpSession:
    """Sends with `settings` over at most `max_connections` kept-alive connections. Made and closed in one event loop.

    No cookies, no redirects, no netrc, and no clock of its own: whoever calls `send` cuts it.
    """

    def __init__(self, settings: HttpSettings, max_connections: int) -> None:
        import aiohttp

        tls = settings.tls if settings.tls is not None else True
        self._headers = settings.headers
        self._proxy = settings.proxy
        self._proxy_headers = settings.proxy_headers
        self.secrets = settings.secrets
        # The headers go with each request and not to the session, which would hand them to a proxy as well.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_KEEPALIVE_S, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        )

    async def send(self, method: str, url: str, data: bytes | None) -> HttpReply:
        """The reply, whatever its status. Raises `aiohttp.ClientError` or `OSError` without a whole one.

        What is raised carries no frames of aiohttp, whose local variables hold the key.
        """
        try:
            async with self._session.request(
                method,
                url,
                data=data if data is None or len(data) <= _WRITTEN_AT_ONCE_BYTES else io.BytesIO(data),
                headers=self._headers,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                return HttpReply(response.status, response.headers, await response.read())
        except BaseException as error:
            without_frames(error)
            raise

    async def aclose(self) -> None:
        await self._session.close()


def endpoint_url(base_url: str, path: str) -> str:
    """`path` below `base_url`, whose query (an API version, say) stays at the end."""
    base = urlsplit(base_url)
    return urlunsplit((base.scheme, base.netloc, base.path.rstrip("/") + path, base.query, ""))


def _headers(base_url: str, key: Secret) -> dict[str, str]:
    import httpx2
    import openai

    from instructgym import __version__

    client = openai.AsyncOpenAI(
        api_key=key.reveal(),
        base_url=base_url,
        http_client=httpx2.AsyncClient(transport=httpx2.AsyncBaseTransport()),  # it is asked, and never sends
    )
    merged: dict[str, tuple[str, object]] = {}  # by the name in lower case; the latter wins
    for name, value in [*client.auth_headers.items(), *client.default_headers.items()]:
        merged[name.lower()] = (name, value)
    if merged["user-agent"][1] == client.user_agent:  # the user did not say another
        merged["user-agent"] = ("User-Agent", f"instructgym/{__version__}")
    return {
        name: value
        for lower, (name, value) in merged.items()
        if isinstance(value, str) and not lower.startswith("x-stainless-")  # telemetry
    }


def _tls() -> ssl.SSLContext:
    """The authorities that the openai package trusts: ``SSL_CERT_FILE``, ``SSL_CERT_DIR``, or the system's."""
    import httpx2

    try:
        context: ssl.SSLContext = httpx2.create_ssl_context()
    except OSError as error:
        raise ConfigError(
            f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error}; "
            "let it name a PEM file of certificate authorities, or unset it"
        ) from error
    return context


def _proxy_of(target: SplitResult) -> tuple[str | None, Secret | None]:
    """The proxy that the environment names for `target`, without its password, and the authorization for it."""
    if urllib.request.proxy_bypass(target.netloc):
        return None, None
    proxies = urllib.request.getproxies()
    url = proxies.get(target.scheme) or proxies.get("all")
    if not url:
        return None, None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"the environment names the proxy {public_url(url)} for {public_url(urlunsplit(target))}; "
            "expected an http:// or https:// proxy; set NO_PROXY to the endpoint's host to go without"
        )
    login, at, host = parts.netloc.rpartition("@")
    proxy = f"{parts.scheme}://{host}"
    if not at:
        return proxy, None
    return proxy, Secret("Basic " + base64.b64encode(unquote(login).encode()).decode())
