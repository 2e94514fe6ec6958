# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A device that takes its time is waited for as long as the caller said, over gRPC as over REST."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc  # type: ignore[import-untyped]
import pytest
import trustme
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import SlowError, UnreachableError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import ENDPOINT_ARGUMENTS, connect
from ansible_collections.edgeml.fleet.plugins.modules.inference_health import check
from ansible_collections.edgeml.fleet.tests.support.open_inference import message_class

HANDSHAKE_SECONDS = 2.0
TIMEOUT = 120.0


class Delay:
    """Passes a connection on to a server; what the server says first comes late, for ever if `seconds` is None."""

    def __init__(self, target: int, seconds: float | None) -> None:
        self._target, self._seconds = target, seconds
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass, args=(client, server, 0.0), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, self._seconds), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, seconds: float | None) -> None:
        with contextlib.suppress(OSError), source, target:
            data = source.recv(65536)
            self._over.wait(seconds)
            while data and not self._over.is_set():
                target.sendall(data)
                data = source.recv(65536)


class _Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"name": "careful", "version": "1", "extensions": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        del arguments


class _ReadyService(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        fields: dict[str, dict[str, Any]] = {
            "ServerLive": {"live": True},
            "ServerReady": {"ready": True},
            "ServerMetadata": {"name": "careful", "version": "1"},
        }
        method = details.method.rpartition("/")[2]
        answer = message_class(f"{method}Response")(**fields[method]).SerializeToString()
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


@pytest.fixture(params=["https", "grpcs"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int, str]]:
    """A server that is ready, behind TLS: scheme, port, file of its authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca_file = tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(str(ca_file))
    if request.param == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Ready) as web:
            web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
            threading.Thread(target=web.serve_forever, daemon=True).start()
            yield request.param, web.server_address[1], str(ca_file)
            web.shutdown()
    else:
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
        rpc = grpc.server(ThreadPoolExecutor(1), handlers=[_ReadyService()])
        port = rpc.add_secure_port("127.0.0.1:0", credentials)
        rpc.start()
        yield request.param, port, str(ca_file)
        rpc.stop(None).wait()


def test_slow_handshake_is_waited_for(server: tuple[str, int, str]) -> None:
    scheme, port, ca_file = server
    with (
        contextlib.closing(Delay(port, HANDSHAKE_SECONDS)) as slow,
        connect(f"{scheme}://127.0.0.1:{slow.port}", ca_file=ca_file, timeout=TIMEOUT) as client,
    ):
        assert client.ready()


def test_health_check_waits_for_one_connection_as_long_as_for_the_server(server: tuple[str, int, str]) -> None:
    """Each handshake takes longer than a request may: to begin again would never come to an end."""
    scheme, port, ca_file = server
    with contextlib.closing(Delay(port, HANDSHAKE_SECONDS)) as slow:
        options = dict.fromkeys(ENDPOINT_ARGUMENTS) | {
            "endpoint": f"{scheme}://127.0.0.1:{slow.port}",
            "ca_file": ca_file,
            "timeout": HANDSHAKE_SECONDS / 4,
            "wait": TIMEOUT,
            "models": [],
        }
        result = check(cast(AnsibleModule, SimpleNamespace(params=options)))
    assert result["server"] == {"name": "careful", "version": "1"}


def test_server_that_is_too_slow_is_called_slow(server: tuple[str, int, str]) -> None:
    scheme, port, ca_file = server
    with (
        contextlib.closing(Delay(port, None)) as hanging,
        connect(f"{scheme}://127.0.0.1:{hanging.port}", ca_file=ca_file, timeout=0.5) as client,
        pytest.raises(SlowError, match=r"is slow: no answer within 0\.5 s") as failure,
    ):
        client.ready()
    assert "timeout" in failure.value.remedy


def test_closed_port_is_not_slow(server: tuple[str, int, str]) -> None:
    scheme, _, ca_file = server
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with (
        connect(f"{scheme}://127.0.0.1:{port}", ca_file=ca_file, timeout=TIMEOUT) as client,
        pytest.raises(UnreachableError, match="does not answer") as failure,
    ):
        client.ready()
    assert not isinstance(failure.value, SlowError)
