# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release would change on a host. Check mode, --diff and the result of a real run all tell it in this way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired

#: What a plan says of a model, in the order in which people read it.
MODEL_KEYS = ("version", "variant", "digest", "options", "protocols")


def describe(desired: Desired, release_id: str) -> dict[str, Any]:
    """Return what is committed of a release: enough to say later what another one changes.

    Values of environment variables, secrets and parameters of models are told by a short fingerprint only.
    """
    return {
        "id": release_id,
        "image": desired.image,
        "models": [
            {
                "name": m.name,
                "version": m.version,
                "variant": m.variant,
                "digest": m.digest,
                "options": _without_values(m.options),
                "protocols": list(m.protocols),
            }
            for m in desired.models
        ],
        "settings": _settings(desired),
    }


def described_before(state: Mapping[str, Any], releases: Path) -> dict[str, Any] | None:
    """Return the description of the committed release; one that older versions committed has its settings in a file."""
    before = state.get("active")
    if not before or "settings" in before:
        return before or None
    configuration = read_object(releases / before["id"] / "runtime.json")
    if not configuration:
        return dict(before)
    return {**before, "settings": _flat(_of_server(configuration))}


def make_plan(
    runtime: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    faults: Sequence[str],
    bytes_to_move: Mapping[str, int],
    removed_runtimes: Sequence[str],
) -> dict[str, Any]:
    """Return the plan of a release, as RETURN of the module runtime_release describes it.

    Parameters
    ----------
    before, after : mapping
        Descriptions of the committed and of the desired release.
    faults : sequence of str
        What is wrong with the committed release, if that is the desired one.
    bytes_to_move : mapping
        Bytes that the host will fetch from its mirror: ``image`` and ``models``.
    """
    same = before is not None and before["id"] == after["id"]
    if before is None:
        action = "start"
    elif not same:
        action = "restart"
    else:
        action = "repair" if faults else "none"
    old_image = before["image"] if before else None
    return {
        "runtime": runtime,
        "action": action,
        "faults": list(faults) if same else [],
        "image": None if old_image == after["image"] else {"before": old_image, "after": after["image"]},
        "models": [] if same else _changed_models(before, after),
        "settings": [] if same or before is None else _changed_settings(before, after),
        "bytes": dict(bytes_to_move),
        "removed_runtimes": list(removed_runtimes),
    }


def make_diff(plan: Mapping[str, Any], before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what --diff shows of a plan: the release before and after, models by their names."""
    old = None if before is None else _readable(before)
    new = _readable(after)
    if old is not None:
        # What an older version of this module did not commit is no change.
        for name, model in new["models"].items():
            for key in set(model) - set(old["models"].get(name, model)):
                del model[key]
        known = {entry["key"] for entry in plan["settings"]} | set(old["settings"])
        new["settings"] = {key: value for key, value in new["settings"].items() if key in known}
    if plan["action"] == "none":
        new = old or new
    elif plan["action"] == "repair" and old is not None:
        old["faults"] = plan["faults"]
        new["faults"] = []
    if plan["removed_runtimes"]:
        old = {**(old or {}), "removed_runtimes": plan["removed_runtimes"]}
        new = {**new, "removed_runtimes": []}
    return {"before": old or {}, "after": new}


def _readable(description: Mapping[str, Any]) -> dict[str, Any]:
    models = {
        model["name"]: {key: model[key] for key in MODEL_KEYS if key in model}
        for model in map(_hidden, description["models"])
    }
    return {**description, "models": models, "settings": description.get("settings", {})}


def _changed_models(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[dict[str, Any]]:
    old = {model["name"]: _hidden(model) for model in (before or {"models": []})["models"]}
    new = {model["name"]: model for model in after["models"]}
    changed = []
    for name in sorted({*old, *new}):
        known = [key for key in MODEL_KEYS if name not in old or key in old[name]]
        was, becomes = ({key: side[name].get(key) for key in known} if name in side else None for side in (old, new))
        if was != becomes:
            changed.append({"name": name, "before": was, "after": becomes})
    return changed


def _changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    old, new = before.get("settings"), after["settings"]
    if old is None:
        return []
    if "secrets" not in old:  # committed by an older version, which kept the server's own settings only
        new = {key: value for key, value in new.items() if key in old or not _of_container(key)}
    return [
        {"key": key, "before": old.get(key), "after": new.get(key)}
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _settings(desired: Desired) -> dict[str, Any]:
    server = asdict(desired.server) if desired.server else {}
    environment = {**server.pop("environment", {}), **desired.environment}
    container = {"limits": asdict(desired.limits), "devices": list(desired.devices), "server": server}
    if desired.gpus:
        container["gpus"] = list(desired.gpus)
    return {
        **_flat(_of_server(desired.runtime_configuration())),
        **_flat({"container": container}),
        "container.environment": _fingerprint(environment),
        "secrets": _fingerprint(desired.secret_digests()),
    }


def _of_server(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if key not in ("models", "cache_directory")}


def _of_container(key: str) -> bool:
    return key == "secrets" or key.startswith("container.")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(item) if isinstance(item, tuple) else item
    return flat


def _hidden(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is committed of a model; older versions committed its parameters in clear."""
    return {**model, "options": _without_values(model["options"])} if "options" in model else model


def _without_values(options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = options.get("parameters")
    return {**options, "parameters": _fingerprint(parameters)} if isinstance(parameters, Mapping) else dict(options)


def _fingerprint(values: Mapping[str, Any]) -> str | None:
    """Return the names, with so few digits of a digest of the values that nobody can guess these from it."""
    if not values:
        return None
    return f"{', '.join(sorted(values))} ({hashlib.sha256(canonical_json(values)).hexdigest()[:6]})"


def make_result(
    changed: bool, plan: dict[str, Any], before: Mapping[str, Any] | None, after: dict[str, Any]
) -> dict[str, Any]:
    """Return what the module returns before anything is done."""
    return {
        "changed": changed,
        "release": after,
        "plan": plan,
        "diff": make_diff(plan, before, after),
        "bytes_fetched": plan["bytes"]["models"],
        "gates": [],
        "evidence": [],
    }
