# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""README.md says what the code says: every key with its type and default, every metric, every link."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgeml_runtime.cli.arguments import parser
from edgeml_runtime.config import Config, ModelConfig
from edgeml_runtime.config_file import read_config
from edgeml_runtime.engine.loading import load_model
from edgeml_runtime.errors import ConfigurationError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.serving import PIPELINE, PYTHON, EngineOptions, ServingOptions, read_serving_file
from onnx import TensorProto, helper

README = (Path(__file__).parent.parent / "README.md").read_text()
TYPES = {
    "object": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}

MODEL = {"name": "m", "version": "1.0.0", "path": "m"}
TENSORS = [{"name": "x", "datatype": "FP32", "shape": [1]}]
STATE = {"input": "i", "output": "o"}
STEP = {"platform": "python", "file": "f", "inputs": {}, "outputs": {}, "input_specs": TENSORS, "output_specs": TENSORS}


def table_rows() -> list[list[str]]:
    """Cells of all rows of all tables."""
    lines = (line for line in README.splitlines() if line.startswith("|") and not line.startswith("|---"))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def documented() -> dict[str, list[str]]:
    """Rows of the tables of keys, by key."""
    keys: dict[str, list[str]] = {}
    in_keys = False
    for cells in table_rows():
        if cells[0] == "Key":
            in_keys = True
        elif not cells[0].startswith("`"):
            in_keys = False
        elif in_keys:
            for name in re.findall(r"`([^`]+)`", cells[0]):
                assert name not in keys, f"{name} is in two tables"
                keys[name] = cells[1:]
    return keys


def configuration(**parts: Any) -> dict[str, Any]:
    return {"listen": {"rest": ["unix:/s"]}, "models": [MODEL], **parts}


def files(directory: Path) -> dict[str, str]:
    """Readable files for the keys that name one."""
    (directory / "file").write_text("x")
    return dict.fromkeys(("certificate", "key", "client_ca", "ca"), str(directory / "file"))


def known_keys(prefix: str, read: Any) -> set[str]:
    """What the error about an unknown key at that place says."""
    with pytest.raises(ConfigurationError) as caught:
        read()
    assert caught.value.seen == "an unknown key", f"{prefix}: {caught.value}"
    return {prefix + key for key in caught.value.allowed.removeprefix("the keys ").split(", ")}


def keys_of_code(directory: Path) -> set[str]:
    """All keys of the configuration and of serving.json, dotted."""
    unknown = {"?": 0}
    tls = files(directory)

    def of_config(prefix: str, **parts: Any) -> set[str]:
        return known_keys(prefix, lambda: read_config(configuration(**parts), "file"))

    def of_serving(prefix: str, **parts: Any) -> set[str]:
        (directory / "serving.json").write_text(
            json.dumps({"inputs": TENSORS, "outputs": TENSORS, "steps": [STEP], **parts})
        )
        return known_keys(prefix, lambda: read_serving_file(directory, ServingOptions(), PIPELINE))

    return set().union(
        of_config("", **unknown),
        of_config("listen.", listen=unknown),
        of_config("tls.", tls=unknown),
        of_config("access[].", access=[unknown]),
        of_config("mqtt.", mqtt={"host": "localhost", "device": "d", **unknown}),
        of_config("mqtt.tls.", mqtt={"host": "localhost", "device": "d", "tls": {"ca": tls["ca"], **unknown}}),
        of_config("models[].", models=[{**MODEL, **unknown}]),
        of_config("engine.", engine=unknown),
        of_config("limits.", limits=unknown),
        of_serving("", **unknown),
        of_serving("batching.", batching={"max_size": 1, **unknown}),
        of_serving("sequence.", sequence={"states": [STATE], **unknown}),
        of_serving("sequence.states[].", sequence={"states": [{**STATE, **unknown}]}),
        of_serving("steps[].", steps=[{**STEP, **unknown}]),
    )


def test_every_key(tmp_path: Path) -> None:
    assert set(documented()) == keys_of_code(tmp_path)


def test_types_are_words_of_json() -> None:
    for key, (of_key, *_rest) in documented().items():
        assert set(of_key.removesuffix(" or null").split(" or ")) <= TYPES.keys(), f"{key}: {of_key}"


