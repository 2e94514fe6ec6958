# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign what a lock names, in the registry that holds it, and the lock itself. Runs on the controller only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import digest_of, images, mapping, models
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_MANIFEST,
    check_repository,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.referrers import attach
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.attached import read_signatures
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.formats import (
    SignedText,
    authenticated,
    bundle,
    bundle_manifest,
    bundle_statement,
    signature_tag,
    simple_layer,
    simple_manifest,
    simple_payload,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.keys import PublicKey
from ansible_collections.edgeml.fleet.plugins.module_utils._signature.lock import (
    signature_line,
    signature_lines,
    signed_bytes,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import UNKNOWN
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports
from ansible_collections.edgeml.fleet.plugins.plugin_utils.signing.keys import SigningKey, verifying


def sign(options: Mapping[str, Any], *, check_mode: bool, warn: Callable[[str], None]) -> dict[str, Any]:
    """Do what the options of the module lock_signature ask for; return the module's result. Raise FleetError."""
    key = SigningKey.from_pem(str(options["key"]), str(options.get("passphrase") or ""))
    lock = native(options["lock"])
    path = Path(str(options["path"]))
    trusted = [PublicKey.from_pem(str(pem), "trusted_keys") for pem in options.get("trusted_keys") or ()]
    signed = _sign_content(lock, native(options["registry"]), key, check_mode, warn) if options.get("registry") else []
    before = path.read_text() if path.exists() else ""
    after = signed_lock(lock, before, key, trusted)
    if after != before and not check_mode:
        write_reports({path: after}, "edgeml_lock_signature_file")
    return {
        "changed": after != before or bool(signed),
        "key": key.name,
        "public_key": key.public_pem,
        "signers": [name for _signature, name in signature_lines(after)],
        "signed": signed,
        "diff": {"before": before, "after": after, "before_header": str(path), "after_header": str(path)},
    }


def _sign_content(
    lock: Mapping[str, Any], access: Mapping[str, Any], key: SigningKey, check_mode: bool, warn: Callable[[str], None]
) -> list[str]:
    """Sign the manifests that the lock names; return those that lacked a signature of this key."""
    signed = []
    registry = Registry.from_options(access, patient=not check_mode)
    try:
        for repository, digest in manifests_of(lock):
            if sign_manifest(registry, lock["registry"], repository, digest, key, write=not check_mode):
                signed.append(f"{repository}@{digest}")
    except FleetError as error:
        if not check_mode:
            raise
        warn(f"What the registry lacks of signatures is not known. {error}")
    finally:
        registry.close()
    return signed


def signed_lock(lock: Mapping[str, Any], text: str, key: SigningKey, trusted: Sequence[PublicKey]) -> str:
    """Return the signature file of a lock that `key` has signed too.

    Of `text`, the file before, those signatures stay that trusted keys have made over this very content; it is returned
    unchanged if nothing else is in it and `key` has signed.
    """
    message = signed_bytes(lock)
    keys = [PublicKey(key.der), *trusted]
    valid = [(signature, verifying(keys, message, signature)) for signature, _name in signature_lines(text)]
    lines = [signature_line(signature, name) for signature, name in valid if name]
    if key.name not in {name for _signature, name in valid}:
        lines.append(signature_line(key.sign(message), key.name))
    return "".join(lines)


def manifests_of(lock: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield repository and digest of each manifest that a lock names: indexes, their children, models; each once."""
    found: dict[tuple[str, str], None] = {}
    for entries in (images(lock), models(lock)):
        for entry, where in entries:
            if entry.get("digest") == UNKNOWN:  # check mode, before the image was built
                continue
            repository = check_repository(entry.get("repository"), f"{where}.repository")
            named = [digest_of(entry, "index", where)] if "index" in entry else []
            platforms = mapping(entry, "platforms", where)
            for described in (entry, *(mapping(platforms, name, where) for name in platforms)):
                named += [digest_of(described, key, where) for key in ("digest", "sbom") if key in described]
            found.update(dict.fromkeys((repository, digest) for digest in named))
    yield from found


def sign_manifest(registry: Registry, name: str, repository: str, digest: str, key: SigningKey, *, write: bool) -> bool:
    """Make both formats of a signature by `key` lie beside a manifest; return whether one was missing.

    Parameters
    ----------
    name : str
        The registry's name in references, which is signed; `registry` may be reached at another address.
    """
    found = read_signatures(registry, repository, digest, key.signer)
    missing = [kind for kind in (found.simple_signers, found.bundle_signers) if not kind]
    if write and not found.simple_signers:
        payload = simple_payload(f"{name}/{repository}", digest)
        _add_simple(registry, repository, digest, SignedText(payload, payload, key.sign(payload)))
    if write and not found.bundle_signers:
        statement = bundle_statement(digest)
        data = bundle(statement, key.sign(authenticated(statement)), key.hint)
        _add_bundle(registry, repository, digest, data)
    return bool(missing)


def _add_simple(registry: Registry, repository: str, digest: str, one: SignedText) -> None:
    tag = signature_tag(digest)
    present = registry.find_manifest(repository, tag)
    layers = json.loads(present[0]).get("layers", []) if present else []
    manifest, config = simple_manifest([*layers, simple_layer(one)])
    for data in (one.text, config):
        registry.push_blob(repository, data, sha256_digest(data))
    registry.push_manifest(repository, tag, manifest, IMAGE_MANIFEST)


def _add_bundle(registry: Registry, repository: str, digest: str, data: bytes) -> None:
    subject, media_type = registry.get_manifest(repository, digest)
    attach(registry, repository, bundle_manifest(data, descriptor(media_type, subject)), data)
