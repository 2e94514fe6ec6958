# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The same frames to our gRPC server and to grpcio's: which calls each serves, with which answer or status.

Both serve a method that answers with what it was sent. Ours may refuse what breaks HTTP/2 (RFC 9113), of which grpcio
overlooks much; all differences must be among ``KNOWN``. Padded frames
are left out: grpcio's server resets them.
"""

import gzip
import os
import socket
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it logs each call that is odd

import grpc  # type: ignore[import-untyped]
import http2
from edgeml_runtime.transports.grpc.call import Call
from edgeml_runtime.transports.grpc.calls import Calls
from edgeml_runtime.transports.grpc.http2 import Connection
from edgeml_runtime.transports.grpc.service import Call as ServiceCall
from edgeml_runtime.transports.grpc.windows import Shared
from hpack import Decoder, HPACKError
from mutation import Choices
from signatures import Broken
from wire import LIMITS, Wire, config

ECHO = "/test.Echo/Echo"
#: The call that comes last and is right: when it has ended, so have the others.
LAST = 100_001
# Of grpcio; whatever it has not ended by then is asked again, and in the end left out.
_SECONDS = 10
_TRIES = 5
WITH_PRIORITY = 0x20


class Outcome(NamedTuple):
    """How a call ended: a status with an answer, a reset, an answer of HTTP alone, or not at all."""

    how: str
    answer: bytes = b""


_OPEN = Outcome("open")


class Sent(NamedTuple):
    """Calls on one connection: their frames, and what is odd about which."""

    frames: bytes
    oddities: dict[int, str]


class GrpcPeers:
    """Our server in memory and grpcio's on a port of loopback."""

    def __init__(self) -> None:
        self._wire = Wire()
        self._wire.loop.run_until_complete(self._make())
        self._pool = ThreadPoolExecutor(1)
        options = [
            ("grpc.max_receive_message_length", config().limits.body_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_ping_strikes", 0),  # it would end a connection after three pings
        ]
        self._server = grpc.server(self._pool, handlers=[_Echo()], options=options)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    async def _make(self) -> None:
        async def echo(call: ServiceCall) -> bytes:
            return bytes(await call.receive())

        limits = config().limits
        calls = Calls(limits, self._wire.loop.create_future())
        calls.add("test.Echo", {"Echo": echo}, {})
        self._shared = Shared(partial(Call, calls), limits.body_bytes + 5, limits, self._wire.loop)

    def close(self) -> None:
        """End grpcio's server."""
        self._server.stop(None).wait()
        self._pool.shutdown()

    def compare(self, sent: Sent) -> str | None:
        """Send these calls to each. Raises Broken when they end otherwise, whenever grpcio is asked.

        Gives why nothing can be said of them: grpcio does not end a call, or each time in another way.
        """
        last = http2.call(LAST, ECHO, http2.message(b"last"))
        whole = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + sent.frames + last
        ours = _outcomes(self._wire.converse(lambda: Connection(self._shared), [whole], ends=True, patient=True))
        differing: dict[int, set[Outcome]] = {}
        for attempt in range(_TRIES):
            theirs = _differences(sent.oddities, ours, _outcomes(self._ask(whole, attempt * 0.05)))
            if attempt:  # what was once the same, is the same
                differing = {number: differing[number] | {theirs[number]} for number in differing.keys() & theirs}
            else:
                differing = {number: {there} for number, there in theirs.items()}
            if not differing:
                return None
        steady = {number: one.pop() for number, one in differing.items() if len(one) == 1 and one != {_OPEN}}
        if steady:
            raise Broken("; ".join(_told(number, sent, ours, there) for number, there in steady.items()))
        return "grpcio gives no steady end to " + ", ".join(sent.oddities.get(each) or "right" for each in differing)

    def _ask(self, whole: bytes, grace: float) -> bytes:
        received = b""
        with (
            suppress(ConnectionError, TimeoutError),
            socket.create_connection(("127.0.0.1", self._port), timeout=_SECONDS) as connection,
        ):
            connection.sendall(whole)
            while LAST not in _outcomes(received):
                part = connection.recv(65536)
                if not part:
                    return received
                received += part
            connection.settimeout(grace or 0.001)
            while part := connection.recv(65536):
                received += part
        return received


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        if details.method != ECHO:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


def _differences(oddities: dict[int, str], ours: dict[int, Outcome], theirs: dict[int, Outcome]) -> dict[int, Outcome]:
    """How calls ended there that ended otherwise here, if not by design."""
    found = {}
    for number in sorted({*ours, *theirs}):
        here, there = ours.get(number, _OPEN), theirs.get(number, _OPEN)
        if here != there and here.how != KNOWN.get(oddities.get(number, "")):
            found[number] = there
    return found


def _told(number: int, sent: Sent, ours: dict[int, Outcome], there: Outcome) -> str:
    return f"{sent.oddities.get(number) or 'right'}: {ours.get(number, _OPEN)} here, {there} there"


def _outcomes(received: bytes) -> dict[int, Outcome]:
    """How each stream ended; what the connection's end says stands under 0."""
    outcomes: dict[int, Outcome] = {}
    bodies: dict[int, bytes] = {}
    decoder = Decoder()
    position = 0
    while position + 9 <= len(received):
        high, low, kind, flags, number = struct.unpack_from(">HBBBL", received, position)
        payload = received[position + 9 : position + 9 + (high << 8 | low)]
        position += 9 + (high << 8 | low)
        if kind == http2.GOAWAY and (code := struct.unpack_from(">L", payload, 4)[0]):
            outcomes[0] = Outcome("goaway", b"%d" % code)
        if kind == http2.RST_STREAM:
            outcomes.setdefault(number, Outcome(f"reset {struct.unpack('>L', payload)[0]}"))
        if kind == http2.DATA:
            bodies[number] = bodies.get(number, b"") + payload
        if kind == http2.HEADERS:
            with suppress(HPACKError):
                headers = dict(decoder.decode(payload, raw=True))
            if flags & http2.END_STREAM:
                status = headers.get(b"grpc-status")
                how = f"status {int(status)}" if status else f"http {headers[b':status'].decode()}"
                outcomes.setdefault(number, Outcome(how, bodies.get(number, b"")))
    return outcomes


def calls(choices: Choices) -> Sent:
    """Some calls, right and odd, and what may stand between them."""
    sent = b""
    oddities: dict[int, str] = {}
    number = 1
    for _ in range(1 + choices.below(4)):
        oddity = choices.of(list(ODDITIES)) if choices.below(2) else ""
        sent += _between(choices) + call(number, oddity, choices)
        oddities[number] = oddity
        number += 2 + 2 * choices.below(3)
    return Sent(sent, oddities)


def call(number: int, oddity: str, choices: Choices) -> bytes:
    """A call with at most one oddity, cut into frames in some way."""
    fields = list(_FIELDS)
    message = http2.message(choices.bytes(choices.of([0, 1, 40])))
    if oddity:
        fields, message = ODDITIES[oddity](fields, message)
    block = b"".join(http2.header(name, value) for name, value in fields)
    return _head(number, block, choices) + _body(number, message, choices)


def _between(choices: Choices) -> bytes:
    return choices.of(_BETWEEN) if choices.rarely() else b""


def _head(number: int, block: bytes, choices: Choices) -> bytes:
    match choices.below(8):
        case 6:
            cut = choices.below(len(block))
            first = http2.frame(http2.HEADERS, 0, number, block[:cut])
            return first + http2.frame(http2.CONTINUATION, http2.END_HEADERS, number, block[cut:])
        case 7:
            return http2.frame(http2.HEADERS, http2.END_HEADERS | WITH_PRIORITY, number, bytes(5) + block)
    return http2.frame(http2.HEADERS, http2.END_HEADERS, number, block)


def _body(number: int, message: bytes, choices: Choices) -> bytes:
    whole = http2.frame(http2.DATA, 0, number, message)
    match choices.below(12):
        case 7:
            cut = choices.below(min(len(message), 256) + 1)
            first = http2.frame(http2.DATA, 0, number, message[:cut])
            return first + _between(choices) + http2.frame(http2.DATA, http2.END_STREAM, number, message[cut:])
        case 9:
            return whole + http2.frame(http2.DATA, http2.END_STREAM, number)
        case 10:
            return whole + http2.frame(http2.HEADERS, 5, number, http2.header("x", b"y"))
        case 11:
            end = http2.frame(http2.WINDOW_UPDATE, 0, number, struct.pack(">L", 10))
            return http2.frame(http2.DATA, http2.END_STREAM, number, message) + end
    return http2.frame(http2.DATA, http2.END_STREAM, number, message)


_BETWEEN = [
    http2.frame(http2.PING, 0, 0, b"12345678"),
    http2.frame(http2.PING, 1, 0, b"12345678"),
    http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 5, 20_000)),
    http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 99, 1)),
    http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">L", 1000)),
    http2.frame(2, 0, 1, bytes(5)),
    http2.frame(99, 0, 0, b"unknown"),
]
_FIELDS = [
    (":method", b"POST"),
    (":scheme", b"http"),
    (":path", ECHO.encode()),
    (":authority", b"h"),
    ("content-type", b"application/grpc"),
    ("te", b"trailers"),
]
_GZIP = ("grpc-encoding", b"gzip")
_MORE = [
    *(("x", b"y"), ("x", b"a" * 1000), ("x", b""), ("x-bin", b"AQI="), ("x-bin", b"AQI"), ("x-bin", b"*")),
    *(("host", b"h"), ("cookie", b"a=b"), ("user-agent", b"x"), ("te", b"trailers"), ("grpc-internal", b"1")),
    *(("grpc-encoding", b"identity"), ("grpc-encoding", b"x"), ("grpc-accept-encoding", b"gzip, x")),
    *(("grpc-timeout", b"1H"), ("grpc-timeout", b"99999999H")),
    *(("grpc-timeout", b"x"), ("grpc-timeout", b"123456789S"), ("content-type", b"application/grpc")),
    *((":path", b"/"), (":status", b"200"), (":x", b"y"), ("", b"x"), ("Upper", b"x"), ("connection", b"close")),
    *(("content-length", b"1"), ("x", b"\0"), ("x", b" y ")),
]
_CHANGED = {
    ":method": [b"", b"GET", b"PUT"],
    ":scheme": [b"", b"https", b"x"],
    ":path": [b"", b"/", b"/test.Echo/Other", b"test.Echo/Echo", b"/test.Other/Echo", b"/test.Echo/Echo/", b"*"],
    ":authority": [b"", b"h:80"],
    "content-type": [
        *(b"", b"application/grpc+proto", b"application/grpc;x=y", b"application/grpcx", b"application/json"),
    ],
    "te": [b"", b"trailers, deflate"],
}
Fields = list[tuple[str, bytes]]
Odd = Callable[[Fields, bytes], tuple[Fields, bytes]]


