"""Texts as vectors: the encoders that rewards, elimination rules and observations share."""

from instructgym.rewards.encoders.base import Encoder
from instructgym.rewards.encoders.hashing import HashingEncoder
from instructgym.rewards.encoders.opening import open_encoder
from instructgym.rewards.encoders.sentence import SentenceTransformerEncoder

__all__ = ["Encoder", "HashingEncoder", "SentenceTransformerEncoder", "open_encoder"]
