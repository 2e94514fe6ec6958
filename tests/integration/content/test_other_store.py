# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Another store than ours: Debian 13's registry, whose token service limits each account to repositories."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import export
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.restore import restore
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.test_mirror_sync import lock_of, sync
from ansible_collections.edgeml.fleet.tests.support.content import (
    ARCHITECTURES,
    Authority,
    SiteMirror,
    Store,
    publish_image,
    wait_for,
)
from ansible_collections.edgeml.fleet.tests.support.debian_suite import program_of
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server, start
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

#: Password, repositories (a prefix) and what may be done there, by account.
ACCOUNTS = {
    "publisher": ("correct horse", "edgeml/", {"pull", "push"}),
    "berlin": ("one", "edgeml/runtime", {"pull"}),
}


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class TokenService:
    """Signs what an account may do (distribution, "Token authentication implementation")."""

    authority: Authority
    granted: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)

    def answer(self, request: Request) -> Answer:
        scheme, _, pair = request.headers.get("Authorization", "").partition(" ")
        name, _, password = base64.b64decode(pair).decode().partition(":")
        if scheme != "Basic" or name not in ACCOUNTS or ACCOUNTS[name][0] != password:
            return Answer(401, b"{}")
        query = parse_qs(urlsplit(request.path).query)
        access = []
        for scope in query.get("scope", []):
            kind, repository, actions = scope.split(":")
            allowed = ACCOUNTS[name][2] if repository.startswith(ACCOUNTS[name][1]) else set()
            access.append({"type": kind, "name": repository, "actions": sorted(allowed & set(actions.split(",")))})
        self.granted.append((name, access))
        return Answer(200, json.dumps({"token": self._token(name, query["service"][0], access)}).encode())

    def _token(self, name: str, service: str, access: list[dict[str, Any]]) -> str:
        certificate = x509.load_pem_x509_certificates(self.authority.certificate.read_bytes())[0]
        key = load_pem_private_key(self.authority.key.read_bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
        now = int(time.time())
        claims = {
            "iss": "edgeml test", "sub": name, "aud": service, "exp": now + 600, "nbf": now - 60, "iat": now,
            "jti": secrets.token_hex(8), "access": access,
        }  # fmt: skip
        head = {"typ": "JWT", "alg": "ES256", "x5c": chain}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(key.sign(signed.encode(), ECDSA(SHA256())))
        return f"{signed}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


Serve = Callable[[Callable[[Request], Answer]], Server]


@pytest.fixture
def serve(authority: Authority) -> Iterator[Serve]:
    """Return a function that starts a server which answers each request by the function given."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.certificate, authority.key)
    with contextlib.ExitStack() as stack:

        def begin(answer: Callable[[Request], Answer]) -> Server:
            server, stop = start(context, str(authority.ca_file), answer)
            stack.callback(stop)
            return server

        yield begin


@pytest.fixture
def other(authority: Authority, serve: Serve, tmp_path: Path) -> Iterator[tuple[Store, TokenService]]:
    """Debian 13's registry with token authentication, as publishers see it, and its token service."""
    program = program_of("trixie", "docker-registry", "usr/bin/docker-registry")
    service = TokenService(authority)
    tokens = serve(service.answer)
    port = free_port()
    store = Store(f"127.0.0.1:{port}", str(authority.ca_file), tmp_path / "storage")
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(store.storage)}},
        "http": {
            "addr": store.address,
            "tls": {"certificate": str(authority.certificate), "key": str(authority.key)},
        },
        "auth": {
            "token": {
                "realm": f"https://{tokens.address}/token",
                "service": "other store",
                "issuer": "edgeml test",
                "rootcertbundle": str(authority.ca_file),
            }
        },
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", tmp_path / "config.yml"], stdout=log, stderr=log)
    try:
        wait_for(port, process)
        yield store, service
    finally:
        process.terminate()
        process.wait()


def test_publish_mirror_back_up_and_restore(
    other: tuple[Store, TokenService], store: Store, mirror: SiteMirror, tmp_path: Path
) -> None:
    there, service = other
    image = publish_image(there, "edgeml/runtime", 300_000)
    lock = lock_of(1, {"runtime": image.entry})
    # A mirror's account reads one repository, and writes nothing.
    berlin = Store(there.address, there.ca_file, there.storage, "berlin", "one")
    assert sync(mirror, berlin, lock).blobs_fetched == 4
    assert {tuple(one["actions"]) for name, access in service.granted if name == "berlin" for one in access} == {
        ("pull",)
    }
    with pytest.raises(FleetError, match=r"does not allow this|refused the user"):
        berlin.registry().push_blob("edgeml/runtime", b"x", sha256_digest(b"x"))
    secret = publish_image(there, "edgeml/secret")
    with pytest.raises(FleetError, match=r"does not allow this|refused the user"):
        berlin.registry().get_manifest("edgeml/secret", secret.entry["digest"])

    # Back and forth between registries of two makes: not a byte differs.
    export(tmp_path / "bundle", there.registry(), lock, ARCHITECTURES, write=True)
    assert restore(tmp_path / "bundle", store.registry(), write=True)["changed"]
    before = mirror.snapshot()
    sync(mirror, store, lock | {"serial": 2})
    assert {path.partition("/v2/")[2]: digest for path, digest in mirror.snapshot().items() if "/v2/" in path} == {
        path.partition("/v2/")[2]: digest for path, digest in before.items() if "/v2/" in path
    }


def test_blobs_that_are_elsewhere(other: tuple[Store, TokenService], mirror: SiteMirror, serve: Serve) -> None:
    """A store sends its clients to object storage, which cuts connections: they go on there, without credentials."""
    there, _service = other
    image = publish_image(there, "edgeml/runtime", 300_000)
    seen: list[Request] = []

    def storage(request: Request) -> Answer:
        seen.append(request)
        data = there.file_of(urlsplit(request.path).path[1:]).read_bytes()
        offset = int(request.headers.get("Range", "bytes=0-")[6:-1])
        headers = {"Content-Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"} if offset else {}
        cut = 120_000 if len(data) - offset > 120_000 else None
        return Answer(206 if offset else 200, data[offset:], headers, cut)

    elsewhere = serve(storage)

    def front(request: Request) -> Answer:
        name = request.path.rpartition("/")[2]
        if "/blobs/" in request.path:
            return Answer(307, b"", {"Location": f"https://{elsewhere.address}/{name}?signature=secret"})
        data, media_type = there.registry().get_manifest("edgeml/runtime", name)
        return Answer(200, data, {"Content-Type": media_type})

    summary = sync(mirror, Store(serve(front).address, there.ca_file, there.storage), lock_of(1, {"r": image.entry}))
    assert summary.bytes_fetched == summary.bytes_total
    assert [request for request in seen if "Range" in request.headers]
    assert not [request for request in seen if "Authorization" in request.headers]
