# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Coroutines that begin outside a task: most answers are there with the first step, and a task costs more than that."""

from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def rest_of(begun: Coroutine[Any, Any, T], waits_for: Any) -> T:
    """The rest of a coroutine that was begun outside a task and waits for a future."""
    return await _resumed(begun, waits_for)


@coroutine
def _resumed(begun: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    while True:
        resume = begun.send
        argument: Any = None
        try:
            argument = yield waits_for
        except BaseException as error:
            resume, argument = begun.throw, error
        try:
            waits_for = resume(argument)
        except StopIteration as done:
            result: T = done.value
            return result
