# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The digest of all that makes a part of a host: what its role is told, and the roles and modules that do it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json

COLLECTION = Path(__file__).parents[3]


@functools.cache
def code_digest() -> str:
    """Return a digest of the collection's own roles and plugins: another release of them may do something else."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ("plugins", "roles") for path in (COLLECTION / room).rglob("*")):
        if path.suffix not in (".pyc", ".md") and path.is_file():
            digest.update(f"{path.relative_to(COLLECTION)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def document_digest(document: Any) -> str:
    """Return the digest of a role's document, which has to be plain data of any depth."""
    return hashlib.sha256(canonical_json({"code": code_digest(), "document": _plain(document)})).hexdigest()


def _plain(value: Any) -> Any:
    """Return the value without Ansible's tags, which tell where it was written and how far it is trusted."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return value
