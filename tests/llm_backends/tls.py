"""Certificates made on the spot with the openssl command."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificate(NamedTuple):
    """A server's context for 127.0.0.1, and the file by which a client may trust it."""

    context: ssl.SSLContext
    file: Path


def certificate(folder: Path, *, days: int, name: str = "IP:127.0.0.1") -> Certificate:
    """Self-signed, for `days` from now on; it has expired if they are negative. Skips the test without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    key, request, signed, names = (folder / part for part in ("key.pem", "request.pem", "signed.pem", "names"))
    names.write_text(f"subjectAltName={name}\n")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    for command in (
        ["req", *curve, "-nodes", "-subj", "/CN=test", "-keyout", key, "-out", request],
        ["x509", "-req", "-in", request, "-signkey", key, "-days", str(days), "-extfile", names, "-out", signed],
    ):
        done = subprocess.run(["openssl", *command], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"this openssl makes no such certificate: {done.stderr.decode().strip()}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed, key)
    return Certificate(context, signed)
