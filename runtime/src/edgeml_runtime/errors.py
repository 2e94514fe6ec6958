# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The three ways to fail: a wrong configuration, a failed start, a failed request."""

from enum import Enum


class ConfigurationError(Exception):
    """The configuration file is wrong; the process ends with exit code 2.

    One line: file, key, the value seen, what is allowed, what to do.
    """

    def __init__(self, file: str, key: str, seen: str, allowed: str, remedy: str = "") -> None:
        self.key, self.seen, self.allowed = key, seen, allowed
        place = f"{file}: {key}" if key else file
        super().__init__(f"{place}: seen {seen}; allowed: {allowed}; {remedy or 'correct the value'}")


class StartError(Exception):
    """A model cannot be loaded or a listener cannot be opened; the process ends with exit code 1."""


class Failure(Enum):
    """Why a request failed, in words of no particular protocol."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not found"
    UNIMPLEMENTED = "unimplemented"
    TOO_LARGE = "too large"
    TOO_MANY = "too many"
    DEADLINE = "deadline"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class RequestError(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, failure: Failure, message: str) -> None:
        # The message may quote the request, which can be large.
        super().__init__(message if len(message) <= 500 else message[:497] + "...")
        self.failure = failure


def bare(error: RequestError) -> RequestError:
    """The error without traceback and causes: these know the frames that raised it, and so the request's tensors."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def invalid(message: str) -> RequestError:
    """The request breaks the protocol or does not fit the model."""
    return RequestError(Failure.INVALID, message)
