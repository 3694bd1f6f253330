"""What is good: rewards, their composition, and the encoders that some of them use."""

from instructgym.rewards.base import AnswerReward, InstructionReward, Reward
from instructgym.rewards.building import make_reward, requires
from instructgym.rewards.composition import (
    Clip,
    FunctionReward,
    Gate,
    Lagrangian,
    Normalize,
    Product,
    Schedule,
    WeightedSum,
    as_reward,
)
from instructgym.rewards.control.validity import Validity
from instructgym.rewards.diversity.novelty import Novelty
from instructgym.rewards.encoders import Encoder, HashingEncoder, SentenceTransformerEncoder, open_encoder
from instructgym.rewards.judging.equality import parse_equality
from instructgym.rewards.registry import REWARDS, RewardInfo, find_reward, reward_names
from instructgym.rewards.reviewers.equality import ReviewerEquality, Verdict, ask_equality

__all__ = [
    "REWARDS",
    "AnswerReward",
    "Clip",
    "Encoder",
    "FunctionReward",
    "Gate",
    "HashingEncoder",
    "InstructionReward",
    "Lagrangian",
    "Normalize",
    "Novelty",
    "Product",
    "ReviewerEquality",
    "Reward",
    "RewardInfo",
    "Schedule",
    "SentenceTransformerEncoder",
    "Validity",
    "Verdict",
    "WeightedSum",
    "as_reward",
    "ask_equality",
    "find_reward",
    "make_reward",
    "open_encoder",
    "parse_equality",
    "requires",
    "reward_names",
]
