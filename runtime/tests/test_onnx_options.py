# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: its options, the cache of optimised graphs, hostile and hungry models."""

import logging
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgeml_runtime.engine import onnx_cache, onnx_model
from edgeml_runtime.engine.onnx_cache import GraphCache, cache_key, digest
from edgeml_runtime.engine.onnx_model import OnnxModel
from edgeml_runtime.errors import StartError
from edgeml_runtime.serving import EngineOptions
from onnx import TensorProto, helper, numpy_helper
from onnx_models import perceptron, save

SIZE = 1024


@pytest.fixture(autouse=True)
def every_graph_is_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the machine is."""
    monkeypatch.setattr(onnx_model, "WORTHWHILE_SECONDS", 0)


def costly_to_optimise(root: Path, name: str = "costly", factor: float = 2.0) -> Path:
    """Products of large constant matrices, folded to a scalar: ``y = x + SIZE ** 2 * factor ** 3``."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["m0"], value=numpy_helper.from_array(np.float32([factor])))
    ]
    nodes += [helper.make_node("MatMul", [f"m{number}", "m0"], [f"m{number + 1}"]) for number in range(2)]
    nodes += [
        helper.make_node("ReduceMax", ["m2"], ["largest"], keepdims=0),
        helper.make_node("Add", ["x", "largest"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1])],
        [numpy_helper.from_array(np.array([SIZE, SIZE]), "shape")],
    )
    return save(root, name, graph).path / "model.onnx"


def result(model: OnnxModel) -> float:
    return float(model.run({"x": np.zeros(1, np.float32)}, ["y"])[0][0])


def load(file: Path, directory: Path | None, **options: Any) -> OnnxModel:
    return OnnxModel(file, EngineOptions(**options), directory)


def test_options_reach_the_engine(tmp_path: Path) -> None:
    file = perceptron(tmp_path).path / "model.onnx"
    model = load(file, None, threads=3, arena=False, spinning=True, optimization="basic")
    seen = model._session.get_session_options()
    assert (seen.intra_op_num_threads, seen.enable_cpu_mem_arena, seen.graph_optimization_level.name) == (
        3,
        False,
        "ORT_ENABLE_BASIC",
    )
    assert seen.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    seen = load(file, None)._session.get_session_options()
    assert (seen.intra_op_num_threads, seen.enable_cpu_mem_arena) == (1, True)
    assert seen.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_optimised_graph_is_kept_and_used(tmp_path: Path) -> None:
    file, cache = costly_to_optimise(tmp_path), tmp_path / "cache" / "graphs"
    plain = result(load(file, None))
    assert plain == SIZE**2 * 2.0**3
    assert result(load(file, cache)) == plain
    (kept,) = cache.iterdir()
    assert kept.stat().st_size < 10_000
    os.utime(kept, (0, 0))
    model = load(file, cache)
    assert result(model) == plain
    assert kept.stat().st_mtime > 0
    assert model._session.get_session_options().graph_optimization_level.name == "ORT_DISABLE_ALL"


def test_corrupt_graph_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, cache = costly_to_optimise(tmp_path), tmp_path / "cache"
    load(file, cache)
    (kept,) = cache.iterdir()
    right = kept.read_bytes()
    for wrong in (right[:-1], b"", right[:-4] + b"\xff" + right[-3:]):
        kept.write_bytes(wrong)
        with caplog.at_level(logging.WARNING):
            assert result(load(file, cache)) == SIZE**2 * 2.0**3
        assert "its content is not what was written" in caplog.text
        caplog.clear()
        assert [found.read_bytes() for found in cache.iterdir()] == [right]


def test_graph_that_the_engine_refuses_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, cache = costly_to_optimise(tmp_path), tmp_path / "cache"
    load(file, cache)
    (kept,) = cache.iterdir()
    right = kept.read_bytes()
    kept.unlink()
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"not a graph")
    foreign.rename(cache / f"{kept.name[:64]}-{digest(tmp_path / 'foreign')}.onnx")
    with caplog.at_level(logging.WARNING):
        assert result(load(file, cache)) == SIZE**2 * 2.0**3
    assert "ONNX Runtime cannot load it, it is made again" in caplog.text
    assert [found.read_bytes() for found in cache.iterdir()] == [right]


def test_another_model_has_another_graph(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    file = costly_to_optimise(tmp_path)
    assert result(load(file, cache)) == SIZE**2 * 2.0**3
    file.write_bytes(costly_to_optimise(tmp_path, "other", factor=0.5).read_bytes())
    assert result(load(file, cache)) == SIZE**2 * 0.5**3
    assert len(list(cache.iterdir())) == 2


def test_what_a_graph_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = perceptron(tmp_path).path / "model.onnx"
    keys = {
        cache_key(file, "1.24.4", "all"),
        cache_key(file, "1.24.5", "all"),
        cache_key(file, "1.24.4", "basic"),
        cache_key(perceptron(tmp_path, "other").path / "model.onnx", "1.24.4", "all"),
    }
    monkeypatch.setattr(onnx_cache.platform, "machine", lambda: "another")  # type: ignore[attr-defined]
    keys.add(cache_key(file, "1.24.4", "all"))
    monkeypatch.undo()
    content = "processor : 0\nflags : sse\nbogomips : 1\nprocessor : 1\nflags : sse\n"
    read_text = Path.read_text

    def key_of(cpuinfo: str) -> str | None:
        monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo if path.name == "cpuinfo" else read_text(path))
        return cache_key(file, "1.24.4", "all")

    keys.add(key_of(content))
    assert key_of(content.replace("bogomips : 1", "bogomips : 2")) in keys
    keys.add(key_of(content.replace("sse", "avx")))
    assert len(keys) == 7


