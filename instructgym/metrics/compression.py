"""How much of a text is repetition, by a compressor."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

__all__ = ["compressed_bytes", "compression_ratio"]

_LEVEL = 9


def compressed_bytes(text: str) -> int:
    """The size of `text` in UTF-8 under raw DEFLATE (level 9, no header)."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = text.encode("utf-8", "surrogatepass")
    return len(compressor.compress(data)) + len(compressor.flush())


def compression_ratio(texts: Iterable[str]) -> float | None:
    """Bytes of all texts, a line each, over their compressed bytes (Shaib et al., arXiv 2403.00553).

    The higher the ratio, the more the texts repeat each other; below 1 for a short text that does not compress. As the
    paper, gzip's DEFLATE at level 9 on the texts in one file; its window of 32 KiB sees repetitions that are near. None
    for no text.
    """
    joined = "\n".join(texts)
    if not joined:
        return None
    return len(joined.encode("utf-8", "surrogatepass")) / compressed_bytes(joined)
