"""The folder of a run: one writer, whole files only, and manifests that say which stage is finished.

A stage's manifest is written last, so what it names is complete; it holds a key of all that went in (config values,
contents of seeds and action set, outputs of the stages before) and a digest of each file that came out. A stage whose
key and files still fit is skipped. A stage that was cut off starts over: what it had asked stands in the ledger.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import instructgym
from instructgym.errors import RunFolderError

__all__ = [
    "SCHEMA",
    "AppendLog",
    "Manifest",
    "RunFolder",
    "canonical_json",
    "digest_files",
    "disk_words",
    "is_full_disk",
]

SCHEMA = 1
OPERATIONAL = ("limits.", "budget.", "retry.", "ledger.", "run.name")
OPERATIONAL_ENDS = (".timeout_s", ".api_key_env", ".base_url", ".base_urls", ".device", ".batch_tokens", ".max_batch")
"""How and where a model is asked. Which one, and what it is asked, is what a result hangs on: a server may move."""
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, the same for equal values; text of any script stays as it is."""
    return _encode(value)


def is_full_disk(error: BaseException) -> bool:
    """True for a write that failed for want of space (or quota), SQLite's included."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error)


@contextlib.contextmanager
def disk_words(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into `RunFolderError`."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise RunFolderError(
                f"no space left on the device that holds '{path}'. Free some and run the same command again: what was "
                "paid for stands in the ledger."
            ) from error
        raise RunFolderError(f"cannot write '{path}': {error.strerror or error}.") from error


def digest_files(root: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file by its name below `root`; a folder stands for all files in it."""
    digests = {}
    for name in names:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as stream:
                    digests[file.relative_to(root).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


@dataclass(frozen=True)
class Manifest:
    """What a stage left: the key of its inputs, the digests of its files, and facts that later stages read."""

    stage: str
    key: str
    outputs: Mapping[str, str] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


class AppendLog:
    """JSON lines that grow while a stage runs, for people who watch; the stage's end replaces it by an ordered file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_words(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file: IO[str] = os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass")

    def append(self, lines: Sequence[str]) -> None:
        """Write whole lines and hand them to the operating system."""
        with disk_words(self._path):
            self._file.writelines(f"{line}\n" for line in lines)
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def discard(self) -> None:
        """Close and remove the log: its ordered file has taken its place."""
        self.close()
        self._path.unlink(missing_ok=True)


class RunFolder:
    """One run's folder, held by this process. Get one from `RunFolder.hold`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: dict[str, Any] = {}
        self._sections: Mapping[str, Sequence[str]] = {}

    @classmethod
    @contextlib.contextmanager
    def hold(cls, path: Path) -> Iterator[RunFolder]:
        """Create the folder (mode 0700) where needed and lock it.

        Raises `RunFolderError` if another process holds it, if it holds other files than a run's, or if it cannot be
        written.
        """
        lock_path = path / ".lock"
        with disk_words(path):
            if path.exists() and not path.is_dir():
                raise RunFolderError(f"'{path}' is a file; expected a folder for the run.")
            path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in path.iterdir()}
            if not names & {".lock", "run.json"} and names:
                raise RunFolderError(
                    f"'{path}' holds files that are no run's, '{min(names)}' for one. Choose a new or empty folder."
                )
            path.chmod(0o700)
            descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor, path)
            folder = cls(path)
            folder._remove_remains()
            yield folder
        finally:
            os.close(descriptor)

    def claim(
        self,
        identity: Mapping[str, Any],
        sections: Mapping[str, Sequence[str]],
        config_toml: str,
        free: Collection[str] = (),
    ) -> None:
        """Say whose run this is.

        Args:
            identity: every value that decides the result, by dotted key.
            sections: for each stage the sections of `identity` that it depends on.
            config_toml: the config as resolved, for people.
            free: sections that may change in a folder; the stages that depend on them are done again.

        Raises `RunFolderError` if a stage that has begun here depends on a value that is now another, or is none of
        `sections`: a comparison of policies and a run do not share a folder.
        """
        self._sections = sections
        self._identity = json.loads(json.dumps({k: v for k, v in identity.items() if not _operational(k)}))
        held = self._read_json("run.json")
        if held is not None:
            self._check_schema(held)
            self._check_kind()
            self._check_same(held["identity"], free)
        self.write_text("config.toml", config_toml)
        self.write_json(
            "run.json",
            {"schema": SCHEMA, "version": getattr(instructgym, "__version__", "unknown"), "identity": self._identity},
        )

    def key(self, stage: str, upstream: Sequence[Manifest]) -> str:
        """The hash of a stage's inputs: the values of its sections and the files of the stages before it."""
        values = {k: v for k, v in self._identity.items() if k.partition(".")[0] in self._sections[stage]}
        text = canonical_json(
            {
                "schema": SCHEMA,
                "stage": stage,
                "values": values,
                "upstream": {manifest.stage: dict(manifest.outputs) for manifest in upstream},
            }
        )
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    def manifest(self, stage: str) -> Manifest | None:
        """The manifest of a finished stage whose files are as it left them, else None."""
        data = self._read_json(f"stages/{stage}.json")
        if data is None or data["state"] != "finished":
            return None
        if digest_files(self.path, list(data["outputs"])) != data["outputs"]:
            return None
        return Manifest(stage, data["key"], data["outputs"], data["result"])

    def begin(self, stage: str, key: str) -> None:
        """Note that a stage has begun: from now on its config values are fixed in this folder."""
        self.write_json(f"stages/{stage}.json", {"stage": stage, "state": "begun", "key": key})

    def take_back(self, stage: str) -> None:
        """Undo `begin`, for a stage that came to nothing: its config values are free again."""
        (self.path / f"stages/{stage}.json").unlink(missing_ok=True)

    def finish(self, stage: str, key: str, outputs: Sequence[str], result: Mapping[str, Any]) -> Manifest:
        """Write a stage's manifest; everything it names must be in place."""
        digests = digest_files(self.path, outputs)
        for name in digests:
            (self.path / name).chmod(0o600)
        for name in outputs:
            if (self.path / name).is_dir():
                (self.path / name).chmod(0o700)
        self.write_json(
            f"stages/{stage}.json",
            {"stage": stage, "state": "finished", "key": key, "outputs": digests, "result": dict(result)},
        )
        return Manifest(stage, key, digests, dict(result))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file as a whole: written beside it, synced, renamed."""
        path = self.path / name
        with disk_words(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = path.with_name(f"{path.name}.tmp")
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, path)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode("utf-8", "surrogatepass"))

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_lines(self, name: str, lines: Sequence[str]) -> None:
        self.write_text(name, "".join(f"{line}\n" for line in lines))

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON lines file of this run."""
        with (self.path / name).open(encoding="utf-8", errors="surrogatepass") as stream:
            return [json.loads(line) for line in stream]

    def log(self, name: str) -> AppendLog:
        return AppendLog(self.path / name)

    def _read_json(self, name: str) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunFolderError(f"'{path}' cannot be read as a run's file: {error}. Choose another folder.") from error

    def _check_schema(self, held: Mapping[str, Any]) -> None:
        if held.get("schema") != SCHEMA:
            raise RunFolderError(
                f"'{self.path}' is a run folder of schema {held.get('schema')}, written by version "
                f"{held.get('version')}; this version reads schema {SCHEMA}. Choose another folder."
            )

    def _check_kind(self) -> None:
        for path in sorted((self.path / "stages").glob("*.json")):
            manifest = self._read_json(f"stages/{path.name}")
            stage = manifest.get("stage") if isinstance(manifest, dict) and "state" in manifest else None
            if stage is not None and stage not in self._sections:
                raise RunFolderError(
                    f"'{self.path}' holds something else: its stage '{stage}' is none of {', '.join(self._sections)}. "
                    "Choose another folder."
                )

    def _check_same(self, held: Mapping[str, Any], free: Collection[str]) -> None:
        begun = [stage for stage in self._sections if (self.path / "stages" / f"{stage}.json").exists()]
        keys = [*self._identity, *(key for key in held if key not in self._identity)]
        for key in keys:
            if key.partition(".")[0] in free:
                continue
            there, here = held.get(key), self._identity.get(key)
            stage = next((stage for stage in begun if key.partition(".")[0] in self._sections[stage]), None)
            if there != here and stage is not None:
                raise RunFolderError(
                    f"'{self.path}' holds another run: its {key} is {_shown(there)}, here it is {_shown(here)} (stage "
                    f"'{stage}' has begun there). Choose another folder, or give the same config."
                )

    def _remove_remains(self) -> None:
        """What a killed process had not renamed yet."""
        for remains in self.path.rglob("*.tmp"):
            remains.unlink(missing_ok=True)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise RunFolderError(
            f"'{path}' is in use by another process (pid {holder}); a run folder has one writer. Wait for it, or "
            "choose another folder."
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _operational(key: str) -> bool:
    return key.startswith(OPERATIONAL) or key.endswith(OPERATIONAL_ENDS)


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)
