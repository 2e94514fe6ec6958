# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook edgeml.fleet.publish has to do, and the lock that it writes. Runs on the controller only."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.yaml import yaml_load
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import select_requirements
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import Recipe, parse_recipe
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import (
    InventoryError,
    Problem,
    choices,
    read_positions,
    shown,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path as Place
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import native, origins, validate
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import (
    DEFAULT_VARIANT,
    check_catalogue,
)

#: Stands in the predicted lock for what is known only after something was built.
UNKNOWN = "(known when it is built)"


@dataclass
class _Plan:
    """What is planned so far, and what was found to be wrong."""

    directory: Path
    build_directory: Path
    architectures: Sequence[str]
    registry: str
    store: str
    runtimes: Mapping[str, Mapping[str, Any]]
    problems: list[Problem] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    builds: list[dict[str, str]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)

    def path(self, text: str, place: Place, *, directory: bool = False) -> Path:
        """Return the absolute path of an existing file or directory, or note that there is none."""
        path = self.directory / text
        if not (path.is_dir() if directory else path.is_file()):
            kind = "directory" if directory else "file"
            self.wrong(f"There is no such {kind}", place, str(path), f"correct the path; it begins at {self.directory}")
        return path

    def wrong(self, what: str, place: Place, seen: str, remedy: str) -> None:
        self.problems.append(Problem(what, place, seen, remedy))


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
    plan = _Plan(Path(directory), Path(build_directory), architectures, registry, store, named)
    for index, runtime in enumerate(runtimes):
        _plan_image(plan, runtime, ("edgeml_runtimes", index))
    for own in own_images:
        if own["name"] in named:
            plan.wrong(
                "This name is taken by an image of the collection", ("edgeml_runtimes",), own["name"], "rename it"
            )
        _plan_image(plan, own, ())
    for index, model in enumerate(catalogue):
        _plan_model(plan, model, ("edgeml_catalogue", index))
    _check_python(plan, catalogue)
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


# -- images ------------------------------------------------------------------------------------------------------------


def _lineage(runtime: Mapping[str, Any], runtimes: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the runtime that is built upon first, and then each that extends the one before."""
    found = [runtime]
    while "extends" in found[0]:
        found.insert(0, runtimes[found[0]["extends"]])
    return found


def _plan_image(plan: _Plan, runtime: Mapping[str, Any], place: Place) -> None:
    lineage = _lineage(runtime, plan.runtimes)
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
            "recipe": str(plan.directory / root["recipe"]) if "recipe" in root else "",
            "source_root": str(_source_root(root, plan.directory)) if "recipe" in root else "",
            "base_image": root.get("base_image", ""),
            "requirements": [str(plan.directory / path) for path in added],
            "mount_from": [f"edgeml/{step['name']}" for step in lineage[:-1]],
            "address": _address(root.get("image") or root.get("base_image", "")),
        }
    )


def _source_root(runtime: Mapping[str, Any], directory: Path) -> Path:
    return directory / str(runtime.get("source_root", Path(runtime["recipe"]).parent))


def _address(reference: str) -> str:
    return reference.partition("/")[0]


# -- models ------------------------------------------------------------------------------------------------------------


def _plan_model(plan: _Plan, model: Mapping[str, Any], place: Place) -> None:
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
    for index, variant in enumerate(variants):
        if "file" not in variant:
            seen = f"variant {variant['name']}"
            plan.wrong("A variant has no file", (*place, "variants", index), seen, "name its file in the source")
            return
    files = [variant["file"] for variant in variants]
    for variant in variants or [None]:
        form = variant and {
            "name": variant["name"],
            "file": variant["file"],
            "others": [file for file in files if file != variant["file"]],
        }
        _plan_artifact(plan, model, place, directory, form)


def _plan_artifact(
    plan: _Plan, model: Mapping[str, Any], place: Place, directory: Path, form: Mapping[str, Any] | None
) -> None:
    golden = model.get("golden")
    plan.artifacts.append(
        {
            "name": model["name"],
            "version": model["version"],
            "variant": form["name"] if form else DEFAULT_VARIANT,
            "platform": model["platform"],
            "directory": str(directory),
            "form": dict(form) if form else None,
            "golden": str(plan.path(golden, (*place, "golden"), directory=True)) if golden else None,
        }
    )


def _plan_build(plan: _Plan, model: Mapping[str, Any], source: Path, place: Place) -> Path:
    """Plan how a model is made, and return the directory: named after program, data and libraries."""
    program = plan.path(str(source / model["build"]["program"]), (*place, "build", "program"))
    requirements = plan.path(model["build"]["requirements"], (*place, "build", "requirements"))
    if not (program.is_file() and requirements.is_file()):
        return source
    locked = hashlib.sha256(requirements.read_bytes()).hexdigest()
    # A directory may hold several programs.
    inputs = hashlib.sha256(f"{model['build']['program']}\n{locked}\n".encode())
    # Modules beside the directory are what several models share.
    for path in sorted([*_files(source), *source.parent.glob("*.py")]):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        inputs.update(f"{path.relative_to(source.parent).as_posix()}\n{content}\n".encode())
    directory = plan.build_directory / "models" / f"{model['name']}-{inputs.hexdigest()[:12]}"
    plan.builds.append(
        {
            "name": model["name"],
            "version": model["version"],
            "program": str(program),
            "requirements": str(requirements),
            "environment": str(plan.build_directory / "environments" / locked[:12]),
            "directory": str(directory),
        }
    )
    return directory


def _files(source: Path) -> list[Path]:
    return [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def _plan_fetch(plan: _Plan, source: Mapping[str, str]) -> Path:
    digest = source.get("sha256") or source["oci"].rpartition(":")[2]
    directory = plan.build_directory / "sources" / digest
    url, reference = source.get("url", ""), source.get("oci", "")
    address = url.partition("://")[2].partition("/")[0] if url else _address(reference)
    plan.sources[digest] = {
        "url": url,
        "sha256": source.get("sha256", ""),
        "reference": reference,
        "directory": str(directory),
        "address": address,
    }
    return directory


def _plan_locked(plan: _Plan, model: Mapping[str, Any], place: Place) -> None:
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
        _plan_artifact(plan, model, place, directory, form)


# -- Python packages ---------------------------------------------------------------------------------------------------


def _check_python(plan: _Plan, catalogue: Sequence[Mapping[str, Any]]) -> None:
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


def _locked_packages(plan: _Plan, runtime: Mapping[str, Any], place: Place) -> dict[str, dict[str, str]] | None:
    """Return name and version of the Python packages of a runtime by architecture, None if they are not known."""
    lineage = _lineage(runtime, plan.runtimes)
    recipe = _recipe(plan, lineage[0])
    if recipe is None or recipe.python is None:
        plan.wrong(
            f"The Python packages of runtime {runtime['name']} are not known",
            place,
            "an image by digest" if "image" in lineage[0] else "a recipe without python",
            "leave requires.python out, or use a runtime whose recipe names locked requirements",
        )
        return None
    root = _source_root(lineage[0], plan.directory)
    files: list[tuple[Path, Iterable[str]]] = [(root / recipe.python.requirements, recipe.python.exclude)]
    files += [(plan.directory / step["requirements"], ()) for step in lineage if "requirements" in step]
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


def _recipe(plan: _Plan, runtime: Mapping[str, Any]) -> Recipe | None:
    if "recipe" not in runtime:
        return None
    try:
        text = (plan.directory / runtime["recipe"]).read_text(encoding="utf-8")
        return parse_recipe(yaml.safe_load(text), runtime["recipe"])
    except (OSError, yaml.YAMLError, FleetError):  # told where the image is planned or assembled
        return None


# -- lock --------------------------------------------------------------------------------------------------------------


def read_lock(path: str) -> dict[str, Any] | None:
    """Return the lock in a file, None if there is no such file; raise InventoryError if it is no lock."""
    if not Path(path).exists():
        return None
    text, lock = _load_lock(path)
    problems = validate(lock, "lock", read_positions(text, path))
    if problems:
        raise InventoryError.of(problems)
    return dict(lock)


def published_lock(path: str) -> Any:
    """Return what the lock in a file says, not held against its schema; raise InventoryError if there is none."""
    if not Path(path).exists():
        remedy = "run the playbook edgeml.fleet.publish, or set edgeml_lock_file to the lock that it wrote"
        raise InventoryError.of([Problem("Nothing has been published", (), "no lock", remedy, file=path)])
    return _load_lock(path)[1]


def _load_lock(path: str) -> tuple[str, Any]:
    """Return text and content of a lock, which is read once per process and state of the file. Do not change them."""
    try:
        status = Path(path).stat()
        return _parse_lock(os.path.realpath(path), status.st_ino, status.st_mtime_ns, status.st_size)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        remedy = "restore it from version control; publish writes it, nobody edits it"
        raise InventoryError.of([Problem("The lock cannot be read", (), str(error), remedy, file=path)]) from error


@functools.lru_cache(maxsize=8)
def _parse_lock(path: str, *_state: int) -> tuple[str, Any]:
    # Each use of the role's variable comes here, for every host. Workers inherit what the inventory plugin has read.
    text = Path(path).read_text(encoding="utf-8")
    return text, yaml_load(text)


def next_lock(
    previous: Mapping[str, Any] | None,
    registry: str,
    images: Iterable[Mapping[str, Any]],
    artifacts: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the lock that follows `previous`: the same if nothing changed, else with a serial one higher.

    `images` and `artifacts` are the results of loops over the modules oci_image and model_artifact, whose items are
    those of `publication`. In check mode a result may be without content, which is then UNKNOWN in the lock.
    """
    unbuilt = {"digest": UNKNOWN}
    keys = ("repository", "digest", "index", "platforms", "blob", "golden_cases")
    models: dict[str, dict[str, Any]] = {}
    for result in artifacts:
        item = result["item"]
        version = models.setdefault(item["name"], {}).setdefault(
            item["version"], {"platform": item["platform"], "variants": {}}
        )
        version["variants"][item["variant"]] = {key: result[key] for key in keys} if "blob" in result else unbuilt
    content = {
        "registry": registry,
        "images": {result["item"]["name"]: result.get("image", unbuilt) for result in images},
        "models": models,
    }
    if previous and {key: previous.get(key) for key in content} == content:
        return dict(previous)
    return {"serial": int((previous or {}).get("serial", 0)) + 1, **content}
