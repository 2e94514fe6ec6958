# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our signatures before cosign, and cosign's before ours, in a real registry without a referrers API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import referrers_tag, with_referrer
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.attached import (
    check_signed,
    read_signatures,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import signature_tag
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import PublicKey, TrustedKeys
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import manifests_of, sign_manifest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.keys import SigningKey
from ansible_collections.edgeml.fleet.tests.integration.signatures.content import REGISTRY, publish, sign_all
from ansible_collections.edgeml.fleet.tests.support.content import Store, publish_image
from ansible_collections.edgeml.fleet.tests.support.cosign import Cosign, make_key

KINDS = ("p256", "ed25519")


@pytest.mark.parametrize("kind", KINDS)
def test_cosign_accepts_what_publish_signed(store: Store, cosign: Cosign, tmp_path: Path, kind: str) -> None:
    """Index, its children, the model's manifest, its index, the children of that, and what the model is made of."""
    key, other = make_key(kind), make_key(kind)
    lock = publish(store, tmp_path)
    result = sign_all(store, tmp_path, lock, key.private)
    references = [f"{repository}@{digest}" for repository, digest in manifests_of(lock)]
    assert len(references) == 3 + 1 + 3 + 1
    assert result["signed"] == references
    for reference in references:
        assert cosign.accepts(f"{store.address}/{reference}", key.public), reference
    assert not cosign.accepts(f"{store.address}/{references[0]}", other.public)


@pytest.mark.parametrize("kind", KINDS)
def test_cosigns_own_signature_is_accepted(store: Store, cosign: Cosign, tmp_path: Path, kind: str) -> None:
    mine = cosign.make_key(kind)
    ours, other = make_key(kind), make_key(kind)
    entry = publish_image(store, "edgeml/runtime").entry
    place = (store.registry(), entry["repository"], entry["digest"])
    reference = f"{store.address}/{entry['repository']}@{entry['digest']}"
    with pytest.raises(FleetError, match="Content is not signed at"):
        check_signed(read_signatures(*place, TrustedKeys([mine]).signer), reference)

    cosign.sign(reference)
    if not cosign.accepts(reference, mine):
        # cosign 3.1 signs with Ed25519ph and verifies with Ed25519: it does not accept its own either.
        assert (kind, cosign.program.parts[-4]) == ("ed25519", "cosign-sid")
        return
    found = read_signatures(*place, TrustedKeys([other.public, mine]).signer)
    check_signed(found, reference)
    assert found.signers == {PublicKey.from_pem(mine, "mine").name}
    with pytest.raises(FleetError, match="not signed by a trusted key"):
        check_signed(read_signatures(*place, TrustedKeys([other.public]).signer), reference)

    # Signatures of both lie side by side.
    key = SigningKey.from_pem(ours.private)
    assert sign_manifest(store.registry(), REGISTRY, *place[1:], key, write=True)
    assert cosign.accepts(reference, mine)
    assert cosign.accepts(reference, ours.public)


def test_signing_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    key = make_key()
    lock = publish(store, tmp_path)
    predicted = sign_all(store, tmp_path, lock, key.private, check_mode=True)
    assert not (tmp_path / "fleet.lock.yml.sig").exists()
    done = sign_all(store, tmp_path, lock, key.private)
    assert done["signed"] == predicted["signed"]
    assert (done["changed"], predicted["changed"]) == (True, True)
    text = (tmp_path / "fleet.lock.yml.sig").read_text()
    for check_mode in (True, False):
        assert not sign_all(store, tmp_path, lock, key.private, check_mode=check_mode)["changed"]
    assert (tmp_path / "fleet.lock.yml.sig").read_text() == text

    # Whatever of it is lost is made again.
    digest = lock["images"]["runtime"]["digest"]
    registry = store.registry()
    data, media_type = registry.get_manifest("edgeml/runtime", digest)
    registry.push_manifest("edgeml/runtime", signature_tag(digest), data, media_type)
    assert sign_all(store, tmp_path, lock, key.private)["signed"] == [f"edgeml/runtime@{digest}"]
    assert not sign_all(store, tmp_path, lock, key.private)["changed"]


def test_a_signature_of_other_content_is_refused(store: Store, tmp_path: Path) -> None:
    """Whoever may push to the registry moves the tags of an image's signatures to another one."""
    key = make_key()
    signed, other = (publish_image(store, "edgeml/runtime").entry["digest"] for _ in range(2))
    registry = store.registry()
    sign_manifest(registry, REGISTRY, "edgeml/runtime", signed, SigningKey.from_pem(key.private), write=True)
    data, media_type = registry.get_manifest("edgeml/runtime", signature_tag(signed))
    registry.push_manifest("edgeml/runtime", signature_tag(other), data, media_type)
    bundle = json.loads(registry.get_manifest("edgeml/runtime", referrers_tag(signed))[0])["manifests"][0]["digest"]
    manifest = json.loads(registry.get_manifest("edgeml/runtime", bundle)[0])
    manifest["subject"]["digest"] = other
    moved = json.dumps(manifest).encode()
    registry.push_manifest("edgeml/runtime", sha256_digest(moved), moved, IMAGE_MANIFEST)
    registry.push_manifest("edgeml/runtime", referrers_tag(other), with_referrer(None, moved), IMAGE_INDEX)
    found = read_signatures(registry, "edgeml/runtime", other, TrustedKeys([key.public]).signer)
    assert len(found.others) == 2
    with pytest.raises(FleetError, match="that of other content"):
        check_signed(found, other)
