"""A server that says exactly the bytes it is told to, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GOOD = json.dumps({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}).encode()


class Seen(list[dict[str, Any]]):
    """The bodies that a server was sent; `heads` holds the request line and headers of each."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[str] = []


def http(
    status: int, body: bytes, *, content_type: str = "application/json", length: int | None = None, **headers: str
) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", f"Content-Length: {length or len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def error(status: int, message: str, **fields: str) -> bytes:
    return http(status, json.dumps({"error": {"message": message, **fields}}).encode())


@asynccontextmanager
async def serving(
    *replies: bytes | Handler, tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[tuple[str, Seen]]:
    """A raw socket server that gives `replies` in turn, the last one again and again; yields URL and bodies seen."""
    seen = Seen()
    queue = list(replies)
    tasks: set[Any] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1])) if length else b""
                seen.heads.append(head.decode())
                seen.append(json.loads(body) if body else {"get": head.split()[1].decode()})
                reply = queue.pop(0) if len(queue) > 1 else queue[0]
                if not isinstance(reply, bytes):
                    await reply(reader, writer)
                    return
                writer.write(reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1", seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def reset_in_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, GOOD[:10], length=len(GOOD)))
    await writer.drain()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(http(200, b"", length=len(GOOD)))
    for byte in GOOD:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 this is not HTTP\r\n\r\n")
    await writer.drain()


async def stop_halfway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half of the body, and then a clean end."""
    writer.write(http(200, GOOD[:10], length=len(GOOD)))
    await writer.drain()
    writer.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
