"""Importing is free of work, and what a module says it exports is there."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

import instructgym

HEAVY = (
    *("torch", "openai", "pandas", "pyarrow", "transformers", "sentence_transformers", "stable_baselines3"),
    *("sb3_contrib", "sklearn", "scipy", "tensorboard", "matplotlib", "aiohttp", "pydantic", "typer", "rich"),
)
MODULES = ["instructgym", *(module.name for module in pkgutil.walk_packages(instructgym.__path__, "instructgym."))]


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    code += "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import instructgym",
        "import instructgym, gymnasium; gymnasium.spec('instructgym/InstructionEvolution-v0')",
        "from instructgym.types import Transition",
    ],
)
def test_import_loads_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize("package", ["agents", "envs", "llm_backends", "metrics", "rewards", "train"])
def test_no_package_loads_torch_or_openai(package: str) -> None:
    heavy = {"torch", "openai", "pandas", "transformers", "stable_baselines3", "sentence_transformers"}
    assert not loaded_by(f"import instructgym.{package}") & heavy


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_module_imports_and_exports_what_it_says(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    if exported is None:
        pytest.fail(f"{name} has no __all__")
    assert len(exported) == len(set(exported)), f"{name}.__all__ holds a name twice"
    missing = [item for item in exported if not hasattr(module, item)]
    assert not missing, f"{name}.__all__ names {missing}, which are not there"
    in_order = sorted(exported, key=isort_key)
    assert list(exported) == in_order, f"{name}.__all__ is not sorted: expected {in_order}"


def isort_key(name: str) -> tuple[int, str]:
    """The order that ruff holds `__all__` to: CONSTANTS, Classes, the rest."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_importing_twice_registers_once() -> None:
    before = dict(gymnasium.registry)
    instructgym.registration.register_envs()  # would warn, and warnings are errors
    importlib.reload(instructgym)
    assert dict(gymnasium.registry) == before


def test_no_file_of_the_package_is_over_600_lines() -> None:
    root = Path(instructgym.__file__).parent
    lengths = {
        str(path.relative_to(root.parent)): path.read_text("utf-8").count("\n") for path in sorted(root.rglob("*.py"))
    }
    too_long = {path: lines for path, lines in lengths.items() if lines > 600}
    assert not too_long, f"split these: {too_long}"
