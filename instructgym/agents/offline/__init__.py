"""Learning and judging agents from logged episodes alone. Importing it loads no torch."""

from __future__ import annotations

from instructgym.agents.offline.cloning import BehaviourCloning
from instructgym.agents.offline.estimators import (
    DEFAULT_ESTIMATOR,
    ESTIMATORS,
    OffPolicyEstimate,
    off_policy_value,
    off_policy_values,
)
from instructgym.agents.offline.fitted_q import FittedQ
from instructgym.agents.offline.logs import Batch, LoggedEpisodes

__all__ = [
    "DEFAULT_ESTIMATOR",
    "ESTIMATORS",
    "Batch",
    "BehaviourCloning",
    "FittedQ",
    "LoggedEpisodes",
    "OffPolicyEstimate",
    "off_policy_value",
    "off_policy_values",
]