def _changed(name: str, value: bytes | None) -> Odd:
    def change(fields: Fields, message: bytes) -> tuple[Fields, bytes]:
        left = [(each, value if each == name else old) for each, old in fields if each != name or value is not None]
        return left, message  # type: ignore[return-value]

    return change


def _with(*more: tuple[str, bytes], first: bool = False) -> Odd:
    return lambda fields, message: ([*more, *fields] if first else [*fields, *more], message)


def _body_of(change: Callable[[bytes], bytes], *more: tuple[str, bytes]) -> Odd:
    return lambda fields, message: ([*fields, *more], change(message))


#: What may be odd about a call, by name.
ODDITIES: dict[str, Odd] = {
    **{f"no {name}": _changed(name, None) for name, _ in _FIELDS},
    **{f"{name} is {value!r}": _changed(name, value) for name, values in _CHANGED.items() for value in values},
    **{f"with {name}: {value[:20]!r}": _with((name, value)) for name, value in _MORE},
    "field before the pseudo-headers": _with(("x", b"y"), first=True),
    "no message": _body_of(lambda _: b""),
    "two messages": _body_of(lambda message: message * 2),
    "cut message": _body_of(lambda message: message[:-1]),
    "bytes behind the message": _body_of(lambda message: message + b"\0\0"),
    "compressed flag of 2": _body_of(lambda message: b"\2" + message[1:]),
    "length of 2^32 - 1": _body_of(lambda message: b"\0\xff\xff\xff\xff" + message[5:]),
    "message over the limit": _body_of(lambda _: http2.message(bytes(LIMITS["body_bytes"] + 1))[:16_000]),
    "gzip": _body_of(lambda message: http2.message(gzip.compress(message[5:]), True), _GZIP),
    "gzip of two members": _body_of(lambda _: http2.message(gzip.compress(b"a") + gzip.compress(b"b"), True), _GZIP),
    "gzip that is none": _body_of(lambda message: http2.message(b"x" + message, True), _GZIP),
    "gzip that is cut": _body_of(lambda message: http2.message(gzip.compress(message[5:])[:-3], True), _GZIP),
    "gzip of too much": _body_of(lambda _: http2.message(gzip.compress(bytes(100_000)), True), _GZIP),
    "deflate": _body_of(lambda _: http2.message(zlib.compress(b"text"), True), ("grpc-encoding", b"deflate")),
    "not compressed, but with gzip": _body_of(lambda message: message, _GZIP),
    "compressed with identity": _body_of(lambda _: http2.message(b"x", True), ("grpc-encoding", b"identity")),
    "compressed with nothing": _body_of(lambda _: http2.message(b"x", True)),
    "compressed with another coding": _body_of(lambda _: http2.message(b"x", True), ("grpc-encoding", b"snappy")),
}

