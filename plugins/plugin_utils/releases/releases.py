# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a host's models to what runs there: one release for each runtime. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import address
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError, errors_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import resolve_release

PIDS = 256  # processes and threads of a container none of whose models says how many it needs


def host_releases(
    models: Sequence[Mapping[str, Any]],
    lock: dict[str, Any],
    runtimes: Sequence[Mapping[str, Any]] | None,
    architecture: str,
    host: str,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the releases of a host, one for each runtime that its models need, in the order of `runtimes`.

    `models` is what host_models returns. `settings` holds ``listen_address`` and ``ports`` of the default
    runtime, ``server_listen_address`` of other servers, ``memory_mb`` (a limit for each runtime, 0 for none) and
    ``base_memory_mb`` (what a server takes without models) and ``has_broker`` (whether an MQTT broker is configured).

    Each release has ``name``, ``image``, ``image_size``, ``models`` (as the module runtime_release takes them),
    ``protocols`` (those that at least one model needs), ``listen``, ``server`` (None for the collection's runtime),
    ``limits``, ``environment`` and ``devices``, and ``gpus`` if its models require any. Raises InventoryError with all
    that does not fit.
    """
    known = {runtime["name"]: runtime for runtime in runtimes or ()}
    needed = {model.get("runtime", DEFAULT_RUNTIME) for model in models}
    order = [name for name in known if name in needed] + sorted(needed - set(known))
    problems: list[FleetError] = []
    releases = []
    for name in order:
        placed = [model for model in models if model.get("runtime", DEFAULT_RUNTIME) == name]
        try:
            releases.append(_release(name, placed, lock, known, architecture, host, settings))
        except FleetError as error:
            problems += errors_of(error)
    if problems:
        raise InventoryError(problems)
    return releases


def _release(
    name: str,
    placed: Sequence[Mapping[str, Any]],
    lock: dict[str, Any],
    runtimes: Mapping[str, Mapping[str, Any]],
    architecture: str,
    host: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    resolved = resolve_release(lock, [dict(model) for model in placed], architecture, host, name)
    protocols = [p for p in ("rest", "grpc", "mqtt") if any(p in model.get("protocols", ()) for model in placed)]
    runtime = runtimes.get(name, {})
    server = runtime.get("server") or runtimes.get(runtime.get("extends", ""), {}).get("server")
    ports = {**settings["ports"], **runtime.get("ports", {})}
    requires = [model.get("requires", {}) for model in placed]
    if "mqtt" in protocols and (server or not settings["has_broker"]):
        raise FleetError(
            "A model is to be served over MQTT, which its runtime does not speak",
            where=f"host {host}, runtime {name}",
            seen="another server than the collection's runtime" if server else "no broker",
            remedy="leave mqtt out of the model's protocols"
            if server
            else "name the broker in inference_runtime_mqtt, or leave mqtt out of the model's protocols",
        )
    shadowed = [model["name"] for model in resolved["models"] if "shadow" in model]
    if server and shadowed:
        raise FleetError(
            f"Live requests for {', '.join(shadowed)} are to judge a new release, and its runtime keeps none",
            where=f"host {host}, runtime {name}",
            seen="another server than the collection's runtime",
            remedy="write shadow: {share: 0} for the model, or have it served by the collection's runtime",
        )
    return {
        "name": name,
        **resolved,
        "protocols": protocols,
        "listen": _server_listeners(server, ports, settings) if server else _listeners(protocols, ports, settings),
        "server": server,
        "limits": _limits(requires, settings),
        "environment": _environment(placed, name, host),
        "devices": sorted({device for need in requires for device in need.get("devices", ())}),
        **({"gpus": gpus} if (gpus := required_gpus(requires)) else {}),
    }


def required_gpus(requires: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return numbers and ids of the GPUs that models require together, ``all`` alone if one requires all of them."""
    asked = [need["gpus"] for need in requires if "gpus" in need]
    return ["all"] if "all" in asked else sorted({str(gpu) for gpus in asked for gpu in gpus})


def _listeners(protocols: Sequence[str], ports: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return where the runtime listens: in public for the protocols that are needed, in private for the checks."""
    public = {
        protocol: [address(settings["listen_address"], ports[protocol])]
        for protocol in (*protocols, "metrics")
        if protocol != "mqtt"
    }
    private = {protocol: [f"unix:/run/edgeml/{protocol}.sock"] for protocol in ("rest", "grpc")}
    return {key: public.get(key, []) + private.get(key, []) for key in ("rest", "grpc", "metrics")}


def _server_listeners(
    server: Mapping[str, Any], ports: Mapping[str, int], settings: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Return the host's addresses that lead to another server's ports. It serves all its models on all of them."""
    return {
        protocol: [address(settings["server_listen_address"], ports[protocol])]
        for protocol in ("rest", "grpc", "metrics")
        if server.get(f"{protocol}_port")
    }


def _limits(requires: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a container may use: the sum over its models, where each of them says what it needs."""

    def total(values: Sequence[Any]) -> Any:
        return sum(values) if all(values) else 0

    limits = [need.get("limits", {}) for need in requires]
    memory = total([need.get("memory_mb", 0) for need in requires])
    return {
        "memory_mb": int(settings["memory_mb"]) or (memory + int(settings["base_memory_mb"]) if memory else 0),
        "cpus": total([limit.get("cpus", 0) for limit in limits]),
        "pids": total([limit.get("pids", 0) for limit in limits]) or PIDS,
        "shared_memory_mb": sum(limit.get("shared_memory_mb", 0) for limit in limits),
        "cpuset": ",".join(dict.fromkeys(limit["cpuset"] for limit in limits if "cpuset" in limit)),
    }


def _environment(placed: Sequence[Mapping[str, Any]], runtime: str, host: str) -> dict[str, str]:
    """Return the variables of all models of a runtime, which share one environment."""
    environment: dict[str, str] = {}
    owners: dict[str, str] = {}
    problems = []
    for model in placed:
        for variable, value in model.get("requires", {}).get("environment", {}).items():
            if environment.setdefault(variable, value) != value:
                problems.append(
                    FleetError(
                        f"Two models of runtime {runtime} want another value of the environment variable {variable}",
                        where=f"host {host}",
                        seen=f"the models {owners[variable]} and {model['name']} (values are not shown)",
                        remedy="agree on one value, or give one of the models a runtime of its own",
                    )
                )
            owners.setdefault(variable, model["name"])
    if problems:
        raise InventoryError(problems)
    return environment
