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
    result: T
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            # No variable may keep the error or its future once it leaves here: its traceback keeps this frame.
            waits_for = None
            try:
                waits_for = begun.throw(error)
            except StopIteration as done:
                result = done.value
                return result
        else:
            waits_for = None
            try:
                waits_for = begun.send(value)
            except StopIteration as done:
                result = done.value
                return result
            value = None
