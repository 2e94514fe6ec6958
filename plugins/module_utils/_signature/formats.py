# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both formats in which cosign keeps signatures beside what they are over.

The older one is an image manifest under the tag ``sha256-<hex>.sig``, with one layer for each signature. The newer one,
which cosign 3 writes, is a Sigstore bundle (version 0.3) in a manifest of its own whose ``subject`` is what it signs.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    descriptor,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import artifact_manifest

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_TYPE = "cosign container image signature"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT = "https://in-toto.io/Statement/v1"
STATEMENT_MEDIA_TYPE = "application/vnd.in-toto+json"
PREDICATE = "https://sigstore.dev/cosign/sign/v1"


@dataclass(frozen=True)
class SignedText:
    """A text, and the bytes of a signature over `message`."""

    text: bytes
    message: bytes
    signature: bytes


def signature_tag(digest: str) -> str:
    """Return the tag under which the older format keeps the signatures of a manifest."""
    return digest.replace(":", "-") + ".sig"


# -- the older format --------------------------------------------------------------------------------------------------


def simple_payload(reference: str, digest: str) -> bytes:
    """Return what is signed of ``registry/repository`` and a digest, as cosign writes it."""
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest},
        "type": SIMPLE_TYPE,
    }
    return canonical_json({"critical": critical, "optional": None})


def simple_says(payload: bytes, digest: str) -> bool:
    """Return whether a payload of the older format is about this digest."""
    critical = _mapping(_mapping(_document(payload)).get("critical"))
    return critical.get("type") == SIMPLE_TYPE and (
        _mapping(critical.get("image")).get("docker-manifest-digest") == digest
    )


def simple_layer(one: SignedText) -> dict[str, Any]:
    """Return the descriptor of a signature's payload, which carries the signature."""
    encoded = base64.b64encode(one.signature).decode()
    return descriptor(SIMPLE_SIGNING, one.text, annotations={SIGNATURE_ANNOTATION: encoded})


def simple_manifest(layers: Sequence[Mapping[str, Any]]) -> tuple[bytes, bytes]:
    """Return the manifest that keeps these layers, and its config."""
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    created = "0001-01-01T00:00:00Z"
    config = canonical_json({"architecture": "", "config": {}, "created": created, "os": "", "rootfs": rootfs})
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": descriptor(IMAGE_CONFIG, config),
        "layers": list(layers),
    }
    return canonical_json(manifest), config


def simple_layers(manifest: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the digest of the payload and the bytes of the signature of each layer that is one."""
    for layer in _list(_mapping(_document(manifest)).get("layers")):
        part = _mapping(layer)
        signature = _decoded(_mapping(part.get("annotations")).get(SIGNATURE_ANNOTATION))
        if part.get("mediaType") == SIMPLE_SIGNING and signature:
            yield str(part.get("digest")), signature


# -- the newer format --------------------------------------------------------------------------------------------------


def bundle_statement(digest: str) -> bytes:
    """Return what is signed of a digest, an in-toto statement."""
    algorithm, _separator, value = digest.partition(":")
    return json.dumps(
        {
            "_type": STATEMENT,
            "subject": [{"digest": {algorithm: value}, "annotations": {}}],
            "predicateType": PREDICATE,
            "predicate": {},
        },
        separators=(",", ":"),
    ).encode()


def statement_says(statement: bytes, digest: str) -> bool:
    """Return whether a statement is a signature of this digest, and of nothing else."""
    document = _mapping(_document(statement))
    algorithm, _separator, value = digest.partition(":")
    subjects = [_mapping(subject).get("digest") for subject in _list(document.get("subject"))]
    return (
        document.get("_type") == STATEMENT
        and document.get("predicateType") == PREDICATE
        and subjects == [{algorithm: value}]
    )


def authenticated(payload: bytes, media_type: str = STATEMENT_MEDIA_TYPE) -> bytes:
    """Return the bytes that the signature of an envelope is over (DSSE 1.0, "PAE")."""
    kind = media_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def bundle(statement: bytes, signature: bytes, key_hint: str) -> bytes:
    """Return the Sigstore bundle of a signed statement; `key_hint` names the key, and is not relied upon."""
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": STATEMENT_MEDIA_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    material = {"publicKey": {"hint": key_hint}}
    return canonical_json({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope})


def bundle_signatures(data: bytes) -> list[SignedText]:
    """Return the signed statement of a bundle with each of its signatures; nothing if it holds something else."""
    envelope = _mapping(_mapping(_document(data)).get("dsseEnvelope"))
    payload = _decoded(envelope.get("payload"))
    if not payload or envelope.get("payloadType") != STATEMENT_MEDIA_TYPE:
        return []
    signatures = [_decoded(_mapping(item).get("sig")) for item in _list(envelope.get("signatures"))]
    return [SignedText(payload, authenticated(payload), signature) for signature in signatures if signature]


def bundle_manifest(data: bytes, subject: Mapping[str, Any]) -> bytes:
    """Return the manifest that refers to `subject`, a descriptor, with a bundle."""
    content = {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": PREDICATE}
    return artifact_manifest(BUNDLE, data, subject, content)


def bundle_blobs(manifest: bytes, digest: str) -> list[str]:
    """Return the digests of the bundles in a manifest that refers to `digest`; nothing if it is another kind."""
    document = _mapping(_document(manifest))
    if _mapping(document.get("subject")).get("digest") != digest:
        return []
    layers = [_mapping(layer) for layer in _list(document.get("layers"))]
    return [str(layer.get("digest")) for layer in layers if layer.get("mediaType") == BUNDLE]


# -- hostile input -----------------------------------------------------------------------------------------------------


def _document(data: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _decoded(text: object) -> bytes:
    with contextlib.suppress(binascii.Error, ValueError, TypeError):
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    return b""
