# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host asks its mirror for what it lacks: each way in which that fails has its name."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.registry import (
    RegistryAccess,
    RegistryProblem,
    ask_registry,
)
from ansible_collections.edgeml.fleet.tests.support.registry_server import (
    Answer,
    Request,
    Server,
    start,
)
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils.conftest import Serve

MODEL = ("model digits 1.0.0", "edgeml/models/digits", "blobs", "sha256:" + "b" * 64)
IMAGE = ("image runtime", "edgeml/runtime", "manifests", "sha256:" + "a" * 64)


def access(server: Server, **more: str) -> RegistryAccess:
    return RegistryAccess(server.address, ca_certificate=Path(server.ca_file).read_text(), **more)


def problem(registry: RegistryAccess, *wanted: tuple[str, str, str, str]) -> RegistryProblem:
    with pytest.raises(RegistryProblem) as caught:
        ask_registry(registry, wanted)
    return caught.value


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
def test_a_mirror_that_has_everything(serve: Serve, headers: dict[str, str]) -> None:
    server = serve(lambda request: Answer(200, b"{}", dict(headers)))
    ask_registry(access(server), [MODEL, IMAGE])
    assert [(request.method, request.path) for request in server.requests] == [
        ("GET", "/v2/"),
        ("HEAD", f"/v2/edgeml/models/digits/blobs/{MODEL[3]}"),
        ("HEAD", f"/v2/edgeml/runtime/manifests/{IMAGE[3]}"),
    ]


def test_a_mirror_that_lacks_the_new_lock(serve: Serve) -> None:
    server = serve(lambda request: Answer(404 if "blobs" in request.path else 200))
    found = problem(access(server), MODEL, IMAGE)
    assert (found.name, found.value) == ("content", f"{server.address} lacks model digits 1.0.0")


def test_the_name_is_asked_at_the_address_given(serve: Serve) -> None:
    server = serve(lambda request: Answer(200))
    port = server.address.rpartition(":")[2]
    certificate = Path(server.ca_file).read_text()
    found = problem(RegistryAccess(f"registry.invalid:{port}", ca_certificate=certificate), MODEL)
    assert found.name == "name_resolution"
    # Its certificate is for 127.0.0.1 only, so that it is found and not trusted under this name.
    named = RegistryAccess(f"registry.invalid:{port}", "127.0.0.1", certificate)
    assert problem(named, MODEL).name == "registry_tls"


def test_user_name_and_password(serve: Serve) -> None:
    def answer(request: Request) -> Answer:
        return Answer(200 if request.headers.get("Authorization") == "Basic ZWRnZW1sOnNlc2FtZQ==" else 401)

    server = serve(answer)
    ask_registry(access(server, username="edgeml", password="sesame"), [MODEL])
    found = problem(access(server, username="edgeml", password="wrong-one"), MODEL)
    assert "status 401" in found.value
    assert "password" in found.remedy
    assert "wrong-one" not in repr(access(server, username="edgeml", password="wrong-one"))


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = problem(RegistryAccess(f"127.0.0.1:{port}"), MODEL)
    assert found.name == "registry"
    assert "Connection refused" in found.value


def test_another_authority(serve: Serve) -> None:
    server = serve(lambda request: Answer(200))
    other = trustme.CA().cert_pem.bytes().decode()
    assert problem(RegistryAccess(server.address, ca_certificate=other), MODEL).name == "registry_tls"


@pytest.fixture
def expired() -> Iterator[Callable[[], RegistryAccess]]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    authority.issue_cert("127.0.0.1", not_before=yesterday - timedelta(days=1), not_after=yesterday).configure_cert(
        context
    )
    server, stop = start(context, "", lambda request: Answer(200))
    yield lambda: RegistryAccess(server.address, ca_certificate=authority.cert_pem.bytes().decode())
    stop()


def test_expired_certificate(expired: Callable[[], RegistryAccess]) -> None:
    found = problem(expired(), MODEL)
    assert found.name == "registry_tls"
    assert "expired" in found.value


def test_something_else_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        import threading

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"220 smtp\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        assert problem(RegistryAccess(address), MODEL).name == "registry"
        thread.join()
