# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTTP/2 (RFC 9113) and HPACK (RFC 7541) say of what a client may send, case by case.

The cases are those of h2spec 2.6, by what they send, under the sections of today's specification, and more of the
same kinds. A case's verdict says how its connection or stream ends; whatever does not end the connection must
leave a following request answered.
"""

import struct
from typing import NamedTuple

import http2
from hostile import ROWS
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    header,
    message,
)
from serving import features_message

PRIORITY, PUSH_PROMISE, UNKNOWN = 2, 5, 99
ACK, PADDED, WITH_PRIORITY = 0x1, 0x8, 0x20
PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION = 1, 3, 5, 6, 7, 9
LARGEST = (1 << 31) - 1

CALL = "/inference.GRPCInferenceService/ModelInfer"
BODY = message(features_message(ROWS).SerializeToString())
START = http2.PREFACE + frame(SETTINGS, 0, 0)
PSEUDO = (
    header(":method", b"POST"),
    header(":scheme", b"http"),
    header(":path", CALL.encode()),
    header(":authority", b"h"),
)
REGULAR = (header("content-type", b"application/grpc"), header("te", b"trailers"))
FIELDS = (*PSEUDO, *REGULAR)
BLOCK = b"".join(FIELDS)
FOLLOWING = 1001  # stream of the request that shows the connection to be in order


def number(value: int) -> bytes:
    """Four bytes."""
    return struct.pack(">L", value)


def settings(key: int, value: int) -> bytes:
    """A frame with one setting."""
    return frame(SETTINGS, 0, 0, struct.pack(">HL", key, value))


def head(*fields: bytes, stream: int = 1, flags: int = END_HEADERS) -> bytes:
    """The HEADERS of a request."""
    return frame(HEADERS, flags, stream, b"".join(fields) or BLOCK)


def body(data: bytes = BODY, stream: int = 1, flags: int = END_STREAM) -> bytes:
    """The DATA of a request."""
    return frame(DATA, flags, stream, data)


def request(*fields: bytes, stream: int = 1) -> bytes:
    """A whole request."""
    return head(*fields, stream=stream) + body(stream=stream)


def ping(payload: bytes = b"12345678", flags: int = 0, stream: int = 0) -> bytes:
    """A PING."""
    return frame(PING, flags, stream, payload)


def window(increment: int, stream: int = 0) -> bytes:
    """A WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream, number(increment))


def reset(stream: int, code: int = 8) -> bytes:
    """A RST_STREAM."""
    return frame(RST_STREAM, 0, stream, number(code))


def priority(stream: int, depends_on: int = 0, weight: int = 15) -> bytes:
    """A PRIORITY."""
    return frame(PRIORITY, 0, stream, number(depends_on) + bytes([weight]))


