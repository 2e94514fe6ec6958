# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry client against servers that ask for tokens, redirect, fail and lie."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_MANIFEST, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server

Serve = Callable[[Callable[[Request], Answer]], Server]
BLOB = b"weights"
DIGEST = sha256_digest(BLOB)
BASIC = "Basic " + base64.b64encode(b"fleet:geheim").decode()


def test_a_bearer_token_is_fetched_once_and_used(serve: Serve) -> None:
    def token_service(request: Request) -> Answer:
        assert request.headers["Authorization"] == BASIC
        assert request.path == "/token?service=store&scope=repository%3Aedgeml%2Fa%3Apull"
        return Answer(200, b'{"token":"abc"}')

    tokens = serve(token_service)
    challenge = f'Bearer realm="https://{tokens.address}/token",service="store",scope="repository:edgeml/a:pull"'

    def registry_answer(request: Request) -> Answer:
        if request.headers.get("Authorization") != "Bearer abc":
            return Answer(401, headers={"WWW-Authenticate": challenge})
        return Answer(200, BLOB)

    server = serve(registry_answer)
    registry = server.registry("fleet", "geheim")
    assert registry.has_blob("edgeml/a", DIGEST)
    assert registry.has_blob("edgeml/a", DIGEST)
    assert len(tokens.requests) == 1
    assert len(server.requests) == 3
    assert all(request.headers.get("Authorization") != BASIC for request in server.requests)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token":5}', b'{"token":"a\\r\\nb: c"}'])
def test_a_token_service_without_a_token(serve: Serve, answer: bytes) -> None:
    tokens = serve(lambda _: Answer(200, answer))
    challenge = {"WWW-Authenticate": f'Bearer realm="https://{tokens.address}/token"'}
    server = serve(lambda _: Answer(401, headers=challenge))
    with pytest.raises(FleetError, match="sent no token"):
        server.registry().ping()


def test_credentials_are_not_sent_before_they_are_asked_for(serve: Serve) -> None:
    server = serve(lambda _: Answer(200))
    server.registry("fleet", "geheim").ping()
    assert "Authorization" not in server.requests[0].headers


def test_a_redirect_is_followed_without_credentials(serve: Serve) -> None:
    storage = serve(lambda _: Answer(200, BLOB))

    def registry_answer(request: Request) -> Answer:
        if request.headers.get("Authorization") != BASIC:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="store"'})
        return Answer(307, headers={"Location": f"https://{storage.address}/signed?secret=1"})

    with serve(registry_answer).registry("fleet", "geheim").open_blob("edgeml/a", DIGEST) as stream:
        assert stream.read_all(100) == BLOB
    assert storage.requests[0].path == "/signed?secret=1"
    assert "Authorization" not in storage.requests[0].headers


def test_endless_redirects_end(serve: Serve) -> None:
    server = serve(lambda request: Answer(302, headers={"Location": request.path}))
    with pytest.raises(FleetError, match="HTTP 302"):
        server.registry().open_blob("edgeml/a", DIGEST)
    assert len(server.requests) < 10


def test_an_address_without_tls_is_refused(serve: Serve) -> None:
    server = serve(lambda _: Answer(307, headers={"Location": "http://127.0.0.1:1/x?secret=1"}))
    with pytest.raises(FleetError, match="without TLS") as caught:
        server.registry().open_blob("edgeml/a", DIGEST)
    assert "secret" not in str(caught.value)


NO_ADDRESSES = [
    f"https://{rest}?secret=1"
    for rest in (
        "[::1/x",
        "h:abc/x",
        "h:99999/x",
        "h:0/x",
        "h a/x",
        "ä.example/x",
        "a..b/x",
        f"{'a' * 64}/x",
        "h/x y",
        "h/ä",
    )
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_a_redirect_to_what_is_no_address(serve: Serve, address: str) -> None:
    server = serve(lambda _: Answer(307, headers={"Location": address}))
    with pytest.raises(FleetError, match="Location") as opened:
        server.registry().open_blob("edgeml/a", DIGEST)
    with pytest.raises(FleetError, match="Location"):
        server.registry().ping()
    assert opened.value.where == f"{server.address}, header Location"
    assert "secret" not in str(opened.value)


@pytest.mark.parametrize("address", [*NO_ADDRESSES, "", "token", "https:///token"])
def test_a_token_service_at_what_is_no_address(serve: Serve, address: str) -> None:
    server = serve(lambda _: Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{address}"'}))
    with pytest.raises(FleetError, match="WWW-Authenticate") as caught:
        server.registry().ping()
    assert server.address in caught.value.where
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_upload_to_what_is_no_address(serve: Serve, address: str) -> None:
    def answer(request: Request) -> Answer:
        return Answer(404) if request.method == "HEAD" else Answer(202, headers={"Location": address})

    registry = serve(answer).registry()
    with pytest.raises(FleetError, match="Location") as pushed:
        registry.push_blob("edgeml/a", BLOB, DIGEST)
    with pytest.raises(FleetError, match="Location") as mounted:
        registry.mount_blob("edgeml/a", DIGEST, "edgeml/b")
    assert pushed.value.where == mounted.value.where == f"{registry.address}, header Location"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_server_is_asked_again(serve: Serve, status: int) -> None:
    answers = iter([Answer(status), Answer(status), Answer(200)])
    server = serve(lambda _: next(answers))
    server.registry().ping()
    assert len(server.requests) == 3


def test_a_server_that_keeps_failing_is_reported(serve: Serve) -> None:
    body = json.dumps({"errors": [{"code": "UNKNOWN", "message": "disk\nfull"}]}).encode()
    server = serve(lambda _: Answer(500, body))
    with pytest.raises(FleetError) as caught:
        server.registry().ping()
    assert caught.value.seen == "HTTP 500 UNKNOWN disk?full"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "refused the user name and password"),
        (403, "does not allow this"),
        (404, "does not hold this"),
        (418, "unexpected answer"),
    ],
)
def test_other_statuses_are_reported_at_once(serve: Serve, status: int, expected: str) -> None:
    server = serve(lambda _: Answer(status, b"<html>"))
    with pytest.raises(FleetError, match=expected) as caught:
        server.registry("fleet", "geheim").get_manifest("edgeml/a", "1.0.0")
    assert caught.value.where == f"https://{server.address}/v2/edgeml/a/manifests/1.0.0"
    assert "geheim" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_registry_that_wants_a_password_says_so(serve: Serve) -> None:
    server = serve(lambda _: Answer(401, headers={"WWW-Authenticate": 'Basic realm="store"'}))
    with pytest.raises(FleetError, match="asks for a user name"):
        server.registry().ping()


