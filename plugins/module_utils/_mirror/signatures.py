# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures on their way to a mirror: those of trusted keys are verified and copied, nothing unsigned is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import Blob, MirrorContent, referrers_path
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import TransientError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import IMAGE_MANIFEST, sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import EMPTY_CONFIG, listed, with_referrer
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.attached import (
    MAX_SIGNATURE,
    Signatures,
    check_signed,
    judge,
    read_signatures,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import (
    signature_tag,
    simple_layer,
    simple_manifest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import Signer


class Known(Protocol):
    """What holds some signatures already: a mirror's tree, or a bundle."""

    def read_served(self, path: str) -> bytes | None:
        """Return a file of the served generation, None if there is none."""

    def read_blob(self, digest: str, limit: int) -> bytes | None:
        """Return an intact blob of at most `limit` bytes, None if there is none."""


class SignatureCopy:
    """Finds the signatures of each manifest in the tree or, where it lacks them, in the store.

    Parameters
    ----------
    local : mapping
        Manifests of the tree and their media types, by digest.
    signer : Signer
        Verifies with the trusted keys.
    """

    def __init__(self, tree: Known, local: Mapping[str, tuple[bytes, str]], store: Source, signer: Signer) -> None:
        self._tree = tree
        self._local = local
        self._store = store
        self._signer = signer

    def add(self, content: MirrorContent) -> None:
        """Add the signatures of all its manifests to `content`; raise FleetError for one that none is over."""
        for repository, digest in list(content.manifests):
            found = self._find(repository, digest)
            check_signed(found, f"{self._store.address}/{repository}@{digest}")
            _add(content, repository, found)

    def _find(self, repository: str, digest: str) -> Signatures:
        found = self._in_tree(repository, digest)
        if found.simple and found.bundles and not found.others:
            return found
        try:
            return read_signatures(self._store, repository, digest, self._signer)
        except TransientError:
            if found.signers:  # not all that may be in the store, but enough
                return found
            raise

    def _in_tree(self, repository: str, digest: str) -> Signatures:
        def read_manifest(reference: str) -> bytes | None:
            if ":" in reference:
                return self._local.get(reference, (None,))[0]
            return self._tree.read_served(f"v2/{repository}/manifests/{reference}.oci-manifest")

        def read_blob(blob_digest: str) -> bytes | None:
            return self._tree.read_blob(blob_digest, MAX_SIGNATURE)

        index = self._tree.read_served(referrers_path(repository, digest))
        return judge(digest, read_manifest, listed(index), read_blob, self._signer)


def _add(content: MirrorContent, repository: str, found: Signatures) -> None:
    if found.simple:
        manifest, config = simple_manifest([simple_layer(one) for one in found.simple])
        content.tagged[repository, signature_tag(found.digest)] = manifest
        for data in (config, *(one.text for one in found.simple)):
            _add_blob(content, repository, data)
    index = content.referrers.get((repository, found.digest))
    for manifest, bundle in found.bundles:
        content.manifests[repository, sha256_digest(manifest)] = (IMAGE_MANIFEST, manifest)
        index = with_referrer(index, manifest)
        for data in (EMPTY_CONFIG, bundle):
            _add_blob(content, repository, data)
    if index:
        content.referrers[repository, found.digest] = index


def _add_blob(content: MirrorContent, repository: str, data: bytes) -> None:
    digest = sha256_digest(data)
    content.blobs[digest] = Blob(repository, digest, len(data))
    content.at_hand[digest] = data
