"""Who may import whom: the drawing of docs/architecture.md, held by reading every import of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import instructgym

PACKAGE = Path(instructgym.__file__).parent

BASE = {"errors", "types"}
MAY_IMPORT: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "plugins": BASE,
    "registration": BASE,
    "__init__": {*BASE, "registration"},
    "data": set(),
    "metrics": {*BASE, "plugins"},
    "llm_backends": {*BASE, "plugins", "metrics"},
    "rewards": {*BASE, "plugins", "metrics", "llm_backends"},
    "envs": {*BASE, "plugins", "metrics", "llm_backends", "rewards"},
    "agents": {*BASE, "plugins", "llm_backends"},
    "train": {*BASE, "plugins", "metrics", "llm_backends", "rewards", "envs", "agents"},
    "cli": {*BASE, "plugins", "metrics", "llm_backends", "rewards", "envs", "agents", "train"},
}
"""Part of the package -> the other parts that it may import, at the top of a file or inside a function.

The root (``from instructgym import Seed``) is open to everybody: it holds `types`, `registration` and the version.
"""


def part_of(relative: Path) -> str:
    return relative.parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import, of ``import_module("...")`` and of ``__import__("...")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from instructgym import envs` names a part, `from instructgym import Seed` does not
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and called(node) in ("import_module", "__import__"):
            start = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(start, ast.Constant) and isinstance(start.value, str):
                yield node.lineno, start.value.rstrip(".")


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def breaches(source: str, relative: Path) -> list[str]:
    """A line for each import that goes against `MAY_IMPORT`; `relative` to the package."""
    part = part_of(relative)
    lines = source.splitlines()
    package = ".".join(["instructgym", *relative.parts[:-1]])
    found = []
    for number, module in imported_modules(ast.parse(source), package):
        names = module.split(".")
        if names[0] != "instructgym" or len(names) == 1 or names[1] not in MAY_IMPORT or names[1] == part:
            continue
        if names[1] not in MAY_IMPORT[part]:
            allowed = ", ".join(sorted(MAY_IMPORT[part])) or "nothing of the package"
            text = lines[number - 1].strip()
            found.append(f"instructgym/{relative}:{number}: '{text}': {part} may import {allowed}")
    return found


def test_every_part_has_a_layer() -> None:
    parts = {part_of(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert parts <= set(MAY_IMPORT), f"say in MAY_IMPORT what {sorted(parts - set(MAY_IMPORT))} may import"


def test_no_import_goes_against_the_layers() -> None:
    found = [
        breach
        for path in sorted(PACKAGE.rglob("*.py"))
        for breach in breaches(path.read_text("utf-8"), path.relative_to(PACKAGE))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("place", "source", "number"),
    [
        ("envs/env.py", "import numpy\nfrom instructgym.agents.base import Agent\n", 2),
        ("envs/env.py", "import instructgym.agents\n", 1),
        ("envs/env.py", "from instructgym import agents\n", 1),
        ("envs/env.py", "from ..agents import base\n", 1),
        ("envs/env.py", "from .. import agents\n", 1),
        ("agents/ppo.py", "def learn():\n    from instructgym.envs import ActionSet\n", 2),
        ("agents/ppo.py", "import importlib\nimportlib.import_module('instructgym.envs')\n", 2),
        ("agents/ppo.py", "from importlib import import_module\nimport_module(f'instructgym.envs.{1}')\n", 2),
        ("metrics/text.py", "from instructgym.llm_backends import LLM\n", 1),
        ("types.py", "from instructgym.errors import UserError\n", 1),
    ],
)
def test_a_breach_is_named_by_file_and_line(place: str, source: str, number: int) -> None:
    (found,) = breaches(source, Path(place))
    assert found.startswith(f"instructgym/{place}:{number}: '{source.splitlines()[number - 1].strip()}': ")


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("envs/env.py", "from instructgym.rewards import Reward\nfrom instructgym.plugins import nearest\n"),
        ("envs/env.py", "from instructgym import Seed\nfrom .dynamics import State\nimport gymnasium\n"),
        ("agents/__init__.py", "from importlib import import_module\nimport_module(f'instructgym.agents.{1}')\n"),
        ("cli/app.py", "from instructgym.train import run\n"),
        ("metrics/text.py", "from instructgym.plugins import nearest\n"),
    ],
)
def test_what_the_layers_allow_passes(place: str, source: str) -> None:
    assert breaches(source, Path(place)) == []
