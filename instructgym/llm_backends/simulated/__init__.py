"""The simulated backend: a seeded stand-in for expert, reviewer and student. Not a language model."""

from instructgym.llm_backends.simulated.backend import SIMULATOR_VERSION, SimulatedBackend

__all__ = ["SIMULATOR_VERSION", "SimulatedBackend"]
