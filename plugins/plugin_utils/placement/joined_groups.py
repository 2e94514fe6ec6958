# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of hosts once they are in the groups of their sites and architectures, which the plugin makes later."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.inventory.data import InventoryData
from ansible.inventory.group import Group
from ansible.inventory.host import Host as InventoryHost
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import origins
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import Catalogue, group_name
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.groups import groups_joined
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.host_variables import HostVariables
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host, describe_host


class JoinedGroups:
    """Reads variables and facts of hosts as if the groups of sites and architectures existed. It makes none of them."""

    def __init__(self, inventory: InventoryData, reader: HostVariables, catalogue: Catalogue) -> None:
        self._inventory, self._reader, self._catalogue = inventory, reader, catalogue
        self._asks_groups = "groups" in catalogue.conditions
        self._known: dict[str, list[Group]] = {}
        self._with_variables: dict[str, bool] = {}

    def describe(self, host: InventoryHost) -> tuple[Host, Mapping[str, Any], list[str], list[Problem]]:
        """Return what is known of a host, its variables, the groups that it joins, and what is wrong.

        Variables of its site's group may say its architecture. Nothing else of what decides on these groups may come
        from one of them.
        """
        variables = self._reader.of(host)
        site = variables.get("edgeml_site")
        new = self._new_to(host, groups_joined(None, site))
        if self._say_anything(new):
            variables = self._reader.of(host, new)
        described, problems = self._describe(host, new, variables)
        joined = groups_joined(described.architecture, site)
        new = self._new_to(host, joined)
        says = self._say_anything(new)
        if says or (new and self._asks_groups):
            variables = self._reader.of(host, new) if says else variables
            described, problems = self._describe(host, new, variables)
            if groups_joined(described.architecture, variables.get("edgeml_site")) != joined:
                key = "edgeml_architecture" if variables.get("edgeml_site") == site else "edgeml_site"
                remedy = "set it for the host, or in a group of another inventory source"
                problems.append(
                    Problem(f"{key} decides on groups, and one of these groups changes it", (key,), "", remedy)
                )
        return described, variables, joined, problems

    def too_late(self, models: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
        """Yield a problem for each variable in a group that hosts join only by the models placed on them."""
        for model in models:
            variants = [("variant", model["name"], variant["name"]) for variant in model.get("variants", ())]
            for kind, *parts in [("model", model["name"]), *variants]:
                name = group_name(kind, *parts)
                variables = {} if name in self._inventory.groups else self._reader.of_group(Group(name))
                for variable in variables:
                    what = f"{variable} decides on placement, and hosts join the group {name} only afterwards"
                    problem = Problem(what, (variable,), remedy="set it in a group of another inventory source")
                    yield problem.located(origins(variables, problem.path))

    def _describe(
        self, host: InventoryHost, new: Sequence[Group], variables: Mapping[str, Any]
    ) -> tuple[Host, list[Problem]]:
        groups = [group.name for group in (*host.get_groups(), *new)] if self._asks_groups else ()
        facts = functools.partial(self._reader.facts, host.name)
        return describe_host(host.name, groups, variables, facts, self._catalogue)

    def _new_to(self, host: InventoryHost, names: Iterable[str]) -> list[Group]:
        """Return the groups of these names, and those above them, that the host is not in."""
        groups = {group.name: group for name in names for group in self._with_parents(name)}
        within = {group.name for group in host.get_groups()}
        return [group for name, group in groups.items() if name not in within]

    def _with_parents(self, name: str) -> list[Group]:
        if name not in self._known:
            group = self._inventory.groups.get(name)
            if group is None:
                group = Group(name)
                group.depth = 1  # as Ansible makes it: below the group all
            self._known[name] = [group, *group.get_ancestors()]
        return self._known[name]

    def _say_anything(self, groups: Iterable[Group]) -> bool:
        """Return whether any of these groups has variables that count for placement."""
        for group in groups:
            if group.name not in self._with_variables:
                self._with_variables[group.name] = bool(self._reader.of_group(group))
        return any(self._with_variables[group.name] for group in groups)
