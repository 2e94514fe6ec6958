# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models and runtimes there are, and what no schema can see to be wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path, Problem, choices, shown

#: The variant of a model that has none, as the lock calls it.
DEFAULT_VARIANT = "default"
#: Stands in the catalogue for the variant that was measured best on hosts of a host's kind.
BEST = "best"
PROTOCOLS = ["rest", "grpc"]
_PATH = "give a path of the controller, relative to the inventory, or edgeml.fleet:PATH in the collection"
PORTS = {"rest": 8000, "grpc": 8001, "metrics": 8002}


class Catalogue:
    """The models and runtimes there are, by name. A later duplicate does not count."""

    def __init__(self, models: Sequence[Mapping[str, Any]], runtimes: Sequence[Mapping[str, Any]] | None) -> None:
        self.versions: dict[str, dict[str, Mapping[str, Any]]] = {}
        for model in models:
            self.versions.setdefault(model["name"], {}).setdefault(model["version"], model)
        #: None where nothing says which runtimes there are.
        self.runtimes = None if runtimes is None else {runtime["name"]: runtime for runtime in reversed(runtimes)}
        conditions = [variant.get("when", {}) for model in models for variant in model.get("variants", ())]
        #: What variants ask of a host, and the host variables among that.
        self.conditions = frozenset(key for when in conditions for key in when)
        self.variables = frozenset(name for when in conditions for name in when.get("variables", ()))
        #: Whether a host's kind decides on a variant.
        self.asks_kind = any(model.get("variant") == BEST for model in models)


def check_catalogue(
    models: Sequence[Mapping[str, Any] | None], runtimes: Sequence[Mapping[str, Any] | None] | None
) -> list[Problem]:
    """Return what no schema can see: doubles, runtimes that are not there, variants that nothing reaches.

    Paths begin with ``catalogue`` or ``runtimes``. None stands for an entry that does not fit the schema; while a
    runtime does not, its name is not missed.
    """
    problems = _check_runtimes(runtimes or ())
    names = None if runtimes is None or None in runtimes else {runtime["name"] for runtime in runtimes if runtime}
    seen: dict[tuple[str, str], int] = {}
    groups: dict[str, str] = {}
    for index, model in enumerate(models):
        if model is None:
            continue
        path: Path = ("catalogue", index)
        name, version = model["name"], model["version"]
        first = seen.setdefault((name, version), index)
        if first != index:
            what = f"Model {name} {version} stands in the catalogue twice"
            problems.append(Problem(what, path, f"also at catalogue[{first}]", "give one of them another version"))
        group = group_name("model", name)
        other = groups.setdefault(group, name)
        if other != name:
            what = f"Models {other} and {name} would share a group"
            problems.append(Problem(what, (*path, "name"), group, "rename one of them"))
        for number, variant in enumerate(model.get("variants", ())):
            group, own = group_name("variant", name, variant["name"]), f"{variant['name']} of model {name}"
            other = groups.setdefault(group, own)
            if other != own:
                what = f"Variants {other} and {own} would share a group"
                problems.append(Problem(what, (*path, "variants", number, "name"), group, "rename one of them"))
        runtime = model.get("runtime", DEFAULT_RUNTIME)
        if names is not None and runtime not in names:
            what = f"Model {name} names a runtime that does not exist"
            problems.append(Problem(what, (*path, "runtime"), shown(runtime), choices(sorted(names), runtime)))
        if isinstance(model["source"], str) and "://" in model["source"]:
            what, remedy = f"The source of model {name} is an address, not a directory", "give {url, sha256}, or {oci}"
            problems.append(Problem(what, (*path, "source"), shown(model["source"]), remedy))
        remedy = f"{_PATH}; only source can be fetched: {{url, sha256}}, or {{oci}}"
        for place, value in _paths_of(model):
            problems += _check_path(f"model {name}", value, (*path, *place), remedy)
        problems += check_objective(name, model, (*path, "slo", "protocol"))
        problems += _check_variants(model, path)
    return problems


def _paths_of(model: Mapping[str, Any]) -> Iterable[tuple[Path, Any]]:
    """Yield place and value of what a model names by its path on the controller, but its source."""
    yield ("golden",), model.get("golden")
    yield ("build", "requirements"), model.get("build", {}).get("requirements")
    for index, variant in enumerate(model.get("variants", ())):
        yield ("variants", index, "minify", "calibration"), variant.get("minify", {}).get("calibration")


def _check_path(owner: str, value: Any, path: Path, remedy: str) -> Iterable[Problem]:
    if isinstance(value, str) and "://" in value:
        yield Problem(f"The {path[-1]} of {owner} is an address, not a path", path, shown(value), remedy)


