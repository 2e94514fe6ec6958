# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts measure which variants: one host of each kind, and what the table lacks. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.settings import Settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import BEST, Catalogue
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import describe_host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import (
    Row,
    candidates,
    current,
    kind_of,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.releases import host_releases
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.site_content import resolved_models

#: Where the playbook keeps what a host answered first.
LEARNED = "edgeml_measure_learned"


@dataclass
class MeasuringPlan:
    """What each host has to measure: ``{"name", "version", "variants", "kind"}`` for each model; and remarks."""

    hosts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_measuring(
    hostvars: Mapping[str, Mapping[str, Any]],
    hosts: Sequence[str],
    lock: Mapping[str, Any],
    rows: Sequence[Row],
    settings: Settings,
) -> MeasuringPlan:
    """Choose, for each model and kind of host, the first of `hosts` of that kind that serves the model.

    A variant is left out if a row of `rows` says what the content in the lock does on that kind.
    """
    plan = MeasuringPlan()
    known = {(row["model"], row["version"], row["kind"], row["variant"]) for row in current(rows, lock)}
    taken = set()
    for host in hosts:
        variables = hostvars[host]
        if (variables.get(LEARNED) or {}).get("unreachable"):
            plan.notes.append(f"{host} cannot be reached")
            continue
        catalogue = native(variables.get("edgeml_catalogue") or [])
        items = resolved_models(host, variables, variables.get("edgeml_models") or ())
        for item in items:
            model = _entry(catalogue, item)
            if model is None or not _is_asked(model, settings):
                continue
            kind, missing = _kind(host, variables, model)
            if missing:
                plan.notes.append(f"{host} measures nothing, since its {', '.join(missing)} cannot be learned")
                break
            key = (model["name"], model["version"], kind)
            if key in taken:
                continue
            taken.add(key)
            published = lock["models"].get(model["name"], {}).get(model["version"], {}).get("variants", {})
            todo = [
                name
                for name in candidates(model)
                if name in published and (settings.again or (*key, name) not in known)
            ]
            if todo:
                wanted = {"name": model["name"], "version": model["version"], "variants": todo, "kind": kind}
                plan.hosts.setdefault(host, []).append(wanted)
            else:
                plan.notes.append(f"{model['name']} {model['version']} has been measured on {kind}")
    return plan


def _entry(catalogue: Sequence[Mapping[str, Any]], item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the catalogue's entry of a resolved item."""
    wanted = (item["name"], item["version"])
    return next((model for model in catalogue if (model["name"], model["version"]) == wanted), None)


def _is_asked(model: Mapping[str, Any], settings: Settings) -> bool:
    if settings.models is not None:
        return model["name"] in settings.models
    return model.get("variant") == BEST


def _kind(host: str, variables: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    asking = Catalogue([{**model, "variant": BEST}], None)
    described, _problems = describe_host(host, (), variables, lambda: variables.get("ansible_facts", {}), asking)
    return kind_of(described)


def variant_trials(
    models: Sequence[Mapping[str, Any]],
    asked: Sequence[Mapping[str, Any]],
    lock: dict[str, Any],
    runtimes: Sequence[Mapping[str, Any]] | None,
    architecture: str,
    host: str,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return what a host tries: its releases as host_releases returns them, each with all variants that are `asked` for
    as its models, one after another.

    `models`, `settings` and the others are as host_releases takes them; `asked` is the host's part of a MeasuringPlan.
    """
    trials: dict[str, dict[str, Any]] = {}
    for wanted in asked:
        item = next(model for model in models if model["name"] == wanted["name"])
        for variant in wanted["variants"]:
            placed = [{**item, "version": wanted["version"], "variant": variant}]
            (release,) = host_releases(placed, lock, runtimes, architecture, host, settings)
            trial = trials.setdefault(release["name"], {**release, "models": []})
            trial["models"] += release["models"]
            trial["limits"] = _larger(trial["limits"], release["limits"])
            trial["devices"] = sorted({*trial["devices"], *release["devices"]})
            if gpus := {*trial.get("gpus", ()), *release.get("gpus", ())}:
                trial["gpus"] = ["all"] if "all" in gpus else sorted(gpus)
            trial["environment"] = {**trial["environment"], **release["environment"]}
    return list(trials.values())


def _larger(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return limits that hold both models, each of which runs alone. 0 is no limit."""
    return {key: max(one[key], other[key]) if one[key] and other[key] else 0 for key in one}
