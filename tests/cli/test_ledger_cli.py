"""`instructgym ledger`, on ledgers that are made without a run."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import json
import re
from pathlib import Path

import pytest

from instructgym.errors import BadRequest
from instructgym.llm_backends.stack import open_stack
from instructgym.types import Choice, Completion, Message, Request, Sampling, TokenLogprob, Usage

from .conftest import Invoke

LOGPROBS = (TokenLogprob("yes", -0.25, (("yes", -0.25), ("no", -1.5))), TokenLogprob(".", -0.5))


class Script:
    name = "script"

    def __init__(self, *outcomes: Completion | Exception) -> None:
        self.outcomes = list(outcomes)

    async def complete(self, request: Request) -> Completion:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def aclose(self) -> None: ...


def ask(text: str, role: str = "expert", stage: str = "evolve", **sampling: object) -> Request:
    return Request(role, "m", (Message("user", text),), Sampling(**sampling), "v/1", (3, 1), stage)  # type: ignore[arg-type]


def fill(folder: Path, *calls: tuple[Request, Completion | Exception]) -> Path:
    """A run's folder with these calls in its ledger."""

    async def ask_all() -> None:
        transport = Script(*(outcome for _, outcome in calls))
        stack = open_stack(transport, ledger_path=folder / "ledger.sqlite")
        for request, _ in calls:
            await asyncio.gather(stack.backend.complete(request), return_exceptions=True)
        await stack.aclose()

    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").touch()
    asyncio.run(ask_all())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(
        tmp_path / "run",
        (ask("what?"), Completion("this", usage=Usage(10, 5))),
        (
            ask("many", n=2, top_logprobs=2),
            Completion("yes.", logprobs=LOGPROBS, others=(Choice("no", "length"),)),
        ),
        (ask("broken", "reviewer", "train"), BadRequest("no such thing")),
    )


def keys(invoke: Invoke, folder: Path) -> dict[str, str]:
    return {answer: key for key, answer in re.findall(r"^ (\w{10}) .* 3,1 +(.*?) *$", listed(invoke, folder), re.M)}


def listed(invoke: Invoke, folder: Path) -> str:
    result = invoke("ledger", "show", folder)
    assert result.exit_code == 0
    return result.stdout


def test_a_call_is_shown_with_all_its_choices_and_log_probabilities(invoke: Invoke, folder: Path) -> None:
    result = invoke("ledger", "show", folder, keys(invoke, folder)["yes."])
    assert result.stdout.partition("\n")[2] == (
        "  temperature 0.7, top_p 0.95, max_tokens 1024, top_logprobs 2, n 2, prompt v/1\n"
        "  user:\n    many\n"
        "  answer 1 of 2:\n    yes.\n"
        "  log-probabilities: -0.7500 in all, 2 tokens\n    'yes' -0.2500  ('no' -1.5000)\n    '.' -0.5000\n"
        "  answer 2 of 2 (length):\n    no\n"
    )
    one = invoke("ledger", "show", folder, keys(invoke, folder)["this"])
    assert one.stdout.endswith("  user:\n    what?\n  answer:\n    this\n")
    failed = invoke("ledger", "show", folder, "--role", "reviewer")
    assert "failed: BadRequest: no such thing" in failed.stdout


def test_listing_says_how_many_more_there_are(invoke: Invoke, folder: Path) -> None:
    result = invoke("ledger", "show", folder, "--limit", "1")
    assert result.stderr == "2 more; --limit shows them.\n"
    result = invoke("ledger", "show", folder, "not-hex")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {folder}: no call has a key that starts with 'not-hex'; `instructgym ledger show` lists them.\n",
    )


@pytest.mark.parametrize("name", ["calls.jsonl", "calls.jsonl.gz"])
def test_what_was_exported_is_imported_into_a_new_run(invoke: Invoke, folder: Path, name: str) -> None:
    out = folder.parent / name
    assert invoke("ledger", "export", folder, "--out", out).stderr == f"wrote 3 calls to {out}\n"
    text = gzip.decompress(out.read_bytes()) if name.endswith(".gz") else out.read_bytes()
    assert invoke("ledger", "export", folder).stdout_bytes == text
    assert [json.loads(line)["request"]["sampling"].get("n") for line in text.splitlines()] == [None, 2, None]
    into = folder.parent / "new"
    result = invoke("ledger", "import", into, out)
    assert (result.exit_code, result.stderr) == (0, f"{out}: 3 new, 0 known\n")
    assert listed(invoke, into) == listed(invoke, folder)
    assert sorted(path.name for path in into.iterdir()) == [".lock", "ledger.sqlite"]
    again = invoke("ledger", "import", into, out, folder)
    assert again.stderr == f"{out}: 0 new, 3 known\n{folder}: 0 new, 3 known\n"


