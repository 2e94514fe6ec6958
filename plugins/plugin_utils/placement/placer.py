# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the models of a catalogue on an inventory's hosts, by rules. It changes nothing of the inventory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.errors import AnsibleError
from ansible.inventory.data import InventoryData
from ansible.inventory.manager import InventoryManager, split_host_pattern
from ansible.parsing.dataloader import DataLoader
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem, choices, endless, shown
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import (
    Catalogue,
    check_catalogue,
    group_name,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.groups import (
    ARCHITECTURE_GROUPS,
    is_site,
    unknown_groups,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.host_variables import HostVariables
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import (
    Host,
    is_unknown,
    without_templates,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.joined_groups import JoinedGroups
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import Row
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import (
    SETTINGS,
    Request,
    Resolver,
    placed_twice,
    settle,
    unknown_overrides,
)

#: Host variables that placing models depends on, besides those that variants ask for.
_VARIABLES = (
    "edgeml_accelerator",
    "edgeml_architecture",
    "edgeml_catalogue",
    "edgeml_cpu_features",
    "edgeml_host",
    "edgeml_memory_mb",
    "edgeml_model_overrides",
    "edgeml_models",
    "edgeml_runtimes",
    "edgeml_site",
)


@dataclass(frozen=True)
class Placed:
    """What a host gets: its models (None if no rule selects it) and the groups of its architecture and site."""

    models: list[dict[str, Any]] | None
    groups: tuple[str, ...]


@dataclass
class _Overrides:
    """One value of edgeml_model_overrides, which many hosts may share, and where it was of use."""

    raw: Any
    usable: Mapping[str, Any]
    problems: list[Problem]
    hosts: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    placed: bool = False


@dataclass(frozen=True)
class _Look:
    """What there is to know of one host."""

    host: Host
    rules: tuple[int, ...]
    overrides: _Overrides | None
    groups: tuple[str, ...]
    variables: Mapping[str, Any]


class Placer:
    """Applies one document of catalogue and rules to an inventory.

    Parameters
    ----------
    document : mapping
        The plugin's file, of Python's own types.
    problems : sequence of Problem
        What is wrong with it by the schema; the entries concerned are left out here.
    digests : mapping
        Digests in the lock by name, version and variant.
    measurements : sequence of mapping
        What was measured of these variants.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        problems: Sequence[Problem],
        digests: Mapping[tuple[str, str, str], str],
        measurements: Sequence[Row] = (),
    ) -> None:
        self._document, self._digests, self._measurements = document, digests, measurements
        broken = {problem.path[:2] for problem in problems}

        def sound(key: str) -> list[Any]:
            items = document.get(key)
            if (key,) in broken or not isinstance(items, list):
                return []
            return [None if (key, index) in broken else item for index, item in enumerate(items)]

        models, self._rules = sound("catalogue"), sound("placement")
        self._models = models
        runtimes = sound("runtimes") if "runtimes" in document else None
        self.problems = [*problems, *check_catalogue(models, runtimes)]
        known = None if runtimes is None or None in runtimes or not runtimes else runtimes
        self.catalogue = Catalogue([model for model in models if model], known)
        #: Names of the catalogue's entries that are wrong, None for one whose name cannot be read.
        self._broken_models = {
            model["name"] if isinstance(model, Mapping) and isinstance(model.get("name"), str) else None
            for model, read in zip(document.get("catalogue") or (), models, strict=False)
            if read is None
        }
        if not models:
            self._broken_models.add(None)
        self._resolver = Resolver(self.catalogue, digests, final=False, measurements=measurements)
        self._overrides: dict[int, _Overrides] = {}
        self._selections: dict[tuple[int, ...], tuple[list[Request], list[Problem]]] = {}

    def place(
        self,
        inventory: InventoryData,
        loader: DataLoader,
        directories: Sequence[str],
        cache: MutableMapping[str, Any] | None = None,
    ) -> dict[str, Placed]:
        """Return what each host gets. What is wrong is added to `problems`; nothing is to be used then.

        `cache` keeps the result, under "placed", with a digest of everything that it depends on under "input". It is of
        use only while nothing of that changes, and holds nothing if anything is vaulted.
        """
        reader = HostVariables(loader, directories, (*_VARIABLES, *self.catalogue.variables))
        requests = [self._requests(index, rule) for index, rule in enumerate(self._rules)]
        looks = self._look(inventory, reader, self._select(InventoryPatterns(inventory, loader)))
        made = {group for look in looks.values() for group in look.groups}
        self.problems += unknown_groups(self._models, {*inventory.groups, *ARCHITECTURE_GROUPS, *made})
        digest = None if cache is None or self.problems else self._digest(looks)
        if cache is not None and digest is not None and cache.get("input") == digest:
            return _unpacked(cache["placed"])
        placed = {name: self._place_on(look, requests) for name, look in looks.items()}
        self._check_use_of_overrides()
        if cache is not None and digest is not None and not self.problems:
            cache.update(input=digest, placed=_packed(placed))
        return placed

    def _look(
        self, inventory: InventoryData, reader: HostVariables, rules_of: Mapping[str, list[int]]
    ) -> dict[str, _Look]:
        """Return what there is to know of each host."""
        joining = JoinedGroups(inventory, reader, self.catalogue)
        self.problems += joining.too_late(model for model in self._models if model)
        looks = {}
        sites: dict[str, str] = {}
        for name, host in inventory.hosts.items():
            described, variables, joined, problems = joining.describe(host)
            problems += _check_site(variables.get("edgeml_site"), sites)
            overrides = self._overrides_of(variables.get("edgeml_model_overrides"))
            if overrides is not None:
                overrides.hosts.append(name)
                problems += overrides.problems
            rules = tuple(rules_of.get(name, ()))
            if rules:
                problems += _conflicts(variables)
            self._report(problems, name, variables)
            looks[name] = _Look(described, rules, overrides, tuple(joined), variables)
        return looks

    def _place_on(self, look: _Look, requests: Sequence[Sequence[Request]]) -> Placed:
        if not look.rules:
            return Placed(None, look.groups)
        if look.rules not in self._selections:
            selection = [request for rule in look.rules for request in requests[rule]]
            self._selections[look.rules] = selection, placed_twice(selection)
        selection, twice = self._selections[look.rules]
        overrides = look.overrides
        models, found = self._resolver.models(selection, overrides.usable if overrides else {}, look.host)
        if overrides is not None:
            overrides.placed = True
            overrides.used.update(request.name for request in selection)
        self._report([*twice, *found], look.host.name, look.variables)
        return Placed(models, look.groups)

    def _report(self, problems: Iterable[Problem], host: str, variables: Mapping[str, Any]) -> None:
        self.problems += (_with_origin(replace(problem, hosts=(host,)), variables) for problem in problems)

    def _digest(self, looks: Mapping[str, _Look]) -> str | None:
        """Return the SHA-256 of all that placing depends on, None if some of it is vaulted."""
        sha256 = hashlib.sha256()
        try:
            part: Any
            for part in (self._document, sorted(map(list, self._digests.items())), self._measurements):
                sha256.update(json.dumps(part, sort_keys=True).encode())
            for name, look in looks.items():
                host = look.host
                known: list[Any] = [
                    host.architecture,
                    host.memory_mb,
                    sorted(host.cpu_features or ()),
                    host.accelerator,
                ]
                asked: list[Any] = [sorted(host.groups), host.variables, sorted(host.unknown)]
                usable = look.overrides.usable if look.overrides else None
                part = [name, known, asked, look.rules, usable, look.groups]
                sha256.update(json.dumps(part, sort_keys=True).encode())
        except TypeError:  # neither a digest nor a cache is a place for secrets
            return None
        return sha256.hexdigest()

    def _requests(self, index: int, rule: Mapping[str, Any] | None) -> list[Request]:
        """Return what a rule asks for, as far as it can be had on any host."""
        requests = []
        if rule is not None:
            settings = {key: rule[key] for key in SETTINGS if key in rule}
            for name in rule["models"]:
                request = Request(name, settings, ("placement", index))
                settled = settle(request, {}, self.catalogue)
                if not isinstance(settled, tuple):
                    requests.append(request)
                elif not self._may_be_broken(name):
                    self.problems += settled
        return requests

    def _may_be_broken(self, name: str) -> bool:
        """Return whether the catalogue may hold this model in an entry that is wrong."""
        return name in self._broken_models or None in self._broken_models

    def _select(self, patterns: InventoryPatterns) -> dict[str, list[int]]:
        """Return the indexes of the rules that select each host."""
        selected: dict[str, list[int]] = {}
        for index, rule in enumerate(self._rules):
            if rule is None:
                continue
            names, problems = patterns.match(rule["hosts"])
            self.problems += (replace(problem, path=("placement", index, "hosts")) for problem in problems)
            for name in names:
                selected.setdefault(name, []).append(index)
        return selected

    def _overrides_of(self, raw: Any) -> _Overrides | None:
        if raw is None or is_unknown(raw):
            return None
        known = self._overrides.get(id(raw))
        if known is None:
            try:
                usable = native(without_templates(raw))
                problems = validate(usable, "variables", part="overrides", prefix=("edgeml_model_overrides",))
            except RecursionError:
                problems = [endless(("edgeml_model_overrides",))]
            if problems:
                usable = {}
            else:
                concerned = {name: value for name, value in usable.items() if not self._may_be_broken(name)}
                problems = unknown_overrides(concerned, self.catalogue)
            known = self._overrides[id(raw)] = _Overrides(raw, usable, problems)
        return known

    def _check_use_of_overrides(self) -> None:
        """Report overrides of a model that none of their hosts has, unless rules reach none of these hosts at all."""
        for overrides in self._overrides.values():
            for name in overrides.usable if overrides.placed else ():
                if name in self.catalogue.versions and name not in overrides.used and not self._broken_models:
                    problem = Problem(
                        f"An override for model {name}, which no rule places there",
                        ("edgeml_model_overrides", name),
                        remedy="place the model there, or remove the override",
                        hosts=tuple(overrides.hosts),
                    )
                    self.problems.append(_with_origin(problem, {"edgeml_model_overrides": overrides.raw}))


class InventoryPatterns:
    """Evaluates host patterns against an inventory that is being parsed, by Ansible's own rules."""

    def __init__(self, inventory: InventoryData, loader: DataLoader) -> None:
        self._inventory = inventory
        self._manager = InventoryManager(loader, sources=[], parse=False)
        # There is no other way to give it an inventory that exists already.
        self._manager._inventory = inventory
        self._known: dict[str, tuple[list[str], list[Problem]]] = {}

    def match(self, pattern: str) -> tuple[list[str], list[Problem]]:
        """Return the names of the hosts that match, and what is wrong with the pattern."""
        if pattern not in self._known:
            self._known[pattern] = self._match(pattern)
        return self._known[pattern]

    def _match(self, pattern: str) -> tuple[list[str], list[Problem]]:
        problems = []
        for part in split_host_pattern(pattern):
            name = part.lstrip("&!")
            if (
                re.fullmatch(r"[\w.-]+", name)
                and name not in self._inventory.groups
                and name not in self._inventory.hosts
            ):
                names = [*sorted(self._inventory.groups), *sorted(self._inventory.hosts)]
                problems.append(Problem(f"No group or host is called {name}", (), shown(pattern), choices(names, name)))
        if problems:
            return [], problems
        try:
            hosts = [host.name for host in self._manager.get_hosts(pattern) if host.name in self._inventory.hosts]
        except AnsibleError as error:
            remedy = "correct the pattern, or remove the rule"
            return [], [Problem(str(error).rstrip("."), (), shown(pattern), remedy)]
        if not hosts:
            remedy = "correct the pattern, or remove the rule; ansible PATTERN --list-hosts shows what one matches"
            problems.append(Problem("The host pattern matches no host", (), shown(pattern), remedy))
        return hosts, problems


def _packed(placed: Mapping[str, Placed]) -> dict[str, Any]:
    """Return the result for a cache: each distinct item once, and for each host the numbers of its items."""
    items: dict[int, tuple[int, Any]] = {}
    hosts = {}
    for name, result in placed.items():
        numbers = None
        if result.models is not None:
            numbers = [items.setdefault(id(item), (len(items), item))[0] for item in result.models]
        hosts[name] = [numbers, list(result.groups)]
    return {"items": [item for _key, item in items.values()], "hosts": hosts}


def _unpacked(cached: Mapping[str, Any]) -> dict[str, Placed]:
    items, hosts = native(cached["items"]), native(cached["hosts"])
    return {
        name: Placed(None if numbers is None else [items[number] for number in numbers], tuple(groups))
        for name, (numbers, groups) in hosts.items()
    }


def _check_site(site: Any, sites: dict[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with a host's site; `sites` are those before it, by their groups."""
    if is_site(site):
        group = group_name("site", site)
        other = sites.setdefault(group, site)
        if other != site:
            what = f"Sites {other} and {site} would share a group"
            yield Problem(what, ("edgeml_site",), group, "rename one of them")
    elif site is not None and not is_unknown(site):
        remedy = "use letters, digits, dashes and underscores"
        yield Problem("Not the name of a site", ("edgeml_site",), shown(site), remedy)


def _conflicts(variables: Mapping[str, Any]) -> Iterator[Problem]:
    for variable in ("edgeml_models", "edgeml_catalogue", "edgeml_runtimes"):
        if variable in variables:
            what = f"{variable} would go before what the plugin places"
            yield Problem(what, (variable,), remedy="remove the variable; its content belongs into the plugin's file")


def _with_origin(problem: Problem, variables: Mapping[str, Any]) -> Problem:
    """Return a problem of a variable with the file and line that the variable comes from."""
    if problem.path[:1] and problem.path[0] in variables:
        return problem.located(origins(variables, problem.path))
    return problem
