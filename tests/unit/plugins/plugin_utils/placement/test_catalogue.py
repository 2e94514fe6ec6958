# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes in a catalogue, and ports that collide."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import report
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import (
    Catalogue,
    check_catalogue,
    port_collisions,
)
from ansible_collections.edgeml.fleet.tests.support.catalogue import DIGITS, PLAIN, RUNTIMES


def test_mistakes_in_the_catalogue() -> None:
    models = [
        DIGITS,
        DIGITS,
        {**PLAIN, "runtime": "visoin"},
        {**PLAIN, "name": "a-b"},
        {**PLAIN, "name": "a_b", "slo": {"protocol": "mqtt"}},
        {**PLAIN, "name": "c", "variants": [{"name": "x", "file": "x"}, {"name": "x", "file": "y"}]},
    ]
    runtimes = [*RUNTIMES, RUNTIMES[0], {"name": "one", "extends": "two"}, {"name": "two", "extends": "one"},
                {"name": "three", "extends": "non"}]  # fmt: skip
    text = report(check_catalogue(models, runtimes))
    expected = ["catalogue[1]", "also at catalogue[0]", "did you mean vision", "model_a_b", "catalogue[4].slo.protocol",
                "catalogue[5].variants[1].name", "never reached", "Two runtimes have one name", "one -> two -> one",
                "'non'"]  # fmt: skip
    assert [words for words in expected if words not in text] == []
    assert len(text.splitlines()) == 10


def test_two_runtimes_of_a_host_need_their_own_ports() -> None:
    catalogue = Catalogue(
        [], [*RUNTIMES, {"name": "other", "image": "x", "server": {"rest_port": 8080}, "ports": {"rest": 8001}}]
    )
    assert port_collisions(["runtime", "vision"], catalogue) == []
    (problem,) = port_collisions(["runtime", "other"], catalogue)
    assert [w for w in ("port 8001", "runtime (grpc) and other (rest)") if w not in str(problem)] == []


@pytest.mark.parametrize("address", ["https://x/y.onnx", "oci://x/y@sha256:0"])
def test_a_source_that_is_an_address(address: str) -> None:
    (problem,) = check_catalogue([DIGITS, {**PLAIN, "source": address}], RUNTIMES)
    words = ["sound is an address", "catalogue[1].source", repr(address), "give {url, sha256}"]
    assert [word for word in words if word not in str(problem)] == []


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ({"golden": "ADDRESS"}, "catalogue[1].golden"),
        ({"build": {"program": "build.py", "requirements": "ADDRESS"}}, "catalogue[1].build.requirements"),
        (
            {"variants": [{"name": "small", "minify": {"recipe": "int8_static", "calibration": "ADDRESS"}}]},
            "catalogue[1].variants[0].minify.calibration",
        ),
    ],
)
@pytest.mark.parametrize("address", ["https://x/y", "oci://x/y", "file:///x"])
def test_a_path_of_a_model_that_is_an_address(address: str, model: dict[str, Any], place: str) -> None:
    (problem,) = check_catalogue([DIGITS, {**PLAIN, **_with(address, model)}], RUNTIMES)
    words = ["is an address, not a path", place, repr(address), "edgeml.fleet:PATH", "only source", "{url, sha256}"]
    assert [word for word in words if word not in str(problem)] == []


@pytest.mark.parametrize("key", ["recipe", "source_root", "requirements"])
def test_a_path_of_a_runtime_that_is_an_address(key: str) -> None:
    runtime = {"name": "other", "recipe": "edgeml.fleet:runtime/image/image.yml", key: "https://x/y"}
    (problem,) = check_catalogue([], [*RUNTIMES, runtime])
    words = [f"runtimes[{len(RUNTIMES)}].{key}", "is an address, not a path", "'https://x/y'", "edgeml.fleet:PATH"]
    assert [word for word in words if word not in str(problem)] == []
    assert "source" not in str(problem).replace("source_root", "")


def _with(address: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with(address, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with(address, item) for item in value]
    return address if value == "ADDRESS" else value