def test_an_untrusted_certificate_is_reported_at_once(serve: Serve) -> None:
    server = serve(lambda _: Answer(200))
    with pytest.raises(FleetError, match="certificate is not trusted"):
        Registry(server.address).ping()
    assert server.requests == []


def test_a_host_that_knows_neither_name_nor_authority(serve: Serve) -> None:
    server = serve(lambda _: Answer(200))
    options = {
        "address": "registry.edgeml.internal:" + server.address.rpartition(":")[2],
        "ip_address": "127.0.0.1",
        "ca_certificate": Path(server.ca_file).read_text(),
    }
    Registry.from_options(options).ping()
    assert server.requests[0].headers["Host"] == options["address"]
    with pytest.raises(FleetError, match="cannot be used at ca_certificate"):
        Registry.from_options({**options, "ca_certificate": "not PEM"})


def test_a_missing_file_of_authorities() -> None:
    with pytest.raises(FleetError, match=r"/none\.crt"):
        Registry("127.0.0.1", ca_file="/none.crt")


@pytest.mark.parametrize("address", ["", "https://a", "a/b", "a@b", "a b", "a:b", "a\r\nb", "a:65536", "::1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(FleetError, match="Not a registry address"):
        Registry(address)


def test_a_manifest_with_another_digest_is_refused(serve: Serve) -> None:
    registry = serve(lambda _: Answer(200, b"{}")).registry()
    with pytest.raises(FleetError, match="another digest"):
        registry.get_manifest("edgeml/a", DIGEST)
    assert registry.get_manifest("edgeml/a", sha256_digest(b"{}"))[0] == b"{}"


def test_a_manifest_is_limited_in_size(serve: Serve) -> None:
    registry = serve(lambda _: Answer(200, bytes(5_000_000))).registry()
    with pytest.raises(FleetError, match="too large"):
        registry.get_manifest("edgeml/a", "1.0.0")


def test_a_truncated_manifest_is_asked_for_again(serve: Serve) -> None:
    answers = iter([Answer(200, b'{"a":1}', cut=3), Answer(200, b'{"a":1}', {"Content-Type": f"{IMAGE_MANIFEST}; x"})])
    registry = serve(lambda _: next(answers)).registry()
    assert registry.get_manifest("edgeml/a", "1.0.0") == (b'{"a":1}', IMAGE_MANIFEST)


def test_a_registry_that_states_no_digest(serve: Serve) -> None:
    registry = serve(lambda _: Answer(200, b"{}")).registry()
    assert registry.manifest_digest("edgeml/a", "1.0.0") == sha256_digest(b"{}")


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_failures, "ATTEMPTS", 1)
    # The first answer ends its connection without saying so.
    answers = iter([Answer(200, cut=0), Answer(200)])
    server = serve(lambda _: next(answers))
    registry = server.registry()
    registry.ping()
    registry.ping()
    assert len(server.requests) == 2


def test_an_upload_follows_the_location_and_starts_anew_after_a_failure(serve: Serve) -> None:
    uploads = iter(["first", "second"])

    def answer(request: Request) -> Answer:
        if request.method == "HEAD":
            return Answer(404)
        if request.method == "POST":
            return Answer(202, headers={"Location": f"/v2/edgeml/a/blobs/uploads/{next(uploads)}?_state=x"})
        return Answer(500 if "first" in request.path else 201)

    server = serve(answer)
    assert server.registry().push_blob("edgeml/a", BLOB, DIGEST)
    put = server.requests[-1]
    assert put.path == f"/v2/edgeml/a/blobs/uploads/second?_state=x&digest={DIGEST.replace(':', '%3A')}"
    assert put.body == BLOB


def test_a_blob_that_is_there_is_not_sent(serve: Serve) -> None:
    server = serve(lambda _: Answer(200))
    assert not server.registry().push_blob("edgeml/a", BLOB, DIGEST)
    assert [request.method for request in server.requests] == ["HEAD"]


def test_a_mount_and_a_mount_that_the_registry_declines(serve: Serve) -> None:
    server = serve(lambda _: Answer(201))
    assert server.registry().mount_blob("edgeml/a", DIGEST, "edgeml/b")
    assert server.requests[0].path.endswith(f"?mount={DIGEST.replace(':', '%3A')}&from=edgeml%2Fb")

    def declining(request: Request) -> Answer:
        return Answer(204) if request.method == "DELETE" else Answer(202, headers={"Location": "/upload/1"})

    server = serve(declining)
    assert not server.registry().mount_blob("edgeml/a", DIGEST, "edgeml/b")
    assert [(request.method, request.path) for request in server.requests][1] == ("DELETE", "/upload/1")
