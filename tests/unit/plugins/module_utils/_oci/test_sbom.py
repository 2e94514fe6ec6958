# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bills of material, held against CycloneDX's own schema."""

from __future__ import annotations

import json

from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.sbom import (
    CYCLONEDX,
    image_sbom,
    model_sbom,
    sbom_manifest,
)
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

DIGEST = sha256_digest(b"content")
DEBIAN = {"zlib1g": "1:1.3.dfsg+really1.3.1-1", "libc6": "2.41-12"}
PYTHON = {"numpy": "2.4.6"}


def test_the_bill_of_an_image_names_its_packages_as_scanners_do() -> None:
    bill = image_sbom("edgeml/runtime", "arm64", DIGEST, DEBIAN, PYTHON, "trixie")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None
    document = json.loads(bill)
    assert [(part["name"], part["version"], part["purl"]) for part in document["components"]] == [
        ("libc6", "2.41-12", "pkg:deb/debian/libc6@2.41-12?distro=trixie"),
        (
            "zlib1g",
            "1:1.3.dfsg+really1.3.1-1",
            "pkg:deb/debian/zlib1g@1%3A1.3.dfsg%2Breally1.3.1-1?distro=trixie",
        ),
        ("numpy", "2.4.6", "pkg:pypi/numpy@2.4.6"),
    ]
    assert document["metadata"]["component"]["version"] == DIGEST
    assert bill == image_sbom("edgeml/runtime", "arm64", DIGEST, dict(reversed(DEBIAN.items())), PYTHON, "trixie")


def test_the_bill_of_a_model_names_its_content() -> None:
    bill = model_sbom("digits", "1.0.0", DIGEST)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.decode()) is None
    component = json.loads(bill)["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": DIGEST.partition(":")[2]}]
    assert (component["type"], component["name"], component["version"]) == ("machine-learning-model", "digits", "1.0.0")


def test_a_bill_refers_to_what_it_is_of() -> None:
    manifest = json.loads(sbom_manifest(b"{}", b"subject"))
    assert manifest["artifactType"] == CYCLONEDX
    assert manifest["subject"]["digest"] == sha256_digest(b"subject")
    assert [layer["digest"] for layer in manifest["layers"]] == [sha256_digest(b"{}")]
