# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images a publication assembles or copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.paths import locate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path as Place
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.plan import Plan


def plan_image(plan: Plan, runtime: Mapping[str, Any], place: Place) -> None:
    lineage = lineage_of(runtime, plan.runtimes)
    root = lineage[0]
    added = [step["requirements"] for step in lineage if "requirements" in step]
    if "image" in root and added:
        plan.wrong(
            f"Runtime {runtime['name']} cannot add Python packages to a finished image",
            (*place, "requirements"),
            root["image"],
            "give the runtime that it extends a recipe, with that image as its base_image",
        )
    if "recipe" in runtime:
        plan.path(runtime["recipe"], (*place, "recipe"))
    if "requirements" in runtime:
        plan.path(runtime["requirements"], (*place, "requirements"))
    plan.images.append(
        {
            "name": runtime["name"],
            "image": root.get("image", ""),
            "recipe": str(locate(plan.directory, root["recipe"])) if "recipe" in root else "",
            "source_root": str(source_root(root, plan.directory)) if "recipe" in root else "",
            "base_image": root.get("base_image", ""),
            "requirements": [str(locate(plan.directory, path)) for path in added],
            "mount_from": [f"edgeml/{step['name']}" for step in lineage[:-1]],
            "address": address_of(root.get("image") or root.get("base_image", "")),
        }
    )


def lineage_of(runtime: Mapping[str, Any], runtimes: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runtime that is built upon first, and then each that extends the one before."""
    found = [runtime]
    while "extends" in found[0]:
        found.insert(0, runtimes[found[0]["extends"]])
    return found


def source_root(runtime: Mapping[str, Any], directory: Path) -> Path:
    return locate(directory, str(runtime.get("source_root", Path(runtime["recipe"]).parent)))


def address_of(reference: str) -> str:
    return reference.partition("/")[0]
