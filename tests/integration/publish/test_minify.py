# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Smaller variants that publish makes of a real convolution net. The tests tell one story, in their order."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.golden import check_case, load_cases
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import wait_until_ready
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import resolve_host
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT, Store, take_built_layers
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .conftest import Project

pytestmark = pytest.mark.timeout(600)
PROGRAM = REPOSITORY_ROOT / "roles/model_store/files/minify/minify.py"
RECIPES = ("int8_static", "int8_dynamic", "fp16", "optimized")
IMAGES = 40


def convolution_net() -> onnx.ModelProto:
    """Return a net of two convolutions and one dense layer: `image` [n, 1, 8, 8] in, `scores` [n, 4] out."""
    random = np.random.default_rng(16)
    weights = {
        "first": random.normal(0, 0.5, (8, 1, 3, 3)),
        "second": random.normal(0, 0.2, (32, 8, 3, 3)),
        "dense": random.normal(0, 1, (32 * 16, 4)),
        "bias": random.normal(0, 0.1, (4,)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "first_convolution"),
        helper.make_node("Relu", ["a"], ["b"], "first_relu"),
        helper.make_node("Conv", ["b", "second"], ["c"], "second_convolution"),
        helper.make_node("Relu", ["c"], ["d"], "second_relu"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Gemm", ["e", "dense", "bias"], ["f"], "classifier"),
        helper.make_node("Softmax", ["f"], ["scores"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "spots",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def tensor(name: str, array: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: net, golden cases, a file beside, and examples with the labels that the net gives them."""
    directory = tmp_path_factory.mktemp("models") / "spots"
    (directory / "golden").mkdir(parents=True)
    net = convolution_net()
    (directory / "model.onnx").write_bytes(net.SerializeToString())
    (directory / "labels.txt").write_text("none\none\ntwo\nmany\n")
    images = np.random.default_rng(1).uniform(0, 1, (IMAGES, 1, 8, 8)).astype(np.float32)
    scores: Any = ReferenceEvaluator(net).run(None, {"image": images})
    scores = np.asarray(scores[0])
    for row in range(8):
        case = {
            "inputs": [tensor("image", images[row : row + 1])],
            "outputs": [tensor("scores", scores[row : row + 1])],
        }
        (directory / f"golden/case_{row}.json").write_text(json.dumps(case))
    np.savez(directory / "examples.npz", image=images, labels=scores.argmax(axis=1))
    return directory


def variants(*names: str) -> list[dict[str, Any]]:
    """Return what arm64 gets, one of the recipes, and the original."""
    made: list[dict[str, Any]] = [{"name": name, "minify": {"recipe": name}} for name in names]
    made[0]["when"] = {"architecture": "arm64"}
    for variant in made[1:]:
        variant["when"] = {"groups": [variant["name"]]}
    return [*made, {"name": "fp32", "file": "model.onnx"}]


def catalogue(model: Path, **changes: Any) -> list[dict[str, Any]]:
    entry = {
        "name": "spots",
        "version": "1.0.0",
        "platform": "onnxruntime_onnx",
        "source": str(model),
        "runtime": "server",
        "variants": variants(*RECIPES),
        "evaluation": "examples.npz",
        "max_loss": {"max_deviation": 0.3, "accuracy": 0.1},
    }
    return [entry | changes]


@pytest.fixture(scope="module")
def project(
    source: tuple[Path, list[Any], list[Any]], store: Store, other: Store, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """An inventory whose runtime is a finished image, which costs nothing."""
    made = Project(tmp_path_factory.mktemp("minify"), store, other)
    take_built_layers(made.root / "build/images")
    return made


def publish(project: Project, runtimes: list[Any], entries: list[dict[str, Any]]) -> Any:
    project.describe(entries, [runtimes[2]])
    return project.publish()


def unpacked(project: Project, variant: str, target: Path) -> Path:
    entry = project.lock()["models"]["spots"]["1.0.0"]["variants"][variant]
    with project.store.registry().open_blob(entry["repository"], entry["blob"]["digest"]) as stream:
        data = stream.read_all(10_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(target, filter="data")
    return target


def test_what_loses_too_much_does_not_get_into_the_lock(
    project: Project, model: Path, source: tuple[Path, list[Any], list[Any]]
) -> None:
    # A name of its own: other tests of this process publish to the same store.
    strict = catalogue(model, name="refused_spots", max_loss={"max_deviation": 1e-7})
    run = publish(project, source[2], strict)
    assert run.code != 0
    words = " ".join(run.output.split())
    for part in ("int8_static", "loses more than the model allows", "is above 1e-07", "| variant | bytes |"):
        assert part in words, run.output
    assert not project.lock_file.exists()
    assert not project.store.registry().manifest_digest("edgeml/models/refused_spots", "1.0.0-fp32")


def test_variants_are_made_and_published(
    project: Project, model: Path, source: tuple[Path, list[Any], list[Any]], tmp_path: Path
) -> None:
    run = publish(project, source[2], catalogue(model))
    assert run.code == 0, run.output
    assert "| int8_static |" in run.output
    locked = project.lock()["models"]["spots"]["1.0.0"]["variants"]
    assert list(locked) == [*RECIPES, "fp32"]
    for name in RECIPES[:3]:
        assert locked[name]["blob"]["size"] < locked["fp32"]["blob"]["size"]
    assert [locked[name]["accuracy"] for name in ("fp32", "fp16", "optimized")] == [1.0, 1.0, 1.0]
    assert 0.9 <= locked["int8_static"]["accuracy"] < 1.0
    files = {path.name for path in unpacked(project, "int8_static", tmp_path).rglob("*") if path.is_file()}
    assert files == {"model.json", "model.onnx", "labels.txt", *(f"case_{row}.json" for row in range(8))}
    again = project.publish()
    assert (again.code, again.changed) == (0, 0), again.output


@pytest.mark.parametrize("variant", ["int8_static", "fp32"])
def test_the_runtime_serves_what_was_made(project: Project, tmp_path: Path, variant: str) -> None:
    """Its golden cases are the original's, with what may be lost added to their tolerance."""
    model = {"name": "spots", "version": "1.0.0", "path": str(unpacked(project, variant, tmp_path / "model"))}
    digest = project.lock()["models"]["spots"]["1.0.0"]["variants"][variant]["blob"]["digest"]
    configuration = {"listen": {"rest": [f"unix:{tmp_path}/rest"]}, "models": [{**model, "digest": digest}]}
    (tmp_path / "runtime.json").write_text(json.dumps(configuration))
    command = [sys.executable, "-m", "edgeml_runtime", "serve", "--config", str(tmp_path / "runtime.json")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT / "runtime/src")}
    with subprocess.Popen(command, env=environment) as server:
        try:
            with connect(f"http+unix://{tmp_path}/rest") as client:
                wait_until_ready(client, 240)
                cases = load_cases(tmp_path / "model/golden")
                results = [check_case(client, "spots", "1.0.0", case) for case in cases]
        finally:
            server.terminate()
    assert len(results) == 8 and all(result.passed for result in results), results
    assert {case.absolute for case in cases} == {0.3001 if variant == "int8_static" else 1e-4}
    largest = max(result.max_absolute_error or 0 for result in results)
    assert largest > 1e-4 if variant == "int8_static" else largest < 1e-4


@pytest.mark.parametrize(("architecture", "variant"), [("arm64", "int8_static"), ("amd64", "fp32")])
def test_when_places_what_was_made(model: Path, architecture: str, variant: str) -> None:
    host = {"edgeml_architecture": architecture, "group_names": ["cameras"]}
    entry = catalogue(model)[0]
    items, problems = resolve_host("camera", host, [entry], [{"name": "spots"}], {}, None)
    assert not problems
    assert items[0]["variant"] == variant


@pytest.fixture(scope="module")
def interpreter(project: Project) -> Path:
    """The environment that the first publication made."""
    (environment,) = (path.parent for path in (project.root / "build/environments").glob("*/bin"))
    return environment / "bin/python"


Done = subprocess.CompletedProcess[str]


def minify(
    interpreter: Path,
    model: Path,
    output: Path,
    recipe: str,
    environment: dict[str, str] | None = None,
    **asked: Any,
) -> Done:
    """Run the program that publish runs."""
    output.mkdir()
    options: dict[str, Any] = {
        "name": "spots",
        "version": "1.0.0",
        "variant": recipe,
        "source": str(model),
        "golden": "",
        "calibration": "",
        "evaluation": "examples.npz" if (model / "examples.npz").exists() else "",
        "others": ["examples.npz"],
        "max_loss": {"max_deviation": 0.3, "accuracy": 0.1},
        "minify": {"recipe": recipe, "from": "model.onnx", **asked},
    }
    command = [str(interpreter), str(PROGRAM), "--options", json.dumps(options), "--output", str(output)]
    variables = os.environ | (environment or {"PYTHONPYCACHEPREFIX": f"{interpreter.parents[1]}/pycache"})
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=590, env=variables)


def test_the_same_input_gives_the_same_bytes(project: Project, interpreter: Path, model: Path, tmp_path: Path) -> None:
    done = minify(interpreter, model, tmp_path / "made", "int8_static")
    assert done.returncode == 0, done.stderr
    published = unpacked(project, "int8_static", tmp_path / "published")
    assert (tmp_path / "made/model.onnx").read_bytes() == (published / "model.onnx").read_bytes()
    original, made = json.loads(done.stdout.splitlines()[-1])
    assert original["accuracy"] == 1.0 and 0.9 <= made["accuracy"] < 1.0
    assert made["golden"] == "8/8"
    assert made["bytes"] < original["bytes"] / 2 and made["max_deviation"] > 0


def test_excluded_operators_keep_their_precision(interpreter: Path, model: Path, tmp_path: Path) -> None:
    done = minify(interpreter, model, tmp_path / "made", "int8_static", exclude_operators=["Conv"])
    assert done.returncode == 0, done.stderr
    weights = {item.name: item.data_type for item in onnx.load(tmp_path / "made/model.onnx").graph.initializer}
    assert (weights["first"], weights["second"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert weights["dense_quantized"] == TensorProto.INT8


@pytest.mark.parametrize("recipe", ["optimized", "fp16"])
def test_a_variant_has_its_own_weights_alone(interpreter: Path, model: Path, tmp_path: Path, recipe: str) -> None:
    """Those of the original lie in a file of their own here."""
    source = tmp_path / "source"
    (source / "golden").mkdir(parents=True)
    (source / "golden/a.json").write_text((model / "golden/case_0.json").read_text())
    (source / "labels.txt").write_text("none\n")
    net = onnx.load(model / "model.onnx")
    options: dict[str, Any] = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(net, source / "model.onnx", **options)
    done = minify(interpreter, source, tmp_path / "made", recipe)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"golden", "labels.txt", "model.onnx"}
    assert json.loads(done.stdout.splitlines()[-1])[0]["bytes"] > (source / "weights.bin").stat().st_size


def test_a_recipe_that_does_not_apply_says_what_does(interpreter: Path, model: Path, tmp_path: Path) -> None:
    net = onnx.load(model / "model.onnx")
    net.graph.node.remove(next(node for node in net.graph.node if node.op_type == "Gemm"))
    net.graph.node[-1].input[0] = "e"
    source = tmp_path / "source"
    (source / "golden").mkdir(parents=True)
    (source / "golden/a.json").write_text((model / "golden/case_0.json").read_text())
    onnx.save(net, source / "model.onnx")
    done = minify(interpreter, source, tmp_path / "made", "int8_dynamic")
    assert done.returncode == 1
    for part in ("int8_dynamic does not apply", "seen: 2 Conv", "use one of int8_static, fp16, optimized"):
        assert part in done.stderr
    unknown = minify(interpreter, model, tmp_path / "unknown", "fp16", exclude_operators=["Convolution"])
    assert "Convolution; the model's operators are Conv, Flatten, Gemm, Relu, Softmax" in unknown.stderr


def test_an_older_opset_and_weights_behind_constants_are_no_obstacle(
    interpreter: Path, model: Path, tmp_path: Path
) -> None:
    """As PaddlePaddle exports: opset 11, and each weight the result of an operator on a constant."""
    net = onnx.load(model / "model.onnx")
    net.opset_import[0].version = 11
    for weights in list(net.graph.initializer):
        net.graph.initializer.remove(weights)
        constant = helper.make_node("Constant", [], [f"{weights.name}_constant"], value=weights)
        net.graph.node.insert(0, helper.make_node("Identity", [f"{weights.name}_constant"], [weights.name]))
        net.graph.node.insert(0, constant)
    source = tmp_path / "source"
    (source / "golden").mkdir(parents=True)
    (source / "golden/a.json").write_text((model / "golden/case_0.json").read_text())
    onnx.save(net, source / "model.onnx")
    done = minify(interpreter, source, tmp_path / "made", "int8_static")
    assert done.returncode == 0, done.stderr
    graph = onnx.load(tmp_path / "made/model.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert not graph.value_info
    assert (tmp_path / "made/model.onnx").stat().st_size < (source / "model.onnx").stat().st_size / 2


def test_weights_in_branches_are_named_as_the_reason(interpreter: Path, model: Path, tmp_path: Path) -> None:
    net = onnx.load(model / "model.onnx")
    body = helper.make_graph(list(net.graph.node), "body", [], list(net.graph.output), list(net.graph.initializer))
    flag = helper.make_node("ReduceMax", ["image"], ["largest"], keepdims=0)
    switch = helper.make_node("Less", ["largest", "most"], ["small"])
    either = helper.make_node("If", ["small"], ["scores"], then_branch=body, else_branch=body)
    most = numpy_helper.from_array(np.array(100, dtype=np.float32), "most")
    graph = helper.make_graph([flag, switch, either], "branches", list(net.graph.input), list(net.graph.output), [most])
    source = tmp_path / "source"
    (source / "golden").mkdir(parents=True)
    (source / "golden/a.json").write_text((model / "golden/case_0.json").read_text())
    onnx.save(helper.make_model(graph, opset_imports=net.opset_import, ir_version=8), source / "model.onnx")
    done = minify(interpreter, source, tmp_path / "made", "int8_static")
    assert done.returncode == 1
    assert "seen: none, and what lies in branches of If, which no recipe changes" in done.stderr, done.stderr


def test_one_probability_is_a_class_of_its_own(interpreter: Path, model: Path, tmp_path: Path) -> None:
    """`scores` [n, 1]: the label is 1 where it is half or more."""
    net = convolution_net()
    pick = numpy_helper.from_array(np.array([0]), "which")
    net.graph.initializer.append(pick)
    net.graph.node[-1].output[0] = "all_scores"
    net.graph.node.append(helper.make_node("Gather", ["all_scores", "which"], ["scores"], axis=1))
    net.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    source = tmp_path / "source"
    (source / "golden").mkdir(parents=True)
    images = np.random.default_rng(3).uniform(0, 1, (IMAGES, 1, 8, 8)).astype(np.float32)
    answers: Any = ReferenceEvaluator(net).run(None, {"image": images})
    scores = np.asarray(answers[0])
    case = {"inputs": [tensor("image", images[:1])], "outputs": [tensor("scores", scores[:1])]}
    (source / "golden/a.json").write_text(json.dumps(case))
    labels = (scores[:, 0] >= 0.5).astype(np.int64)
    assert 0 < labels.sum() < IMAGES
    np.savez(source / "examples.npz", image=images, labels=labels)
    onnx.save(net, source / "model.onnx")
    done = minify(interpreter, source, tmp_path / "made", "fp16")
    assert done.returncode == 0, done.stderr
    assert [row["accuracy"] for row in json.loads(done.stdout.splitlines()[-1])] == [1.0, 1.0]