def test_models_that_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    file = costly_to_optimise(tmp_path)
    load(file, cache, cache=False)
    load(file, cache, optimization="disable")
    assert not cache.exists()
    monkeypatch.setattr(onnx_model, "WORTHWHILE_SECONDS", 3600)
    load(file, cache)
    assert list(cache.iterdir()) == []


def test_graph_with_another_signature_is_refused_once(tmp_path: Path) -> None:
    """Of old models, ONNX Runtime writes graphs that require inputs which were constants."""
    file = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_shufflenet.onnx"
    for _ in range(2):
        assert list(load(file, tmp_path).inputs) == ["gpu_0/data_0"]
        assert [kept.name[64:] for kept in tmp_path.iterdir()] == ["-refused"]


def test_directory_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert result(load(costly_to_optimise(tmp_path), tmp_path / "file" / "cache")) == SIZE**2 * 2.0**3
    assert "the graph is optimised without the cache" in caplog.text


def test_size_of_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cache, "LARGEST_TOTAL_BYTES", 25_000)
    cache = GraphCache(tmp_path)
    others = [tmp_path / "another-program.onnx", tmp_path / "unfinished-1.onnx", tmp_path / "unfinished-2.onnx"]
    for age, other in enumerate(others):
        other.touch()
        os.utime(other, (age, age))
    os.utime(others[2])
    for number in range(5):
        with cache.unfinished() as written:
            written.write_bytes(bytes([number]) * 10_000)
            os.utime(written, (1000 + number, 1000 + number))
            cache.keep(f"{number:064x}", written)
    assert {file.name.partition("-")[0] for file in tmp_path.iterdir()} == {
        "another",
        "unfinished",
        f"{3:064x}",
        f"{4:064x}",
    }
    assert not others[1].exists()
    assert cache.find(f"{4:064x}") is not None
    assert cache.find(f"{1:064x}") is None


def with_external_data(root: Path, location: str) -> Path:
    """A model whose constant of four numbers lies in another file."""
    root.mkdir(exist_ok=True)
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    vectors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", vectors[:1], vectors[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    return root / "model.onnx"


def test_external_data(tmp_path: Path) -> None:
    file = with_external_data(tmp_path / "model", "weights.bin")
    np.arange(4, dtype=np.float32).tofile(file.parent / "weights.bin")
    assert load(file, tmp_path / "cache").run({"x": np.ones(4, np.float32)}, ["y"])[0].tolist() == [1, 2, 3, 4]
    assert cache_key(file, "1.24.4", "all") is None
    assert list((tmp_path / "cache").iterdir()) == []
    large = tmp_path / "large"
    for before in (2**20 - 12, 2**20 - 5, 2**20):  # across the parts in which the file is read
        large.write_bytes(bytes(before) + file.read_bytes())
        assert cache_key(large, "1.24.4", "all") is None
    large.write_bytes(bytes(2**20 + 5))
    assert cache_key(large, "1.24.4", "all") is not None


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "below_and_above"])
def test_external_data_outside_the_directory_is_refused(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.bin"
    np.arange(4, dtype=np.float32).tofile(secret)
    (tmp_path / "model" / "below").mkdir(parents=True)
    if kind == "link":
        (tmp_path / "model" / "weights.bin").symlink_to(secret)
    locations = {
        "above": "../secret.bin",
        "absolute": str(secret),
        "link": "weights.bin",
        "below_and_above": "below/../../secret.bin",
    }
    file = with_external_data(tmp_path / "model", locations[kind])
    with pytest.raises(StartError, match="External data path validation failed"):
        load(file, tmp_path / "cache")


def test_unknown_operator(tmp_path: Path) -> None:
    file = costly_to_optimise(tmp_path)
    model = onnx.load(file)
    model.graph.node[-1].op_type = "Divine"
    onnx.save(model, file)
    with pytest.raises(StartError, match=r"cannot load it: .*Divine"):
        load(file, tmp_path / "cache")


def hungry(root: Path) -> Any:
    """As many zeros as the input says, and how many these were."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
            helper.make_node("Add", ["zeros", "one"], ["ones"]),
            helper.make_node("ReduceMax", ["ones"], ["largest"], keepdims=0),
        ],
        "hungry",
        [helper.make_tensor_value_info("count", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("largest", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    golden = {
        "inputs": [{"name": "count", "shape": [1], "datatype": "INT64", "data": [10]}],
        "outputs": [{"name": "largest", "shape": [], "datatype": "FP32", "data": [1.0]}],
    }
    return save(root, "hungry", graph, golden)


def test_a_run_that_needs_more_memory_than_there_is(start_server: Any, tmp_path: Path) -> None:
    server = start_server([hungry(tmp_path)])
    server.wait_ready()
    # So that the test takes little of the machine's memory.
    resource.prlimit(server.process.pid, resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    def ask(count: int) -> Any:
        return server.infer(
            "hungry", {"inputs": [{"name": "count", "datatype": "INT64", "shape": [1], "data": [count]}]}
        )

    for count in (2**29, 2**40, 2**62, -1):
        answer = ask(count)
        assert (answer.status, answer.json["error"][:17]) == (500, "the engine failed")
        answer = ask(1000)
        assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [1.0])
    assert server.rest("GET", "/v2/health/ready").status == 200
