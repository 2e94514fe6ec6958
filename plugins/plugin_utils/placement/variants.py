# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variant of a model a host fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path, Problem
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import DEFAULT_VARIANT
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.groups import ARCHITECTURE_GROUPS
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host


def choose_variant(model: Mapping[str, Any], host: Host) -> tuple[str | None, list[str]]:
    """Return the name of the first variant that the host fits, and what must be known of the host to tell.

    ("int8", []) is an answer, (None, []) says that no variant fits, (None, ["memory_mb"]) that it cannot be said yet.
    """
    if not model.get("variants"):
        return DEFAULT_VARIANT, []
    missing: list[str] = []
    for variant in model["variants"]:
        holds, unknown = _holds(variant.get("when", {}), host)
        if not holds:
            continue
        if not unknown and not missing:
            return str(variant["name"]), []
        missing += unknown
        if not unknown:
            break  # an earlier one may fit as well, and would go first
    return None, list(dict.fromkeys(missing))


def _holds(when: Mapping[str, Any], host: Host) -> tuple[bool, list[str]]:
    """Return whether all that is known speaks for `when`, and what is not known."""
    unknown = []
    for key, wanted in when.items():
        if key == "groups":
            fits: bool | None = not host.groups.isdisjoint(wanted)
            if not fits and host.architecture is None and not ARCHITECTURE_GROUPS.isdisjoint(wanted):
                unknown.append("architecture")
                continue
        elif key == "variables":
            for name, value in wanted.items():
                if name in host.unknown:
                    unknown.append(name)
                elif not _is_one_of(host.variables.get(name), value if isinstance(value, list) else [value]):
                    return False, []
            continue
        elif key == "architecture":
            fits = None if host.architecture is None else host.architecture in wanted
        elif key == "min_memory_mb":
            fits = None if host.memory_mb is None else host.memory_mb >= wanted
        elif key == "max_memory_mb":
            fits = None if host.memory_mb is None else host.memory_mb <= wanted
        elif key == "cpu_features":
            fits = None if host.cpu_features is None else host.cpu_features.issuperset(wanted)
        else:
            fits = None if host.accelerator is None else host.accelerator == wanted
        if fits is None:
            unknown.append(key.removeprefix("min_").removeprefix("max_"))
        elif not fits:
            return False, []
    return True, unknown


def _is_one_of(value: Any, wanted: list[Any]) -> bool:
    """Return whether a value equals one of these by YAML's types: true is not 1, which it is for Python."""
    return any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in wanted)


def no_variant(model: Mapping[str, Any], host: Host, missing: list[str], path: Path) -> Problem:
    name = f"{model['name']} {model['version']}"
    if missing:
        return Problem(
            f"Which variant of model {name} fits cannot be said",
            path,
            f"{', '.join(missing)} not known",
            f"set {', '.join(_variable(key) for key in missing)}, or run the playbook edgeml.fleet.preflight, which "
            "finds out",
            hosts=(host.name,),
        )
    wanted = "; ".join(f"{v['name']} when {json.dumps(v['when'], sort_keys=True)}" for v in model["variants"])
    return Problem(
        f"No variant of model {name} fits",
        path,
        _seen(host, model),
        f"add a variant to the catalogue (there are: {wanted}), or keep the model off the host",
        hosts=(host.name,),
    )


def _seen(host: Host, model: Mapping[str, Any]) -> str:
    keys = {key for variant in model["variants"] for key in variant.get("when", {})}
    facts: dict[str, Any] = {
        "architecture": host.architecture,
        "memory_mb": host.memory_mb,
        "cpu_features": None if host.cpu_features is None else sorted(host.cpu_features)[:12],
        "accelerator": host.accelerator,
    }
    seen = [f"{key} {value!r}" for key, value in facts.items() if any(key in asked for asked in keys)]
    if "variables" in keys:
        seen += [f"{key} {value!r}" for key, value in sorted(host.variables.items())]
    return ", ".join(seen) or "none of the groups"


def _variable(key: str) -> str:
    return f"edgeml_{key}" if key in ("architecture", "memory_mb", "cpu_features", "accelerator") else key
