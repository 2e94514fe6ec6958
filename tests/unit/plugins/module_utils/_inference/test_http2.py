# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/2 as a client speaks it: headers against the library hpack, and servers that do not keep to the protocol."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import hpack as oracle
import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference import hpack
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect

TEXT = "".join(map(chr, range(32, 127)))
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# A response of status 200 that is not finished, on stream 1.
HEADERS = b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"


@pytest.mark.parametrize("huffman", [True, False])
def test_headers_are_read_as_the_library_writes_them(huffman: bool) -> None:
    headers = {":status": "200", "content-type": "application/grpc", "grpc-status": "13", "grpc-message": TEXT * 3}
    encoder = oracle.Encoder()
    encoder.header_table_size = 0
    assert hpack.decode(encoder.encode(list(headers.items()), huffman=huffman)) == headers
    assert hpack.decode(encoder.encode([(":status", "404"), ("via", "x")], huffman=huffman)) == {
        ":status": "404",
        "": "x",
    }


def test_headers_are_written_as_the_library_reads_them() -> None:
    headers = [(":path", "/x"), ("authorization", "Bearer " + "t" * 5000), ("te", "")]
    assert [(str(name), str(value)) for name, value in oracle.Decoder().decode(hpack.encode(headers))] == headers


@pytest.mark.parametrize(
    "block", [b"\xbe", b"\x80", b"\x10", b"\x10\x05ab", b"\x10\x01a", b"\xff" * 9, b"\x00\x81\x00\x00"]
)
def test_damaged_headers_are_refused(block: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        hpack.decode(block)


@pytest.fixture
def said(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Endpoint of a server that says the same to everybody, whatever they ask, and goes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s.sock"))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1000)
                    client.sendall(request.param)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(1000):
                        pass

    threading.Thread(target=serve, daemon=True).start()
    yield f"grpc+unix://{tmp_path}/s.sock"
    listener.close()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not follow.*HTTP/1.1"),
        (b"", "does not answer.*closed the connection"),
        (SETTINGS + HEADERS, "does not answer.*closed the connection"),
        (SETTINGS + b"\x00\x00\x03\x04\x00\x00\x00\x00\x00abc", "does not follow.*settings"),
        (SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", "does not follow"),
        (SETTINGS + b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xbe", "does not follow.*table"),
        (SETTINGS + b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88", "does not follow.*without a status"),
        (SETTINGS + b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x8d", "UNIMPLEMENTED: HTTP 404"),
        (SETTINGS + b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x02", "refused.*error 2"),
        (SETTINGS + b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x07", "does not answer.*refused"),
        (SETTINGS + b"\x00\x00\x0a\x07\x00\x00\x00\x00\x00" + bytes(8) + b"by", "does not answer.*goes away by"),
        (SETTINGS + HEADERS + b"\x00\x00\x02\x00\x08\x00\x00\x00\x01\x05a", "does not follow.*padding"),
    ],
    indirect=["said"],
)
def test_servers_that_do_not_keep_to_the_protocol_are_named(said: str, words: str) -> None:
    with connect(said, timeout=60) as client, pytest.raises(FleetError, match=words):
        client.server_metadata()
