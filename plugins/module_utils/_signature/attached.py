# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The signatures that lie in a registry beside a manifest, in both of cosign's formats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import TransientError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import listed, registry_referrers
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import (
    SignedText,
    bundle_blobs,
    bundle_signatures,
    signature_tag,
    simple_layers,
    simple_says,
    statement_says,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import Signer

MAX_SIGNATURE = 64 << 10  # bytes of a payload or a bundle
MAX_SIGNATURES = 32  # of one manifest in each format; more are not looked at

OTHER_CONTENT = "over other content"


class Read(Protocol):
    """Returns a manifest by tag or digest, or a small blob by digest; None if there is none."""

    def __call__(self, reference: str, /) -> bytes | None: ...


@dataclass
class Signatures:
    """The signatures of one manifest: those by trusted keys, and what the others are."""

    digest: str
    simple: list[SignedText] = field(default_factory=list)
    bundles: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Manifest and bundle of each."""
    signers: set[str] = field(default_factory=set)
    simple_signers: set[str] = field(default_factory=set)
    bundle_signers: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    """Why each of the other signatures does not count."""


def judge(digest: str, read_manifest: Read, referrers: Iterable[str], read_blob: Read, signer: Signer) -> Signatures:
    """Return the signatures of the manifest `digest`, read by these functions and verified by `signer`."""
    found = Signatures(digest)
    simple = read_manifest(signature_tag(digest))
    for payload_digest, signature in list(simple_layers(simple) if simple else ())[:MAX_SIGNATURES]:
        payload = read_blob(payload_digest)
        name = signer(payload, signature) if payload else None
        if payload and name and simple_says(payload, digest):
            found.simple.append(SignedText(payload, payload, signature))
            found.simple_signers.add(name)
        else:
            found.others.append(_why_not(payload, name))
    for manifest_digest in list(referrers)[:MAX_SIGNATURES]:
        manifest = read_manifest(manifest_digest)
        for blob_digest in bundle_blobs(manifest, digest)[:1] if manifest else ():
            data = read_blob(blob_digest)
            signed = bundle_signatures(data) if data else []
            names = [(one, signer(one.message, one.signature)) for one in signed]
            good = {name for one, name in names if name and statement_says(one.text, digest)}
            if manifest and data and good:
                found.bundles.append((manifest, data))
                found.bundle_signers |= good
            else:
                found.others += [_why_not(data, name) for _one, name in names] or [_why_not(None, None)]
    found.signers = found.simple_signers | found.bundle_signers
    return found


def _why_not(data: bytes | None, name: str | None) -> str:
    if not data:
        return "one that cannot be read"
    return f"one of {name} {OTHER_CONTENT}" if name else "one by a key that is not trusted, or altered"


def read_signatures(registry: Source, repository: str, digest: str, signer: Signer) -> Signatures:
    """Return the signatures of a manifest that a registry holds."""

    def read_manifest(reference: str) -> bytes | None:
        return (registry.find_manifest(repository, reference) or (None,))[0]

    def read_blob(blob_digest: str) -> bytes | None:
        try:
            with registry.open_blob(repository, blob_digest) as response:
                data = response.read_all(MAX_SIGNATURE + 1)
        except TransientError:
            raise
        except FleetError:  # a signature that leads nowhere hides no other
            return None
        return data if len(data) <= MAX_SIGNATURE and sha256_digest(data) == blob_digest else None

    index = registry_referrers(registry, repository, digest)
    return judge(digest, read_manifest, listed(index), read_blob, signer)


def check_signed(found: Signatures, where: str) -> None:
    """Raise FleetError unless a trusted key has signed the manifest."""
    if found.signers:
        return
    if not found.others:
        raise FleetError(
            "Content is not signed",
            where=where,
            seen="no signature in either of cosign's formats",
            remedy="publish again with the signing key, or set edgeml_signatures: ignored to run what nobody signed",
        )
    retagged = [text for text in found.others if OTHER_CONTENT in text]
    raise FleetError(
        "The signature beside this content is that of other content"
        if retagged
        else "Content is not signed by a trusted key",
        where=where,
        seen=", ".join(sorted(set(found.others))),
        remedy="find out who changed the registry, then publish again with a trusted key",
    )
