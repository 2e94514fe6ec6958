# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""gRPC over HTTP/2 connections."""

import struct
from functools import partial

from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.grpc.call import Call
from edgeml_runtime.transports.grpc.calls import Calls
from edgeml_runtime.transports.grpc.http2 import Connection
from edgeml_runtime.transports.grpc.service import SERVICE, InferenceService
from edgeml_runtime.transports.grpc.windows import Shared
from hpack import Decoder
from signatures import Broken
from wire import FakeEngine, Wire, config

# UNKNOWN and INTERNAL are not among them: nothing that a client sends may make the server fail.
STATUSES = {b"0", b"1", b"3", b"4", b"5", b"7", b"8", b"12", b"14", b"16"}
_HTTP_STATUSES = {b"200", b"405", b"415"}
_KINDS = {0, 1, 3, 4, 6, 7, 8}
_LARGEST_FRAME = 16_384


class Grpc:
    """The methods of the protocol, for as many connections as one likes."""

    def __init__(self) -> None:
        bodies.LARGE = 100  # so that messages take both ways
        self._wire = Wire()
        self._wire.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        settings = config()
        service = InferenceService(FakeEngine(), Metrics(), None, settings)  # type: ignore[arg-type]
        self._calls = Calls(settings.limits, self._wire.loop.create_future())
        self._calls.add(SERVICE, service.answers(), service.conversations())
        self._shared = Shared(
            partial(Call, self._calls), settings.limits.body_bytes + 5, settings.limits, self._wire.loop
        )

    def converse(self, parts: list[bytes], ends: bool) -> None:
        """Send these parts, then end this side or break off, and check what is answered."""
        written = self._wire.converse(lambda: Connection(self._shared), parts, ends)
        if self._shared.connections:
            raise Broken("a connection was not forgotten")
        if self._calls.under_way or self._calls.buffered:
            raise Broken(f"{self._calls.under_way} calls and {self._calls.buffered} bytes are left over")
        _check_frames(written)


def _check_frames(written: bytes) -> None:
    decoder = Decoder()
    position = 0
    while position < len(written):
        if len(written) - position < 9:
            raise Broken(f"half a frame: {written[position:]!r}")
        high, low, kind, _flags, stream = struct.unpack_from(">HBBBL", written, position)
        length = high << 8 | low
        payload = written[position + 9 : position + 9 + length]
        if len(payload) != length or length > 2**20 or kind not in _KINDS or (stream % 2 == 0 and kind in (0, 1, 3)):
            raise Broken(f"no frame: kind {kind}, stream {stream}, {length} bytes")
        position += 9 + length
        if kind == 1:
            headers = dict(decoder.decode(payload, raw=True))
            if headers.get(b":status", b"200") not in _HTTP_STATUSES:
                raise Broken(f"answered {headers}")
            if headers.get(b"grpc-status", b"0") not in STATUSES:
                raise Broken(f"answered {headers}")