def test_defaults(tmp_path: Path) -> None:
    """Of the configuration, the engine, the limits, the broker and the options of a model."""
    mqtt = read_config(configuration(listen={}, mqtt={"host": "localhost", "device": "d"}), "file")
    config = read_config(configuration(), "file")
    serving = ModelConfig("m", "1.0.0", "", tmp_path, {"batching": {"max_size": 1}}, "file").override(ServingOptions())
    states = ModelConfig("m", "1.0.0", "", tmp_path, {"sequence": {"states": [STATE]}}, "file").override(
        ServingOptions()
    )
    owners: dict[str, Any] = {
        "engine.": EngineOptions(),
        "limits.": config.limits,
        "mqtt.": mqtt.mqtt,
        "batching.": serving.batching,
        "sequence.states[].": states.sequence and states.sequence.states[0],
        "sequence.": states.sequence,
        "listen.": mqtt,
        "models[].": config.models[0],
        "": {**vars_of(ServingOptions()), **vars_of(config)},
    }
    checked = set()
    for key, default in defaults():
        prefix = next(prefix for prefix in owners if key.startswith(prefix))
        owner, name = owners[prefix], key.removeprefix(prefix)
        values = owner if isinstance(owner, dict) else vars_of(owner)
        if name in values and default != {}:  # objects have rows of their own
            assert plain(values[name]) == default, key
            checked.add(key)
    for key in ("limits.body_bytes", "engine.parallel", "queue", "batching.max_delay_ms", "sequence.idle_seconds"):
        assert key in checked
    assert len(checked) > 30


def defaults() -> Iterable[tuple[str, Any]]:
    """Keys that say a default, and the default."""
    for key, cells in documented().items():
        if len(cells) > 2 and cells[1] not in ("", "required"):
            yield key, json.loads(cells[1].strip("`"))


def vars_of(owner: Any) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in owner.__dataclass_fields__}


def plain(value: Any) -> Any:
    """As JSON would have it."""
    return list(value) if isinstance(value, tuple) else dict(value) if hasattr(value, "keys") else value


def test_the_example_configurations_are_right(tmp_path: Path) -> None:
    """Every block of JSON that is a configuration, or a part of one."""
    read: list[Config] = []
    for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL):
        (tmp_path / "file").write_text("x")
        text = re.sub(r'"/(etc|run)/[^"]*"', json.dumps(str(tmp_path / "file")), block)
        if text.startswith('{\n  "listen"'):
            read.append(read_config(json.loads(text), "file"))
        elif text.startswith(('"mqtt"', '"access"')):
            tls = files(tmp_path)
            del tls["ca"]
            read.append(read_config(configuration(tls=tls, **json.loads(f"{{{text}}}")), "file"))
    assert len(read) == 3


def model_directory(directory: Path, platform: str, file: str, **files: str) -> ModelConfig:
    """A model of the README's examples."""
    directory.mkdir()
    description = {"name": "example", "version": "1.0.0", "platform": platform, "file": file}
    for name, text in {"model.json": json.dumps(description), **files}.items():
        (directory / name).write_text(text)
    return ModelConfig("example", "1.0.0", "", directory, {}, "file")


def block(language: str, part: str) -> str:
    """The example that contains that text."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if part in text)
    return str(found)


def test_the_python_example_computes(tmp_path: Path) -> None:
    files = {"serving.json": block("json", '"factor"'), "model.py": block("python", "def load")}
    model = load_model(model_directory(tmp_path / "example", PYTHON, "model.py", **files), EngineOptions(), None)[2]
    (result,) = model.run({"x": np.array([[1, 2]], np.float32)}, ["y"])
    assert result.tolist() == [[3, 6]]


def test_the_pipeline_example_computes(tmp_path: Path) -> None:
    scale = "def infer(inputs):\n    return {'scaled': inputs['pixels'].astype('float32')}\n"
    name = "import numpy\ndef infer(inputs):\n    return {'label': numpy.full(len(inputs['scores']), 'a', object)}\n"
    files = {"serving.json": block("json", '"steps"'), "scale.py": scale, "name.py": name}
    config = model_directory(tmp_path / "example", PIPELINE, "serving.json", **files)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "relu", tensors[:1], tensors[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), config.path / "model.onnx"
    )
    model = load_model(config, EngineOptions(), None)[2]
    (result,) = model.run({"pixels": np.array([[1, 2]], np.uint8)}, ["label"])
    assert result.tolist() == ["a"]


def test_metrics() -> None:
    metrics = Metrics()
    metrics.observe_broker(lambda: True)
    metrics.observe_unsent(int, int)
    told = {family.name for family in metrics.collect()}
    rows = {name for cells in table_rows() for name in re.findall(r"`(edgeml_\w+)`", cells[0])}
    assert {name.removesuffix("_total") for name in rows} == told


def test_commands_and_exit_codes() -> None:
    text = " ".join(cells[0] for cells in table_rows())
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    for command in commands:
        assert f"`{command} " in text


def test_links() -> None:
    """Links lead to headings and files that are there."""
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (Path(__file__).parent.parent / target).exists(), target
