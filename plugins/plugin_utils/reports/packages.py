# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages run where: the bills of material of what a lock names, and the hosts that are placed to run it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Source
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.site_content import resolved_models
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import aligned, listed

MAX_BILL = 16 << 20  # bytes
_NAMED = 8


def read_bills(
    lock: Mapping[str, Any], access: Mapping[str, Any], warn: Callable[[str], None]
) -> dict[tuple[str, str], bytes]:
    """Return the bill of each image of a lock by name and architecture, as the store has it. Raise FleetError.

    `access` is how the store is reached, as the option `registry` of the module oci_image.
    Images that were copied from elsewhere, and those of a lock of an earlier release of the collection, have none: a
    warning says so.
    """
    store = Registry.from_options(native(access))
    bills = {}
    for name, image in sorted(lock["images"].items()):
        for architecture, platform in sorted(image["platforms"].items()):
            if "sbom" not in platform:
                warn(f"Of image {name} for {architecture} nobody has written down the packages")
                continue
            bills[name, architecture] = _read_bill(store, image["repository"], platform["sbom"])
    return bills


def _read_bill(store: Source, repository: str, digest: str) -> bytes:
    manifest = json.loads(store.get_manifest(repository, digest)[0])
    content = str(manifest["layers"][0]["digest"])
    with store.open_blob(repository, content) as response:
        bill = response.read_all(MAX_BILL)
    if sha256_digest(bill) != content:
        raise FleetError(
            "The store delivered a bill of material that has another digest than the one asked for",
            where=f"{store.address}/{repository}@{digest}",
            seen=sha256_digest(bill),
            remedy="publish again; if that does not help, the store's disk is damaged: edgeml.fleet.store_restore",
        )
    return bill


def images_by_host(hostvars: Mapping[str, Mapping[str, Any]], hosts: Iterable[str]) -> dict[str, tuple[list[str], str]]:
    """Return the images that each host with models is placed to run, and its architecture, empty if not known."""
    found = {}
    for name in hosts:
        variables = hostvars[name]
        items = variables.get("edgeml_models") or ()
        if items:
            runtimes = {item.get("runtime", DEFAULT_RUNTIME) for item in resolved_models(name, variables, items)}
            found[name] = (sorted(runtimes), str(variables.get("edgeml_architecture") or ""))
    return found


def packages_report(
    bills: Mapping[tuple[str, str], bytes], placed: Mapping[str, tuple[Sequence[str], str]], pattern: str
) -> list[dict[str, Any]]:
    """Return the packages whose name fits the shell pattern, each version with its images and their hosts.

    Each is ``{"name", "version", "purl", "images": ["NAME ARCHITECTURE", ...], "hosts": [...]}``, sorted.
    """
    found: dict[str, dict[str, Any]] = {}
    for (image, architecture), bill in bills.items():
        hosts = {host for host, (images, its) in placed.items() if image in images and its in ("", architecture)}
        for part in json.loads(bill)["components"]:
            if fnmatch.fnmatchcase(part["name"].lower(), pattern.lower()):
                told = {key: part[key] for key in ("name", "version", "purl")}
                entry = found.setdefault(part["purl"], {**told, "images": [], "hosts": set()})
                entry["images"].append(f"{image} {architecture}")
                entry["hosts"] |= hosts
    return [{**entry, "hosts": sorted(entry["hosts"])} for _purl, entry in sorted(found.items())]


def table(packages: Sequence[Mapping[str, Any]], pattern: str) -> str:
    """Return a line for each package."""
    if not packages:
        return f"No image of the lock has a package {pattern!r}"
    rows: list[tuple[object, ...]] = [("package", "version", "images", "hosts")]
    rows += [
        (
            entry["name"],
            entry["version"],
            ", ".join(entry["images"]),
            f"{len(entry['hosts'])}: {listed(entry['hosts'], _NAMED)}" if entry["hosts"] else "-",
        )
        for entry in packages
    ]
    return "\n".join(aligned(rows))
