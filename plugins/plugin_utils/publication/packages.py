# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the Python packages of a runtime satisfy its models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import select_requirements
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import Recipe, parse_recipe
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.paths import locate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path as Place
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Problem
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.images import lineage_of, source_root
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.plan import Plan


def check_python(plan: Plan, catalogue: Sequence[Mapping[str, Any]]) -> None:
    """Note each requirement of a model that the locked requirements of its runtime do not satisfy."""
    # With ansible-core, but not where ansible-test imports this file.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    locked: dict[str, dict[str, dict[str, str]] | None] = {}
    for index, model in enumerate(catalogue):
        name = model.get("runtime", DEFAULT_RUNTIME)
        for number, text in enumerate(model.get("requires", {}).get("python", [])):
            place = ("edgeml_catalogue", index, "requires", "python", number)
            try:
                requirement = Requirement(text)
            except InvalidRequirement as error:
                plan.wrong(
                    "Not a requirement specifier",
                    place,
                    f"{text}: {str(error).splitlines()[0]}",
                    "write it as scikit-image>=0.24",
                )
                continue
            if name not in locked:
                locked[name] = _locked_packages(plan, plan.runtimes[name], ("edgeml_catalogue", index, "runtime"))
            packages = locked[name]
            if packages is None:
                continue
            package = canonicalize_name(requirement.name)
            for architecture, versions in packages.items():
                seen = versions.get(package)
                if seen is None or not requirement.specifier.contains(seen, prereleases=True):
                    plan.wrong(
                        f"Runtime {name} does not have what model {model['name']} requires",
                        place,
                        f"{text}; the runtime's locked requirements have "
                        + (f"{package} {seen}" if seen else f"no {package}")
                        + f" for {architecture}",
                        "lock it in requirements of a runtime that extends this one, or correct the specifier",
                    )
                    break


def _locked_packages(plan: Plan, runtime: Mapping[str, Any], place: Place) -> dict[str, dict[str, str]] | None:
    """Return name and version of the Python packages of a runtime by architecture, None if they are not known."""
    lineage = lineage_of(runtime, plan.runtimes)
    recipe = _recipe(plan, lineage[0])
    if recipe is None or recipe.python is None:
        plan.wrong(
            f"The Python packages of runtime {runtime['name']} are not known",
            place,
            "an image by digest" if "image" in lineage[0] else "a recipe without python",
            "leave requires.python out, or use a runtime whose recipe names locked requirements",
        )
        return None
    root = source_root(lineage[0], plan.directory)
    files: list[tuple[Path, Iterable[str]]] = [(root / recipe.python.requirements, recipe.python.exclude)]
    files += [(locate(plan.directory, step["requirements"]), ()) for step in lineage if "requirements" in step]
    found: dict[str, dict[str, str]] = {}
    for architecture in plan.architectures:
        packages = found[architecture] = {}
        for path, exclude in files:
            try:
                items = select_requirements(
                    path.read_text(encoding="utf-8"),
                    str(path),
                    full_version=f"{recipe.python.version}.0",  # the image's own is known when its base is built
                    architecture=architecture,
                    exclude=exclude,
                )
            except OSError as error:
                plan.wrong(
                    "The locked requirements cannot be read", place, f"{path}: {error.strerror}", "correct the path"
                )
                return None
            except FleetError as error:
                plan.problems.append(Problem(error.what, place, f"{error.where}: {error.seen}", error.remedy))
                return None
            packages.update((item.name, item.version) for item in items)
    return found


def _recipe(plan: Plan, runtime: Mapping[str, Any]) -> Recipe | None:
    if "recipe" not in runtime:
        return None
    try:
        text = locate(plan.directory, runtime["recipe"]).read_text(encoding="utf-8")
        return parse_recipe(yaml.safe_load(text), runtime["recipe"])
    except (OSError, yaml.YAMLError, FleetError):  # told where the image is planned or assembled
        return None