_MALFORMED, _NOT_GRPC, _NO_POST, _SERVED, _INVALID, _UNIMPLEMENTED = (
    *("reset 1", "http 415", "http 405", "status 0", "status 3", "status 12"),
)
#: How calls end here where grpcio's server has another end for them, by design.
KNOWN: dict[str, str] = {
    # RFC 9113, sections 8.1.1 to 8.3, makes these malformed; grpcio resets some, serves some, never answers others.
    **dict.fromkeys(("no :method", "no :scheme", "no :path", ":method is b''", ":scheme is b''"), _MALFORMED),
    **dict.fromkeys((":path is b''", "te is b''", "te is b'trailers, deflate'", "with : b'x'"), _MALFORMED),
    **dict.fromkeys(("with :path: b'/'", "with :status: b'200'", "with :x: b'y'", "with Upper: b'x'"), _MALFORMED),
    **dict.fromkeys(("with connection: b'close'", "with content-length: b'1'", "with x: b'\\x00'"), _MALFORMED),
    **dict.fromkeys(("with x: b' y '", "field before the pseudo-headers"), _MALFORMED),
    # "gRPC over HTTP2": 415 for another content-type; that a method other than POST is told so is our own.
    **dict.fromkeys(("no content-type", "content-type is b''", "content-type is b'application/json'"), _NOT_GRPC),
    **dict.fromkeys((":method is b'GET'", ":method is b'PUT'"), _NO_POST),
    # What is not needed to answer is not asked for. grpcio does not answer these, or with INTERNAL.
    **dict.fromkeys(("no :authority", "no te", ":scheme is b'x'", "with x-bin: b'*'"), _SERVED),
    **dict.fromkeys(("with grpc-encoding: b'x'", "gzip of two members"), _SERVED),
    # A client's fault is INVALID_ARGUMENT here, never INTERNAL; grpcio serves the third and the fourth.
    **dict.fromkeys(("with grpc-timeout: b'x'", "gzip that is none", "gzip that is cut"), _INVALID),
    **dict.fromkeys(("with grpc-timeout: b'123456789S'", "compressed flag of 2"), _INVALID),
    **dict.fromkeys(("compressed with identity", "compressed with nothing"), _INVALID),
    # RESOURCE_EXHAUSTED, which grpcio now and then never sends.
    **dict.fromkeys(("length of 2^32 - 1", "message over the limit"), "status 8"),
    # gRPC's list of status codes: cardinality violations, and codings that the server does not have.
    **dict.fromkeys(("two messages", "compressed with another coding"), _UNIMPLEMENTED),
}
