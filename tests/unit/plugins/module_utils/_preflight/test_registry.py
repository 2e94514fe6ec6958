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
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    Content,
    Finding,
    RegistryAccess,
    Wanted,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.network import registry
from ansible_collections.edgeml.fleet.tests.support.registry_server import (
    Answer,
    Request,
    Server,
    start,
)
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils.conftest import Serve

MODEL = Content("model", "model digits 1.0.0", "edgeml/models/digits", "sha256:" + "b" * 64, 10)
IMAGE = Content("image", "image runtime", "edgeml/runtime", "sha256:" + "a" * 64, 10)


def access(server: Server, **more: str) -> RegistryAccess:
    return RegistryAccess(server.address, ca_certificate=Path(server.ca_file).read_text(), **more)


def findings(server: RegistryAccess, *missing: Content) -> list[Finding]:
    return list(registry(Wanted(content=missing, registry=server), missing))


def problem(server: RegistryAccess, *missing: Content) -> Finding:
    (found,) = findings(server, *missing)
    assert found.severity == REFUSE
    return found


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
def test_a_mirror_that_has_everything(serve: Serve, headers: dict[str, str]) -> None:
    server = serve(lambda request: Answer(200, b"{}", dict(headers)))
    assert findings(access(server), MODEL, IMAGE) == []
    assert [(request.method, request.path) for request in server.requests] == [
        ("GET", "/v2/"),
        ("HEAD", f"/v2/edgeml/models/digits/blobs/{MODEL.digest}"),
        ("HEAD", f"/v2/edgeml/runtime/manifests/{IMAGE.digest}"),
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
        if request.headers.get("Authorization") == "Basic ZWRnZW1sOnNlc2FtZQ==":
            return Answer(200)
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="store"'})

    server = serve(answer)
    assert findings(access(server, username="edgeml", password="sesame"), MODEL) == []
    found = problem(access(server, username="edgeml", password="wrong-one"), MODEL)
    assert "HTTP 401" in found.value
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


def test_a_store_behind_a_token_service(serve: Serve) -> None:
    tokens = serve(lambda _: Answer(200, b'{"token":"abc"}'))
    challenge = f'Bearer realm="https://{tokens.address}/token",service="store",scope="repository:edgeml:pull"'

    def answer(request: Request) -> Answer:
        if request.headers.get("Authorization") == "Bearer abc":
            return Answer(404 if "runtime" in request.path else 200)
        return Answer(401, headers={"WWW-Authenticate": challenge})

    server = serve(answer)
    assert findings(access(server, username="edgeml", password="sesame"), MODEL) == []
    assert problem(access(server), MODEL, IMAGE).value == f"{server.address} lacks image runtime"


def test_a_store_that_keeps_its_blobs_elsewhere(serve: Serve) -> None:
    storage = serve(lambda request: Answer(200 if "Authorization" not in request.headers else 400))

    def answer(request: Request) -> Answer:
        if "/blobs/" in request.path:
            return Answer(307, headers={"Location": f"https://{storage.address}/bucket/digits?signature=s3cret"})
        return Answer(200)

    assert findings(access(serve(answer)), MODEL, IMAGE) == []
    assert [request.path for request in storage.requests] == ["/bucket/digits?signature=s3cret"]


def test_a_store_at_an_ipv6_address(serve: Serve) -> None:
    server = serve(lambda _: Answer(200), "::1")
    assert server.address.startswith("[::1]:")
    assert findings(access(server), MODEL, IMAGE) == []


@pytest.mark.parametrize("address", ["::1", "2001:db8::1", "https://store", "store:5000/edgeml"])
def test_what_is_no_address_is_a_finding(address: str) -> None:
    found = problem(RegistryAccess(address), MODEL)
    assert found.name == "registry"
    assert "host:port" in found.remedy
