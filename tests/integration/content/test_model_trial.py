# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""model_artifact tries what it publishes, in the real runtime image and without an engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._image.python import controller_architecture
from ansible_collections.edgeml.fleet.tests.support.content import (
    REPOSITORY_ROOT,
    Store,
    run_module,
    take_built_layers,
)

pytestmark = pytest.mark.timeout(900)

VALUE = {"name": "values", "datatype": "FP32", "shape": [2]}
DOUBLE = """
def infer(inputs):
    return {"double": inputs["values"] * 2}
"""


@pytest.fixture(scope="module")
def trial(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Publish the collection's runtime for this machine, and return the option that tries models in it."""
    cache = tmp_path_factory.mktemp("cache")
    take_built_layers(cache)
    options = {
        "recipe": yaml.safe_load((REPOSITORY_ROOT / "runtime/image/image.yml").read_text()),
        "source_root": str(REPOSITORY_ROOT),
        "architectures": [controller_architecture()],
        "cache": str(cache),
        "registry": store.options(),
        "repository": "edgeml/runtime",
    }
    image = run_module("oci_image", options, interpreter=sys.executable)["image"]
    return {"image": f"{image['repository']}@{image['digest']}", "cache": str(cache)}


def case(value: float = 1.5, answer: float = 3.0, output: str = "double", inputs: int = 1) -> str:
    names = ["values", *(f"more{index}" for index in range(inputs - 1))]
    return json.dumps(
        {
            "inputs": [{**VALUE, "name": name, "data": [value, value]} for name in names],
            "outputs": [{**VALUE, "name": output, "data": [answer, answer]}],
        }
    )


def model(directory: Path, golden: str, inputs: int = 1, program: str = DOUBLE, **serving: Any) -> Path:
    (directory / "golden").mkdir(parents=True)
    (directory / "golden/first.json").write_text(golden)
    (directory / "model.py").write_text(program)
    given = [{**VALUE, "name": name} for name in ("values", *(f"more{index}" for index in range(inputs - 1)))]
    declared = {"inputs": given, "outputs": [{**VALUE, "name": "double"}], **serving}
    (directory / "serving.json").write_text(json.dumps(declared))
    return directory


def publish(store: Store, source: Path, trial: dict[str, Any], **how: Any) -> dict[str, Any]:
    options = {
        "source": str(source),
        "name": source.name,
        "version": "1.0.0",
        "platform": "python",
        "repository": f"edgeml/models/{source.name}",
        "registry": store.options(),
        "trial": trial,
    }
    return run_module("model_artifact", options, interpreter=sys.executable, **how)


def test_what_answers_rightly_is_published(store: Store, trial: dict[str, Any], tmp_path: Path) -> None:
    source = model(tmp_path / "doubles", case())
    predicted = publish(store, source, trial, check=True)
    assert predicted["changed"] and predicted["untried"] == ""
    first = publish(store, source, trial)
    assert first["changed"] and first["untried"] == ""
    assert not publish(store, source, trial)["changed"]
    assert publish(store, model(tmp_path / "isolated", case(), isolated=True), trial)["changed"]


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("wrong-answer", lambda path: model(path, case(answer=4.0)), "expected 4"),
        ("no-such-output", lambda path: model(path, case(output="triple")), "triple"),
        ("broken-json", lambda path: model(path, '{"inputs": ['), "The golden case is not valid"),
        ("does-not-load", lambda path: model(path, case(), program="import nowhere"), "nowhere"),
        ("too-many-inputs", lambda path: model(path, case(inputs=65), inputs=65), "65 tensors, at most 64"),
    ],
)
def test_what_does_not_is_refused_and_not_published(
    store: Store, trial: dict[str, Any], tmp_path: Path, name: str, make: Callable[[Path], Path], words: str
) -> None:
    told = publish(store, make(tmp_path / name), trial, fails=True)
    text = f"{told['what']} {told['where']} {told['seen']} {told['remedy']}"
    assert words in text, text
    assert name in text, text
    assert "Traceback" not in text
    assert not store.registry().has_manifest(f"edgeml/models/{name}", "1.0.0")


def test_limits_of_the_devices_count(store: Store, trial: dict[str, Any], tmp_path: Path) -> None:
    source = model(tmp_path / "many-inputs", case(inputs=65), inputs=65)
    assert publish(store, source, {**trial, "limits": {"tensors": 100}})["changed"]


def test_other_content_takes_another_version(store: Store, trial: dict[str, Any], tmp_path: Path) -> None:
    source = model(tmp_path / "changed", case())
    first = publish(store, source, trial)
    (source / "golden/second.json").write_text(case(2.0, 4.0))
    for check in (True, False):
        told = publish(store, source, trial, check=check, fails=True)
        assert "published with other content" in told["what"]
        assert "new version" in told["remedy"]
    assert store.registry().manifest_digest("edgeml/models/changed", "1.0.0") == first["digest"]
