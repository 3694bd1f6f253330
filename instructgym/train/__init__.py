"""What a run does: its config, its stages and its folder. Importing it loads none of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructgym.train.config import Config
    from instructgym.train.config_text import load_config
    from instructgym.train.pipeline import RunResult, run
    from instructgym.train.progress import Progress

__all__ = ["Config", "Progress", "RunResult", "load_config", "run"]

_LAZY = {
    "Config": "config",
    "Progress": "progress",
    "RunResult": "pipeline",
    "load_config": "config_text",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"instructgym.train.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'instructgym.train' has no attribute '{name}'")
