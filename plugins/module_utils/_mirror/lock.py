# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the lock and manifests are read. What the collection would not have written raises FleetError with its place."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
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


def part_of(lock: Mapping[str, Any], needed: Mapping[str, Any], in_use: Collection[str] = ()) -> dict[str, Any]:
    """Return the lock with nothing but what is `needed`, and what has one of the digests that are `in_use`.

    `needed` is ``{"images": [NAME], "models": {NAME: {VERSION: [VARIANT]}}}``; no variant means all of them. Raises
    FleetError for what the lock does not have.
    """
    names = set(needed.get("images") or ())
    wanted = needed.get("models") or {}
    known_images = mapping(lock, "images", "fleet.lock.yml")
    known_models = mapping(lock, "models", "fleet.lock.yml")
    missing = [f"image {name}" for name in sorted(names - set(known_images))]
    found: dict[str, Any] = {}
    for name in known_models:
        for version, entry in mapping(known_models, name, "fleet.lock.yml: models").items():
            variants = mapping(entry, "variants", f"fleet.lock.yml: models.{name}.{version}")
            asked = wanted.get(name, {}).get(version)
            kept = {
                variant: content
                for variant, content in variants.items()
                if (asked is not None and (not asked or variant in asked))
                or not {content.get("digest"), content.get("blob", {}).get("digest")}.isdisjoint(in_use)
            }
            missing += [f"model {name} {version} {variant}" for variant in asked or () if variant not in variants]
            if kept:
                found.setdefault(name, {})[version] = {**entry, "variants": kept}
    missing += [
        f"model {name} {version}"
        for name, versions in wanted.items()
        for version in versions
        if version not in known_models.get(name, {})
    ]
    if missing:
        raise FleetError(
            "The lock does not have what the site needs",
            where="fleet.lock.yml",
            seen=", ".join(missing),
            remedy="publish it, or correct the placement or site_mirror_pinned",
        )

    def runs(entry: Mapping[str, Any]) -> bool:
        platforms = entry.get("platforms", {}).values()
        return not {entry.get("digest"), *(platform.get("digest") for platform in platforms)}.isdisjoint(in_use)

    chosen = {name: entry for name, entry in known_images.items() if name in names or runs(entry)}
    return {**lock, "images": chosen, "models": found}


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
