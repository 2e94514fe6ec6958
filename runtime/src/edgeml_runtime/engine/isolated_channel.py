# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the server and a process with isolated code say to each other, over a pair of unix sockets.

A message is a length, a JSON object of that length, and the raw bytes of tensors, whose sizes the
object tells. Nothing is unpickled: neither side can make the other run anything.
"""

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeml_runtime.errors import RequestError
from edgeml_runtime.tensors import Array, TensorSpec, from_raw, to_raw

_LENGTH = struct.Struct("<I")
_LARGEST_HEADER = 2**24
_LARGEST_MESSAGE = 2**32
#: Up to here bytes are joined and sent at once; above, a copy costs more than a system call.
_JOINED_BYTES = 2**16


class ChannelError(Exception):
    """The other side is too slow or says what is no message; the text says what it did."""


class ChannelClosed(ChannelError):
    """The other side is gone."""


class Channel:
    """One end. ``deadline``: a time of time.monotonic, None for no end."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, header: Mapping[str, Any], tensors: Sequence[Array] = (), deadline: float | None = None) -> None:
        """Send one message. Raises ChannelError."""
        raw = [to_raw(tensor) for tensor in tensors]
        described = {"shapes": [tensor.shape for tensor in tensors], "sizes": [len(part) for part in raw]}
        encoded = json.dumps({**header, **described}).encode()
        parts: list[bytes | memoryview] = [_LENGTH.pack(len(encoded)), encoded, *raw]
        joined = len(parts) if sum(map(len, parts)) <= _JOINED_BYTES else 2
        parts[:joined] = [b"".join(parts[:joined])]
        try:
            for part in parts:
                self._limit(deadline)
                self._socket.sendall(part)
        except OSError as error:
            raise _failed(error) from None

    def receive(
        self, specs: Sequence[TensorSpec] | None = None, deadline: float | None = None
    ) -> tuple[dict[str, Any], list[Array]]:
        """The next message; its tensors are those of ``specs``, or none at all. Raises ChannelError."""
        try:
            header, raw = self._receive(deadline)
        except OSError as error:
            raise _failed(error) from None
        except (MemoryError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ChannelError(f"sent what is no message ({type(error).__name__})") from None
        if not raw:
            return header, []
        if specs is None or len(raw) != len(specs):
            raise ChannelError(f"sent {len(raw)} tensors")
        tensors = []
        for spec, shape, part in zip(specs, header["shapes"], raw, strict=True):
            try:
                tensors.append(from_raw(spec, spec.check(spec.datatype, shape), part))
            except RequestError as error:
                raise ChannelError(f"sent a wrong tensor ({error})") from None
        return header, tensors

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    # -- private ---------------------------------------------------------------------------------------------------

    def _receive(self, deadline: float | None) -> tuple[dict[str, Any], list[memoryview]]:
        # Small messages come whole in the first read.
        self._limit(deadline)
        first = memoryview(self._socket.recv(_JOINED_BYTES))
        length, first = self._take(_LENGTH.size, first, deadline)
        size = _LENGTH.unpack(length)[0]
        if size > _LARGEST_HEADER:
            raise ValueError
        encoded, first = self._take(size, first, deadline)
        header = json.loads(bytes(encoded))
        sizes = header["sizes"]
        if any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) > _LARGEST_MESSAGE:
            raise ValueError
        if type(header["shapes"]) is not list or len(header["shapes"]) != len(sizes):
            raise ValueError
        raw = []
        for size in sizes:
            part, first = self._take(size, first, deadline)
            raw.append(part)
        if first:
            raise ValueError
        return header, raw

    def _take(self, size: int, received: memoryview, deadline: float | None) -> tuple[memoryview, memoryview]:
        """``size`` bytes, of which ``received`` are there already, and what is left of these."""
        if size == 0:
            return received[:0], received
        taken = np.empty(size, np.uint8).data  # aligned, and not filled with zeros first
        have = min(size, len(received))
        taken[:have] = received[:have]
        while have < size:
            self._limit(deadline)
            more = self._socket.recv_into(taken[have:])
            if not more:
                raise ConnectionResetError("closed")
            have += more
        return taken, received[min(size, len(received)) :]

    def _limit(self, deadline: float | None) -> None:
        if deadline is not None:
            # Zero would mean not to wait at all, which is another error.
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))


def _failed(error: OSError) -> ChannelError:
    if isinstance(error, TimeoutError):
        return ChannelError("did not answer in time")
    return ChannelClosed("closed its channel")
