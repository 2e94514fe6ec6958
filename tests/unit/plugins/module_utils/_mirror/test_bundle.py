# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bundle of unknown origin takes no more memory than a registry may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.bundle import MAX_INDEX, Bundle
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_MANIFEST, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import MAX_MANIFEST


def bundle_of(root: Path, data: bytes) -> Bundle:
    """Write a bundle with one manifest."""
    digest = sha256_digest(data)
    (root / "blobs/sha256").mkdir(parents=True)
    (root / "blobs/sha256" / digest.partition(":")[2]).write_bytes(data)
    name = {"org.opencontainers.image.ref.name": f"edgeml/runtime@{digest}"}
    entry = {"digest": digest, "mediaType": IMAGE_MANIFEST, "size": len(data), "annotations": name}
    (root / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return Bundle(root)


@pytest.mark.parametrize(("size", "taken"), [(MAX_MANIFEST, True), (MAX_MANIFEST + 1, False)])
def test_a_manifest_is_as_large_as_a_registry_takes_it(tmp_path: Path, size: int, taken: bool) -> None:
    data = b"{}".ljust(size)
    bundle = bundle_of(tmp_path, data).open()
    if taken:
        assert bundle.get_manifest("edgeml/runtime", sha256_digest(data)) == (data, IMAGE_MANIFEST)
        assert list(bundle.manifests()) == [sha256_digest(data)]
    else:
        with pytest.raises(FleetError, match="does not hold, or no longer holds whole"):
            bundle.get_manifest("edgeml/runtime", sha256_digest(data))
        assert not bundle.manifests()


def test_an_index_has_an_end(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, b"{}")
    (tmp_path / "index.json").write_bytes((tmp_path / "index.json").read_bytes().ljust(MAX_INDEX + 1))
    with pytest.raises(FleetError, match="no bundle, or not a whole one") as caught:
        bundle.open()
    assert caught.value.seen == f"more than {MAX_INDEX} bytes"
