"""Keys that no repr, log, traceback or message can hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

from instructgym.errors import AuthenticationFailed

__all__ = ["Secret", "layers", "public_url", "read_key", "without_frames"]

_HIDDEN = "[hidden]"
_SHORTEST = 8


class Secret:
    """A text that shows itself only to who calls `reveal`.

    `redact` and `within` pass over texts of fewer than 8 characters: such a key ("x", for a local server) is no
    secret, and hiding it would hide letters of every message.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"Secret({_HIDDEN})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not pickled; read the key from the environment in the other process")

    def reveal(self) -> str:
        return self._value

    def redact(self, text: str) -> str:
        """`text` with every occurrence of the secret hidden (endpoints quote the key in their errors)."""
        return text.replace(self._value, _HIDDEN) if len(self._value) >= _SHORTEST else text

    def within(self, text: str) -> bool:
        """True if `text` would show the secret."""
        return len(self._value) >= _SHORTEST and self._value in text


def read_key(variable: str) -> Secret:
    """The key in the environment variable `variable`. Raises `AuthenticationFailed` without one."""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise AuthenticationFailed(
            f"no API key: the environment variable {variable} is not set; "
            "set it (any text will do for a local server that asks for none)"
        )
    if not (value.isascii() and value.isprintable()):
        raise AuthenticationFailed(
            f"the API key in the environment variable {variable} holds characters that no HTTP header may carry; "
            "set it to the key alone, on one line"
        )
    return Secret(value)


def public_url(url: str) -> str:
    """`url` without user, password and query: what messages may show."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def layers(error: BaseException) -> Iterator[BaseException]:
    """The error and all that lies under it, each once, outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        layer = waiting.pop()
        if layer is not None and id(layer) not in seen:
            seen.add(id(layer))
            yield layer
            waiting += [layer.__context__, layer.__cause__]


def without_frames(error: BaseException) -> None:
    """Forget where the error and what lies under it were raised.

    A traceback can be shown with its local variables, and those of the HTTP layers hold the key.
    """
    for layer in layers(error):
        layer.__traceback__ = None
