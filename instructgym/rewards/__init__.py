"""What is good: rewards, their composition, and the encoders that some of them use."""

from instructgym.rewards.base import Reward
from instructgym.rewards.composition import FunctionReward, Gate, WeightedSum, as_reward
from instructgym.rewards.encoders import Encoder, HashingEncoder, SentenceTransformerEncoder, open_encoder
from instructgym.rewards.novelty import Novelty
from instructgym.rewards.prompts import parse_equality
from instructgym.rewards.registry import REWARDS, RewardInfo, make_reward, requires, reward_names
from instructgym.rewards.reviewer import ReviewerEquality, Verdict, ask_equality
from instructgym.rewards.validity import Validity

__all__ = [
    "REWARDS",
    "Encoder",
    "FunctionReward",
    "Gate",
    "HashingEncoder",
    "Novelty",
    "ReviewerEquality",
    "Reward",
    "RewardInfo",
    "SentenceTransformerEncoder",
    "Validity",
    "Verdict",
    "WeightedSum",
    "as_reward",
    "ask_equality",
    "make_reward",
    "open_encoder",
    "parse_equality",
    "requires",
    "reward_names",
]
