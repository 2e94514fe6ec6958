# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An event loop whose time passes only when nothing else is left to do, so that no outcome depends on speed."""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from typing import Any

from signatures import Broken


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Timers come at once, when all else is done. What would go to a thread is done in the next turn of the loop."""

    def __init__(self) -> None:
        self._now = _Now()
        super().__init__(self._now)
        # After months of this time, doubles no longer tell a timer that is due from one a nanosecond later.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Seconds, as timers count them."""
        return self._now.seconds

    def run_in_executor(
        self, _executor: object, function: Callable[..., object], *arguments: object
    ) -> asyncio.Future[Any]:
        """The result of a function, later."""
        future = self.create_future()
        self.call_soon(_complete, future, function, arguments)
        return future


def _complete(future: asyncio.Future[Any], function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = function(*arguments)
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class _Now(selectors.BaseSelector):
    """What the loop asks to wait: time passes instead. There is nothing else to wait for."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()  # of the socket that wakes up the loop
        self.seconds = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Broken("the event loop waits for something that never comes")
        self.seconds += timeout
        return self._selector.select(0)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()

    def close(self) -> None:
        self._selector.close()
