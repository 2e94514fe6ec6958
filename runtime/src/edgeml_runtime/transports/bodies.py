# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Memory for bodies while they are received: parts of small ones, one buffer for each large one."""

import asyncio
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from edgeml_runtime.memory import KEPT_BUFFER_BYTES, trim

#: Bytes of a body from which on it gets a buffer.
LARGE = 64 * 1024
# So many bytes of buffers stay for the next bodies, and so long after the last one.
_SPARE_BYTES = 8 << 20
_SPARE_SECONDS = 10.0
# A boundary that fits every datatype.
_BOUNDARY = 16
_PART = 4096
_SMALL_PART = 1024


def collect(parts: list[bytes], part: bytes) -> None:
    """Add to the parts of a body; small ones are joined, since each takes 40 bytes more than it holds."""
    if parts and len(part) < _SMALL_PART and len(parts[-1]) < _PART:
        parts[-1] += part
    else:
        parts.append(part)


def joined(parts: list[bytes], aligned_at: int) -> bytes | memoryview:
    """The parts in one piece, byte ``aligned_at`` on a boundary of 16 bytes."""
    padding = -aligned_at % _BOUNDARY  # the content of a bytes object is aligned
    if not padding:
        return b"".join(parts)
    return memoryview(b"".join((bytes(padding), *parts)))[padding:]


class Body:
    """A body of ``size`` bytes that is being received, in one piece from the beginning."""

    __slots__ = ("_end", "_memory", "_position", "_start", "_view", "size")

    def __init__(self, memory: mmap, size: int, aligned_at: int) -> None:
        self._memory = memory
        self._view = memoryview(memory)  # while it is there, the memory is nobody else's
        self._start = self._position = -aligned_at % _BOUNDARY
        self._end = self._start + size
        self.size = size

    @property
    def received(self) -> int:
        """Bytes that are there."""
        return self._position - self._start

    def room(self) -> memoryview:
        """Where the next bytes go; not all that are missing, as long as few are there."""
        if self._position == len(self._memory):
            self._view.release()
            self._memory.resize(2 * len(self._memory))
            self._view = memoryview(self._memory)
        return self._view[self._position : self._end]

    def took(self, size: int) -> None:
        """So many bytes are in the room."""
        self._position += size

    def add(self, part: bytes | memoryview) -> None:
        """Copy a part; it must not be longer than what is missing."""
        while part:
            room = self.room()[: len(part)]
            room[:] = part[: len(room)]
            self._position += len(room)
            part = part[len(room) :]
            room.release()

    @property
    def missing(self) -> int:
        """Bytes that have yet to come."""
        return self._end - self._position

    def content(self) -> memoryview:
        """The complete body."""
        return self._view[self._start : self._end]


class Buffers:
    """Gives each large body its memory, the same again and again.

    The first use of a page costs a process more than filling it ten times. A buffer is free when nothing refers to it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spare: list[mmap] = []
        self._timer: asyncio.TimerHandle | None = None
        self._used = False

    def body(self, size: int, received: int, aligned_at: int) -> Body:
        """Memory for a body of ``size`` bytes, of which ``received`` are there.

        New memory grows with what comes: whoever announces much makes the process take no more than he sends twice.
        ``aligned_at``: this byte will be on a boundary of 16 bytes.
        """
        self._used = True
        wanted = size + _BOUNDARY
        for memory in self._spare:
            if wanted <= len(memory) <= 4 * wanted and _is_free(memory):
                return Body(memory, size, aligned_at)
        first = wanted
        while first > 2 * max(received, LARGE):
            first = -(-first // 2)
        memory = mmap(-1, first, MAP_PRIVATE | MAP_ANONYMOUS)  # the system gives pages as they are filled
        self._keep(memory, wanted)
        return Body(memory, size, aligned_at)

    def _keep(self, memory: mmap, wanted: int) -> None:
        if wanted > KEPT_BUFFER_BYTES:
            return
        left = sum(map(len, self._spare)) + wanted - _SPARE_BYTES
        for other in [*self._spare] if left > 0 else ():
            if left > 0 and _is_free(other):
                self._spare.remove(other)
                left -= len(other)
        if left > 0:
            return
        self._spare.append(memory)
        if self._timer is None:
            self._timer = self._loop.call_later(_SPARE_SECONDS, self._forget)

    def _forget(self) -> None:
        self._timer = None
        if self._used:
            self._used = False
            self._timer = self._loop.call_later(_SPARE_SECONDS, self._forget)
        else:
            self._spare.clear()
            trim()


def _is_free(memory: mmap) -> bool:
    try:
        memory.resize(len(memory))  # refused while anything looks at it
    except BufferError:
        return False
    return True
