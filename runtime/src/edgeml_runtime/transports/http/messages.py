# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What HTTP connections and applications say to each other: requests, answers, refusals."""

from collections.abc import Mapping
from typing import Any, Protocol

from edgeml_runtime.codecs.json_binary import json_object
from edgeml_runtime.errors import Failure, RequestError

Body = bytes | list[bytes | bytearray | memoryview]

#: Status, complete header lines beside the ones that the connection adds (content-length, date, connection), body.
Answer = tuple[int, bytes, Body]

STATUS = {
    Failure.INVALID: 400,
    Failure.UNAUTHENTICATED: 401,
    Failure.FORBIDDEN: 403,
    Failure.NOT_FOUND: 404,
    Failure.UNIMPLEMENTED: 400,  # of gRPC alone
    Failure.TOO_LARGE: 413,
    Failure.TOO_MANY: 429,
    Failure.UNAVAILABLE: 503,
    Failure.DEADLINE: 504,
    Failure.INTERNAL: 500,
}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

JSON = b"content-type: application/json\r\n"
_MORE_LINES = {
    401: b"www-authenticate: Bearer\r\n",
    429: b"retry-after: 1\r\n",
    503: b"retry-after: 1\r\n",
}


class Request:
    """A request: complete when the application is asked for an answer, without its body when it is admitted.

    ``url`` is as on the wire, names in ``headers`` are lower-case, repeated ones are joined by commas.
    ``client`` is the address, or "unix". ``context`` is the application's own.
    """

    __slots__ = (
        "aligned_at",
        "answer",
        "body",
        "body_bytes",
        "certificate_name",
        "client",
        "context",
        "headers",
        "keep_alive",
        "method",
        "takes_interim",
        "url",
    )

    def __init__(
        self, method: bytes, url: bytes, headers: Mapping[bytes, bytes], client: str, certificate_name: str | None
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.client = client
        self.certificate_name = certificate_name
        #: The application may drop it when it needs it no more.
        self.body: bytes | memoryview = b""
        self.body_bytes = 0
        #: A byte of the body that is wanted on a boundary of 16 bytes, where that costs nothing.
        self.aligned_at = 0
        self.keep_alive = True
        #: Whether the client knows answers like 100 (HTTP/1.1).
        self.takes_interim = True
        self.context: Any = None
        #: Set when the answer is known without the application.
        self.answer: Answer | None = None


class Application(Protocol):
    """Answers requests. Neither method raises for what a client can cause. ``name`` is for people."""

    name: str

    def admit(self, request: Request) -> Answer | None:
        """Judge by method, URL and headers, before the body is read; an answer is a refusal."""

    async def answer(self, request: Request) -> Answer:
        """Answer a complete request. Cancelled when nobody waits for the answer any more.

        Runs outside a task until it first waits: what needs one (asyncio.timeout, for instance) makes one.
        """


def error_answer(status: int, message: str, lines: bytes = b"") -> Answer:
    """The standard error body."""
    return status, JSON + _MORE_LINES.get(status, b"") + lines, json_object(error=message)


def failure_answer(error: RequestError) -> Answer:
    """The standard error body for a failed request."""
    return error_answer(STATUS[error.failure], str(error))
