# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""inference_latency against the real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunModule = Callable[..., dict[str, Any]]
Endpoints = dict[str, dict[str, Any]]


@pytest.mark.parametrize("way", ["http", "http+unix", "grpc", "grpc+unix", "https, token", "grpcs, token"])
def test_latency_within_a_generous_objective(
    run_module: RunModule, endpoints: Endpoints, models: Path, way: str
) -> None:
    asked = [
        {"name": "scores", "version": "1.0.0", "golden": str(models / "scores" / "golden"), "p95_ms": 60000},
        {"name": "copy"},
    ]
    options = {"models": asked, "samples": 50, "warmup": 5}
    result = run_module("inference_latency", endpoints[way] | options)
    assert not result.get("failed"), result["output"]
    assert result["changed"] is False
    assert [measured["name"] for measured in result["models"]] == ["scores", "copy"]
    for measured in result["models"]:
        assert measured["samples"] == 50
        assert measured["met"] is True
        times = [measured[f"{name}_ms"] for name in ("min", "p50", "p95", "p99", "max")]
        assert times == sorted(times)
        assert 0 < times[0] <= measured["mean_ms"] <= times[-1]
    assert result["models"][0]["objective"] == {"p50_ms": None, "p95_ms": 60000, "p99_ms": None}


def test_json_instead_of_binary_tensors(run_module: RunModule, endpoints: Endpoints, models: Path) -> None:
    asked = [{"name": "copy", "golden": str(models / "copy" / "golden")}]
    options = endpoints["http"] | {"models": asked, "samples": 5, "binary": False}
    assert run_module("inference_latency", options)["models"][0]["met"] is True


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_missed_objective_fails_after_all_are_measured(
    run_with_ansible: RunModule, endpoints: Endpoints, way: str
) -> None:
    asked = [{"name": "scores", "p95_ms": 0.000001, "p99_ms": 60000}, {"name": "copy", "p99_ms": 60000}]
    result = run_with_ansible("inference_latency", endpoints[way] | {"models": asked, "samples": 20}, "--check")
    assert result["failed"]
    assert "The model 'scores' misses its latency objective (p95 " in result["what"]
    assert " ms measured, 1e-06 ms allowed, over 20 requests)" in result["what"]
    assert result["where"] == endpoints[way]["endpoint"]
    assert [measured["met"] for measured in result["models"]] == [False, True]
    assert f"p95 {result['models'][0]['p95_ms']:.3f} ms measured" in result["msg"]
    assert len(result["failures"]) == 1


def test_unknown_model_fails_after_the_others_are_measured(run_module: RunModule, endpoints: Endpoints) -> None:
    options = {"models": [{"name": "unknown"}, {"name": "scores"}], "samples": 5}
    result = run_module("inference_latency", endpoints["grpc"] | options)
    assert result["failed"]
    assert result["what"] == "The inference server refused a request for model 'unknown'"
    assert "NOT_FOUND" in result["seen"]
    assert [measured["name"] for measured in result["models"]] == ["scores"]


def test_nothing_to_measure(run_module: RunModule, endpoints: Endpoints) -> None:
    result = run_module("inference_latency", endpoints["http"] | {"models": [{"name": "scores"}], "samples": 0})
    assert result["failed"]
    assert "samples: 0" in result["seen"]
