"""What the environment says of headers, certificates and proxies, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import gzip
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from instructgym import __version__
from instructgym.errors import ConfigError, EndpointUnreachable
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.server import SimulatedServer
from instructgym.types import Completion

from .fakes import EchoAnswerer, ask
from .raw_http import GOOD, free_port, http, serving
from .tls import certificate

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
KEY = "sk-for-the-endpoint-alone"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in (*PROXY_VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def answer_of(url: str) -> Completion:
    transport = OpenAICompatibleBackend(url, timeout_s=10)
    try:
        return await transport.complete(ask())
    finally:
        await transport.aclose()


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """Forwards plain requests and opens tunnels; yields its address and the heads that it could read."""
    heads: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head.decode())
        method, target = head.decode().split()[:2]
        found = re.search(r"^(?:http://)?([^:/]+):(\d+)", target)
        assert found is not None
        there, to = await asyncio.open_connection(found[1], int(found[2]))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            to.write(head)
        for pair in ((reader, to), (there, writer)):
            task = asyncio.create_task(pump(*pair))
            tasks.add(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_headers_say_who_asks_and_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: kites")
    async with serving(http(200, GOOD)) as (url, seen):
        await answer_of(url)
    headers = dict(line.split(": ", 1) for line in seen.heads[0].split("\r\n")[1:] if line)
    headers.pop("Host"), headers.pop("Content-Length"), headers.pop("Accept-Encoding")
    assert headers == {
        "Authorization": f"Bearer {KEY}",
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": f"instructgym/{__version__}",
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj-1",
        "X-Team": "kites",
    }
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "user-agent: mine")
    async with serving(http(200, GOOD)) as (url, seen):
        await answer_of(url)
    assert re.findall(r"(?i)user-agent: .*(?=\r\n)", seen.heads[0]) == ["user-agent: mine"]


async def test_cookies_are_not_kept_and_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with serving(http(200, GOOD, Set_Cookie="a=b; Path=/")) as (url, seen):
        transport = OpenAICompatibleBackend(url)
        for _ in range(2):
            await transport.complete(ask())
        await transport.aclose()
    assert all(f"Authorization: Bearer {KEY}" in head and "Cookie" not in head for head in seen.heads)


async def test_compressed_reply_is_unpacked():
    async with serving(http(200, gzip.compress(GOOD), Content_Encoding="gzip")) as (url, _):
        assert await answer_of(url) == Completion("hi")


async def test_certificate_is_trusted_by_ssl_cert_file_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    signed = certificate(tmp_path, days=2)
    async with serving(http(200, GOOD), tls=signed.context) as (url, seen):
        with pytest.raises(EndpointUnreachable) as caught:
            await answer_of(url)
        assert str(caught.value) == (
            f"no trusted connection to {url}: self-signed certificate; check the endpoint's certificate "
            "(SSL_CERT_FILE names certificate authorities of your own)"
        )
        assert seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(signed.file))
        assert await answer_of(url) == Completion("hi")


async def test_expired_certificate_and_that_of_another_host_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, days, trouble in (
        ("IP:127.0.0.1", -1, "certificate has expired"),
        ("DNS:elsewhere.example", 2, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
    ):
        signed = certificate(tmp_path, days=days, name=name)
        monkeypatch.setenv("SSL_CERT_FILE", str(signed.file))
        async with serving(http(200, GOOD), tls=signed.context) as (url, seen):
            with pytest.raises(EndpointUnreachable) as caught:
                await answer_of(url)
            assert str(caught.value).startswith(f"no trusted connection to {url}: {trouble}; check the endpoint's")
            assert seen == []


async def test_https_to_a_plain_server_is_said():
    async with SimulatedServer(EchoAnswerer()) as server:
        url = server.base_url
        with pytest.raises(EndpointUnreachable, match=r"^no encrypted connection to https.*; does .* speak https\?$"):
            await answer_of(url.replace("http:", "https:"))


async def test_certificate_file_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    with pytest.raises(ConfigError, match=r"^the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read"):
        await answer_of("https://127.0.0.1:1/v1")
    async with serving(http(200, GOOD)) as (url, _):
        assert await answer_of(url) == Completion("hi")  # plain http asks for none


async def test_plain_request_goes_through_the_proxy_with_its_password(monkeypatch: pytest.MonkeyPatch):
    async with proxy() as (address, heads), serving(http(200, GOOD)) as (url, _):
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@{address}")
        assert await answer_of(url) == Completion("hi")
        assert heads[0].startswith(f"POST {url}/chat/completions HTTP/1.1\r\n")
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'user:p@ss').decode()}\r\n" in heads[0]


async def test_proxy_of_a_tunnel_never_sees_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    signed = certificate(tmp_path, days=2)
    monkeypatch.setenv("SSL_CERT_FILE", str(signed.file))
    async with proxy() as (address, heads), serving(http(200, GOOD), tls=signed.context) as (url, seen):
        monkeypatch.setenv("HTTPS_PROXY", f"user:pass@{address}")
        assert await answer_of(url) == Completion("hi")
        assert f"Authorization: Bearer {KEY}" in seen.heads[0]
        assert "Proxy-Authorization" not in seen.heads[0]
        assert heads[0].startswith("CONNECT 127.0.0.1:")
        assert "Proxy-Authorization: Basic " in heads[0]
        assert KEY not in heads[0]


async def test_no_proxy_and_all_proxy_are_obeyed(monkeypatch: pytest.MonkeyPatch):
    async with proxy() as (address, heads), serving(http(200, GOOD)) as (url, _):
        monkeypatch.setenv("ALL_PROXY", f"http://{address}")
        await answer_of(url)
        assert len(heads) == 1
        monkeypatch.setenv("NO_PROXY", "other.example,127.0.0.1")
        await answer_of(url)
        assert len(heads) == 1


async def test_proxy_that_is_not_there_or_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch):
    url = "http://endpoint.example/v1"
    monkeypatch.setenv("HTTP_PROXY", f"http://user:hunter22@127.0.0.1:{free_port()}")
    with pytest.raises(EndpointUnreachable) as caught:
        await answer_of(url)
    assert str(caught.value) == (
        f"the proxy that the environment names for {url} gives no connection; "
        "check HTTP_PROXY and HTTPS_PROXY, or set NO_PROXY to the endpoint's host"
    )
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:hunter22@127.0.0.1:1080")
    with pytest.raises(ConfigError) as refused:
        await answer_of(url)
    assert str(refused.value) == (
        f"the environment names the proxy socks5://127.0.0.1:1080 for {url}; "
        "expected an http:// or https:// proxy; set NO_PROXY to the endpoint's host to go without"
    )
