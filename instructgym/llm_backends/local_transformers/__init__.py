"""A transformers model in this process: chat prompts, a micro-batcher, and draws that no neighbour changes."""

from instructgym.llm_backends.local_transformers.backend import TransformersBackend

__all__ = ["TransformersBackend"]
