# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 requests as attackers and careless clients frame them: each with its right answer and its section.

Sections are of RFC 9112 where nothing else is said. Behind each request comes a harmless one, LAST. A request that is
refused must be the last that is answered: whatever an intermediary takes for the next request may not be one here.
Where the RFC leaves a choice ("MAY") that has to do with framing, the request is refused.
"""

from typing import NamedTuple

from hostile import VALID_BODY

LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
#: What must never be answered when it is smuggled: its status would be 404.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
SERVED, REFUSED = [200, 200], [400]
INFER = b"/v2/models/perceptron/infer"
LIVE = b"/v2/health/live"
CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: %d" % len(VALID_BODY)
WHOLE_CHUNK = b"%x\r\n%b\r\n" % (len(VALID_BODY), VALID_BODY)
END = b"0\r\n\r\n"


class Case(NamedTuple):
    """What is sent, and the statuses of all answers."""

    section: str
    what: str
    sent: bytes
    answers: list[int]


def line(section: str, what: str, start: bytes, answers: list[int] = REFUSED) -> Case:
    """A start line."""
    return Case(section, what, start + b"Host: h\r\n\r\n", answers)


def field(section: str, what: str, lines: bytes, answers: list[int] = REFUSED) -> Case:
    """Header lines of a GET."""
    return Case(section, what, b"GET " + LIVE + b" HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n", answers)


def framing(section: str, what: str, lines: tuple[bytes, ...], body: bytes, answers: list[int] = REFUSED) -> Case:
    """Header lines about a body, and the body."""
    head = b"\r\n".join((b"POST " + INFER + b" HTTP/1.1", b"Host: h", *lines, b"", b""))
    return Case(section, what, head + body, answers)


def chunks(what: str, body: bytes, answers: list[int] = REFUSED, section: str = "7.1") -> Case:
    """A body in chunks."""
    return framing(section, what, (CHUNKED,), body, answers)


def coding(what: str, value: bytes, status: int = 501) -> Case:
    """A Transfer-Encoding that is not chunked alone, before a body that looks like chunks."""
    return framing("6.1", what, (b"Transfer-Encoding:" + value,), WHOLE_CHUNK + END, [status])


def length(what: str, value: bytes) -> Case:
    """A Content-Length that is none."""
    return framing("6.3", f"Content-Length {what}", (b"Content-Length:" + value,), VALID_BODY)


CASES = [
    # -- start lines
    line("2.2", "empty lines before the request", b"\r\n\r\nGET /v2/health/live HTTP/1.1\r\n", SERVED),
    line("2.2", "space before the first field", b"GET /v2/health/live HTTP/1.1\r\n "),
    line("2.2", "tab before the first field", b"GET /v2/health/live HTTP/1.1\r\n\t"),
    line("2.2", "bare LF after the start line", b"GET /v2/health/live HTTP/1.1\n"),
    line("2.2", "bare CR after the start line", b"GET /v2/health/live HTTP/1.1\rX: "),
    line("2.3", "version 1.2", b"GET /v2/health/live HTTP/1.2\r\n"),
    line("2.3", "version 2.0", b"GET /v2/health/live HTTP/2.0\r\n", [505]),
    line("2.3", "version 1.10", b"GET /v2/health/live HTTP/1.10\r\n"),
    line("2.3", "version 11", b"GET /v2/health/live HTTP/11\r\n"),
    line("2.3", "version in lower case", b"GET /v2/health/live http/1.1\r\n"),
    line("2.3", "no version", b"GET /v2/health/live\r\n", [505]),
    line("2.3", "another protocol", b"GET /v2/health/live XTTP/1.1\r\n"),
    line("3", "two spaces before the target", b"GET  /v2/health/live HTTP/1.1\r\n", SERVED),
    line("3", "two spaces before the version", b"GET /v2/health/live  HTTP/1.1\r\n", SERVED),
    line("3", "tabs instead of spaces", b"GET\t/v2/health/live\tHTTP/1.1\r\n"),
    line("3", "space after the version", b"GET /v2/health/live HTTP/1.1 \r\n"),
    line("3", "space before the method", b" GET /v2/health/live HTTP/1.1\r\n"),
    line("3.1", "method in lower case", b"get /v2/health/live HTTP/1.1\r\n"),
    line("3.1", "method that nobody knows", b"SMUGGLE /v2/health/live HTTP/1.1\r\n"),
    line("3.1", "method that is no token", b"G(T /v2/health/live HTTP/1.1\r\n"),
    line("3.2", "space in the target", b"GET /v2/health/live x HTTP/1.1\r\n"),
    line("3.2", "NUL in the target", b"GET /v2/health/live\0 HTTP/1.1\r\n"),
    line("3.2", "control character in the target", b"GET /v2/health/live\x01 HTTP/1.1\r\n"),
    line("3.2", "DEL in the target", b"GET /v2/health/live\x7f HTTP/1.1\r\n"),
    line("3.2", "target without a slash", b"GET v2/health/live HTTP/1.1\r\n"),
    line("3.2.2", "target with scheme and host", b"GET http://h/v2/health/live HTTP/1.1\r\n", SERVED),
    line("3.2.3", "authority as the target of GET", b"GET h:80 HTTP/1.1\r\n"),
    line("3.2.3", "CONNECT", b"CONNECT h:80 HTTP/1.1\r\n", [405]),
    line("3.2.4", "asterisk as the target of GET", b"GET * HTTP/1.1\r\n", [404, 200]),
    # -- fields
    field("5", "no colon", b"nothing\r\n"),
    field("5.1", "space before the colon", b"X : y\r\n"),
    field("5.1", "tab before the colon", b"X\t: y\r\n"),
    field("5.1", "space before the colon of Content-Length", b"Content-Length : 5\r\n"),
    field("5.1", "space before the colon of Transfer-Encoding", b"Transfer-Encoding : chunked\r\n"),
    field("5.1", "space before the colon of Host", b"Host : h\r\n"),
    field("5.1", "no name", b": y\r\n"),
    field("5.1", "name with a space", b"X y: z\r\n"),
    field("5.1", "name with a parenthesis", b"X(y): z\r\n"),
    field("5.1", "name with a NUL", b"X\0: z\r\n"),
    field("5.1", "name with a byte above ASCII", b"X\xe9: z\r\n"),
    field("5.1", "no space after the colon", b"X:y\r\n", SERVED),
    field("5.1", "spaces and tabs around the value", b"X: \t y \t \r\n", SERVED),
    field("5.1", "no value", b"X:\r\n", SERVED),
    Case("5.1", "spaces and tabs around Host", b"GET " + LIVE + b" HTTP/1.1\r\nHost: \th \t\r\n\r\n", SERVED),
    framing("5.1", "spaces behind Content-Length", (LENGTH + b"  ",), VALID_BODY, SERVED),
    field("5.2", "folded line", b"X: y\r\n z\r\n"),
    field("5.2", "folded line with a tab", b"X: y\r\n\tz\r\n"),
    field("5.2", "folded Content-Length", b"Content-Length:\r\n 5\r\n"),
    field("5.2", "folded Transfer-Encoding", b"Transfer-Encoding:\r\n chunked\r\n"),
    field("RFC 9110, 5.5", "NUL in a value", b"X: y\0z\r\n"),
    field("RFC 9110, 5.5", "bare CR in a value", b"X: y\rz\r\n"),
    field("RFC 9110, 5.5", "bare CR before CRLF", b"X: y\r\r\n"),
    field("2.2", "bare LF after a field", b"X: y\n"),
    field("2.2", "bare LF that hides a field", b"X: y\nContent-Length: 5\r\n"),
    field("RFC 9110, 5.5", "bytes above ASCII in a value", b"X: \xc3\xa9\xff\r\n", SERVED),
    Case("2.2", "bare LF after the fields", b"GET " + LIVE + b" HTTP/1.1\r\nHost: h\r\n\n", REFUSED),
    # -- which framing holds
    framing("6.2", "Content-Length", (LENGTH,), VALID_BODY, SERVED),
    framing(
        "6.2", "Content-Length with zeros in front", (b"Content-Length: 000%d" % len(VALID_BODY),), VALID_BODY, SERVED
    ),
    framing("6.3", "Content-Length, then Transfer-Encoding", (LENGTH, CHUNKED), WHOLE_CHUNK + END),
    framing("6.3", "Transfer-Encoding, then Content-Length", (CHUNKED, LENGTH), WHOLE_CHUNK + END),
    framing("6.3", "CL.TE", (b"Content-Length: 6", CHUNKED), END + b"X"),
    framing("6.3", "TE.CL", (CHUNKED, b"Content-Length: 4"), b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + END),
    framing(
        "6.3",
        "Transfer-Encoding in another case and Content-Length",
        (LENGTH, b"tRANSFER-eNCODING: CHUNKED"),
        WHOLE_CHUNK + END,
    ),
    framing("6.3", "two equal Content-Length", (LENGTH, LENGTH), VALID_BODY),
    framing("6.3", "two different Content-Length", (LENGTH, b"Content-Length: 0"), VALID_BODY),
    framing("6.3", "two different Content-Length, the short one first", (b"Content-Length: 0", LENGTH), VALID_BODY),
    length("as a list of equals", b" %d, %d" % (len(VALID_BODY), len(VALID_BODY))),
    length("below 0", b" -1"),
    length("with a plus", b" +%d" % len(VALID_BODY)),
    length("in hexadecimal", b" 0x10"),
    length("with an underscore", b" 1_0"),
    length("as a fraction", b" 1.0"),
    length("as two numbers", b" 1 0"),
    length("without a number", b""),
    length("of 2^64 and more", b" 18446744073709551621"),
    length("as a number of another script", " \u0663".encode()),
    length("with a letter behind", b" 10a"),
    length("with a vertical tab in front", b" \x0b10"),
    framing("6.3", "neither: what follows is the next request", (), b"", [400, 200]),
    Case(
        "6.3",
        "body of a GET is no request",
        b"GET " + LIVE + b" HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        SERVED,
    ),
    Case(
        "6.3",
        "body of a refused request is no request",
        b"POST /other HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        [404, 200],
    ),
    Case(
        "6.3",
        "chunked body of a GET is no request",
        b"GET "
        + LIVE
        + b" HTTP/1.1\r\nHost: h\r\n"
        + CHUNKED
        + b"\r\n\r\n%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED)
        + END,
        SERVED,
    ),
    # -- Transfer-Encoding
    framing("6.1", "chunked", (CHUNKED,), WHOLE_CHUNK + END, SERVED),
    framing("7", "chunked in capitals", (b"Transfer-Encoding: CHUNKED",), WHOLE_CHUNK + END, SERVED),
    framing("6.1", "chunked with spaces around", (b"Transfer-Encoding:  \tchunked  ",), WHOLE_CHUNK + END, SERVED),
    coding("chunked twice", b" chunked, chunked", 400),
    coding("gzip, then chunked", b" gzip, chunked"),
    coding("chunked, then gzip", b" chunked, gzip", 400),
    coding("chunked, then identity", b" chunked, identity", 400),
    coding("identity, then chunked", b" identity, chunked"),
    coding("identity", b" identity"),
    coding("gzip", b" gzip"),
    coding("of another name that ends like it", b" xchunked"),
    coding("of another name that begins like it", b" chunkedx"),
    coding("with a parameter", b" chunked;q=1"),
    coding("in quotes", b' "chunked"'),
    coding("with a vertical tab in front", b" \x0bchunked", 400),
    coding("with a NUL behind", b" chunked\0", 400),
    coding("without a value", b"", 400),
    coding("with a comma alone in front", b" , chunked"),
    framing("6.1", "chunked in two lines", (CHUNKED, CHUNKED), WHOLE_CHUNK + END),
    framing("6.1", "chunked and identity in two lines", (CHUNKED, b"Transfer-Encoding: identity"), WHOLE_CHUNK + END),
    Case(
        "6.1",
        "chunked in HTTP/1.0",
        b"POST "
        + INFER
        + b" HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n"
        + CHUNKED
        + b"\r\n\r\n"
        + WHOLE_CHUNK
        + END,
        REFUSED,
    ),
    # -- chunks
    chunks(
        "several",
        b"1\r\n%b\r\n" % VALID_BODY[:1] + b"%x\r\n%b\r\n" % (len(VALID_BODY) - 1, VALID_BODY[1:]) + END,
        SERVED,
    ),
    chunks(
        "size in capitals, with zeros in front",
        b"000%X\r\n%b\r\n" % (len(VALID_BODY), VALID_BODY) + b"000\r\n\r\n",
        SERVED,
    ),
    chunks("size with 0x", b"0x1\r\n{\r\n" + END),
    chunks("size with a minus", b"-1\r\n{\r\n" + END),
    chunks("size with a plus", b"+1\r\n{\r\n" + END),
    chunks("size with an underscore", b"1_0\r\n{\r\n" + END),
    chunks("size with a space in front", b" 1\r\n{\r\n" + END),
    chunks("size with a tab in front", b"\t1\r\n{\r\n" + END),
    chunks("size with a letter that is no digit", b"1g\r\n{\r\n" + END),
    chunks("no size", b"\r\n{\r\n" + END),
    chunks("size of 2^64 and 1", b"10000000000000001\r\n{\r\n" + END),
    chunks("size of 2^128 and 1", b"100000000000000000000000000000001\r\n{\r\n" + END),
    chunks("size less than its data", b"1\r\n{}\r\n" + END),
    chunks("size more than its data", b"3\r\n{}\r\n" + END),
    chunks("bare LF after the size", b"1\n{\r\n" + END),
    chunks("bare CR after the size", b"1\r{\r\n" + END),
    chunks("bare LF after the data", b"1\r\n{\n" + END),
    chunks("two bytes instead of CRLF after the data", b"1\r\n{XX" + END),
    chunks("bare LF after the last chunk", WHOLE_CHUNK + b"0\n\r\n"),
    chunks("bare LF at the end", WHOLE_CHUNK + b"0\r\n\n"),
    chunks("extension", b"%x;a=b;c\r\n%b\r\n" % (len(VALID_BODY), VALID_BODY) + b"0;d\r\n\r\n", SERVED, "7.1.1"),
    chunks("extension in quotes", b'%x;a="b;c"\r\n%b\r\n' % (len(VALID_BODY), VALID_BODY) + END, SERVED, "7.1.1"),
    chunks("bare LF in an extension", b"1;a\nb\r\n{\r\n" + END, section="7.1.1"),
    chunks("bare CR in an extension", b"1;a\rb\r\n{\r\n" + END, section="7.1.1"),
    chunks("NUL in an extension", b"1;a\0\r\n{\r\n" + END, section="7.1.1"),
    chunks("trailers", WHOLE_CHUNK + b"0\r\nX: y\r\nZ: a\r\n\r\n", SERVED, "7.1.2"),
    chunks(
        "trailers that tell of the request",
        WHOLE_CHUNK + b"0\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
        SERVED,
        "7.1.2",
    ),
    chunks("Content-Length in the trailers", WHOLE_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n", section="7.1.2"),
    chunks("Transfer-Encoding in the trailers", WHOLE_CHUNK + b"0\r\nTransfer-Encoding: gzip\r\n\r\n", section="7.1.2"),
    chunks("folded trailer", WHOLE_CHUNK + b"0\r\nX: y\r\n z\r\n\r\n", section="7.1.2"),
    chunks("trailer with a space before its colon", WHOLE_CHUNK + b"0\r\nX : y\r\n\r\n", section="7.1.2"),
    chunks("bare LF after a trailer", WHOLE_CHUNK + b"0\r\nX: y\n\r\n", section="7.1.2"),
    # -- connections
    field("9.3", "Connection: close", b"Connection: close\r\n", [200]),
    field("9.3", "Connection: close among others", b"Connection: x, Close\r\n", [200]),
    Case("9.3", "HTTP/1.0", b"GET " + LIVE + b" HTTP/1.0\r\nHost: h\r\n\r\n", [200]),
    Case("9.3", "HTTP/1.0 without Host", b"GET " + LIVE + b" HTTP/1.0\r\n\r\n", [200]),
    Case("9.3.2", "several requests at once", (b"GET " + LIVE + b" HTTP/1.1\r\nHost: h\r\n\r\n") * 5, [200] * 6),
    field("RFC 9110, 10.1.1", "an expectation that is not 100-continue", b"Expect: more\r\n", SERVED),
]
