"""Every error that TGIS raises deliberately, with the name of its gRPC status and its process exit code.

::

    TgisError
    ├── UsageError            bad option, environment variable, config file, port or directory  exit 2
    ├── ModelError            the model's files are missing, broken or not supported            exit 3
    │   └── ModelNotFound     no such model, or the name belongs to something else
    ├── NotEnoughDevices      too few devices, or too little memory or disk space               exit 4
    ├── GroupFailed           a process of the group died or hung                               exit 5
    │   └── PeerLost          *another* process is gone: a consequence, not the root cause
    ├── HubError              the model hub cannot be reached, or the connection breaks         exit 6
    └── RequestError          a single request fails
        ├── InvalidRequest    INVALID_ARGUMENT
        ├── RequestTooLarge   OUT_OF_RANGE
        ├── Undecodable       INTERNAL: the request's bytes cannot be decoded
        ├── Overloaded        RESOURCE_EXHAUSTED: no permit is free
        ├── OutOfMemory       RESOURCE_EXHAUSTED: the device could not hold the step
        ├── Unavailable       UNAVAILABLE: draining, or the engine is gone
        └── GenerationFailed  INTERNAL

Imports neither grpc nor torch, so every process can import it quickly.
"""

from __future__ import annotations

from typing import ClassVar


class TgisError(Exception):
    """An error whose text tells a person what happened, with values, and what to do."""

    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1
    is_secondary: ClassVar[bool] = False


class UsageError(TgisError):
    status = "INVALID_ARGUMENT"
    exit_code = 2


class ModelError(TgisError):
    status = "FAILED_PRECONDITION"
    exit_code = 3


class ModelNotFound(ModelError):
    """There is no such model, or the name belongs to something that is not a model."""


class NotEnoughDevices(TgisError):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 4


class GroupFailed(TgisError):
    status = "UNAVAILABLE"
    exit_code = 5


class PeerLost(GroupFailed):
    is_secondary = True


class HubError(TgisError):
    status = "UNAVAILABLE"
    exit_code = 6


class RequestError(TgisError):
    pass


class InvalidRequest(RequestError):
    status = "INVALID_ARGUMENT"


class RequestTooLarge(RequestError):
    status = "OUT_OF_RANGE"


class Undecodable(RequestError):
    pass


class Overloaded(RequestError):
    status = "RESOURCE_EXHAUSTED"

    def __init__(self, text: str = "Model is overloaded") -> None:
        super().__init__(text)


class OutOfMemory(RequestError):
    status = "RESOURCE_EXHAUSTED"

    def __init__(self, text: str = "GPU out of memory") -> None:
        super().__init__(text)


class Unavailable(RequestError):
    status = "UNAVAILABLE"


class GenerationFailed(RequestError):
    status = "INTERNAL"


def with_status(status: str, text: str) -> RequestError:
    """The request error with ``status``, rebuilt from the name and text that another process sent."""
    for kind in (InvalidRequest, OutOfMemory, Unavailable):
        if kind.status == status:
            return kind(text)
    return GenerationFailed(text)
