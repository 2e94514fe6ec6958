# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What publish plans for variants that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.publication.work import publication

INT8 = {"name": "int8", "minify": {"recipe": "int8_static"}, "when": {"architecture": "arm64"}}
FP32 = {"name": "fp32", "file": "model.onnx"}
MODEL = {
    "name": "digits",
    "version": "1.0.0",
    "platform": "onnxruntime_onnx",
    "source": "models/digits",
    "runtime": "server",
    "variants": [INT8, FP32],
    "evaluation": "examples.npz",
    "max_loss": {"accuracy": 0.02},
}
SERVER = {"name": "server", "image": "registry.example/server@sha256:" + "1" * 64}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory as an inventory's, and the program that makes variants."""
    (tmp_path / "models/digits/golden").mkdir(parents=True)
    (tmp_path / "models/digits/model.onnx").write_text("weights")
    (tmp_path / "minify").mkdir()
    (tmp_path / "minify/minify.py").write_text("print('made')\n")
    (tmp_path / "minify/requirements.txt").write_text("onnx==1.0.0\n")
    return tmp_path


def plan(base: Path, **changes: Any) -> dict[str, Any]:
    return publication(
        [{**MODEL, **changes}],
        [SERVER],
        directory=str(base),
        build_directory=str(base / "build"),
        architectures=["amd64", "arm64"],
        registry="registry.edgeml.internal:5443",
        store="store.edgeml.internal:5000",
        minify_directory=str(base / "minify"),
    )


def test_a_variant_is_built_from_the_source(base: Path) -> None:
    found = plan(base)
    (build,) = found["builds"]
    assert (build["program"], build["version"]) == (str(base / "minify/minify.py"), "1.0.0 int8")
    options = json.loads(build["options"])
    assert options["source"] == str(base / "models/digits")
    assert options["minify"] == {"recipe": "int8_static", "from": "model.onnx"}
    assert options["max_loss"] == {"accuracy": 0.02}
    int8, fp32 = found["artifacts"]
    assert (int8["directory"], int8["form"]) == (build["directory"], {"name": "int8", "file": "", "others": []})
    assert fp32["directory"] == str(base / "models/digits")
    assert fp32["form"]["others"] == ["examples.npz"], "what judges is no part of the model"


def test_the_accuracy_of_a_variant_stands_in_the_report_of_what_was_made(base: Path) -> None:
    found = plan(base)
    report = f"{found['builds'][0]['directory']}.report"
    assert [one["accuracy"] for one in found["artifacts"]] == [
        {"report": report, "row": 1},
        {"report": report, "row": 0},
    ]
    (base / "models/digits/other.onnx").write_text("weights")
    (_int8, other) = plan(base, variants=[INT8, {"name": "other", "file": "other.onnx"}])["artifacts"]
    assert other["accuracy"] == {}, "nothing is made from it"
    without = {key: value for key, value in MODEL.items() if key != "evaluation"}
    work = publication(
        [without], [SERVER], directory=str(base), build_directory=str(base / "build"), architectures=["amd64"],
        registry="r", store="s", minify_directory=str(base / "minify"),
    )  # fmt: skip
    assert [one["accuracy"] for one in work["artifacts"]] == [{}, {}]


def test_golden_cases_elsewhere_go_into_what_is_made(base: Path) -> None:
    (base / "cases").mkdir()
    found = plan(base, golden="cases")
    assert json.loads(found["builds"][0]["options"])["golden"] == str(base / "cases")
    assert [artifact["golden"] for artifact in found["artifacts"]] == [None, str(base / "cases")]


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("models/digits/model.onnx", {}),
        ("models/digits/golden/one.json", {}),
        ("minify/recipes.py", {}),
        ("minify/requirements.txt", {}),
        (None, {"max_loss": {"accuracy": 0.03}}),
        (None, {"variants": [{**INT8, "minify": {"recipe": "int8_static", "exclude_operators": ["Conv"]}}, FP32]}),
    ],
)
def test_whatever_it_is_made_from_changes_its_directory(base: Path, file: str | None, changes: dict[str, Any]) -> None:
    before = plan(base)["builds"][0]["directory"]
    assert plan(base)["builds"][0]["directory"] == before
    if file:
        (base / file).write_text("other")
    assert plan(base, **changes)["builds"][0]["directory"] != before


def test_a_variant_of_a_built_model_is_made_after_it(base: Path) -> None:
    (base / "models/digits/build.py").touch()
    (base / "locked.txt").touch()
    model, variant = plan(base, build={"program": "build.py", "requirements": "locked.txt"})["builds"]
    assert (model["options"], json.loads(variant["options"])["source"]) == ("", model["directory"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": [{**INT8, "file": "model.onnx"}, FP32]}, ["either file or minify", "has both"]),
        ({"platform": "python"}, ["Only ONNX models can be minified", "python"]),
        (
            {"variants": [{**INT8, "minify": {"recipe": "fp16", "calibration": "models"}}, FP32]},
            ["Only int8_static is calibrated", "fp16"],
        ),
        (
            {"variants": [{**INT8, "minify": {"recipe": "int8_static", "calibration": "none"}}, FP32]},
            ["no such directory", "none"],
        ),
        ({"variants": [FP32]}, ["max_loss judges variants", "evaluation judges variants"]),
        ({"variants": [{**INT8, "minify": {"recipe": "int4"}}]}, ["int4", "int8_dynamic"]),
        ({"max_loss": {"deviation": 1}}, ["did you mean max_deviation"]),
    ],
)
def test_what_is_refused(base: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InventoryError) as caught:
        plan(base, **changes)
    assert [word for word in words if word not in str(caught.value)] == []
