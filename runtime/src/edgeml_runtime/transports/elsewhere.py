# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A thread for what takes longer than the event loop may be held up: large bodies, one after the other."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Elsewhere:
    """Calls functions on a thread of its own, which is started with the first call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="codec")

    async def __call__(self, function: Callable[P, T], *arguments: P.args, **_none: P.kwargs) -> T:
        """What the function gives or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
