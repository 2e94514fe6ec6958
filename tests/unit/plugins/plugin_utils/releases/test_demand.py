# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is meant to take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.demand import mirror_demand, runtime_demand

LOCK: dict[str, Any] = {
    "serial": 3,
    "registry": "registry.edgeml.internal:5443",
    "images": {
        "runtime": {
            "repository": "edgeml/runtime",
            "platforms": {
                "amd64": {"digest": "sha256:" + "1" * 64, "size": 100},
                "arm64": {"digest": "sha256:" + "2" * 64, "size": 90},
            },
        }
    },
    "models": {
        "digits": {
            "1.0.0": {
                "platform": "onnxruntime_onnx",
                "variants": {
                    "default": {
                        "repository": "edgeml/models/digits",
                        "digest": "sha256:" + "3" * 64,
                        "blob": {"digest": "sha256:" + "4" * 64, "size": 10},
                        "golden_cases": 2,
                    }
                },
            }
        }
    },
}
CATALOGUE: list[dict[str, Any]] = [
    {
        "name": "digits",
        "version": "1.0.0",
        "platform": "onnxruntime_onnx",
        "source": "models/digits",
        "requires": {"memory_mb": 200, "packages": ["libgomp1"]},
    }
]
IMAGE = {
    "kind": "image",
    "name": "image runtime",
    "repository": "edgeml/runtime",
    "digest": "sha256:" + "1" * 64,
    "size": 100,
}
MODEL = {
    "kind": "model",
    "name": "model digits 1.0.0",
    "runtime": "runtime",
    "repository": "edgeml/models/digits",
    "digest": "sha256:" + "4" * 64,
    "size": 10,
}

SETTINGS = {
    "listen_address": "::1",
    "server_listen_address": "127.0.0.1",
    "ports": {"rest": 8000, "grpc": 8001, "metrics": 8002},
    "memory_mb": 0,
    "base_memory_mb": 192,
    "has_broker": False,
}


def demand(models: list[dict[str, Any]], architecture: str = "amd64") -> dict[str, Any]:
    variables = {"inventory_hostname": "berlin-1", "edgeml_architecture": "amd64"}
    return runtime_demand(models, CATALOGUE, variables, {}, None, LOCK, architecture, SETTINGS)


@pytest.mark.parametrize(
    ("requires", "gpus", "seen"),
    [
        ({"gpus": "all"}, ["all"], ""),
        ({"gpus": [0, "GPU-6c5e1f2a"]}, ["0", "GPU-6c5e1f2a"], ""),
        ({"devices": ["nvidia.com/gpu=0"]}, [], ""),
        ({"gpus": "some"}, [], "some"),
        ({"gpus": []}, [], "[]"),
        ({"gpus": ["first"]}, [], "first"),
        ({"devices": ["gpu=0"]}, [], "gpu=0"),
    ],
)
def test_demand_of_gpus(requires: dict[str, Any], gpus: list[str], seen: str) -> None:
    found = demand([{"name": "digits", "requires": requires}])
    assert [seen in str(problem) for problem in found["problems"]] == ([True] if seen else [])
    assert found["requires"].get("gpus", []) == gpus


def test_demand_of_a_device() -> None:
    found = demand([{"name": "digits", "requires": {"devices": ["/dev/video0"]}}])
    assert found["problems"] == []
    assert found["content"] == [IMAGE, MODEL]
    assert found["ports"] == [
        {"address": "::1", "port": port, "variable": f"inference_runtime_{protocol}_port"}
        for protocol, port in (("rest", 8000), ("grpc", 8001), ("metrics", 8002))
    ]
    base = int(str(SETTINGS["base_memory_mb"]))
    assert found["memory_mb"] == {"runtime": base + 200}
    assert found["requires"] == {
        "packages": ["libgomp1"],
        "devices": ["/dev/video0"],
        "gpus": [],
        "kernel_modules": [],
        "sysctls": [],
    }


def test_every_mistake_of_the_inventory_is_a_problem_and_no_error() -> None:
    found = demand([{"name": "digit"}, {"name": "cats"}])
    assert len(found["problems"]) == 2
    assert all("edgeml_models" in problem["where"] for problem in found["problems"])
    assert [set(problem) for problem in found["problems"]] == [{"what", "where", "seen", "remedy"}] * 2
    assert found["content"] == []


def test_what_the_lock_lacks_is_a_problem() -> None:
    found = demand([{"name": "digits"}], architecture="riscv64")
    assert "architecture riscv64" in found["problems"][0]["what"]


def test_a_host_of_unknown_architecture_is_asked_for_nothing() -> None:
    found = demand([{"name": "digits"}], architecture="")
    assert (found["problems"], found["content"]) == ([], [])


def test_demand_of_a_mirror() -> None:
    content = mirror_demand(LOCK, ["arm64"])
    assert [(entry["kind"], entry["name"], entry["digest"][7], entry["size"]) for entry in content] == [
        ("mirrored", "image runtime for arm64", "2", 90),
        ("mirrored", "model digits 1.0.0", "3", 10),
    ]


def test_a_model_whose_answers_nothing_checks() -> None:
    lock = json.loads(json.dumps(LOCK).replace('"golden_cases": 2', '"golden_cases": 0'))
    for known, found in ((LOCK, []), (lock, ["Nothing checks the answers of digits 1.0.0"])):
        demand = runtime_demand(
            [{"name": "digits"}], CATALOGUE, {"inventory_hostname": "a"}, {}, None, known, "amd64", SETTINGS
        )
        assert [problem["what"] for problem in demand["problems"]] == found
        assert {problem["finding"] for problem in demand["problems"]} <= {"unchecked"}
        assert demand["content"], "it is served nevertheless"
