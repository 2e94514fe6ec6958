# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the HTTP connections of one listener share: limits, buffers, turns, and heads that were read before."""

import asyncio
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from edgeml_runtime.config import Limits
from edgeml_runtime.transports.bodies import Buffers
from edgeml_runtime.transports.http.messages import Application, Request
from edgeml_runtime.transports.turns import Turns
from edgeml_runtime.transports.unsent import Unsent

if TYPE_CHECKING:
    from edgeml_runtime.transports.http.answering import Answering

# Heads that are remembered, and bytes of one.
_MOST_HEADS = 512
_LONGEST_HEAD = 2048


class Shared:
    """What the connections of one listener share."""

    def __init__(
        self, application: Application, limits: Limits, loop: asyncio.AbstractEventLoop, unsent: Unsent | None = None
    ) -> None:
        """``unsent``: of all listeners together."""
        self.application = application
        self.limits = limits
        self.loop = loop
        self.connections: set[Answering] = set()
        self.shed: set[Answering] = set()
        self.draining = False
        #: Bytes of bodies that are being received or whose requests are not yet answered.
        self.held = 0
        self.unsent = Unsent(limits.unsent_listener_bytes, unsent)
        self.buffers = Buffers(loop)
        self.turns = Turns(limits.receiving_bytes, loop)
        #: Set while there is no connection.
        self.empty = asyncio.Event()
        self.empty.set()
        #: Heads of requests with a body of known length, since most clients send the same head each
        #: time: parsing it anew costs more than all else of HTTP.
        self.heads: dict[bytes, _Head] = {}
        self._status_lines: dict[int, bytes] = {}
        self._status_lines_until = 0.0

    def remember(self, data: bytes, request: Request, body_bytes: int) -> None:
        """Remember the head that ``data`` begins with, where there can be no doubt about its end."""
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        if end < 4 or end > _LONGEST_HEAD or not head.startswith(request.method):
            return
        if head.count(b"\n") != head.count(b"\r\n"):
            return
        if len(self.heads) >= _MOST_HEADS:
            self.heads.clear()
        self.heads[head] = _Head(request.method, request.url, request.headers, body_bytes)

    def status_line(self, status: int, now: float) -> bytes:
        """Status line and date."""
        if now >= self._status_lines_until:
            self._status_lines.clear()
            self._status_lines_until = now + 1
        line = self._status_lines.get(status)
        if line is None:
            phrase = HTTPStatus(status).phrase
            line = f"HTTP/1.1 {status} {phrase}\r\ndate: {formatdate(usegmt=True)}\r\n".encode()
            self._status_lines[status] = line
        return line


class _Head(NamedTuple):
    """A request's head that the parser has read: the same bytes mean the same again."""

    method: bytes
    url: bytes
    headers: Mapping[bytes, bytes]
    body_bytes: int
