# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook edgeml.fleet.publish has to do, and the lock that it writes. Runs on the controller only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Name of the only variant of a model whose catalogue entry lists none.
DEFAULT_VARIANT = "default"


def publication(
    catalogue: Iterable[Mapping[str, Any]], runtimes: Iterable[Mapping[str, Any]], directory: str, build_directory: str
) -> dict[str, list[dict[str, Any]]]:
    """Return the work of a publication, with every path absolute.

    Parameters
    ----------
    catalogue, runtimes : lists of mappings
        As the inventory holds them; relative paths begin at `directory`.
    build_directory : str
        Where what is built is kept, under names made of all that it is built from.

    Returns
    -------
    dict
        ``images``: the runtimes. ``models``: ``name``, ``version``, ``directory`` that holds the model's files, and
        ``build``, empty or ``program``, ``requirements``, ``environment``. ``artifacts``: what is packed and pushed,
        one for each variant.
    """
    models = []
    artifacts = []
    for model in catalogue:
        source = Path(directory, model["source"])
        build = _build(model, source, Path(directory), Path(build_directory)) if model.get("build") else {}
        made = build.pop("directory", str(source))
        models.append({"name": model["name"], "version": model["version"], "directory": made, "build": build})
        artifacts.append(
            {
                "name": model["name"],
                "version": model["version"],
                "variant": DEFAULT_VARIANT,
                "platform": model["platform"],
                "directory": made,
            }
        )
    return {"images": [_image(runtime, directory) for runtime in runtimes], "models": models, "artifacts": artifacts}


def _image(runtime: Mapping[str, Any], directory: str) -> dict[str, Any]:
    recipe = Path(directory, runtime["recipe"])
    root = Path(directory, runtime["source_root"]) if "source_root" in runtime else recipe.parent
    return {**runtime, "recipe": str(recipe), "source_root": str(root)}


def _build(model: Mapping[str, Any], source: Path, directory: Path, build_directory: Path) -> dict[str, str]:
    """Return how a model is made at publish time; `directory` in it is named after program, data and libraries."""
    program = source / model["build"]["program"]
    requirements = directory / model["build"]["requirements"]
    locked = hashlib.sha256(requirements.read_bytes()).hexdigest()
    # A directory may hold several programs.
    inputs = hashlib.sha256(f"{model['build']['program']}\n{locked}\n".encode())
    # Modules beside the directory are what several models share.
    for path in sorted([*_files(source), *source.parent.glob("*.py")]):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        inputs.update(f"{path.relative_to(source.parent).as_posix()}\n{content}\n".encode())
    return {
        "program": str(program),
        "requirements": str(requirements),
        "environment": str(build_directory / "environments" / locked[:12]),
        "directory": str(build_directory / "models" / f"{model['name']}-{inputs.hexdigest()[:12]}"),
    }


def _files(source: Path) -> list[Path]:
    return [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def next_lock(
    previous: Mapping[str, Any] | None,
    registry: str,
    pushed_images: Iterable[Mapping[str, Any]],
    pushed_models: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the lock that follows `previous`: the same if nothing changed, else with a serial one higher.

    `pushed_images` and `pushed_models` are the results of loops over the modules oci_image and model_artifact, whose
    items are the images and artifacts of `publication`.
    """
    keys = ("repository", "digest", "index", "platforms", "blob", "golden_cases")
    models: dict[str, dict[str, Any]] = {}
    for result in pushed_models:
        item = result["item"]
        version = models.setdefault(item["name"], {}).setdefault(
            item["version"], {"platform": item["platform"], "variants": {}}
        )
        version["variants"][item["variant"]] = {key: result[key] for key in keys}
    content = {
        "registry": registry,
        "images": {result["item"]["name"]: result["image"] for result in pushed_images},
        "models": models,
    }
    if previous and {key: previous.get(key) for key in content} == content:
        return dict(previous)
    return {"serial": int((previous or {}).get("serial", 0)) + 1, **content}
