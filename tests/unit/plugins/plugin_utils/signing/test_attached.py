# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures in registries of both kinds, and what a hostile registry keeps in their place."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_INDEX, IMAGE_MANIFEST, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import referrers_tag, with_referrer
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.attached import (
    check_signed,
    read_signatures,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import (
    BUNDLE,
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING,
    bundle_signatures,
    bundle_statement,
    signature_tag,
    simple_payload,
    simple_says,
    statement_says,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import TrustedKeys
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import sign_manifest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.keys import SigningKey
from ansible_collections.edgeml.fleet.tests.support.cosign import make_key
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server

Serve = Callable[[Callable[[Request], Answer]], Server]
REPOSITORY = "edgeml/a"
SUBJECT = canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []})
DIGEST = sha256_digest(SUBJECT)
OTHER = sha256_digest(b"other")


class MemoryRegistry:
    """A registry as far as signatures need one, with the referrers API or without."""

    def __init__(self, has_api: bool) -> None:
        self.has_api = has_api
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.put(DIGEST, SUBJECT, IMAGE_INDEX)

    def put(self, reference: str, data: bytes, media_type: str = IMAGE_MANIFEST) -> None:
        for name in {reference, sha256_digest(data)}:
            self.manifests[name] = (media_type, data)

    def add_blob(self, data: bytes) -> dict[str, Any]:
        self.blobs[sha256_digest(data)] = data
        return {"digest": sha256_digest(data), "size": len(data)}

    def answer(self, request: Request) -> Answer:
        url = urlsplit(request.path)
        kind, _separator, reference = url.path.removeprefix(f"/v2/{REPOSITORY}/").partition("/")
        if request.method == "POST":
            return Answer(202, headers={"Location": f"/v2/{REPOSITORY}/blobs/uploads/1"})
        if request.method == "PUT" and kind == "blobs":
            self.blobs[parse_qs(url.query)["digest"][0]] = request.body
            return Answer(201)
        if request.method == "PUT":
            self.put(reference, request.body, request.headers["Content-Type"])
            return Answer(201)
        if kind == "referrers" and self.has_api:
            index = None
            for name, (_type, data) in self.manifests.items():
                if name.startswith("sha256:") and json.loads(data).get("subject", {}).get("digest") == reference:
                    index = with_referrer(index, data)
            empty = canonical_json({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []})
            return Answer(200, index or empty, {"Content-Type": IMAGE_INDEX})
        if kind == "manifests" and reference in self.manifests:
            media_type, data = self.manifests[reference]
            return Answer(200, data, {"Content-Type": media_type})
        if kind == "blobs" and reference in self.blobs:
            return Answer(200, self.blobs[reference])
        return Answer(404)


@pytest.mark.parametrize("has_api", [True, False])
def test_both_formats_in_registries_of_both_kinds(serve: Serve, has_api: bool) -> None:
    content = MemoryRegistry(has_api)
    registry = serve(content.answer).registry()
    first, second = make_key(), make_key("ed25519")
    for pair in (first, second):
        key = SigningKey.from_pem(pair.private)
        assert sign_manifest(registry, "registry:1", REPOSITORY, DIGEST, key, write=False)
        assert sign_manifest(registry, "registry:1", REPOSITORY, DIGEST, key, write=True)
        assert not sign_manifest(registry, "registry:1", REPOSITORY, DIGEST, key, write=True)
    trusted = TrustedKeys([first.public, second.public])
    found = read_signatures(registry, REPOSITORY, DIGEST, trusted.signer)
    assert found.simple_signers == found.bundle_signers == set(trusted.names())
    assert found.others == []
    assert (referrers_tag(DIGEST) in content.manifests) is not has_api, "the tag stands for the API that is missing"
    assert len(read_signatures(registry, REPOSITORY, DIGEST, TrustedKeys([first.public]).signer).others) == 2


def manifest(layer: Any) -> bytes:
    return json.dumps({"layers": [layer] if layer is not None else None}).encode()


def signed_layer(digest: Any, signature: Any = "AAAA") -> dict[str, Any]:
    return {"mediaType": SIMPLE_SIGNING, "digest": digest, "annotations": {SIGNATURE_ANNOTATION: signature}}


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, manifest(None), manifest(5), manifest({}),
     manifest(signed_layer(5)), manifest(signed_layer(None)), manifest(signed_layer("../../etc/passwd")),
     manifest(signed_layer(OTHER)), manifest(signed_layer(OTHER, 5)), manifest(signed_layer(OTHER, "!")),
     json.dumps({"layers": [signed_layer(OTHER)] * 10_000}).encode()],
    ids=lambda data: repr(data[:40]),
)  # fmt: skip
def test_a_hostile_manifest_signs_nothing_and_hides_nothing(serve: Serve, data: bytes) -> None:
    content = MemoryRegistry(has_api=False)
    registry = serve(content.answer).registry()
    pair = make_key()
    trusted = TrustedKeys([pair.public])
    content.put(signature_tag(DIGEST), data)
    with pytest.raises(FleetError, match="not signed"):
        check_signed(read_signatures(registry, REPOSITORY, DIGEST, trusted.signer), "here")
    content.put(referrers_tag(DIGEST), data, IMAGE_INDEX)
    with pytest.raises(FleetError, match="not signed"):
        check_signed(read_signatures(registry, REPOSITORY, DIGEST, trusted.signer), "here")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"dsseEnvelope": 5}', b'{"dsseEnvelope": {"payload": 5}}',
     b'{"dsseEnvelope": {"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": 5}}',
     b'{"dsseEnvelope": {"payload": "e30=", "payloadType": "other", "signatures": [{"sig": "AAAA"}]}}',
     b'{"dsseEnvelope": {"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [5, {}]}}'],
)  # fmt: skip
def test_a_hostile_bundle_has_no_signature(serve: Serve, data: bytes) -> None:
    assert bundle_signatures(data) == []
    content = MemoryRegistry(has_api=True)
    layer = {"mediaType": BUNDLE, **content.add_blob(data)}
    content.put(OTHER, json.dumps({"subject": {"digest": DIGEST}, "layers": [layer]}).encode())
    registry: Registry = serve(content.answer).registry()
    found = read_signatures(registry, REPOSITORY, DIGEST, TrustedKeys([make_key().public]).signer)
    assert found.signers == set()


def test_a_statement_is_about_one_digest_and_nothing_else() -> None:
    good = json.loads(bundle_statement(DIGEST))
    assert statement_says(json.dumps(good).encode(), DIGEST)
    assert not statement_says(json.dumps(good).encode(), OTHER)
    subject = good["subject"][0]
    changes: list[dict[str, Any]] = [
        {"subject": [subject, subject]},
        {"subject": []},
        {"subject": [{"digest": {**subject["digest"], "sha512": "00"}}]},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"_type": "https://in-toto.io/Statement/v0.1"},
    ]
    for change in changes:
        assert not statement_says(json.dumps({**good, **change}).encode(), DIGEST), change


def test_a_payload_is_about_one_digest() -> None:
    good = simple_payload("registry:1/edgeml/a", DIGEST)
    assert simple_says(good, DIGEST)
    assert not simple_says(good, OTHER)
    assert not simple_says(re.sub(rb"cosign container image signature", b"another", good), DIGEST)
    assert not simple_says(base64.b64encode(good), DIGEST)
