# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mirror refuses, from a real registry, and what cosign finds at it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_INDEX, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import referrers_tag
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.sbom import CYCLONEDX
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import BUNDLE, signature_tag
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import PublicKey, TrustedKeys
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import Trust
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.content import manifests_of
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.signatures.content import Signed, publish, sign_all
from ansible_collections.edgeml.fleet.tests.support.content import run_module
from ansible_collections.edgeml.fleet.tests.support.cosign import Cosign, make_key, sign_lock


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_failures, "FIRST_PAUSE", 0.01)


def test_cosign_verifies_what_a_mirror_serves(signed: Signed, cosign: Cosign) -> None:
    """At the site, without the store: nginx serves the tags and the referrers."""
    signed.sync(signed.trust())
    for repository, digest in manifests_of(signed.lock):
        reference = f"{signed.mirror.address}/{repository}@{digest}"
        assert cosign.accepts(reference, signed.key.public), reference
        assert not cosign.accepts(reference, make_key().public)
    registry = signed.mirror.registry()
    digest = signed.lock["images"]["runtime"]["digest"]
    tags = json.loads(registry._call("GET", "/v2/edgeml/runtime/tags/list", expect={200})[2])["tags"]
    assert signature_tag(digest) in tags
    index = registry.find_referrers("edgeml/runtime", digest)
    assert index and len(json.loads(index)["manifests"]) == 1
    assert registry.find_referrers("edgeml/runtime", sha256_digest(b"other")) is None
    model = signed.lock["models"]["digits"]["1.0.0"]["variants"]["default"]
    index = registry.find_referrers("edgeml/models/digits", model["digest"])
    found = {entry["artifactType"]: entry["digest"] for entry in json.loads(index or b"")["manifests"]}
    assert found.pop(CYCLONEDX) == model["sbom"]
    assert list(found) == [BUNDLE]


def test_what_cosign_signed_is_mirrored(signed: Signed, cosign: Cosign) -> None:
    """Somebody whose key only cosign has, as in a hardware token, signs the content."""
    theirs = cosign.make_key("p256")
    lock = publish(signed.store, signed.directory, serial=2)
    for repository, digest in manifests_of(lock):
        cosign.sign(f"{signed.store.address}/{repository}@{digest}")
    trust = Trust(TrustedKeys([signed.key.public, theirs]), sign_lock(lock, [signed.key]))
    signed.sync(trust, lock)
    digest = lock["images"]["runtime"]["digest"]
    assert cosign.accepts(f"{signed.mirror.address}/edgeml/runtime@{digest}", theirs)


def test_nothing_is_asked_of_the_store_when_nothing_is_missing(signed: Signed) -> None:
    signed.sync(signed.trust())
    nobody = f"127.0.0.1:{free_port()}"
    assert not signed.sync(signed.trust(), address=nobody).changed
    higher = {**signed.lock, "serial": 2}
    again = signed.sync(signed.trust(text=sign_lock(higher, [signed.key])), higher, address=nobody)
    assert (again.changed, again.blobs_fetched) == (True, 0)


def test_a_lost_signature_is_fetched_again(signed: Signed) -> None:
    signed.sync(signed.trust())
    before = signed.mirror.snapshot()
    digest = signed.lock["images"]["runtime"]["digest"]
    lost = signed.mirror.root / "current" / "v2/edgeml/runtime/manifests" / f"{signature_tag(digest)}.oci-manifest"
    lost.unlink()
    assert signed.sync(signed.trust()).changed
    assert signed.mirror.snapshot() == before


def unsigned(signed: Signed) -> tuple[dict[str, Any], Trust]:
    return signed.lock, signed.trust(text="")


def altered(signed: Signed) -> tuple[dict[str, Any], Trust]:
    lock = copy.deepcopy(signed.lock)
    lock["images"]["runtime"] = publish(signed.store, signed.directory, serial=9)["images"]["runtime"]
    return lock, signed.trust()


def wrong_key(signed: Signed) -> tuple[dict[str, Any], Trust]:
    return signed.lock, signed.trust(keys=(make_key(),))


def one_of_two(signed: Signed) -> tuple[dict[str, Any], Trust]:
    """The same signature twice is one signer."""
    text = sign_lock(signed.lock, [signed.key, signed.key])
    return signed.lock, signed.trust(keys=(signed.key, make_key()), text=text, signers_needed=2)


def nobody_trusted(signed: Signed) -> tuple[dict[str, Any], Trust]:
    return signed.lock, Trust(TrustedKeys([]), "")


