# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of hosts while an inventory is parsed, as Ansible will see them later, without templating anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible import constants as C
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.group import Group
from ansible.inventory.helpers import sort_groups
from ansible.inventory.host import Host
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import cache_loader
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem


class HostVariables:
    """Reads variables of hosts and groups; what hosts share by their groups is merged once.

    Parameters
    ----------
    loader : DataLoader
        Ansible's reader of files.
    directories : sequence of str
        Directories beside which ``group_vars`` and ``host_vars`` lie. None for variables of the sources alone.
    names : iterable of str
        The only variables to read, all if None.
    """

    def __init__(self, loader: DataLoader, directories: Sequence[str], names: Iterable[str] | None) -> None:
        self.loader = loader
        self.directories = directories
        self.names = None if names is None else frozenset(names)
        self._by_groups: dict[tuple[str, ...], Mapping[str, Any]] = {}
        self._by_group: dict[str, Mapping[str, Any]] = {}
        self._by_host: dict[str, Mapping[str, Any]] = {}
        self._facts = cache_loader.get(C.config.get_config_value("CACHE_PLUGIN"))

    def of(self, host: Host, joined: Sequence[Group] = ()) -> Mapping[str, Any]:
        """Return a host's variables, in Ansible's order of precedence. Equal results may be one object.

        `joined` are groups that the host is not in yet, and whose variables count already.
        """
        groups = [*host.get_groups(), *joined]
        key = tuple(group.name for group in groups)
        shared = self._by_groups.get(key)
        if shared is None:
            shared = self._by_groups[key] = self._of_groups(groups)
        own = self._only(host.vars)
        if host.name not in self._by_host:
            self._by_host[host.name] = self._files(host)
        files = self._by_host[host.name]
        if not own and not files:
            return shared
        return dict(combine_vars(combine_vars(shared, own), files))

    def facts(self, name: str) -> Mapping[str, Any]:
        """Return the host's facts in the fact cache, without the prefix ``ansible_``."""
        if not self._facts.contains(name):
            return {}
        return {key.removeprefix("ansible_"): value for key, value in self._facts.get(name).items()}

    def _of_groups(self, groups: Iterable[Group]) -> Mapping[str, Any]:
        ordered = sort_groups(groups)
        all_first = [[group for group in ordered if group.name == "all"], [g for g in ordered if g.name != "all"]]
        merged: dict[str, Any] = {}
        for some in all_first:
            for group in some:
                merged = combine_vars(merged, self._only(group.vars))
        for some in all_first:
            for group in some:
                merged = combine_vars(merged, self._files_of_group(group))
        return merged

    def of_group(self, group: Group) -> Mapping[str, Any]:
        """Return a group's own variables, without those of the groups above it."""
        return dict(combine_vars(self._only(group.vars), self._files_of_group(group)))

    def _files_of_group(self, group: Group) -> Mapping[str, Any]:
        if group.name not in self._by_group:
            self._by_group[group.name] = self._files(group)
        return self._by_group[group.name]

    def _files(self, entity: Host | Group) -> Mapping[str, Any]:
        if not self.directories:
            return {}
        try:
            found = get_vars_from_inventory_sources(self.loader, self.directories, [entity], "all")
        except AnsibleError:
            problem = next(self._broken_files(entity), None)
            if problem is None:
                raise
            raise AnsibleParserError(str(problem)) from None
        return self._only(found)

    def _broken_files(self, entity: Host | Group) -> Iterator[Problem]:
        """Yield what is wrong with the files of a host or group: Ansible itself names the inventory source instead."""
        kind = "host_vars" if isinstance(entity, Host) else "group_vars"
        for directory in self.directories:
            folder = Path(directory).resolve() / kind
            for path in self.loader.find_vars_files(str(folder), entity.name) if folder.is_dir() else ():
                file = os.fsdecode(path)
                try:
                    content = self.loader.load_from_file(file, cache="none")
                except AnsibleError as error:
                    seen, line = _reason(error)
                    remedy = "correct the file"
                    if "decrypt" in seen:
                        remedy = "give the password of Ansible Vault, such as by --vault-password-file"
                    yield Problem("Variables cannot be read", (), seen, remedy, file, line)
                else:
                    if content and not isinstance(content, Mapping):
                        yield Problem("Variables cannot be read", (), "not a mapping", "give a mapping", file, 1)

    def _only(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.names is None:
            return variables
        return {name: variables[name] for name in self.names if name in variables}


def _reason(error: AnsibleError) -> tuple[str, int | None]:
    """Return what is wrong in a file of variables and its line, by YAML's own error if that is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
            return str(cause.problem), int(cause.problem_mark.line) + 1
        cause = cause.__cause__ or cause.__context__
    return error.message.partition("\n")[0].rstrip("."), None
