# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Turns in which large bodies are received: who waits for one leaves its body with the system and the client."""

import asyncio
from collections import deque
from collections.abc import Callable

# A body that takes longer to come counts no more: a slow client keeps nobody waiting.
TURN_SECONDS = 0.25
# Nobody waits longer, whoever else there is.
WAIT_SECONDS = 5.0


class Turn:
    """A body that is being received or waits for it. ``begin`` is called when it may be read."""

    __slots__ = ("_begin", "since", "size")

    def __init__(self, size: int, begin: Callable[[], None], since: float) -> None:
        self.size = size
        self.since = since  # it waits, or has its turn
        self._begin = begin

    def start(self, now: float) -> None:
        """It may be read from now on."""
        self.since = now
        self._begin()


class Turns:
    """Bodies of at most ``most_bytes`` together have their turn, or one alone; first come, first served."""

    def __init__(self, most_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._most_bytes = most_bytes
        self._loop = loop
        self._under_way: dict[Turn, None] = {}
        self._waiting: deque[Turn] = deque()
        self._bytes = 0  # of those under way
        self._timer: asyncio.TimerHandle | None = None

    def take(self, size: int, begin: Callable[[], None]) -> Turn:
        """A turn for a body; ``begin`` is called when it has come, at once if there is room."""
        turn = Turn(size, begin, self._loop.time())
        self._waiting.append(turn)
        self._go_on()
        return turn

    def end(self, turn: Turn) -> None:
        """The body is complete, or nobody reads it any more."""
        if turn in self._under_way:
            self._leave(turn)
        elif turn in self._waiting:
            self._waiting.remove(turn)
        self._go_on()

    def _leave(self, turn: Turn) -> None:
        del self._under_way[turn]
        self._bytes -= turn.size

    def _go_on(self) -> None:
        while self._waiting and (
            not self._under_way or self._bytes + self._waiting[0].size <= self._most_bytes or self._is_late()
        ):
            turn = self._waiting.popleft()
            self._under_way[turn] = None
            self._bytes += turn.size
            turn.start(self._loop.time())
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(TURN_SECONDS, self._pass_on)

    def _is_late(self) -> bool:
        return self._loop.time() - self._waiting[0].since > WAIT_SECONDS

    def _pass_on(self) -> None:
        self._timer = None
        last = self._loop.time() - TURN_SECONDS
        for turn in [turn for turn in self._under_way if turn.since <= last]:
            self._leave(turn)
        self._go_on()