def test_conflicts_are_reported_and_ours_is_kept(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    other = fill(
        tmp_path / "other",
        (ask("what?"), Completion("that")),
        (ask("broken", "reviewer", "train"), Completion("mended")),
    )
    key = keys(invoke, folder)["this"]
    result = invoke("ledger", "import", folder, other)
    assert result.stderr == (
        f"{other}: 0 new, 0 known, 1 in place of a failure, 1 with another answer than ours, which is kept\n"
        f"  kept: instructgym ledger show {folder} {key}\n"
    )
    assert {"this", "mended"} <= set(keys(invoke, folder))


def test_a_folder_that_a_run_holds_is_refused(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", (ask("x"), Completion("y")))
    with (folder / ".lock").open("r+") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (("import", folder, other), ("prune", folder, "--failed")):
            result = invoke("ledger", *arguments)
            assert (result.exit_code, result.stderr) == (
                2,
                f"error: '{folder}' is in use by another process (pid 4711); a run folder has one writer. Wait for it, "
                "or choose another folder.\n",
            )
        assert invoke("ledger", "prune", folder, "--failed", "--dry-run").exit_code == 0
    assert len(keys(invoke, folder)) == 3


@pytest.mark.parametrize("options", [(), ("--limit",)])
def test_a_ledger_without_its_run_is_worked_on_too(invoke: Invoke, folder: Path, options: tuple[str, ...]) -> None:
    (folder / ".lock").unlink()
    target = folder / "ledger.sqlite" if options else folder
    assert invoke("ledger", "prune", target, "--failed").exit_code == 0
    assert len(keys(invoke, folder)) == 2
    assert not (folder / ".lock").exists()


def test_pruning_shows_what_goes_and_keeps_what_was_paid(invoke: Invoke, folder: Path) -> None:
    before = invoke("ledger", "stats", folder).stdout
    dry = invoke("ledger", "prune", folder, "--role", "expert", "--dry-run")
    assert re.search(r"^ expert +evolve +m +2 +0 *$", dry.stdout, re.M)
    assert dry.stderr == "2 calls would be dropped\n"
    assert invoke("ledger", "stats", folder).stdout == before
    done = invoke("ledger", "prune", folder, "--role", "expert")
    assert done.stdout == dry.stdout
    assert re.fullmatch(r"dropped 2 calls; the file went from 0\.\d MiB to 0\.\d MiB\n", done.stderr)
    assert re.search(r"^ expert +evolve +m +0 +0 +2 +10 +5 *$", invoke("ledger", "stats", folder).stdout, re.M)
    none = invoke("ledger", "prune", folder, "--role", "export")
    assert (none.exit_code, none.stdout, none.stderr) == (0, "", "no call fits; nothing is dropped\n")


def test_bad_input_is_said_with_exit_code_2(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    assert invoke("ledger", "export", folder, "--out", cut).exit_code == 0
    cut.write_bytes(cut.read_bytes()[:-10])
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("prune", folder), "nothing says what to drop; give at least one of --failed, --role, --stage, --model, "),
        (("prune", tmp_path / "empty", "--failed"), f"there is no ledger at {tmp_path}/empty/ledger.sqlite; "),
        (("prune", cut, "--failed"), f"the ledger {cut} could not open: file is not a database; "),
        (("export", tmp_path / "empty"), f"there is no ledger at {tmp_path}/empty/ledger.sqlite; "),
        (("export", folder, "--out", tmp_path / "no" / "x"), f"cannot write '{tmp_path}/no/x': No such file or "),
        (("export", folder, "--out", tmp_path), f"cannot write '{tmp_path}': Is a directory"),
        (("export", folder, "--out", "/dev/full"), "cannot write '/dev/full': No space left on device"),
        (("import", tmp_path / "new", cut), f"{cut}, line 3: the line is cut ("),
        (("import", tmp_path / "new", tmp_path / "absent"), f"there is nothing to import at {tmp_path}/absent; "),
        (("import", folder, folder), f"{folder}/ledger.sqlite is the ledger to import into; name another source"),
    ):
        result = invoke("ledger", *arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "new" / "ledger.sqlite").exists()
    assert len(keys(invoke, folder)) == 3
