# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters between the inventory, the lock and the roles. Pure functions; each raises a clear error."""

from __future__ import annotations

import functools
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Positions, report
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement import resolver as placement
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import expand

try:
    import bcrypt
except ImportError as error:
    _without_bcrypt: ImportError | None = error
else:
    _without_bcrypt = None

_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


def oci_architecture(machine: str) -> str:
    """Return the OCI name (``amd64``, ``arm64``) of a machine name as the kernel or an inventory gives it."""
    architecture = placement.oci_architecture(machine)
    if architecture is None:
        raise AnsibleFilterError(
            str(
                FleetError(
                    "Unknown architecture",
                    where="edgeml_architecture",
                    seen=repr(machine),
                    remedy=f"use one of {', '.join(sorted(placement.ARCHITECTURES))}",
                )
            )
        )
    return architecture


def host_models(
    models: Sequence[Mapping[str, Any]],
    catalogue: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    runtimes: Sequence[Mapping[str, Any]] | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    check: bool = False,
) -> list[dict[str, Any]]:
    """Return a host's models as the inventory plugin edgeml.fleet.placement resolves them, every variant decided.

    `models` is the host's edgeml_models, resolved already or as a person writes it; `variables` are all variables and
    facts of the host (``hostvars[inventory_hostname]``), `facts` its ansible_facts where they are newer than those,
    `overrides` its edgeml_model_overrides. Raises
    AnsibleFilterError with everything that is wrong, in the catalogue as well. With `check` all is held against the
    schema first, which takes some milliseconds; a role does so once, in its preflight.
    """
    name = str(variables["inventory_hostname"])
    if facts is not None:
        variables = ChainMap({"ansible_facts": facts}, variables)  # type: ignore[arg-type]
    documents: dict[str, Any] = {
        "edgeml_runtimes": native(runtimes),
        "edgeml_catalogue": native(catalogue),
        "edgeml_models": native(models),
        "edgeml_model_overrides": native(overrides or {}),
    }
    if runtimes is None:
        del documents["edgeml_runtimes"]
    written: dict[str, Any] = {
        "edgeml_runtimes": runtimes,
        "edgeml_catalogue": catalogue,
        "edgeml_models": models,
        "edgeml_model_overrides": overrides,
    }
    problems = validate(documents, "variables") if check else []
    resolved: list[dict[str, Any]] = []
    if not problems:
        try:
            resolved, problems = placement.host_models(name, variables, **documents)
        except (AttributeError, KeyError, TypeError):
            problems = validate(documents, "variables")
            if not problems:
                raise
    if problems:
        places = [replace(problem, hosts=(name,)).located(origins(written, problem.path)) for problem in problems]
        raise AnsibleFilterError(report(places))
    return resolved


def placed_models(
    placed: Sequence[str | Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a host's resolved models: `placed` is its edgeml_placed, `models` the fleet's edgeml_placed_models."""
    try:
        return expand(placed, models)
    except KeyError as error:
        raise AnsibleFilterError(
            str(
                FleetError(
                    "A placed model is not in edgeml_placed_models",
                    where="edgeml_placed",
                    seen=str(error),
                    remedy="let the inventory plugin edgeml.fleet.placement set both variables; import the inventory "
                    "again if it was exported",
                )
            )
        ) from None


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
            raise AnsibleFilterError(report(problems)) from None

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
                "p95_ms": objective.get("p95_ms"),
                "protocol": objective.get("protocol", "grpc"),
                "protocols": model.get("protocols", ["rest", "grpc"]),
                "options": model.get("options", {}),
            }
        )
    if problems:
        raise AnsibleFilterError("\n".join(str(problem) for problem in problems))
    return {
        "image": f"{lock['registry']}/{image['repository']}@{platform['digest']}",
        "image_size": platform["size"],
        "models": resolved,
    }


def _newest(versions: Iterable[str]) -> str:
    """Return the highest of three-part versions."""
    return max(versions, key=lambda version: [int(part) for part in re.split(r"[-+]", version)[0].split(".")])


def htpasswd(username: str, password: str, current: str = "") -> str:
    """Return an htpasswd file with one bcrypt line; `current` itself if it already admits exactly this user."""
    if _without_bcrypt:
        raise AnsibleFilterError(str(missing_library(_without_bcrypt)))
    name, _separator, hashed = current.strip().partition(":")
    if name == username and "\n" not in current.strip():
        try:
            if bcrypt.checkpw(password.encode(), hashed.encode()):
                return current
        except ValueError:  # not a bcrypt hash
            pass
    return f"{username}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(10)).decode()}\n"
