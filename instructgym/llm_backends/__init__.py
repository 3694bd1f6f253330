"""Who answers: the backends, and the one stack of wrappers around them."""

from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.llm_backends.budget import Budget
from instructgym.llm_backends.endpoint_pool import EndpointPool, EndpointStats
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.openai_compatible import OpenAICompatibleBackend
from instructgym.llm_backends.portal import Portal, acquire_portal
from instructgym.llm_backends.pricing import Price
from instructgym.llm_backends.replay import ReplayBackend
from instructgym.llm_backends.seeding import request_seed
from instructgym.llm_backends.stack import BackendStack, open_stack

__all__ = [
    "LLM",
    "BackendStack",
    "Budget",
    "EndpointPool",
    "EndpointStats",
    "LLMBackend",
    "Limits",
    "OpenAICompatibleBackend",
    "Portal",
    "Price",
    "ReplayBackend",
    "acquire_portal",
    "open_stack",
    "request_seed",
]
