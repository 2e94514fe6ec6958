# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bills of material (SBOM) in CycloneDX 1.6, made of what a build has put together; equal content gives equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_MANIFEST, descriptor
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import artifact_manifest

CYCLONEDX = "application/vnd.cyclonedx+json"


def image_sbom(
    repository: str, architecture: str, digest: str, debian: Mapping[str, str], python: Mapping[str, str], suite: str
) -> bytes:
    """Return the bill of an image: Debian packages of `suite` and Python distributions, each version by name."""
    distribution = f"?distro={_quoted(suite)}" if suite else ""
    parts = [_package(f"pkg:deb/debian/{_quoted(name)}@{_quoted(debian[name])}{distribution}", name, debian[name])
             for name in sorted(debian)]  # fmt: skip
    parts += [_package(f"pkg:pypi/{_quoted(name)}@{_quoted(python[name])}", name, python[name])
              for name in sorted(python)]  # fmt: skip
    name = repository.rpartition("/")[2]
    reference = f"pkg:oci/{_quoted(name)}@{_quoted(digest)}?arch={architecture}"
    about = {"type": "container", "name": repository, "version": digest, "purl": reference, "bom-ref": reference}
    return _bill(about, parts)


def model_sbom(name: str, version: str, blob: str) -> bytes:
    """Return the bill of a model whose files are the tar with the digest `blob`."""
    content = [{"alg": "SHA-256", "content": blob.partition(":")[2]}]
    about = {"type": "machine-learning-model", "name": name, "version": version, "bom-ref": blob, "hashes": content}
    return _bill(about, [])


def sbom_manifest(bill: bytes, subject: bytes) -> bytes:
    """Return the manifest by which a bill refers to the manifest `subject`."""
    return artifact_manifest(CYCLONEDX, bill, descriptor(IMAGE_MANIFEST, subject))


def _bill(about: Mapping[str, Any], parts: list[dict[str, Any]]) -> bytes:
    return canonical_json(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": dict(about)},
            "components": parts,
        }
    )


def _package(reference: str, name: str, version: str) -> dict[str, Any]:
    return {"type": "library", "name": name, "version": version, "purl": reference, "bom-ref": reference}


def _quoted(text: str) -> str:
    return quote(text, safe="")
