# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is meant to take, as the options of the module host_preflight say it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import part_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import read_schema
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.models import host_models
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.releases import host_releases, required_gpus
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.role_variables import known_names
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.runtime_options import option_problems


def prepare() -> None:
    """Read what each demand is held against; who does so before Ansible forks its workers does it for all of them."""
    with contextlib.suppress(FleetError):  # a library is missing: told where it is used
        read_schema("variables")
        known_names()


def runtime_demand(
    models: list[dict[str, Any]],
    catalogue: list[dict[str, Any]],
    variables: Mapping[str, Any],
    overrides: dict[str, Any],
    runtimes: list[dict[str, Any]] | None,
    lock: dict[str, Any],
    architecture: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options "problems", "content", "requires", "memory_mb" and "ports" of host_preflight for a device.

    The first five arguments are those of host_models, `settings` are those of host_releases, and ``options``
    of option_problems. What these raise or return is in "problems".
    """
    demand: dict[str, Any] = {"problems": [], "content": [], "requires": {}, "memory_mb": {}, "ports": []}
    try:
        problems = option_problems(settings.get("options", {}), variables)
        if problems:
            raise InventoryError.of(problems)
        placed = host_models(models, catalogue, variables, overrides, runtimes, check=True)
        demand["requires"] = _requires([model["requires"] for model in placed])
        if not architecture:  # the host could not be looked at
            return demand
        host = str(variables["inventory_hostname"])
        releases = host_releases(placed, lock, runtimes, architecture, host, settings)
    except InventoryError as error:
        return {**demand, "problems": [problem.as_mapping() for problem in error.errors]}
    demand["problems"] = _unchecked(releases)
    for release in releases:
        repository, _separator, digest = release["image"].partition("/")[2].partition("@")
        image = {"kind": "image", "name": f"image {release['name']}", "repository": repository, "digest": digest}
        demand["content"] += [
            {**image, "size": release["image_size"]},
            *(
                {"kind": "model", "name": f"model {model['name']} {model['version']}", "runtime": release["name"]}
                | {key: model[key] for key in ("repository", "digest", "size")}
                for model in release["models"]
            ),
        ]
        demand["ports"] += _ports(release)
        served = [model for model in placed if model.get("runtime", DEFAULT_RUNTIME) == release["name"]]
        asked = sum(int(model["requires"].get("memory_mb", 0)) for model in served)
        demand["memory_mb"][release["name"]] = release["limits"]["memory_mb"] or int(settings["base_memory_mb"]) + asked
    return demand


def _unchecked(releases: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the finding that nothing checks the answers of some models, if that is so."""
    names = [
        f"{model['name']} {model['version']}"
        for release in releases
        for model in release["models"]
        if not model["golden_cases"]
    ]
    if not names:
        return []
    remedy = "record inputs with the right outputs in the model's directory golden, under a new version"
    return [{"finding": "unchecked", "what": f"Nothing checks the answers of {', '.join(names)}", "remedy": remedy}]


def with_demand(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of host_preflight with what its option ``demand`` holds before what they say themselves."""
    joined = {name: value for name, value in options.items() if name != "demand"}
    for name, value in (options.get("demand") or {}).items():
        own = joined.get(name)
        joined[name] = {**value, **(own or {})} if isinstance(value, Mapping) else [*value, *(own or [])]
    return joined


def _ports(release: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the TCP ports that a release takes, each with the variable to change."""
    return [
        {
            "address": address.rpartition(":")[0].strip("[]"),
            "port": int(address.rpartition(":")[2]),
            "variable": f"inference_runtime_{protocol}_port"
            if release["name"] == DEFAULT_RUNTIME
            else f"ports.{protocol} of runtime {release['name']} in edgeml_runtimes",
        }
        for protocol, addresses in release["listen"].items()
        for address in addresses
        if not address.startswith("unix:")
    ]


def _requires(requires: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all models together require, as host_preflight takes it."""
    return {
        name: sorted({item for entry in requires for item in entry.get(name, ())})
        for name in ("packages", "devices", "kernel_modules", "sysctls")
    } | {"gpus": required_gpus(requires)}


def mirror_demand(
    lock: dict[str, Any], architectures: list[str], needed: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the option "content" of host_preflight for a mirror: what the lock names for these architectures.

    `needed` is what site_content returns.
    """
    if needed is not None:
        lock = part_of(lock, needed)
    content = []
    for name, entry in lock.get("images", {}).items():
        for architecture, platform in entry["platforms"].items():
            if architecture in architectures:
                content.append(_mirrored(f"image {name} for {architecture}", entry["repository"], platform))
    for name, versions in lock.get("models", {}).items():
        for version, entry in versions.items():
            for variant in entry["variants"].values():
                manifest = {"digest": variant["digest"], "size": variant["blob"]["size"]}
                content.append(_mirrored(f"model {name} {version}", variant["repository"], manifest))
    return content


def _mirrored(name: str, repository: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": "mirrored",
        "name": name,
        "repository": repository,
        "digest": manifest["digest"],
        "size": manifest["size"],
    }
