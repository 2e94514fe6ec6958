# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a host while models are placed on it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host import names as _names
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, choices, shown
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import Catalogue
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.groups import groups_joined

#: OCI names of architectures by themselves and by the machine names of the kernel.
ARCHITECTURES = {name: oci for machine, oci in _names.ARCHITECTURES.items() for name in (machine, oci)}


@dataclass(frozen=True)
class Host:
    """What a variant may depend on. None is what nobody knows yet.

    Attributes
    ----------
    architecture : str or None
        ``amd64`` or ``arm64``.
    memory_mb : int or None
        MiB.
    cpu_features : frozenset of str or None
        As /proc/cpuinfo names them.
    accelerator : str or None
        Its name, empty for none.
    variables : mapping
        Those host variables that a variant of the catalogue asks for.
    unknown : frozenset of str
        Names of variables that are templates and have no value yet.
    """

    name: str
    architecture: str | None = None
    memory_mb: int | None = None
    cpu_features: frozenset[str] | None = None
    accelerator: str | None = None
    groups: frozenset[str] = frozenset()
    variables: Mapping[str, Any] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()


def describe_host(
    name: str,
    groups: Iterable[str],
    variables: Mapping[str, Any],
    facts: Callable[[], Mapping[str, Any]],
    catalogue: Catalogue,
) -> tuple[Host, list[Problem]]:
    """Return what is known of a host: its variables first, then what preflight learned, then Ansible's own facts.

    Only what the catalogue's variants ask for is looked up, and the architecture. A template counts as not known, and
    so does what makes no sense of what a host says of itself. The groups of its architecture and site, which the
    inventory plugin makes afterwards, are among its groups where a variant asks for groups.
    """
    problems = []
    asked = catalogue.conditions

    def known(key: str, fact: str, fits: Callable[[Any], bool], remedy: str) -> Any:
        variable = f"edgeml_{key}"
        value = variables.get(variable)
        if value is not None and not is_unknown(value):
            if fits(value):
                return value
            hint = choices(ARCHITECTURES, value) if key == "architecture" else remedy
            problems.append(Problem("Value not allowed", (variable,), shown(value), hint, hosts=(name,)))
            return None
        value = _learned(variables).get(key)
        if not fits(value):
            value = _learned(facts()).get(key)
        if not fits(value) and fact:
            value = facts().get(fact)
        # What a host says of itself is not a person's mistake: if it makes no sense, nothing is known.
        return value if fits(value) else None

    machine = known("architecture", "architecture", lambda value: _architecture(value) is not None, "")
    memory = features = accelerator = None
    if catalogue.asks_kind or not asked.isdisjoint({"min_memory_mb", "max_memory_mb"}):
        memory = known("memory_mb", "memtotal_mb", _is_size, "give MiB as a whole number")
    if catalogue.asks_kind or "cpu_features" in asked:
        features = known("cpu_features", "", _is_list_of_text, "give a list of text")
    if catalogue.asks_kind or "accelerator" in asked:
        accelerator = known("accelerator", "", lambda v: isinstance(v, str), 'give its name as text, "" for none')
    if "groups" in asked:
        groups = {*groups, *groups_joined(_architecture(machine), variables.get("edgeml_site"))}
    seen = {key: variables[key] for key in catalogue.variables if key in variables}
    return Host(
        name,
        _architecture(machine),
        memory,
        None if features is None else frozenset(features),
        accelerator,
        frozenset(groups),
        {key: native(value) for key, value in seen.items() if not is_unknown(value)},  # dates as text, as in catalogues
        frozenset(key for key, value in seen.items() if is_unknown(value)),
    ), problems


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _learned(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    learned = variables.get("edgeml_host")
    return learned if isinstance(learned, Mapping) else {}


def oci_architecture(machine: str) -> str:
    """Return the OCI name (``amd64``, ``arm64``) of a machine name as the kernel or an inventory gives it."""
    architecture = _architecture(machine)
    if architecture is None:
        raise FleetError(
            "Unknown architecture",
            where="edgeml_architecture",
            seen=repr(machine),
            remedy=f"use one of {', '.join(sorted(ARCHITECTURES))}",
        )
    return architecture


def _architecture(machine: object) -> str | None:
    """Return the OCI name of a machine name, None if there is none."""
    return ARCHITECTURES.get(machine) if isinstance(machine, str) else None


def is_template(value: object) -> bool:
    """Return whether text is, or looks like, a template, whose value is not known here."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def is_unknown(value: object) -> bool:
    """Return whether a variable's value is not known here: a template, or something encrypted."""
    return is_template(value) or not isinstance(value, (str, int, float, list, Mapping, datetime.date, type(None)))


def without_templates(value: Any) -> Any:
    """Return `value` without what is not known before Ansible templates it."""
    if isinstance(value, Mapping):
        return {key: without_templates(item) for key, item in value.items() if not is_template(item)}
    if isinstance(value, list):
        return [without_templates(item) for item in value if not is_template(item)]
    return value
