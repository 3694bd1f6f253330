"""InstructGym: instruction evolution as a Gymnasium environment, and what learns and trains with it.

Importing it registers ``instructgym/InstructionEvolution-v0`` and ``instructgym/TeaMsRL-v0``.
"""

from instructgym.registration import register_envs
from instructgym.types import Instruction, Score, Seed, Transition

__all__ = ["Instruction", "Score", "Seed", "Transition", "__version__"]

__version__ = "0.1.0"

register_envs()
