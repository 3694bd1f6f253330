"""The MDP: operations and action sets, elimination, dynamics, observations, and the Gymnasium environments."""

from instructgym.envs.action_sets import BUILTIN_ACTION_SETS
from instructgym.envs.dynamics import Dynamics, Outcome, State
from instructgym.envs.elimination import DEFAULT_RULES, RULES, EliminationRules
from instructgym.envs.env import InstructionEvolutionEnv
from instructgym.envs.loading import action_set_names, load_action_set
from instructgym.envs.observations import OBSERVATION_MODES, ByteTokenizer, Observer, Tokenizer
from instructgym.envs.operations import ActionSet, Operation, Rewrite, Stop
from instructgym.envs.seeds import load_seeds
from instructgym.envs.spec import EnvConfig
from instructgym.envs.vector_env import InstructionEvolutionVectorEnv

__all__ = [
    "BUILTIN_ACTION_SETS",
    "DEFAULT_RULES",
    "OBSERVATION_MODES",
    "RULES",
    "ActionSet",
    "ByteTokenizer",
    "Dynamics",
    "EliminationRules",
    "EnvConfig",
    "InstructionEvolutionEnv",
    "InstructionEvolutionVectorEnv",
    "Observer",
    "Operation",
    "Outcome",
    "Rewrite",
    "State",
    "Stop",
    "Tokenizer",
    "action_set_names",
    "load_action_set",
    "load_seeds",
]
