# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small real HTTP proxy on loopback, which knows the method CONNECT alone and leads every name to one place."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class ConnectProxy:
    """`tunnels` are the targets asked for, `logins` what was sent as Proxy-Authorization."""

    url: str
    tunnels: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)
    status: int = 200


def start(port: int, host: str = "127.0.0.1") -> tuple[ConnectProxy, Callable[[], None]]:
    """Start a proxy whose tunnels all lead to `port` of `host`; return it and the function that stops it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            proxy.tunnels.append(self.path)
            proxy.logins.append(self.headers.get("Proxy-Authorization"))
            self.close_connection = True
            if proxy.status != 200:
                self.send_error(proxy.status)
                return
            with socket.create_connection((host, port)) as far:
                self.send_response_only(200)
                self.end_headers()
                back = threading.Thread(target=_copy, args=(far, self.connection), daemon=True)
                back.start()
                _copy(self.connection, far)
                back.join()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = ConnectProxy(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return proxy, stop


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until either side ends, and tell the other."""
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for side in (source, target):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
