# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock: what is published, by digest."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.yaml import yaml_load
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import (
    InventoryError,
    Problem,
    read_positions,
    shown,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import DEFAULT_VARIANT, group_name
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.minify import read_accuracy

#: Stands in the predicted lock for what is known only after something was built.
UNKNOWN = "(known when it is built)"
KEYS = frozenset({"serial", "registry", "images", "models"})


def read_lock(path: str) -> dict[str, Any] | None:
    """Return the lock in a file, None if there is no such file; raise InventoryError if it is no lock."""
    if not Path(path).exists():
        return None
    text, lock = _load_lock(path)
    problems = validate(lock, "lock", read_positions(text, path))
    if problems:
        raise InventoryError.of(problems)
    return dict(lock)


def published_lock(path: str) -> Any:
    """Return what the lock in a file says, not held against its whole schema; raise InventoryError if it is none."""
    if not Path(path).exists():
        remedy = (
            "run the playbook edgeml.fleet.publish, or set edgeml_lock_file to the lock that it wrote (where a program "
            "made the inventory: edgeml_inventory_directory to the directory of its sources)"
        )
        raise InventoryError.of([Problem("Nothing has been published", (), "no lock", remedy, file=path)])
    lock = _load_lock(path)[1]
    if not isinstance(lock, Mapping) or not lock.keys() >= KEYS:
        seen = f"no {', '.join(sorted(KEYS - lock.keys()))}" if isinstance(lock, Mapping) else shown(lock)
        raise _unreadable(path, seen)
    return lock


def _load_lock(path: str) -> tuple[str, Any]:
    """Return text and content of a lock, which is read once per process and state of the file. Do not change them."""
    try:
        status = Path(path).stat()
        return _parse_lock(os.path.realpath(path), status.st_ino, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError, yaml.YAMLError) as error:  # such as one of a date that does not exist
        raise _unreadable(path, str(error)) from error


def _unreadable(path: str, seen: str) -> InventoryError:
    remedy = "restore it from version control; publish writes it, nobody edits it"
    return InventoryError.of([Problem("The lock cannot be read", (), seen, remedy, file=path)])


@functools.lru_cache(maxsize=8)
def _parse_lock(path: str, *_state: int) -> tuple[str, Any]:
    # Each use of the role's variable comes here, for every host. Workers inherit what the inventory plugin has read.
    text = Path(path).read_text(encoding="utf-8")
    return text, yaml_load(text)


def next_lock(
    previous: Mapping[str, Any] | None,
    registry: str,
    images: Iterable[Mapping[str, Any]],
    artifacts: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the lock that follows `previous`: the same if nothing changed, else with a serial one higher.

    `images` and `artifacts` are the results of loops over the modules oci_image and model_artifact, whose items are
    those of `publication`. In check mode a result may be without content, which is then UNKNOWN in the lock. A variant
    that publish has judged by labelled examples has its accuracy on them.
    """
    unbuilt = {"digest": UNKNOWN}
    keys = ("repository", "digest", "index", "platforms", "blob", "golden_cases", "sbom")
    models: dict[str, dict[str, Any]] = {}
    for result in artifacts:
        item = result["item"]
        version = models.setdefault(item["name"], {}).setdefault(
            item["version"], {"platform": item["platform"], "variants": {}}
        )
        if "blob" not in result:
            version["variants"][item["variant"]] = unbuilt
            continue
        accuracy = read_accuracy(item.get("accuracy", {}))
        known = {} if accuracy is None else {"accuracy": accuracy}
        version["variants"][item["variant"]] = {**{key: result[key] for key in keys}, **known}
    content = {
        "registry": registry,
        "images": {result["item"]["name"]: result.get("image", unbuilt) for result in images},
        "models": models,
    }
    if previous and {key: previous.get(key) for key in content} == content:
        return dict(previous)
    return {"serial": int((previous or {}).get("serial", 0)) + 1, **content}


def locked_catalogue(lock: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    """Return the catalogue of what a lock holds, for a play that has nothing else; `path` is the lock's file.

    Of a model with several variants, a host gets the one that its models name, or whose group it is in.
    """
    catalogue = []
    for name, versions in lock.get("models", {}).items():
        for version, entry in versions.items():
            item = {"name": name, "version": version, "platform": entry["platform"], "source": {"lock": path}}
            if list(entry["variants"]) != [DEFAULT_VARIANT]:
                item["variants"] = [
                    {"name": variant, "when": {"groups": [group_name("variant", name, variant)]}}
                    for variant in entry["variants"]
                ]
            catalogue.append(item)
    return catalogue
