# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the smaller variants of a model are made: the program of the role model_store, in an environment of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError, Problem
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import Path as Place
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.plan import Plan

PLATFORM = "onnxruntime_onnx"
PROGRAM = "minify.py"
REQUIREMENTS = "requirements.txt"
#: So many digits of an accuracy stand in the lock.
ACCURACY_DIGITS = 4


def check_variants(plan: Plan, model: Mapping[str, Any], place: Place) -> bool:
    """Note what is wrong with the variants of a model whose source is not a lock. Return whether all is well."""
    known = len(plan.problems)
    variants = model.get("variants", ())
    for index, variant in enumerate(variants):
        where = (*place, "variants", index)
        if ("file" in variant) == ("minify" in variant):
            seen = f"variant {variant['name']} has " + ("both" if "file" in variant else "neither")
            remedy = "name its file in the source, or the recipe that makes it in minify"
            plan.wrong("A variant has either file or minify", where, seen, remedy)
        if "minify" not in variant:
            continue
        if model["platform"] != PLATFORM:
            remedy = "minify ONNX models, or make the file in another way"
            plan.wrong("Only ONNX models can be minified", (*where, "minify"), model["platform"], remedy)
        recipe = variant["minify"]["recipe"]
        if "calibration" in variant["minify"] and recipe != "int8_static":
            remedy = "remove calibration, or use int8_static"
            plan.wrong("Only int8_static is calibrated", (*where, "minify", "calibration"), recipe, remedy)
    if not any("minify" in variant for variant in variants):
        for key in ("evaluation", "max_loss"):
            if key in model:
                remedy = f"remove {key}, or add a variant with minify"
                plan.wrong(f"{key} judges variants that are made by minify", (*place, key), "no such variant", remedy)
    return len(plan.problems) == known


def plan_minified(
    plan: Plan, model: Mapping[str, Any], variant: Mapping[str, Any], source: Path, identity: str, place: Place
) -> Path:
    """Plan how a variant is made, and return its directory: named after all that it is made from.

    Parameters
    ----------
    source : Path
        Directory of the model's source, which a program or a download may have yet to make.
    identity : str
        What stands for the source's content.
    """
    minify = {**variant["minify"], "from": _original(variant["minify"])}
    calibration, golden = (
        plan.path(text, where, directory=True) if text else None
        for text, where in (
            (minify.get("calibration"), (*place, "minify", "calibration")),
            (model.get("golden"), (*place[:-2], "golden")),
        )
    )
    others = [other["file"] for other in model["variants"] if "file" in other]
    options = {
        "name": model["name"],
        "version": model["version"],
        "variant": variant["name"],
        "minify": minify,
        "max_loss": model.get("max_loss", {}),
        "evaluation": model.get("evaluation", ""),
        "others": others + ([model["evaluation"]] if "evaluation" in model else []),
    }
    paths = {
        "source": str(source),
        "golden": str(golden) if golden else "",
        "calibration": str(calibration) if calibration else "",
    }
    programs = sorted(Path(plan.minify_directory).glob("*.py"))
    requirements = Path(plan.minify_directory) / REQUIREMENTS
    locked = hashlib.sha256(requirements.read_bytes()).hexdigest()
    inputs = hashlib.sha256(f"{json.dumps(options, sort_keys=True)}\n{locked}\n{identity}\n".encode())
    for text in content_of(Path(plan.minify_directory), programs):
        inputs.update(text.encode())
    for directory in filter(None, (golden, calibration)):
        for text in content_of(directory, files_of(directory)):
            inputs.update(text.encode())
    made = plan.build_directory / "models" / f"{model['name']}-{variant['name']}-{inputs.hexdigest()[:12]}"
    plan.builds.append(
        {
            "name": model["name"],
            "version": f"{model['version']} {variant['name']}",
            "program": str(Path(plan.minify_directory) / PROGRAM),
            "requirements": str(requirements),
            "environment": str(plan.build_directory / "environments" / locked[:12]),
            "directory": str(made),
            "options": json.dumps({**options, **paths}),
        }
    )
    return made


def plan_accuracy(
    model: Mapping[str, Any], variant: Mapping[str, Any] | None, made: Mapping[str, Path]
) -> dict[str, Any]:
    """Return where the share of labelled examples that a variant answers rightly will be: report and row.

    `made` has the directory of each variant that is made. Empty where nothing finds it out.
    """
    if variant is None or "evaluation" not in model:
        return {}
    if variant["name"] in made:
        return {"report": f"{made[variant['name']]}.report", "row": 1}
    for other in model["variants"]:
        if other["name"] in made and _original(other["minify"]) == variant["file"]:
            return {"report": f"{made[other['name']]}.report", "row": 0}
    return {}


def read_accuracy(planned: Mapping[str, Any]) -> float | None:
    """Return the accuracy that a plan has as `value`, or at the place that plan_accuracy returned; None without either.

    Raise InventoryError if the report is gone.
    """
    if "report" not in planned:
        return planned.get("value")
    path = planned["report"]
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[-1])
        return round(float(rows[planned["row"]]["accuracy"]), ACCURACY_DIGITS)
    except (OSError, ValueError, LookupError, TypeError) as error:
        remedy = f"remove the directory {path.removesuffix('.report')}, then publish again, which makes both"
        problem = Problem("What publish found out of a variant cannot be read", (), repr(error), remedy, file=path)
        raise InventoryError.of([problem]) from error


def _original(minify: Mapping[str, Any]) -> str:
    """Return the file of the source that a variant is made from."""
    return str(minify.get("from", "model.onnx"))


def files_of(source: Path) -> list[Path]:
    """Return the files of a directory without what Python keeps of modules that were run there."""
    return sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def content_of(root: Path, files: Sequence[Path]) -> Iterable[str]:
    """Yield a line with name and digest, for each file."""
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        yield f"{path.relative_to(root).as_posix()}\n{content}\n"
