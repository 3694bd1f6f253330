"""What every benchmark shares: one table, one JSON file, and a header that says where the numbers were taken."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Report", "parser"]

_PACKAGES = ("instructgym", "numpy", "torch", "gymnasium", "stable-baselines3", "sb3-contrib", "aiohttp", "openai")
_COLUMNS = ("case", "value", "unit", "target", "holds")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the two options that all benchmarks have; add your own before parsing."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    options.add_argument("--quick", action="store_true", help="the small form, within 50 seconds")
    return options


class Report:
    """Rows of ``{"case", "value", "unit", "target", "holds"}``, the first of which is the header.

    `target` is what must hold, in words, and `holds` whether it does; a row that only informs has neither. `facts`
    go into the header beside the machine and the versions (a simulator's version, a seed).
    """

    def __init__(self, name: str, quick: bool, facts: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.quick = quick
        self._started = time.perf_counter()
        header = {"benchmark": name, "form": "quick" if quick else "full", **_machine(), **(facts or {})}
        self.rows: list[dict[str, Any]] = [_row("machine and versions", header, "", None, None)]

    def row(
        self, case: str, value: float | str | None, unit: str, target: str | None = None, holds: bool | None = None
    ) -> None:
        """Add a row. Raises ValueError for a verdict without a target, or a target without a verdict.

        The quick form judges nothing: its samples are too small.
        """
        if (target is None) != (holds is None):
            raise ValueError(f"row '{case}' has target {target!r} and holds {holds!r}; give both or neither.")
        if self.quick:
            target = holds = None
        if isinstance(value, float):
            value = float(f"{value:.6g}")
        # bool() because a comparison of numpy numbers is no JSON value
        self.rows.append(_row(case, value, unit, target, None if holds is None else bool(holds)))

    def skip(self, case: str, reason: str) -> None:
        """Add a row for what could not be measured here, and why."""
        self.rows.append(_row(case, None, "", f"skipped: {reason}", None))

    @property
    def missed(self) -> int:
        """The number of rows that do not hold."""
        return sum(row["holds"] is False for row in self.rows)

    def finish(self, json_path: str | Path | None = None) -> None:
        """Print the table; write the rows to `json_path` if there is one."""
        header: dict[str, Any] = self.rows[0]["value"]
        print(f"{self.name}: {'QUICK form, not the numbers to quote' if self.quick else 'full form'}")
        print("; ".join(f"{key} {value}" for key, value in header.items() if key not in ("benchmark", "form")))
        cells = [_COLUMNS, *(tuple(_shown(row[column]) for column in _COLUMNS) for row in self.rows[1:])]
        widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
        for number, line in enumerate(cells):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            if number == 0:
                print("  ".join("-" * width for width in widths))
        judged = [row for row in self.rows if row["holds"] is not None]
        seconds = time.perf_counter() - self._started
        verdict = (
            "no targets in the quick form"
            if self.quick
            else f"{len(judged) - self.missed} of {len(judged)} targets hold"
        )
        print(f"{verdict}; {seconds:.1f} s")
        if json_path is not None:
            path = Path(json_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"rows written to {path}")


def _row(case: str, value: Any, unit: str, target: str | None, holds: bool | None) -> dict[str, Any]:
    return dict(zip(_COLUMNS, (case, value, unit, target, holds), strict=True))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _machine() -> dict[str, Any]:
    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "system": platform.system()}
    facts["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _cores() -> int:
    """The cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
