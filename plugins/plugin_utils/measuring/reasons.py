# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why each host gets its variant of a model whose variants are measured. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import BEST, Catalogue
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import describe_host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import choose_best
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.site_content import resolved_models
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.text import listed

#: Hosts that a line names before it counts the others.
NAMED_HOSTS = 12


def variant_reasons(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """Return {"model", "version", "variant", "reason", "hosts"} for each reason that hosts have in common."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for host in hosts:
        variables = hostvars[host]
        catalogue = native(variables.get("edgeml_catalogue") or [])
        measured = {(model["name"], model["version"]): model for model in catalogue if model.get("variant") == BEST}
        items = resolved_models(host, variables, variables.get("edgeml_models") or ()) if measured else ()
        for item in items:
            model = measured.get((item["name"], item["version"]))
            if model is not None:
                variant, reason = _reason(host, variables, model, item)
                found.setdefault((item["name"], item["version"], variant, reason), []).append(host)
    keys = ("model", "version", "variant", "reason")
    return [{**dict(zip(keys, key, strict=True)), "hosts": names} for key, names in found.items()]


def told(reasons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each reason that variant_reasons has found."""
    return [
        f"variant {entry['variant']} of {entry['model']} {entry['version']}: {listed(entry['hosts'], NAMED_HOSTS)}: "
        f"{entry['reason']}"
        for entry in reasons
    ]


def _reason(
    host: str, variables: Mapping[str, Any], model: Mapping[str, Any], item: Mapping[str, Any]
) -> tuple[str, str]:
    described, _problems = describe_host(
        host, variables.get("group_names", ()), variables, lambda: variables.get("ansible_facts", {}),
        Catalogue([model], None),
    )  # fmt: skip
    rows = native(variables.get("edgeml_measurements") or [])
    choice = choose_best(model, item.get("slo", {}), described, rows, final=True)
    variant = str(item.get("variant") or choice.variant)
    if variant != choice.variant:
        return variant, "the inventory names it"
    return variant, choice.reason