def _check_variants(model: Mapping[str, Any], path: Path) -> list[Problem]:
    problems = []
    names: dict[str, int] = {}
    always: str | None = None
    measured = model.get("variant") == BEST
    if measured and len([variant for variant in model.get("variants", ()) if not variant.get("when")]) < 2:
        what = f"Model {model['name']} has no variants to choose the best of"
        remedy = "name two variants or more without when, or remove variant"
        problems.append(Problem(what, (*path, "variant"), shown(BEST), remedy))
    for index, variant in enumerate(model.get("variants", ())):
        place = (*path, "variants", index)
        if variant["name"] == BEST:
            what = f"A variant of model {model['name']} has the name that stands for the best one"
            problems.append(Problem(what, (*place, "name"), shown(BEST), "rename it"))
        if names.setdefault(variant["name"], index) != index:
            problems.append(
                Problem(
                    f"Two variants of model {model['name']} have one name",
                    (*place, "name"),
                    shown(variant["name"]),
                    "rename one of them",
                )
            )
        if always is not None and not measured:
            problems.append(
                Problem(
                    f"Variant {variant['name']} of model {model['name']} is never reached",
                    place,
                    f"{always} stands before it and fits every host",
                    "move it up, remove it, or let measurements choose by variant: best of the model",
                )
            )
        elif not variant.get("when"):
            always = variant["name"]
    return problems


def _check_runtimes(runtimes: Sequence[Mapping[str, Any] | None]) -> list[Problem]:
    problems: list[Problem] = []
    places: dict[str, int] = {}
    bases: dict[str, str | None] = {}
    for index, runtime in enumerate(runtimes):
        if runtime is None:
            continue
        name = runtime["name"]
        for key in ("recipe", "source_root", "requirements"):
            problems += _check_path(f"runtime {name}", runtime.get(key), ("runtimes", index, key), _PATH)
        first = places.setdefault(name, index)
        bases.setdefault(name, runtime.get("extends"))
        if first != index:
            remedy = f"rename it, or remove runtimes[{first}]"
            problems.append(Problem("Two runtimes have one name", ("runtimes", index, "name"), shown(name), remedy))
    for name, base in bases.items():
        path, chain = ("runtimes", places[name], "extends"), [name]
        while base is not None and base in bases and base not in chain:
            chain.append(base)
            base = bases[base]
        if base in chain:
            remedy = "extend a runtime that has a recipe or an image"
            problems.append(Problem(f"Runtime {name} extends itself", path, " -> ".join([*chain, str(base)]), remedy))
        elif base is not None and len(chain) == 1 and None not in runtimes:
            what = f"Runtime {name} extends one that does not exist"
            problems.append(Problem(what, path, shown(base), choices(sorted(bases), base)))
    return problems


def check_objective(name: str, settings: Mapping[str, Any], path: Path) -> Iterable[Problem]:
    protocol, protocols = settings.get("slo", {}).get("protocol"), settings.get("protocols", PROTOCOLS)
    if protocol is not None and protocol not in protocols:
        what = f"The latency of model {name} cannot be measured by a protocol that it does not have"
        yield Problem(what, path, shown(protocol), choices(protocols, protocol))


def ports_of(runtime: Mapping[str, Any]) -> dict[str, int]:
    """Return the TCP ports that a runtime takes on its host, by protocol. Another server has no port that it does not
    listen on."""
    defaults = PORTS
    server = runtime.get("server")
    if server is not None:
        defaults = {key: port for key, port in PORTS.items() if f"{key}_port" in server}
    return {**defaults, **runtime.get("ports", {})}


def port_collisions(names: Iterable[str], catalogue: Catalogue) -> list[Problem]:
    """Return a problem for each port that two of these runtimes take, when they run on one host."""
    problems = []
    taken: dict[int, str] = {}
    runtimes = catalogue.runtimes or {}
    for name in sorted(set(names) & set(runtimes), key=lambda name: (name != DEFAULT_RUNTIME, name)):
        for protocol, port in ports_of(runtimes[name]).items():
            user = f"{name} ({protocol})"
            other = taken.setdefault(port, user)
            if other != user:
                problems.append(
                    Problem(
                        f"Two runtimes would take port {port} of one host",
                        ("runtimes",),
                        f"{other} and {user}",
                        f"give runtime {name} a port of its own for {protocol} in its ports",
                    )
                )
    return problems


def group_name(kind: str, *names: str) -> str:
    """Return the name of the inventory group of a model, variant, site or architecture."""
    return "_".join((kind, *names)).replace("-", "_")
