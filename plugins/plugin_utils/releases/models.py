# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of a host, as the inventory plugin places them or as a person writes them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import resolve_host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import expand


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
    InventoryError with everything that is wrong, in the catalogue as well. With `check` all is held against the
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
            resolved, problems = resolve_host(name, variables, **documents)
        except (AttributeError, KeyError, TypeError):
            problems = validate(documents, "variables")
            if not problems:
                raise
    if problems:
        places = [replace(problem, hosts=(name,)).located(origins(written, problem.path)) for problem in problems]
        raise InventoryError.of(places)
    return resolved


def placed_models(
    placed: Sequence[str | Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a host's resolved models: `placed` is its edgeml_placed, `models` the fleet's edgeml_placed_models."""
    try:
        return expand(placed, models)
    except KeyError as error:
        raise FleetError(
            "A placed model is not in edgeml_placed_models",
            where="edgeml_placed",
            seen=str(error),
            remedy="let the inventory plugin edgeml.fleet.placement set both variables; import the inventory again if "
            "it was exported",
        ) from None
