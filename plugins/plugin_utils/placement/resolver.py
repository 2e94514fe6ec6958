# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host runs: catalogue, rule and override merged, and the variant chosen. Pure functions.

The inventory plugin and the filter ``edgeml.fleet.host_models`` both use it, so that an inventory without the plugin
gives the same result. Documents are expected to fit ``meta/schemas`` (see schema.validate).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host import names as _names
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path, Problem, choices, shown

#: OCI names of architectures by themselves and by the machine names of the kernel.
ARCHITECTURES = {name: oci for machine, oci in _names.ARCHITECTURES.items() for name in (machine, oci)}
#: The variant of a model that has none, as the lock calls it.
DEFAULT_VARIANT = "default"
PROTOCOLS = ["rest", "grpc"]
#: What a rule, an item of edgeml_models or an override may say about a model.
SETTINGS = ("version", "variant", "runtime", "requires", "protocols", "options", "slo")
PORTS = {"rest": 8000, "grpc": 8001, "metrics": 8002}


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


@dataclass(frozen=True, eq=False)
class Request:
    """A model that a rule or a variable puts on a host, `path` being where that is written."""

    name: str
    settings: Mapping[str, Any]
    path: Path = ()


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
    return is_template(value) or not isinstance(value, (str, int, float, list, Mapping, type(None)))


def without_templates(value: Any) -> Any:
    """Return `value` without what is not known before Ansible templates it."""
    if isinstance(value, Mapping):
        return {key: without_templates(item) for key, item in value.items() if not is_template(item)}
    if isinstance(value, list):
        return [without_templates(item) for item in value if not is_template(item)]
    return value


# -- hosts -------------------------------------------------------------------------------------------------------------


def describe_host(
    name: str,
    groups: Iterable[str],
    variables: Mapping[str, Any],
    facts: Callable[[], Mapping[str, Any]],
    catalogue: Catalogue,
) -> tuple[Host, list[Problem]]:
    """Return what is known of a host: its variables first, then what preflight learned, then Ansible's own facts.

    Only what the catalogue's variants ask for is looked up, and the architecture. A template counts as not known, and
    so does what makes no sense of what a host says of itself.
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
    if not asked.isdisjoint({"min_memory_mb", "max_memory_mb"}):
        memory = known("memory_mb", "memtotal_mb", _is_size, "give MiB as a whole number")
    if "cpu_features" in asked:
        features = known("cpu_features", "", _is_list_of_text, "give a list of text")
    if "accelerator" in asked:
        accelerator = known("accelerator", "", lambda v: isinstance(v, str), 'give its name as text, "" for none')
    seen = {key: variables[key] for key in catalogue.variables if key in variables}
    return Host(
        name,
        _architecture(machine),
        memory,
        None if features is None else frozenset(features),
        accelerator,
        frozenset(groups),
        {key: value for key, value in seen.items() if not is_unknown(value)},
        frozenset(key for key, value in seen.items() if is_unknown(value)),
    ), problems


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _learned(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    learned = variables.get("edgeml_host")
    return learned if isinstance(learned, Mapping) else {}


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
        elif key == "variables":
            for name, value in wanted.items():
                if name in host.unknown:
                    unknown.append(name)
                elif host.variables.get(name) not in (value if isinstance(value, list) else [value]):
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


# -- resolution --------------------------------------------------------------------------------------------------------


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
    """

    def __init__(self, catalogue: Catalogue, digests: Mapping[tuple[str, str, str], str], *, final: bool) -> None:
        self.catalogue = catalogue
        self.digests = digests
        self.final = final
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
        variant, missing = choose_variant(settled.model, host)
        if variant is None and (self.final or not missing):
            return None, _no_variant(settled.model, host, missing, request.path)
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


def resolve_host(
    name: str,
    variables: Mapping[str, Any],
    edgeml_catalogue: Sequence[Mapping[str, Any]],
    edgeml_models: Sequence[Mapping[str, Any]],
    edgeml_model_overrides: Mapping[str, Any],
    edgeml_runtimes: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the models of one host whose variables are all known, and everything that is wrong."""
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
    items, found = Resolver(catalogue, {}, final=True).models(requests, edgeml_model_overrides, host)
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


def _defaults(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": model["version"],
        "runtime": model.get("runtime", DEFAULT_RUNTIME),
        "requires": model.get("requires", {}),
        "protocols": model.get("protocols", PROTOCOLS),
        "options": model.get("options", {}),
        "slo": model.get("slo", {}),
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
        yield Problem(f"Model {name} wants a runtime that there is not", path, shown(runtime), known)
    variant = merged.get("variant")
    variants = [entry["name"] for entry in model.get("variants", ())] or [DEFAULT_VARIANT]
    if variant is not None and (path := place("variant")) and variant not in variants:
        known = choices(variants, variant)
        yield Problem(f"Model {name} {model['version']} has no such variant", path, shown(variant), known)
    slo = place("slo")
    if path := (*slo, "protocol") if slo else place("protocols"):
        yield from _check_objective(name, merged, path)


def _check_objective(name: str, settings: Mapping[str, Any], path: Path) -> Iterable[Problem]:
    protocol, protocols = settings.get("slo", {}).get("protocol"), settings.get("protocols", PROTOCOLS)
    if protocol is not None and protocol not in protocols:
        what = f"The latency of model {name} cannot be measured by a protocol that it does not have"
        yield Problem(what, path, shown(protocol), choices(protocols, protocol))


def _no_variant(model: Mapping[str, Any], host: Host, missing: list[str], path: Path) -> Problem:
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


def _override_path(name: str, *keys: str) -> Path:
    return ("edgeml_model_overrides", name, *keys)


def _short(path: Path) -> str:
    return f"{path[0]}[{path[1]}]" if len(path) > 1 else ".".join(map(str, path))


# -- the catalogue itself ----------------------------------------------------------------------------------------------


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
        runtime = model.get("runtime", DEFAULT_RUNTIME)
        if names is not None and runtime not in names:
            what = f"Model {name} wants a runtime that there is not"
            problems.append(Problem(what, (*path, "runtime"), shown(runtime), choices(sorted(names), runtime)))
        problems += _check_objective(name, model, (*path, "slo", "protocol"))
        problems += _check_variants(model, path)
    return problems


def _check_variants(model: Mapping[str, Any], path: Path) -> list[Problem]:
    problems = []
    names: dict[str, int] = {}
    always: str | None = None
    for index, variant in enumerate(model.get("variants", ())):
        place = (*path, "variants", index)
        if names.setdefault(variant["name"], index) != index:
            problems.append(
                Problem(
                    f"Two variants of model {model['name']} have one name",
                    (*place, "name"),
                    shown(variant["name"]),
                    "rename one of them",
                )
            )
        if always is not None:
            problems.append(
                Problem(
                    f"Variant {variant['name']} of model {model['name']} is never reached",
                    place,
                    f"{always} stands before it and fits every host",
                    "move it up, or remove it",
                )
            )
        elif not variant.get("when"):
            always = variant["name"]
    return problems


def _check_runtimes(runtimes: Sequence[Mapping[str, Any] | None]) -> list[Problem]:
    problems = []
    places: dict[str, int] = {}
    bases: dict[str, str | None] = {}
    for index, runtime in enumerate(runtimes):
        if runtime is None:
            continue
        name = runtime["name"]
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
            what = f"Runtime {name} extends one that there is not"
            problems.append(Problem(what, path, shown(base), choices(sorted(bases), base)))
    return problems


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
