# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, digests and canonical JSON."""

from __future__ import annotations

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    LAYER_TAR,
    check_digest,
    check_repository,
    check_tag,
    descriptor,
    sha256_digest,
    split_reference,
)

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digest_of_bytes() -> None:
    assert sha256_digest(b"") == EMPTY
    assert check_digest(EMPTY, "here") == EMPTY


@pytest.mark.parametrize("text", [EMPTY.upper(), EMPTY[:-1], EMPTY + "\n", "sha512:" + 64 * "0", "", None, 5])
def test_what_is_no_digest(text: object) -> None:
    with pytest.raises(FleetError, match=r"fleet\.lock\.yml") as caught:
        check_digest(text, "fleet.lock.yml")
    assert caught.value.seen == repr(text)


@pytest.mark.parametrize("name", ["a", "edgeml/runtime", "a.b/c__d/e-f--g/h_i/0"])
def test_repository_names(name: str) -> None:
    assert check_repository(name, "here") == name


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "..", "a/../b", "A", "a/.b", "a b", "a\n", "a/-b", 256 * "a", None]
)
def test_what_is_no_repository_name(name: object) -> None:
    with pytest.raises(FleetError, match="Not a repository name"):
        check_repository(name, "here")


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a/b", "a b", 129 * "a", "a:b", "a\n"])
def test_what_is_no_tag(tag: str) -> None:
    with pytest.raises(FleetError, match="Not a tag"):
        check_tag(tag, "here")


def test_tag() -> None:
    assert check_tag("1.0.0-image", "here") == "1.0.0-image"


def test_canonical_json_is_one_encoding() -> None:
    assert canonical_json({"b": [1, 2], "a": "ü"}) == '{"a":"ü","b":[1,2]}'.encode()
    assert canonical_json({"a": "ü", "b": [1, 2]}) == canonical_json({"b": [1, 2], "a": "ü"})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_descriptor_of_data_and_of_known_content() -> None:
    expected = {"mediaType": LAYER_TAR, "digest": EMPTY, "size": 0, "annotations": {"a": "b"}}
    assert descriptor(LAYER_TAR, b"", annotations={"a": "b"}) == expected
    assert descriptor(LAYER_TAR, digest=EMPTY, size=0, annotations={"a": "b"}) == expected


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "address", "repository"),
    [
        ("registry.edgeml.internal:5443/edgeml/runtime", "registry.edgeml.internal:5443", "edgeml/runtime"),
        ("[::1]:5000/busybox", "[::1]:5000", "busybox"),
        ("localhost/a/b/c", "localhost", "a/b/c"),
        ("store:443/a", "store:443", "a"),
        ("docker.io/busybox", "registry-1.docker.io", "library/busybox"),
        ("docker.io/library/busybox", "registry-1.docker.io", "library/busybox"),
        ("index.docker.io/user/x", "registry-1.docker.io", "user/x"),
    ],
)
def test_references_name_registry_and_repository(name: str, address: str, repository: str) -> None:
    assert split_reference(f"{name}@{DIGEST}", "image") == (address, repository, DIGEST)


@pytest.mark.parametrize(
    ("reference", "remedy"),
    [
        (f"user/x@{DIGEST}", f"write docker.io/user/x@{DIGEST}"),
        (f"busybox@{DIGEST}", "registry/repository@sha256"),
        ("docker.io/busybox:1.36", "registry/repository@sha256"),
        ("docker.io/busybox@sha256:12", "64 lower-case"),
        (f"docker.io/Busy@{DIGEST}", "lower-case letters"),
    ],
)
def test_references_that_say_too_little(reference: str, remedy: str) -> None:
    with pytest.raises(FleetError) as caught:
        split_reference(reference, "image")
    assert caught.value.where == "image"
    assert remedy in caught.value.remedy
