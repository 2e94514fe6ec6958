# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An HTTPS server whose answers a test writes itself, for what a well-behaved registry never does."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answer:
    """`cut` closes the connection after that many bytes of the body, against the promised length."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Server:
    address: str
    ca_file: str
    requests: list[Request]

    def registry(self, username: str = "", password: str = "") -> Registry:
        return Registry(self.address, username, password, self.ca_file)


def start(
    certificate: ssl.SSLContext, ca_file: str, answer: Callable[[Request], Answer], host: str = "127.0.0.1"
) -> tuple[Server, Callable[[], None]]:
    """Start a server on a free port of `host`, an IP address; return it and the function that stops it."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, dict(self.headers.items()), body)
            requests.append(request)
            made = answer(request)
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(made.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(made.body if made.cut is None else made.body[: made.cut])
            if made.cut is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class AnyServer(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = AnyServer((host, 0), Handler)
    server.daemon_threads = True
    server.socket = certificate.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    shown = f"[{host}]" if ":" in host else host
    return Server(f"{shown}:{server.server_port}", ca_file, requests), stop
