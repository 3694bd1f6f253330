"""Instructors that are language models: one that learns, one that is asked. Importing it loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from instructgym.agents.language_model.prompted import PromptedInstructor

if TYPE_CHECKING:
    from instructgym.agents.language_model.agent import LMInstructor
    from instructgym.agents.language_model.config import LMConfig

__all__ = ["LMConfig", "LMInstructor", "PromptedInstructor"]

_LAZY = {"LMConfig": "config", "LMInstructor": "agent"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"instructgym.agents.language_model.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'instructgym.agents.language_model' has no attribute '{name}'")
