# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook edgeml.fleet.publish has to do. Runs on the controller only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError, Problem
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import check_catalogue
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.images import plan_image
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.models import plan_model
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.packages import check_python
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.plan import Plan


def publication(
    catalogue: Sequence[Mapping[str, Any]],
    runtimes: Sequence[Mapping[str, Any]],
    *,
    directory: str,
    build_directory: str,
    architectures: Sequence[str],
    registry: str,
    store: str,
    own_images: Sequence[Mapping[str, Any]] = (),
    minify_directory: str = "",
) -> dict[str, list[dict[str, Any]]]:
    """Check catalogue and runtimes, and return the work of a publication, with every path absolute.

    Parameters
    ----------
    catalogue, runtimes : lists of mappings
        As the inventory holds them; relative paths begin at `directory`.
    build_directory : str
        Where what is fetched or built is kept, under names made of all that it comes from.
    architectures : sequence of str
        Architectures of the fleet.
    registry, store : str
        Name of the registry in the lock, and the store's own address.
    own_images : sequence of mappings
        ``name`` and ``recipe`` of further images.
    minify_directory : str
        The program that makes smaller variants, and the packages that it needs.

    Returns
    -------
    dict
        Options for one module call each: ``images`` (oci_image), ``sources`` (model_source), ``builds`` (programs that
        make models), ``artifacts`` (model_artifact; one for each variant).

    Raises
    ------
    InventoryError
        With every mistake that can be seen without building or fetching anything.
    """
    variables = {"edgeml_runtimes": runtimes, "edgeml_catalogue": catalogue}
    documents = native(variables)
    problems = validate(documents, "variables")
    if not problems:
        runtimes, catalogue = documents["edgeml_runtimes"], documents["edgeml_catalogue"]
        problems = [
            replace(problem, path=(f"edgeml_{problem.path[0]}", *problem.path[1:]))
            for problem in check_catalogue(catalogue, runtimes)
        ]
    if problems:
        raise InventoryError.of(_with_origin(problem, variables) for problem in problems)
    named = {runtime["name"]: runtime for runtime in runtimes}
    plan = Plan(Path(directory), Path(build_directory), architectures, registry, store, named, minify_directory)
    for index, runtime in enumerate(runtimes):
        plan_image(plan, runtime, ("edgeml_runtimes", index))
    for own in own_images:
        if own["name"] in named:
            plan.wrong(
                "This name is taken by an image of the collection", ("edgeml_runtimes",), own["name"], "rename it"
            )
        plan_image(plan, own, ())
    for index, model in enumerate(catalogue):
        plan_model(plan, model, ("edgeml_catalogue", index))
    check_python(plan, catalogue)
    if plan.problems:
        raise InventoryError.of(_with_origin(problem, variables) for problem in plan.problems)
    return {
        "images": plan.images,
        "sources": list(plan.sources.values()),
        "builds": plan.builds,
        "artifacts": plan.artifacts,
    }


def _with_origin(problem: Problem, variables: Mapping[str, Any]) -> Problem:
    """Return the problem with the file and line of the inventory that it stands at."""
    return problem if problem.file else problem.located(origins(variables, problem.path))
