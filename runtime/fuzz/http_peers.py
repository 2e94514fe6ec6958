# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The same bytes to our HTTP/1.1 server and to uvicorn's, with httptools and with h11: which requests each sees.

What a server takes for a request may not depend on which one it is: that is how requests are smuggled. Ours may see
fewer than another, when it says why; ``STRICTER`` has the reasons. It may see none that another does not see;
``LAXER`` has the exceptions.
"""

import asyncio
import logging
import re
import sys
from typing import Any, NamedTuple

import httptools
from edgeml_runtime.transports.http.connection import Connection
from edgeml_runtime.transports.http.messages import Answer, Request
from edgeml_runtime.transports.http.shared import Shared
from signatures import Broken
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from wire import Transport, Wire, config

#: What our server says when it refuses a request that others may take, by design.
STRICTER = re.compile(
    rb"header Host is missing|more than one header Host|Host is not a host"
    rb"|of HTTP is not supported|chunked alone is supported|HTTP/1\.0 has no header Transfer-Encoding"
    rb"|method CONNECT is not allowed|is larger than|too much beside their content"
)
#: h11 takes what llhttp does not: bare LF, folded lines, unknown methods.
STRICTER_THAN_H11 = re.compile(rb"no HTTP request: |" + STRICTER.pattern)
#: How h11 refuses what llhttp takes: empty lines before a request, several spaces in its first line.
LAXER_THAN_H11 = re.compile("illegal request line|no request line received")
#: Here uvicorn with httptools loses the body, and what comes behind it; ours ignores the field.
_UPGRADES = re.compile(rb"(?i)upgrade|CONNECT ")
#: Uvicorn then forgets what was asked before and is not yet answered; ours answers that.
_REFUSED = re.compile(rb"HTTP/1\.1 [45].*connection: close\r\n\r\n.*\Z", re.DOTALL)

logger = logging.getLogger(__name__)


class Seen(NamedTuple):
    """A request as a server understood it."""

    method: bytes
    target: bytes
    body: bytes


class _Ours:
    """The application of our server: takes everything."""

    name = "peer"

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def admit(self, _request: Request) -> Answer | None:
        return None

    async def answer(self, request: Request) -> Answer:
        self.seen.append(Seen(request.method, _path(request.url), bytes(request.body)))
        return 200, b"", b""


class _Uvicorn:
    """A server of uvicorn in this process."""

    def __init__(self, protocol: type[HttpToolsProtocol | H11Protocol], loop: asyncio.AbstractEventLoop) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        self.seen: list[Seen] = []
        self.protocol = protocol
        self._loop = loop
        self._config = Config(
            self._application, interface="asgi3", proxy_headers=False, lifespan="off", ws="none", log_config=None
        )
        self._config.load()

    def connection(self) -> asyncio.Protocol:
        return self.protocol(config=self._config, server_state=ServerState(), app_state={}, _loop=self._loop)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            more = event.get("more_body", False)
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        self.seen.append(Seen(scope["method"].encode(), _path(target), body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class _H11(H11Protocol):
    """Remembers why it refused something."""

    reason = ""

    def send_400_response(self, msg: str) -> None:
        _H11.reason = str(sys.exc_info()[1])  # uvicorn calls this where it handles the error
        super().send_400_response(msg)


class _BareTransport(Transport):
    """Without a socket to be asked."""

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default


class HttpPeers:
    """Our server and its peers."""

    def __init__(self) -> None:
        self._wire = Wire()
        self._peer_wire = Wire(_BareTransport)
        # A task of uvicorn that failed is told of when it is collected, which may be while another input is tried.
        self._peer_wire.loop.set_exception_handler(lambda _loop, _context: None)
        self._ours = _Ours()
        settings = config()
        self._shared = Shared(self._ours, settings.limits, self._wire.loop)
        loop = self._peer_wire.loop
        self._peers = (
            (_Uvicorn(HttpToolsProtocol, loop), STRICTER, None),
            (_Uvicorn(_H11, loop), STRICTER_THAN_H11, LAXER_THAN_H11),
        )

    def compare(self, parts: list[bytes]) -> None:
        """Send these parts to each. Raises Broken when a peer sees other requests."""
        self._shared.heads.clear()
        self._ours.seen.clear()
        written = self._wire.converse(lambda: Connection(self._shared), parts, ends=True, patient=True)
        whole = b"".join(parts)
        for peer, stricter, laxer in self._peers:
            name = peer.protocol.__name__
            peer.seen.clear()
            _H11.reason = ""
            answered = b""
            try:
                answered = self._peer_wire.converse(peer.connection, parts, ends=False, patient=True)
            except Exception as error:  # a fault of uvicorn's, which then sees no more
                logger.debug("%s: %s", name, error)
            ours, theirs = self._ours.seen, peer.seen
            both = min(len(ours), len(theirs))
            if name == "HttpToolsProtocol" and _UPGRADES.search(whole):
                continue
            if ours[:both] != theirs[:both]:
                raise Broken(f"{name} understands other requests: {theirs}, ours: {ours}")
            if len(ours) < len(theirs) and not stricter.search(written):
                raise Broken(f"{name} sees {theirs[both:]} as well, ours says {written[-300:]!r}")
            # We read nothing behind the last request of a connection; a peer may refuse it, and what was before.
            is_behind = b"connection: close" in written and b"Invalid HTTP request" in answered
            is_laxer = is_behind or _REFUSED.search(written) or (laxer and laxer.search(_H11.reason))
            if len(ours) > len(theirs) and not is_laxer:
                raise Broken(f"{name} does not see {ours[both:]}")


def _path(target: bytes) -> bytes:
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return target
    return (parsed.path or b"") + (b"?" + parsed.query if parsed.query else b"")
