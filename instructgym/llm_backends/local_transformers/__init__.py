"""A transformers model in this process: chat prompts, a micro-batcher, and draws that no neighbour changes."""

from instructgym.llm_backends.local_transformers.backend import TransformersBackend
from instructgym.llm_backends.local_transformers.scoring import (
    LocalScorer,
    TextLoss,
    Unscored,
    close_scorers,
    open_scorer,
)

__all__ = ["LocalScorer", "TextLoss", "TransformersBackend", "Unscored", "close_scorers", "open_scorer"]
