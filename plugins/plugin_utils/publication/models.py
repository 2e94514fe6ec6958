# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a publication gets models from, and which artifacts it makes of them."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import ARCHITECTURES, DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import (
    InventoryError,
    Problem,
    choices,
    shown,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path as Place
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import DEFAULT_VARIANT
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.images import address_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.lock import read_lock
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.minify import (
    check_variants,
    content_of,
    files_of,
    plan_accuracy,
    plan_minified,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.plan import Plan

#: Platforms whose models are programs.
CODE = ("python", "pipeline")


def plan_model(plan: Plan, model: Mapping[str, Any], place: Place) -> None:
    source = model["source"]
    variants = model.get("variants", [])
    if isinstance(source, str):
        directory = plan.path(source, (*place, "source"), directory=True)
        if "build" in model:
            directory = _plan_build(plan, model, directory, place)
        else:
            for index, variant in enumerate(variants):
                if directory.is_dir() and "file" in variant and not (directory / variant["file"]).is_file():
                    plan.wrong(
                        f"The file of variant {variant['name']} is missing",
                        (*place, "variants", index, "file"),
                        str(directory / variant["file"]),
                        "correct the file",
                    )
    elif "build" in model:
        plan.wrong("Only a directory can be built from", (*place, "build"), shown(source), "give a directory as source")
        return
    elif "lock" in source:
        _plan_locked(plan, model, place)
        return
    else:
        directory = _plan_fetch(plan, source)
    if not check_variants(plan, model, place):
        return
    files = [variant["file"] for variant in variants if "file" in variant]
    # Left out of each variant: the files of the others, what they are made from, and what judges them.
    files += [variant["minify"].get("from", "model.onnx") for variant in variants if "minify" in variant]
    files += [model["evaluation"]] if "evaluation" in model else []
    identity = "" if not any("minify" in variant for variant in variants) else _identity(model, directory)
    made = {
        variant["name"]: plan_minified(plan, model, variant, directory, identity, (*place, "variants", index))
        for index, variant in enumerate(variants)
        if "minify" in variant
    }
    for variant in variants or [None]:
        others = sorted({file for file in files if variant and file != variant.get("file")})
        form = variant and {"name": variant["name"], "file": variant.get("file", ""), "others": others}
        own = directory
        if variant and variant["name"] in made:
            own = made[variant["name"]]
            form = {"name": variant["name"], "file": "", "others": []}
        for_whom = (variant or {}).get("when", {}).get("architecture", [])
        architectures = [for_whom] if isinstance(for_whom, str) else for_whom
        accuracy = plan_accuracy(model, variant, made)
        # What minify makes has golden cases already.
        _plan_artifact(plan, model, place, own, form, architectures, accuracy, with_golden=own == directory)


def _plan_artifact(
    plan: Plan,
    model: Mapping[str, Any],
    place: Place,
    directory: Path,
    form: Mapping[str, Any] | None,
    architectures: Sequence[str] = (),
    accuracy: Mapping[str, Any] | None = None,
    *,
    with_golden: bool = True,
) -> None:
    golden = model.get("golden") if with_golden else None
    plan.artifacts.append(
        {
            "name": model["name"],
            "version": model["version"],
            "variant": form["name"] if form else DEFAULT_VARIANT,
            "platform": model["platform"],
            "runtime": model.get("runtime", DEFAULT_RUNTIME),
            "untried": _untried(model, architectures),
            "directory": str(directory),
            "form": dict(form) if form else None,
            "golden": str(plan.path(golden, (*place, "golden"), directory=True)) if golden else None,
            "accuracy": dict(accuracy or {}),
        }
    )


def _untried(model: Mapping[str, Any], architectures: Sequence[str]) -> str:
    """Return why a model is not tried on the controller before it is published; empty if it can be.

    `architectures` are those that it is for; all of them if empty.
    """
    requires = model.get("requires", {})
    if requires.get("devices") or requires.get("gpus"):
        return "it requires devices, which only its hosts have"
    if architectures and ARCHITECTURES.get(platform.machine()) not in architectures:
        return f"it is for {' and '.join(architectures)} alone"
    if not isinstance(model["source"], str) and model["platform"] in CODE:
        return "it is code that others made, which is not run on the controller"
    return ""


def _plan_build(plan: Plan, model: Mapping[str, Any], source: Path, place: Place) -> Path:
    """Plan how a model is made, and return the directory: named after program, data and libraries."""
    program = plan.path(str(source / model["build"]["program"]), (*place, "build", "program"))
    requirements = plan.path(model["build"]["requirements"], (*place, "build", "requirements"))
    if not (program.is_file() and requirements.is_file()):
        return source
    locked = hashlib.sha256(requirements.read_bytes()).hexdigest()
    # A directory may hold several programs.
    inputs = hashlib.sha256(f"{model['build']['program']}\n{locked}\n".encode())
    # Modules beside the directory are what several models share.
    for text in content_of(source.parent, sorted([*files_of(source), *source.parent.glob("*.py")])):
        inputs.update(text.encode())
    directory = plan.build_directory / "models" / f"{model['name']}-{inputs.hexdigest()[:12]}"
    plan.builds.append(
        {
            "name": model["name"],
            "version": model["version"],
            "program": str(program),
            "requirements": str(requirements),
            "environment": str(plan.build_directory / "environments" / locked[:12]),
            "directory": str(directory),
            "options": "",
        }
    )
    return directory


def _identity(model: Mapping[str, Any], directory: Path) -> str:
    """Return what stands for the content of a model's source: the name of a directory to be made, or all files."""
    made = "build" in model or not isinstance(model["source"], str)
    return directory.name if made else "".join(content_of(directory, files_of(directory)))


def _plan_fetch(plan: Plan, source: Mapping[str, str]) -> Path:
    digest = source.get("sha256") or source["oci"].rpartition(":")[2]
    directory = plan.build_directory / "sources" / digest
    url, reference = source.get("url", ""), source.get("oci", "")
    address = url.partition("://")[2].partition("/")[0] if url else address_of(reference)
    plan.sources[digest] = {
        "url": url,
        "sha256": source.get("sha256", ""),
        "reference": reference,
        "directory": str(directory),
        "address": address,
    }
    return directory


def _plan_locked(plan: Plan, model: Mapping[str, Any], place: Place) -> None:
    """Plan a model that another inventory has published: each of its variants comes from a registry, by digest."""
    path = plan.path(model["source"]["lock"], (*place, "source", "lock"))
    try:
        lock = read_lock(str(path)) if path.is_file() else None
    except InventoryError as error:
        plan.problems.append(Problem(error.what.rstrip(".")))
        return
    if lock is None:
        return
    name, version = model["name"], model["version"]
    versions = lock["models"].get(name)
    if versions is None:
        known = choices(sorted(lock["models"]), name)
        plan.wrong(f"Model {name} is not in the other lock", (*place, "source", "lock"), str(path), known)
        return
    if version not in versions:
        known = choices(versions, version)
        plan.wrong(f"Version {version} of model {name} is not in the other lock", (*place, "version"), version, known)
        return
    entry = versions[version]
    wanted = [variant["name"] for variant in model.get("variants", [])] or [DEFAULT_VARIANT]
    if entry["platform"] != model["platform"]:
        plan.wrong(
            "The other lock has another platform", (*place, "platform"), model["platform"], f"use {entry['platform']}"
        )
    for index, variant in enumerate(wanted):
        if variant not in entry["variants"]:
            where = (*place, "variants", index) if model.get("variants") else (*place, "variants")
            plan.wrong("The other lock has no such variant", where, variant, choices(entry["variants"], variant))
            continue
        locked = entry["variants"][variant]
        registry = plan.store if lock["registry"] == plan.registry else lock["registry"]
        directory = _plan_fetch(plan, {"oci": f"{registry}/{locked['repository']}@{locked['digest']}"})
        form = {"name": variant, "file": "", "others": []} if variant != DEFAULT_VARIANT else None
        accuracy = {"value": locked["accuracy"]} if "accuracy" in locked else None
        _plan_artifact(plan, model, place, directory, form, accuracy=accuracy)
