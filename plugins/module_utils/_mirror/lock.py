# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the lock and manifests are read. What the collection would not have written raises FleetError with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import check_digest


def document_of(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object that `data` holds."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _malformed(where, "not JSON") from error
    if not isinstance(document, dict):
        raise _malformed(where, "not a JSON object")
    return document


def images(lock: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each image's entry of the lock and its place there."""
    return _children(mapping(lock, "images", "fleet.lock.yml"), "fleet.lock.yml: images")


def models(lock: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the entry of each variant of each version of each model, and its place in the lock."""
    for versions, model in _children(mapping(lock, "models", "fleet.lock.yml"), "fleet.lock.yml: models"):
        for version, place in _children(versions, model):
            yield from _children(mapping(version, "variants", place), f"{place}.variants")


def _children(parent: Mapping[str, Any], where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    for name, child in parent.items():
        if not isinstance(child, Mapping):
            raise _malformed(f"{where}.{name}", repr(child))
        yield child, f"{where}.{name}"


def mapping(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """Return the mapping under a key."""
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise _malformed(where, f"{key} is {value!r}")
    return value


def mappings(parent: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """Return the list of mappings under a key."""
    value = parent.get(key)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise _malformed(where, f"{key} is {value!r}")
    return value


def integer(parent: Mapping[str, Any], key: str, where: str, at_least: int = 0) -> int:
    """Return the integer under a key."""
    value = parent.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise _malformed(where, f"{key} is {value!r}")
    return value


def digest_of(parent: Mapping[str, Any], key: str, where: str) -> str:
    """Return the digest under a key."""
    return check_digest(parent.get(key), f"{where}.{key}")


def _malformed(where: str, seen: str) -> FleetError:
    return FleetError(
        "Malformed content",
        where=where,
        seen=seen[:200],
        remedy="publish again; fleet.lock.yml and manifests are written by the collection, not by hand",
    )