def integer(prefix: int, bits: int, value: int) -> bytes:
    """An integer of HPACK, below the bits of ``prefix``."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([prefix | value])
    encoded, value = bytearray([prefix | most]), value - most
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes(encoded) + bytes([value])


def text(value: bytes, huffman: bool = False) -> bytes:
    """A string of HPACK."""
    if not huffman:
        return integer(0, 7, len(value)) + value
    packed = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(value)
    return integer(0x80, 7, len(packed)) + packed


#: What begins a literal, and how many bits of its first byte are an index (RFC 7541, section 6.2).
INDEXED, PLAIN, NEVER = (0x40, 6), (0, 4), (0x10, 4)


def literal(kind: tuple[int, int], name: bytes | int, value: bytes, huffman: bool = False) -> bytes:
    """A literal field; a name in numbers is an index."""
    if isinstance(name, int):
        return integer(*kind, name) + text(value, huffman)
    return integer(*kind, 0) + text(name, huffman) + text(value, huffman)


AUTHORITY_INDEX, PATH_INDEX, FIRST_DYNAMIC = 1, 4, 62
HALF_CLOSED = head() + body()

Verdict = tuple[str, int]
OK: Verdict = ("status", 0)


def stream_error(code: int) -> Verdict:
    """The stream alone ends, with this code."""
    return "stream", code


def connection_error(code: int) -> Verdict:
    """The connection ends, with this code."""
    return "connection", code


class Case(NamedTuple):
    """What is sent; a number among it is a stream whose end is awaited first."""

    section: str
    what: str
    sent: tuple[bytes | int, ...]
    verdict: Verdict
    stream: int = 1


def case(section: str, what: str, sent: bytes | tuple[bytes | int, ...], verdict: Verdict, stream: int = 1) -> Case:
    """A case after a right preface."""
    parts = (sent,) if isinstance(sent, bytes) else sent
    return Case(section, what, (START, *parts), verdict, stream)


def malformed(section: str, what: str, *fields: bytes) -> Case:
    """A request whose stream alone ends."""
    return case(section, what, request(*fields), stream_error(PROTOCOL))


def decoding_error(section: str, what: str, more: bytes) -> Case:
    """A field that HPACK cannot read."""
    return case(section, what, head(BLOCK, more), connection_error(COMPRESSION))


def accepted(section: str, what: str, *fields: bytes) -> Case:
    """A field that HPACK reads."""
    return case(section, what, request(*fields), OK)


CASES = [
    # -- the preface
    Case("3.4", "right preface and SETTINGS", (START, request()), OK),
    Case("3.4", "wrong preface", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx",), connection_error(PROTOCOL)),
    Case("3.4", "another protocol", (b"INVALID CONNECTION PREFACE\r\n\r\n",), connection_error(PROTOCOL)),
    Case("3.4", "no SETTINGS but HEADERS", (http2.PREFACE + request(),), connection_error(PROTOCOL)),
    Case("3.4", "no SETTINGS but PING", (http2.PREFACE + ping(),), connection_error(PROTOCOL)),
    Case(
        "3.4", "SETTINGS with ACK comes first", (http2.PREFACE + frame(SETTINGS, ACK, 0),), connection_error(PROTOCOL)
    ),
    # -- frames
    case("4.1", "unknown type", frame(UNKNOWN, 0, 0, b"x") + frame(UNKNOWN, 0xFF, 1, b"x") + request(), OK),
    case("4.1", "undefined flags", frame(PING, 0xF6, 0, bytes(8)) + request(), OK),
    case("4.1", "reserved bit", frame(PING, 0, 1 << 31, bytes(8)) + frame(HEADERS, 4, 1 << 31 | 1, BLOCK) + body(), OK),
    case(
        "4.2",
        "DATA of 2^14 bytes",
        head() + body(bytes(5) + bytes(16_379), flags=0) + reset(1) + request(stream=3),
        OK,
        3,
    ),
    case("4.2", "DATA of more than MAX_FRAME_SIZE", head() + body(bytes(16_385)), connection_error(SIZE)),
    case("4.2", "HEADERS of more than MAX_FRAME_SIZE", head(BLOCK, bytes(16_385)), connection_error(SIZE)),
    case("4.3", "invalid block", head(b"\xff\xff\xff\xff\xff\xff"), connection_error(COMPRESSION)),
    case("4.3", "block that ends within a field", head(BLOCK, b"\0\x05a"), connection_error(COMPRESSION)),
    case("4.3", "PRIORITY within a block", head(flags=0) + priority(1), connection_error(PROTOCOL)),
    case("4.3", "HEADERS of another stream within a block", head(flags=0) + head(stream=3), connection_error(PROTOCOL)),
    # -- streams
    case("5.1", "idle: DATA", body(), connection_error(PROTOCOL)),
    case("5.1", "idle: RST_STREAM", reset(1), connection_error(PROTOCOL)),
    case("5.1", "idle: WINDOW_UPDATE", window(100, 1), connection_error(PROTOCOL)),
    case("5.1", "idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, BLOCK), connection_error(PROTOCOL)),
    case("5.1", "idle: PRIORITY", priority(1) + priority(3) + request(), OK),
    case("5.1", "idle: PRIORITY of a higher stream", priority(5, 3) + request(), OK),
    case("5.1", "half closed: DATA", head(flags=5) + body(b"x"), connection_error(CLOSED)),
    case("5.1", "half closed: HEADERS", head(flags=5) + head(flags=5), connection_error(CLOSED)),
    case(
        "5.1", "half closed: CONTINUATION", head(flags=5) + frame(CONTINUATION, 4, 1, BLOCK), connection_error(PROTOCOL)
    ),
    case("5.1", "half closed: WINDOW_UPDATE, PRIORITY", head() + priority(1) + body() + window(9, 1) + priority(1), OK),
    case("5.1", "half closed: RST_STREAM", (HALF_CLOSED, reset(1), request(stream=3)), OK, 3),
    case("5.1", "closed by RST_STREAM: DATA", head() + reset(1) + body(), stream_error(CLOSED)),
    case("5.1", "closed by RST_STREAM: HEADERS", head() + reset(1) + head(), connection_error(CLOSED)),
    case(
        "5.1",
        "closed by RST_STREAM: CONTINUATION",
        head() + reset(1) + frame(CONTINUATION, 4, 1),
        connection_error(PROTOCOL),
    ),
    case("5.1", "closed: DATA", (request(), 1, body()), stream_error(CLOSED)),
    case("5.1", "closed: HEADERS", (request(), 1, head()), connection_error(CLOSED)),
    case("5.1", "closed: CONTINUATION", (request(), 1, frame(CONTINUATION, 4, 1, BLOCK)), connection_error(PROTOCOL)),
    case(
        "5.1",
        "closed: PRIORITY, WINDOW_UPDATE, RST_STREAM",
        (request(), 1, priority(1), window(9, 1), reset(1), request(stream=3)),
        OK,
        3,
    ),
    case("5.1.1", "even number", request(stream=2), connection_error(PROTOCOL)),
    case("5.1.1", "number 0", request(stream=0), connection_error(PROTOCOL)),
    case("5.1.1", "number below another", request(stream=5) + request(stream=3), connection_error(PROTOCOL)),
    case("5.4.1", "PING with a stream ends the connection", ping(stream=1), connection_error(PROTOCOL)),
    case("5.5", "unknown extension", frame(0x16, 0, 0, bytes(8)) + request(), OK),
    case(
        "5.5",
        "unknown extension within a block",
        head(flags=0) + frame(0x16, 0, 0, bytes(8)),
        connection_error(PROTOCOL),
    ),
    case(
        "5.5",
        "unknown extension of the stream within a block",
        head(flags=0) + frame(0x16, 0, 1),
        connection_error(PROTOCOL),
    ),
    # -- DATA
    case("6.1", "DATA", head() + body(), OK),
    case("6.1", "several DATA", head() + body(BODY[:9], flags=0) + body(b"", flags=0) + body(BODY[9:]), OK),
    case("6.1", "padded DATA", head() + body(b"\x06" + BODY + bytes(6), flags=PADDED | END_STREAM), OK),
    case("6.1", "padding alone", head() + body(b"\x06" + bytes(6), flags=PADDED) + body(), OK),
    case("6.1", "stream 0", body(stream=0), connection_error(PROTOCOL)),
    case("6.1", "stream that is half closed", head(flags=5) + body(), connection_error(CLOSED)),
    case("6.1", "more padding than payload", head() + body(b"\x09", flags=PADDED), connection_error(PROTOCOL)),
    case("6.1", "padding without its length", head() + body(b"", flags=PADDED), connection_error(PROTOCOL)),
    # -- HEADERS
    case("6.2", "HEADERS", request(), OK),
    case("6.2", "padded HEADERS", head(b"\x05", BLOCK, bytes(5), flags=END_HEADERS | PADDED) + body(), OK),
    case("6.2", "HEADERS with a priority", head(bytes(5), BLOCK, flags=END_HEADERS | WITH_PRIORITY) + body(), OK),
    case("6.2", "PRIORITY before END_HEADERS", head(flags=0) + priority(1), connection_error(PROTOCOL)),
    case(
        "6.2",
        "HEADERS of another stream before END_HEADERS",
        head(flags=0) + head(stream=3, flags=0),
        connection_error(PROTOCOL),
    ),
    case("6.2", "stream 0", head(stream=0), connection_error(PROTOCOL)),
    case("6.2", "more padding than payload", head(b"\x09", flags=END_HEADERS | PADDED), connection_error(PROTOCOL)),
    case("6.2", "too short for its priority", head(b"\0\0", flags=END_HEADERS | WITH_PRIORITY), connection_error(SIZE)),
    # -- PRIORITY: RFC 9113 has the frame alone, no more what it meant (RFC 7540, section 5.3)
    case("6.3", "weight 1", priority(1, weight=0) + request(), OK),
    case("6.3", "weight 256", priority(1, weight=255) + request(), OK),
    case("6.3", "dependency", priority(1) + priority(3, 1) + request(), OK),
    case("6.3", "exclusive", priority(1, 1 << 31 | 3) + request(), OK),
    case("6.3", "idle stream, then a lower one", priority(9) + request(), OK),
    case("6.3", "dependency on itself means nothing", priority(1, 1) + request(), OK),
    case("6.3", "HEADERS that depend on themselves", head(number(1) + b"\x0f", BLOCK, flags=0x24) + body(), OK),
    case("6.3", "stream 0", priority(0), connection_error(PROTOCOL)),
    case("6.3", "4 bytes", frame(PRIORITY, 0, 1, bytes(4)), connection_error(SIZE)),
    # -- RST_STREAM
    case("6.4", "RST_STREAM", (head(), reset(1), request(stream=3)), OK, 3),
    case("6.4", "stream 0", reset(0), connection_error(PROTOCOL)),
    case("6.4", "idle stream", reset(1), connection_error(PROTOCOL)),
    case("6.4", "3 bytes", head() + frame(RST_STREAM, 0, 1, bytes(3)), connection_error(SIZE)),
    # -- SETTINGS
    case("6.5", "ACK with a payload", frame(SETTINGS, ACK, 0, bytes(6)), connection_error(SIZE)),
    case("6.5", "stream 1", frame(SETTINGS, 0, 1), connection_error(PROTOCOL)),
    case("6.5", "5 bytes", frame(SETTINGS, 0, 0, bytes(5)), connection_error(SIZE)),
    case("6.5.2", "ENABLE_PUSH is 2", settings(2, 2), connection_error(PROTOCOL)),
    case("6.5.2", "ENABLE_PUSH is 0 and 1", settings(2, 0) + settings(2, 1) + request(), OK),
    case("6.5.2", "INITIAL_WINDOW_SIZE is 2^31", settings(4, 1 << 31), connection_error(FLOW)),
    case("6.5.2", "MAX_FRAME_SIZE is 2^14 - 1", settings(5, 16_383), connection_error(PROTOCOL)),
    case("6.5.2", "MAX_FRAME_SIZE is 2^24", settings(5, 1 << 24), connection_error(PROTOCOL)),
    case("6.5.2", "HEADER_TABLE_SIZE, MAX_HEADER_LIST_SIZE", settings(1, 0) + settings(6, 10**6) + request(), OK),
    case("6.5.2", "unknown setting", settings(0xFF, 1) + request(), OK),
    # -- PUSH_PROMISE, PING, GOAWAY
    case(
        "6.6",
        "a client's PUSH_PROMISE",
        frame(PUSH_PROMISE, END_HEADERS, 1, number(3) + BLOCK),
        connection_error(PROTOCOL),
    ),
    case(
        "8.4",
        "PUSH_PROMISE of an open stream",
        head() + frame(PUSH_PROMISE, 4, 1, number(3) + BLOCK),
        connection_error(PROTOCOL),
    ),
    case("6.7", "PING with ACK is not answered", ping(b"unasked!", ACK) + request(), OK),
    case("6.7", "stream 1", ping(stream=1), connection_error(PROTOCOL)),
    case("6.7", "6 bytes", ping(bytes(6)), connection_error(SIZE)),
    case("6.8", "GOAWAY", head() + frame(GOAWAY, 0, 0, bytes(8) + b"going") + body(), OK),
    case("6.8", "stream 1", frame(GOAWAY, 0, 1, bytes(8)), connection_error(PROTOCOL)),
    case("6.8", "7 bytes", frame(GOAWAY, 0, 0, bytes(7)), connection_error(SIZE)),
    # -- WINDOW_UPDATE
    case("6.9", "of the connection and of a stream", head() + window(1) + window(1, 1) + body(), OK),
    case("6.9", "0 for the connection", window(0), connection_error(PROTOCOL)),
    case("6.9", "0 for a stream", head() + window(0, 1), stream_error(PROTOCOL)),
    case("6.9", "3 bytes", frame(WINDOW_UPDATE, 0, 0, bytes(3)), connection_error(SIZE)),
    case("6.9", "3 bytes for a stream", head() + frame(WINDOW_UPDATE, 0, 1, bytes(3)), connection_error(SIZE)),
    case("6.9.1", "more than 2^31 - 1 for the connection", window(LARGEST) + window(LARGEST), connection_error(FLOW)),
    case(
        "6.9.1", "more than 2^31 - 1 for a stream", head() + window(LARGEST, 1) + window(LARGEST, 1), stream_error(FLOW)
    ),
    case(
        "6.9.2",
        "INITIAL_WINDOW_SIZE makes a window too large",
        head() + window(LARGEST - 65_535, 1) + settings(4, 65_536),
        connection_error(FLOW),
    ),
    # -- CONTINUATION
    case("6.10", "one", head(BLOCK[:9], flags=0) + frame(CONTINUATION, 4, 1, BLOCK[9:]) + body(), OK),
    case(
        "6.10",
        "several",
        head(BLOCK[:9], flags=0)
        + frame(CONTINUATION, 0, 1, BLOCK[9:30])
        + frame(CONTINUATION, 0, 1)
        + frame(CONTINUATION, 4, 1, BLOCK[30:])
        + body(),
        OK,
    ),
    case(
        "6.10",
        "then DATA",
        head(BLOCK[:9], flags=0) + frame(CONTINUATION, 0, 1, BLOCK[9:]) + body(),
        connection_error(PROTOCOL),
    ),
    case("6.10", "stream 0", head(flags=0) + frame(CONTINUATION, 4, 0, BLOCK), connection_error(PROTOCOL)),
    case("6.10", "another stream", head(flags=0) + frame(CONTINUATION, 4, 3, BLOCK), connection_error(PROTOCOL)),
    case("6.10", "after END_HEADERS", head() + frame(CONTINUATION, 4, 1, BLOCK), connection_error(PROTOCOL)),
    case(
        "6.10",
        "after CONTINUATION with END_HEADERS",
        head(flags=0) + frame(CONTINUATION, 4, 1) + frame(CONTINUATION, 4, 1),
        connection_error(PROTOCOL),
    ),
    case("6.10", "after DATA", head() + body(flags=0) + frame(CONTINUATION, 4, 1, BLOCK), connection_error(PROTOCOL)),
    # -- error codes
    case("7", "GOAWAY with an unknown code", frame(GOAWAY, 0, 0, number(0) + number(0xFF)) + request(), OK),
    case("7", "RST_STREAM with an unknown code", (head(), reset(1, 0xFF), request(stream=3)), OK, 3),
    # -- requests
    case("8.1", "trailers", head() + body(flags=0) + head(header("x", b"y"), flags=5), OK),
    case(
        "8.1",
        "second HEADERS without END_STREAM",
        head() + body(flags=0) + head(header("x", b"y")),
        stream_error(PROTOCOL),
    ),
    case(
        "8.1",
        "trailers with a pseudo-header",
        head() + body(flags=0) + head(PSEUDO[0], flags=5),
        stream_error(PROTOCOL),
    ),
    case("8.1", "HEAD", head(header(":method", b"HEAD"), *FIELDS[1:], flags=5), ("http", 405)),
    case("8.1", "GET", head(header(":method", b"GET"), *FIELDS[1:], flags=5), ("http", 405)),
    malformed("8.1.1", "content-length is not the DATA's", *FIELDS, header("content-length", b"1")),
    malformed(
        "8.1.1", "content-length is more than the DATA's", *FIELDS, header("content-length", b"%d" % (len(BODY) + 1))
    ),
    malformed("8.1.1", "content-length is not a number", *FIELDS, header("content-length", b"x")),
    case(
        "8.1.1",
        "content-length is not the sum of several DATA",
        head(*FIELDS, header("content-length", b"1")) + body(BODY[:9], flags=0) + body(BODY[9:]),
        stream_error(PROTOCOL),
    ),
    accepted("8.1.1", "content-length is right", *FIELDS, header("content-length", b"%d" % len(BODY))),
    malformed("8.2.1", "upper-case name", *FIELDS, header("Upper", b"x")),
    malformed("8.2.1", "empty name", *FIELDS, header("", b"x")),
    malformed("8.2.1", "space in a name", *FIELDS, header("a b", b"x")),
    malformed("8.2.1", "colon in a name", *FIELDS, header("a:b", b"x")),
    malformed("8.2.1", "DEL in a name", *FIELDS, header("a\x7f", b"x")),
    malformed("8.2.1", "CR and LF in a value", *FIELDS, header("a", b"b\r\nc: d")),
    malformed("8.2.1", "LF in a value", *FIELDS, header("a", b"b\nc")),
    malformed("8.2.1", "NUL in a value", *FIELDS, header("a", b"b\0")),
    malformed("8.2.1", "value that begins with a space", *FIELDS, header("a", b" b")),
    malformed("8.2.1", "value that ends with a tab", *FIELDS, header("a", b"b\t")),
    *(
        malformed("8.2.2", f"connection-specific field {name}", *FIELDS, header(name, value))
        for name, value in (
            ("connection", b"keep-alive"),
            ("proxy-connection", b"keep-alive"),
            ("keep-alive", b"1"),
            ("transfer-encoding", b"chunked"),
            ("upgrade", b"h2c"),
        )
    ),
    malformed("8.2.2", "TE other than trailers", *PSEUDO, REGULAR[0], header("te", b"trailers, deflate;q=0.5")),
    accepted("8.2.3", "cookies in pieces", *FIELDS, header("cookie", b"a=b"), header("cookie", b"c=d")),
    malformed("8.3", "unknown pseudo-header", *PSEUDO, header(":test", b"x"), *REGULAR),
    malformed("8.3", "pseudo-header of answers", *PSEUDO, header(":status", b"200"), *REGULAR),
    malformed("8.3", "pseudo-header after a regular field", *PSEUDO[:2], *REGULAR, *PSEUDO[2:]),
    malformed("8.3.1", "empty :path", *PSEUDO[:2], header(":path", b""), PSEUDO[3], *REGULAR),
    malformed("8.3.1", "no :method", *FIELDS[1:]),
    malformed("8.3.1", "no :scheme", FIELDS[0], *FIELDS[2:]),
    malformed("8.3.1", "no :path", *FIELDS[:2], *FIELDS[3:]),
    malformed("8.3.1", "two :method", PSEUDO[0], *FIELDS),
    malformed("8.3.1", "two :scheme", PSEUDO[1], *FIELDS),
    malformed("8.3.1", "two :path", PSEUDO[2], *FIELDS),
    malformed("8.3.1", "two :authority", PSEUDO[3], *FIELDS),
    # -- HPACK
    decoding_error("RFC 7541, 2.3.3", "index beyond the tables", integer(0x80, 7, 70)),
    decoding_error("RFC 7541, 2.3.3", "literal with an index beyond the tables", literal(INDEXED, 70, b"x")),
    decoding_error("RFC 7541, 4.2", "size update at the end of a block", integer(0x20, 5, 1)),
    case(
        "RFC 7541, 4.2",
        "size update within a block",
        head(BLOCK, integer(0x20, 5, 1), header("x", b"y")),
        connection_error(COMPRESSION),
    ),
    decoding_error("RFC 7541, 5.1", "integer without end", b"\0\x7f" + b"\xff" * 20),
    decoding_error("RFC 7541, 5.2", "Huffman code with 8 bits of padding", b"\0\x01x\x82\x1f\xff"),
    decoding_error("RFC 7541, 5.2", "Huffman code padded with zeros", b"\0\x01x\x81\x18"),
    decoding_error("RFC 7541, 5.2", "Huffman code with EOS", b"\0\x01x\x84\xff\xff\xff\xff"),
    decoding_error("RFC 7541, 6.1", "index 0", b"\x80"),
    case(
        "RFC 7541, 6.3",
        "size update above HEADER_TABLE_SIZE",
        head(integer(0x20, 5, 4097), BLOCK),
        connection_error(COMPRESSION),
    ),
    accepted("RFC 7541, 6.1", "indexed field", b"\x83\x86", *FIELDS[2:]),
    *(
        accepted(
            f"RFC 7541, 6.2.{part}",
            f"literal {kind_name}, {name_name}{', Huffman' if huffman else ''}",
            *PSEUDO[:2],
            literal(kind, name, CALL.encode(), huffman),
            *REGULAR,
            literal(kind, b"x-new", b"v", huffman),
        )
        for part, (kind_name, kind) in enumerate(
            (("indexed", INDEXED), ("not indexed", PLAIN), ("never indexed", NEVER)), 1
        )
        for name_name, name in (("indexed name", PATH_INDEX), ("new name", b":path"))
        for huffman in (False, True)
    ),
    case(
        "RFC 7541, 6.2.1",
        "field of an earlier block",
        (
            head(*FIELDS[:2], literal(INDEXED, PATH_INDEX, CALL.encode()), *REGULAR)
            + body()
            + head(*FIELDS[:2], integer(0x80, 7, FIRST_DYNAMIC), *REGULAR, stream=3)
            + body(stream=3)
        ),
        OK,
        3,
    ),
    accepted("RFC 7541, 6.3", "size update", integer(0x20, 5, 100), *FIELDS),
    accepted("RFC 7541, 6.3", "several size updates", integer(0x20, 5, 0), integer(0x20, 5, 4096), *FIELDS),
]
