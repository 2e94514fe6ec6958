# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the names and versions of models to what the lock has for them, by digest."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError, Positions
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import validate

_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")

#: Keys of an objective that are percentiles of the latency, in milliseconds.
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")


def _explaining_the_lock(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Let a lock that `function` stumbles over be refused with everything that its schema forbids."""

    @functools.wraps(function)
    def explaining(lock: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return function(lock, *arguments, **options)
        except (AttributeError, KeyError, TypeError):
            problems = validate(lock, "lock", Positions("the lock"))
            if not problems:
                raise
            raise InventoryError.of(problems) from None

    return explaining


@_explaining_the_lock
def resolve_release(
    lock: dict[str, Any], models: list[dict[str, Any]], architecture: str, host: str, runtime: str = "runtime"
) -> dict[str, Any]:
    """Return what a host runs by digest: {"image", "image_size", "models"}, as the module runtime_release takes them.

    `lock` is the content of fleet.lock.yml, `models` those of the host's edgeml_models that `runtime` serves.
    Everything that does not fit is reported at once.
    """
    problems = []
    where = f"host {host}"
    image = lock.get("images", {}).get(runtime, {})
    platform = image.get("platforms", {}).get(architecture)
    if platform is None:
        problems.append(
            FleetError(
                f"The lock has no {runtime} image for architecture {architecture}",
                where=where,
                seen=f"images for {', '.join(image.get('platforms', {})) or 'no architecture'}",
                remedy="correct edgeml_architecture of the host, or add it to edgeml_architectures and publish again",
            )
        )
    resolved = []
    names: set[str] = set()
    for position, model in enumerate(models):
        name = model.get("name") if isinstance(model, dict) else None
        place = f"{where}, edgeml_models[{position}]"
        if not name:
            problems.append(
                FleetError("A model has no name", where=place, seen=repr(model), remedy="write {name: MODEL}")
            )
            continue
        if name in names:
            problems.append(FleetError(f"Model {name} is placed twice", where=place, remedy="remove one of them"))
            continue
        names.add(name)
        entry = lock.get("models", {}).get(name)
        if entry is None:
            problems.append(
                FleetError(
                    f"Model {name} is not in the lock",
                    where=place,
                    seen=f"models in the lock: {', '.join(sorted(lock.get('models', {}))) or 'none'}",
                    remedy="correct the name, or add the model to edgeml_catalogue and run the playbook "
                    "edgeml.fleet.publish",
                )
            )
            continue
        version = model.get("version", _newest(entry))
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            problems.append(
                FleetError(
                    f"The version of model {name} is not a three-part version",
                    where=place,
                    seen=repr(version),
                    remedy='write it as text with three parts, such as "1.10.0"',
                )
            )
            continue
        if version not in entry:
            problems.append(
                FleetError(
                    f"Version {version} of model {name} is not in the lock",
                    where=place,
                    seen=f"versions in the lock: {', '.join(entry)}",
                    remedy="publish that version, or leave the version out to take the lock's newest",
                )
            )
            continue
        variants = entry[version]["variants"]
        variant_name = model.get("variant", next(iter(variants)) if len(variants) == 1 else None)
        variant = variants.get(variant_name)
        if variant is None:
            problems.append(
                FleetError(
                    f"Version {version} of model {name} has no such variant in the lock",
                    where=place,
                    seen=f"variant {model.get('variant', 'not named')}; in the lock: {', '.join(variants)}",
                    remedy="name one of these as variant, or publish the one that is missing",
                )
            )
            continue
        objective = model.get("slo", {})
        resolved.append(
            {
                "name": name,
                "version": version,
                "variant": variant_name,
                "repository": variant["repository"],
                "digest": variant["blob"]["digest"],
                "size": variant["blob"]["size"],
                "golden_cases": variant["golden_cases"],
                **{key: objective.get(key) for key in (*PERCENTILES, "max_regression")},
                "concurrency": objective.get("concurrency") or 0,
                "protocol": objective.get("protocol", "grpc"),
                "protocols": model.get("protocols", ["rest", "grpc"]),
                "options": model.get("options", {}),
                **({"shadow": model["shadow"]} if model.get("shadow", {}).get("share") else {}),
            }
        )
    if problems:
        raise InventoryError(problems)
    return {
        "image": f"{lock['registry']}/{image['repository']}@{platform['digest']}",
        "image_size": platform["size"],
        "models": resolved,
    }


def _newest(versions: Iterable[str]) -> str:
    """Return the highest of three-part versions."""
    return max(versions, key=lambda version: [int(part) for part in re.split(r"[-+]", version)[0].split(".")])