def unsigned_content(signed: Signed) -> tuple[dict[str, Any], Trust]:
    lock = publish(signed.store, signed.directory, serial=2)
    return lock, signed.trust(text=sign_lock(lock, [signed.key]))


def content_by_another(signed: Signed) -> tuple[dict[str, Any], Trust]:
    lock = publish(signed.store, signed.directory, serial=2)
    (signed.directory / "other").mkdir()
    sign_all(signed.store, signed.directory / "other", lock, make_key().private)
    return lock, signed.trust(text=sign_lock(lock, [signed.key]))


def moved_tags(signed: Signed) -> tuple[dict[str, Any], Trust]:
    """Whoever may push to the store gives new content the signatures of old content."""
    lock = publish(signed.store, signed.directory, serial=2)
    registry = signed.store.registry()
    for (repository, digest), (_same, old) in zip(manifests_of(lock), manifests_of(signed.lock), strict=True):
        for name in (signature_tag, referrers_tag):
            data, media_type = registry.get_manifest(repository, name(old))
            assert media_type == IMAGE_INDEX or name is signature_tag
            registry.push_manifest(repository, name(digest), data, media_type)
    return lock, signed.trust(text=sign_lock(lock, [signed.key]))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unsigned, "The lock is not signed at the lock with serial 1"),
        (altered, "The lock was altered after it was signed"),
        (wrong_key, "The lock is signed with a key that is not trusted"),
        (one_of_two, "Too few signers have signed the lock.*1 of 2"),
        (nobody_trusted, "No key is trusted to sign the lock at edgeml_trusted_keys"),
        (unsigned_content, "Content is not signed at "),
        (content_by_another, "Content is not signed by a trusted key"),
        (moved_tags, "The signature beside this content is that of other content"),
    ],
)
def test_a_mirror_refuses(signed: Signed, make: Callable[[Signed], tuple[dict[str, Any], Trust]], reason: str) -> None:
    signed.sync(signed.trust())
    before = signed.mirror.snapshot()
    lock, trust = make(signed)
    with pytest.raises(FleetError, match=reason):
        signed.sync(trust, lock)
    assert signed.mirror.snapshot() == before


def test_an_older_lock_is_refused_unless_it_is_asked_for(signed: Signed) -> None:
    newer = {**signed.lock, "serial": 7}
    signed.sync(signed.trust(text=sign_lock(newer, [signed.key])), newer)
    with pytest.raises(FleetError, match=r"The lock is older.*serial 1 in the lock, 7 on the mirror"):
        signed.sync(signed.trust())
    assert signed.sync(signed.trust(accept_older_lock=True)).generation == 1
    assert signed.mirror.served() == "1"
    # It serves 1 from now on, and goes forward again.
    assert not signed.sync(signed.trust()).changed


def test_a_key_is_replaced_without_a_gap(signed: Signed) -> None:
    """Both are trusted, then the new one signs the same lock, then the old one goes."""
    new = make_key("ed25519")
    signed.sync(signed.trust(keys=(signed.key, new)))
    sign_all(signed.store, signed.directory, signed.lock, new.private)
    signed.sync(signed.trust(keys=(signed.key, new)))
    signed.sync(signed.trust(keys=(new,)))
    with pytest.raises(FleetError, match="not trusted"):
        signed.sync(signed.trust(keys=(signed.key,)))


def test_the_module_takes_keys_as_text(signed: Signed) -> None:
    """With the oldest words for it: what the role gives it."""
    options = {
        "root": str(signed.mirror.root),
        "store": signed.store.options(),
        "lock": signed.lock,
        "signatures": {
            "trusted_keys": [signed.key.public],
            "lock_signature": (signed.directory / "fleet.lock.yml.sig").read_text(),
        },
    }
    assert run_module("mirror_sync", options, check=True)["changed"]
    first = run_module("mirror_sync", options)
    assert first["changed"]
    assert not run_module("mirror_sync", options)["changed"]

    del options["signatures"]
    refused = run_module("mirror_sync", options, fails=True)
    assert refused["what"] == "No key is trusted to sign the lock"
    assert "edgeml_signatures: ignored" in refused["remedy"]
    name = PublicKey.from_pem(signed.key.public, "key").name
    options["signatures"] = {"trusted_keys": [signed.key.public], "lock_signature": f"AAAA {name}"}
    assert run_module("mirror_sync", options, fails=True)["what"] == "The lock was altered after it was signed"
