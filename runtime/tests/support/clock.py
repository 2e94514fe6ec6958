# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""An event loop's time, which goes on when it is told to."""

from collections.abc import Callable
from typing import Any


class Clock:
    """What counts time asks of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        """Seconds."""
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        """Call later."""
        timer = (self.now + delay, callback)
        self._timers.append(timer)
        return timer

    def pass_by(self, seconds: float) -> None:
        """Let time go by."""
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self._timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end
