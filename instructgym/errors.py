"""Every error that InstructGym raises on purpose.

::

    InstructGymError                    exit code 1
    |-- UserError                       2   the user's input
    |   |-- ConfigError                     a config value, key or name
    |   |-- SeedError                       a seeds file
    |   |-- ActionSetError                  an action set, or an agent saved for another one
    |   |-- RunFolderError                  a folder that holds another run, is locked, or is of another schema
    |   |-- TrainingError                   a loss that is no number; the last good checkpoint is kept
    |   `-- MissingDependencyError          an optional package, with the pip line
    |-- UsageError                      1   the API used against its contract (a closed env, another process)
    |-- RewardError                     1   a reward returned something that is not a reward
    `-- BackendError                    2   a call to an LLM failed
        |-- TransientError                  worth another attempt
        |   |-- CallTimeout
        |   |-- ConnectionLost
        |   |-- RateLimited                 429; may carry retry_after_s
        |   |-- ServerError                 5xx, 408, 409
        |   `-- MalformedReply              cut or broken JSON, no choices
        |-- PermanentError                  the same request will fail again
        |   |-- BadRequest                  400 and what has no better name
        |   |-- AuthenticationFailed        401, 403, no key
        |   |-- ModelNotFound               404
        |   |-- ContentFiltered
        |   |-- ContextOverflow
        |   `-- ReplayMiss                  a recording does not hold the request
        |-- EndpointUnreachable             nobody listens there (before the first success)
        `-- BudgetExhausted             3   can go on with a larger budget
"""

from __future__ import annotations

__all__ = [
    "ActionSetError",
    "AuthenticationFailed",
    "BackendError",
    "BadRequest",
    "BudgetExhausted",
    "CallTimeout",
    "ConfigError",
    "ConnectionLost",
    "ContentFiltered",
    "ContextOverflow",
    "EndpointUnreachable",
    "InstructGymError",
    "MalformedReply",
    "MissingDependencyError",
    "ModelNotFound",
    "PermanentError",
    "RateLimited",
    "ReplayMiss",
    "RewardError",
    "RunFolderError",
    "SeedError",
    "ServerError",
    "TrainingError",
    "TransientError",
    "UsageError",
    "UserError",
]


class InstructGymError(Exception):
    """Base of all; `exit_code` is what the command line ends with."""

    exit_code = 1


class UserError(InstructGymError):
    exit_code = 2


class ConfigError(UserError):
    pass


class SeedError(UserError):
    pass


class ActionSetError(UserError):
    pass


class RunFolderError(UserError):
    pass


class TrainingError(UserError):
    pass


class MissingDependencyError(UserError):
    pass


class UsageError(InstructGymError):
    pass


class RewardError(InstructGymError):
    pass


class BackendError(InstructGymError):
    """A call to an LLM failed. `status` is the HTTP status where there was one."""

    exit_code = 2

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class TransientError(BackendError):
    """Worth another attempt; `retry_after_s` is what the server asked for, if it did."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class CallTimeout(TransientError):
    pass


class ConnectionLost(TransientError):
    pass


class RateLimited(TransientError):
    pass


class ServerError(TransientError):
    pass


class MalformedReply(TransientError):
    pass


class PermanentError(BackendError):
    pass


class BadRequest(PermanentError):
    pass


class AuthenticationFailed(PermanentError):
    pass


class ModelNotFound(PermanentError):
    pass


class ContentFiltered(PermanentError):
    pass


class ContextOverflow(PermanentError):
    pass


class ReplayMiss(PermanentError):
    pass


class EndpointUnreachable(BackendError):
    pass


class BudgetExhausted(BackendError):
    exit_code = 3
