# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a lock a site's mirror has to hold: what its hosts are placed to run, and what the inventory pins."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.ledger import read
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import resolve_host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import site_of

#: The image that serves the mirror itself.
MIRROR_IMAGE = "mirror"
#: Facts come and go during a run; what a mirror holds depends on the inventory alone.
NO_FACTS: dict[str, Any] = {"ansible_facts": {}, "edgeml_host": {}}


def site_content(
    lock: Mapping[str, Any],
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Iterable[str],
    mirror: Mapping[str, Any],
    pinned: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any] | None:
    """Return the option ``needed`` of mirror_sync: ``{"images": [...], "models": {NAME: {VERSION: [VARIANT]}}}``.

    `hosts` are those of `hostvars` that may be at the site of the host with the variables `mirror`. In a job slice some
    are missing: what the inventory plugin has placed at the whole site is in the mirror's ``edgeml_site_models``. Where
    the inventory does not decide on a variant yet, all of them are needed. Items of `pinned` are ``{"name", "version",
    "variant"}`` of a model, all but the name may be left out, or ``{"runtime"}``. Returns None, which means all of the
    lock, if no host of the site has a model.

    Raises FleetError for a pinned item that the lock does not have.
    """
    site = site_of(mirror)
    images = {MIRROR_IMAGE}
    models: dict[str, dict[str, set[str]]] = {}
    placed = False
    for name in hosts:
        variables = hostvars[name]
        items = variables.get("edgeml_models") or ()
        if not items or site_of(variables) != site:
            continue
        placed = True
        for item in resolved_models(name, variables, items):
            images.add(item.get("runtime", DEFAULT_RUNTIME))
            _add(models, lock, item)
    for item in mirror.get("edgeml_site_models") or ():
        placed = True
        images.add(item.get("runtime", DEFAULT_RUNTIME))
        _add(models, lock, item)
    if not placed:
        return None
    for item in pinned:
        if "runtime" in item and item["runtime"] in lock.get("images", {}):
            images.add(item["runtime"])
        elif "runtime" in item or not _add(models, lock, item):
            raise FleetError(
                "The lock does not have what is pinned",
                where="site_mirror_pinned",
                seen=repr(native(item)),
                remedy="give {name: MODEL, version: VERSION} or {runtime: NAME} as the lock has them; publish it first",
            )
    return {
        "images": sorted(images & set(lock.get("images", {}))),
        "models": {
            name: {version: sorted(variants) for version, variants in sorted(versions.items())}
            for name, versions in sorted(models.items())
        },
    }


def resolved_models(name: str, variables: Mapping[str, Any], items: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    """Return a host's models, as far as the inventory decides on them."""
    overrides = variables.get("edgeml_model_overrides") or {}
    if not overrides and all({"version", "runtime", "variant"} <= set(item) for item in items):
        return items
    documents = {
        "edgeml_catalogue": native(variables.get("edgeml_catalogue") or []),
        "edgeml_models": native(items),
        "edgeml_model_overrides": native(overrides),
        "edgeml_runtimes": native(variables.get("edgeml_runtimes")),
    }
    known: Mapping[str, Any] = ChainMap(NO_FACTS, variables)  # type: ignore[arg-type]
    # Whatever is wrong is told by the hosts' own preflight.
    return resolve_host(name, known, **documents, final=False)[0]


def _add(models: dict[str, dict[str, set[str]]], lock: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Add the variants of the lock that `item` may be; return whether there is one."""
    found = False
    for version, entry in lock.get("models", {}).get(item.get("name"), {}).items():
        if item.get("version", version) != version:
            continue
        variants = [name for name in entry["variants"] if item.get("variant", name) == name]
        if variants:
            found = True
            models.setdefault(str(item["name"]), {}).setdefault(version, set()).update(variants)
    return found


def digests_in_use(ledger_file: str, site: str) -> list[str]:
    """Return the digests of the images and models that a site's hosts have reported last, and of those before them.

    A host that was away may still run them, whatever it is placed to run by now. One that was removed, or has reported
    from another site since, does not. Raises FleetError for a ledger that cannot be read.
    """
    last: dict[tuple[str, str], list[set[str]]] = {}
    for entry in read(ledger_file):
        runtime = str(entry["host"]), str(entry.get("runtime"))
        is_active = entry.get("outcome") == "active"
        if entry.get("outcome") == "removed" or (is_active and entry.get("site") != site):
            last.pop(runtime, None)
        elif is_active:
            digests = {str(model.get("digest") or "") for model in entry.get("models") or ()}
            digests.add(str(entry.get("image") or "").partition("@")[2])
            known = last.setdefault(runtime, [])
            known.append(digests)
            del known[:-2]
    return sorted(set().union(*(digests for known in last.values() for digests in known)) - {""})
