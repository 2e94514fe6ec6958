# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Answers that clients have not taken yet: how many bytes wait, and how many may.

Counted are answers that the system does not take at once, since their client does not read. Each connection has a
count of its own within that of its listener, which is within that of the whole server.
"""

import asyncio

#: Smaller answers are not refused; the limits of connections and calls bound them.
LARGE = 16 * 1024


class Unsent:
    """A count within a larger one."""

    __slots__ = ("bytes", "most", "refused", "within")

    def __init__(self, most: int, within: "Unsent | None" = None) -> None:
        self.bytes = 0
        self.most = most
        self.within = within
        #: Answers that were dropped, here and in all counts within this one.
        self.refused = 0

    def has_room(self, size: int) -> bool:
        """Whether one more answer may wait; alone it may whatever its size. A refusal is counted."""
        count: Unsent | None = self
        while count is not None:
            if count.bytes and count.bytes + size > count.most:
                self._count_refusal()
                return False
            count = count.within
        return True

    def add(self, size: int) -> None:
        """So many bytes wait, or wait no more when it is negative."""
        count: Unsent | None = self
        while count is not None:
            count.bytes += size
            count = count.within

    def message(self) -> str:
        """Why an answer is dropped."""
        return f"answers of {self.bytes} bytes wait for clients that do not read them; take them, and try again"

    def _count_refusal(self) -> None:
        count: Unsent | None = self
        while count is not None:
            count.refused += 1
            count = count.within


def close(transport: asyncio.Transport, seconds: float) -> None:
    """Close once the client has taken all; at once when it takes nothing for so long, as one that never reads."""
    transport.close()
    _watch(transport, seconds, None)


def _watch(transport: asyncio.Transport, seconds: float, before: int | None) -> None:
    left = transport.get_write_buffer_size()
    if before is not None and left >= before:
        transport.abort()
    elif left:
        asyncio.get_running_loop().call_later(seconds, _watch, transport, seconds, left)
