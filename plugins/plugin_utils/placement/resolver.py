# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host runs: catalogue, rule and override merged, and the variant chosen. Pure functions.

The inventory plugin and the filter ``edgeml.fleet.host_models`` both use it, so that an inventory without the plugin
gives the same result. Documents are expected to fit ``meta/schemas`` (see schema.validate).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path, Problem, choices, shown
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import (
    BEST,
    DEFAULT_VARIANT,
    PROTOCOLS,
    Catalogue,
    check_catalogue,
    check_objective,
    port_collisions,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host, describe_host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import Row, choose_best
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.variants import choose_variant, no_variant

#: What a rule, an item of edgeml_models or an override may say about a model.
SETTINGS = ("version", "variant", "runtime", "requires", "protocols", "options", "slo", "shadow")


@dataclass(frozen=True, eq=False)
class Request:
    """A model that a rule or a variable puts on a host, `path` being where that is written."""

    name: str
    settings: Mapping[str, Any]
    path: Path = ()


@dataclass(frozen=True, eq=False)
class _Settled:
    """A request with its catalogue entry, everything merged; what is left is the variant."""

    model: Mapping[str, Any]
    merged: Mapping[str, Any]


class Resolver:
    """Resolves requests. What is equal for many hosts is computed once, and shared between them: do not change it.

    Parameters
    ----------
    catalogue : Catalogue
        Models and runtimes.
    digests : mapping
        Digest in the lock, by name, version and variant.
    final : bool
        Whether every variant must be decided now. Otherwise an item without variant is one that awaits knowledge.
    measurements : sequence of mapping
        Rows of the table of measurements that hold for what is published.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        digests: Mapping[tuple[str, str, str], str],
        *,
        final: bool,
        measurements: Sequence[Row] = (),
    ) -> None:
        self.catalogue = catalogue
        self.digests = digests
        self.final = final
        self.measurements = measurements
        self._settled: dict[tuple[Request, str], _Settled | tuple[Problem, ...]] = {}
        self._items: dict[tuple[_Settled, str | None], dict[str, Any]] = {}
        self._collisions: dict[frozenset[str], list[Problem]] = {}

    def models(
        self, requests: Sequence[Request], overrides: Mapping[str, Any], host: Host
    ) -> tuple[list[dict[str, Any]], list[Problem]]:
        """Return a host's resolved models, and everything that is wrong with them, port collisions included.

        An item that is resolved already comes back as it is.
        """
        items = []
        problems: list[Problem] = []
        for request in requests:
            override = overrides.get(request.name, {})
            if override.get("enabled") is False:
                continue
            settled = self._settle(request, override)
            if isinstance(settled, tuple):
                problems += (replace(problem, hosts=(host.name,)) for problem in settled)
                continue
            variant, problem = self._variant(settled, request, host)
            if problem is not None:
                problems.append(problem)
                continue
            item = self._items.get((settled, variant))
            if item is None:
                item = self._items[settled, variant] = self._item(settled, variant)
            items.append(item)
        names = frozenset(item["runtime"] for item in items)
        if names not in self._collisions:
            self._collisions[names] = port_collisions(names, self.catalogue)
        return items, problems + [replace(problem, hosts=(host.name,)) for problem in self._collisions[names]]

    def _settle(self, request: Request, override: Mapping[str, Any]) -> _Settled | tuple[Problem, ...]:
        key = (request, json.dumps(override, sort_keys=True, default=id) if override else "")
        if key not in self._settled:
            self._settled[key] = settle(request, override, self.catalogue)
        return self._settled[key]

    def _variant(self, settled: _Settled, request: Request, host: Host) -> tuple[str | None, Problem | None]:
        given = settled.merged.get("variant")
        if given is not None:
            return given, None
        if settled.model.get("variant") == BEST:
            choice = choose_best(settled.model, settled.merged["slo"], host, self.measurements, final=self.final)
            variant, missing = choice.variant, list(choice.missing)
        else:
            variant, missing = choose_variant(settled.model, host)
        if variant is None and (self.final or not missing):
            return None, no_variant(settled.model, host, missing, request.path)
        return variant, None

    def _item(self, settled: _Settled, variant: str | None) -> dict[str, Any]:
        name, version = settled.model["name"], settled.model["version"]
        item = {"name": name, "version": version}
        if variant is not None:
            item["variant"] = variant
            digest = self.digests.get((name, version, variant), settled.merged.get("digest"))
            if digest is not None:
                item["digest"] = digest
        return item | {key: settled.merged[key] for key in SETTINGS[2:]}


def settle(request: Request, override: Mapping[str, Any], catalogue: Catalogue) -> _Settled | tuple[Problem, ...]:
    """Return a request merged over the catalogue and under an override, or what is wrong with it on any host."""
    name = request.name
    versions = catalogue.versions.get(name)
    if versions is None:
        known = choices(sorted(catalogue.versions), name)
        return (Problem(f"Model {name} is not in the catalogue", request.path, shown(name), known),)
    place = _override_path(name) if "version" in override else request.path
    version = override.get("version", request.settings.get("version"))
    if version is None and len(versions) == 1:
        version = next(iter(versions))
    if version is None:
        return (
            Problem(
                f"The catalogue has several versions of model {name}",
                place,
                ", ".join(sorted(versions)),
                "say which one by the key version",
            ),
        )
    model = versions.get(version)
    if model is None:
        known = choices(sorted(versions), version)
        return (
            Problem(f"The catalogue has no such version of model {name}", (*place, "version"), shown(version), known),
        )
    settings = request.settings
    before = versions.get(settings.get("version", ""))
    if before is not None and before is not model:
        # An override moves a resolved item to another version: what came from the old one's entry does not go along.
        left = _difference(settings, _defaults(before))
        settings = {key: value for key, value in left.items() if key not in ("variant", "digest")}
    merged = merge(merge(_defaults(model), settings), override)
    problems = tuple(_check_settings(model, merged, request, override, catalogue))
    return problems or _Settled(model, merged)


def _defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": model["version"],
        "runtime": model.get("runtime", DEFAULT_RUNTIME),
        "requires": model.get("requires", {}),
        "protocols": model.get("protocols", PROTOCOLS),
        "options": model.get("options", {}),
        "slo": model.get("slo", {}),
        "shadow": model.get("shadow", {}),
    }


def _check_settings(
    model: Mapping[str, Any],
    merged: Mapping[str, Any],
    request: Request,
    override: Mapping[str, Any],
    catalogue: Catalogue,
) -> Iterable[Problem]:
    """Yield what is wrong with what request and override say; check_catalogue sees to the rest."""
    name = model["name"]

    def place(key: str) -> Path | None:
        if key in override:
            return _override_path(name, key)
        return (*request.path, key) if key in request.settings else None

    runtime = merged["runtime"]
    if (path := place("runtime")) and catalogue.runtimes is not None and runtime not in catalogue.runtimes:
        known = choices(sorted(catalogue.runtimes), runtime)
        yield Problem(f"Model {name} names a runtime that does not exist", path, shown(runtime), known)
    variant = merged.get("variant")
    variants = [entry["name"] for entry in model.get("variants", ())] or [DEFAULT_VARIANT]
    if variant is not None and (path := place("variant")) and variant not in variants:
        known = choices(variants, variant)
        yield Problem(f"Model {name} {model['version']} has no such variant", path, shown(variant), known)
    slo = place("slo")
    if path := (*slo, "protocol") if slo else place("protocols"):
        yield from check_objective(name, merged, path)


def resolve_host(
    name: str,
    variables: Mapping[str, Any],
    edgeml_catalogue: Sequence[Mapping[str, Any]],
    edgeml_models: Sequence[Mapping[str, Any]],
    edgeml_model_overrides: Mapping[str, Any],
    edgeml_runtimes: Sequence[Mapping[str, Any]] | None = None,
    *,
    final: bool = True,
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the models of one host, and everything that is wrong; `final` as Resolver takes it."""
    catalogue = Catalogue(edgeml_catalogue, edgeml_runtimes)
    host, problems = describe_host(
        name, variables.get("group_names", ()), variables, lambda: variables.get("ansible_facts", {}), catalogue
    )
    problems += [
        replace(problem, path=(f"edgeml_{problem.path[0]}", *problem.path[1:]))
        for problem in check_catalogue(edgeml_catalogue, edgeml_runtimes)
    ]
    problems += unknown_overrides(edgeml_model_overrides, catalogue)
    requests = requests_of(edgeml_models, ("edgeml_models",))
    problems += placed_twice(requests)
    resolver = Resolver(catalogue, {}, final=final, measurements=variables.get("edgeml_measurements") or ())
    items, found = resolver.models(requests, edgeml_model_overrides, host)
    return items, problems + found


def requests_of(items: Sequence[Mapping[str, Any]], path: Path) -> list[Request]:
    """Return the requests that a list edgeml_models makes, resolved or not."""
    return [
        Request(item["name"], {key: value for key, value in item.items() if key != "name"}, (*path, index))
        for index, item in enumerate(items)
    ]


def placed_twice(requests: Sequence[Request]) -> list[Problem]:
    """Return a problem for each model that more than one request names."""
    first: dict[str, Request] = {}
    problems = []
    for request in requests:
        other = first.setdefault(request.name, request)
        if other is not request:
            problems.append(
                Problem(
                    f"Model {request.name} is placed twice",
                    request.path,
                    f"also by {_short(other.path)}",
                    "let one rule reach a host only, such as by all:!canary, or give a group its own version in "
                    "edgeml_model_overrides",
                )
            )
    return problems


def unknown_overrides(overrides: Mapping[str, Any], catalogue: Catalogue) -> list[Problem]:
    """Return a problem for each override of a model that the catalogue lacks."""
    return [
        Problem(
            "An override for a model that is not in the catalogue",
            _override_path(name),
            shown(name),
            choices(sorted(catalogue.versions), name),
        )
        for name in overrides
        if name not in catalogue.versions
    ]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top: mappings are merged at any depth, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _difference(settings: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `settings` says that `base` does not."""
    left = {}
    for key, value in settings.items():
        under = base.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            left[key] = _difference(value, under)
        elif value != under:
            left[key] = value
    return left


def _override_path(name: str, *keys: str) -> Path:
    return ("edgeml_model_overrides", name, *keys)


def _short(path: Path) -> str:
    return f"{path[0]}[{path[1]}]" if len(path) > 1 else ".".join(map(str, path))
