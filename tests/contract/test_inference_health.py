# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""inference_health against the real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port

RunModule = Callable[..., dict[str, Any]]
Endpoints = dict[str, dict[str, Any]]

EVERY_ENDPOINT = [
    "http",
    "http+unix",
    "grpc",
    "grpc+unix",
    "https, token",
    "grpcs, token",
    "https, certificate",
    "grpcs, certificate",
]


def model(models: Path, name: str, **more: str) -> dict[str, str]:
    return {"name": name, "version": "1.0.0", "golden": str(models / name / "golden")} | more


@pytest.mark.parametrize("way", EVERY_ENDPOINT)
def test_healthy_server_and_models(run_module: RunModule, endpoints: Endpoints, models: Path, way: str) -> None:
    options = endpoints[way] | {"models": [model(models, "scores"), model(models, "copy")]}
    result = run_module("inference_health", options)
    assert not result.get("failed"), result["output"]
    assert result["changed"] is False
    assert result["server"]["name"] == "edgeml-runtime"
    assert result["server"]["version"]
    scores, copy = result["models"]
    assert (scores["name"], scores["version"], scores["ready"]) == ("scores", "1.0.0", True)
    assert (scores["provider"], copy["provider"]) == ("CPU", "CPU")
    assert [(case["case"], case["label"], case["passed"]) for case in scores["golden"]] == [
        ("dog", "dog", True),
        ("owl", "owl", True),
    ]
    assert scores["golden"][0]["description"] == "It barks"
    assert 0 <= scores["golden"][0]["max_absolute_error"] < 1e-5
    assert [(case["passed"], case["max_absolute_error"]) for case in copy["golden"]] == [(True, 0)]


def test_server_alone_and_version_as_the_server_says(run_module: RunModule, endpoints: Endpoints) -> None:
    assert run_module("inference_health", endpoints["http"])["models"] == []
    result = run_module("inference_health", endpoints["grpc"] | {"models": [{"name": "scores"}]})
    assert result["models"] == [{"name": "scores", "version": "1.0.0", "ready": True, "provider": "CPU", "golden": []}]


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_wrong_answer_fails_and_says_where(
    run_with_ansible: RunModule, endpoints: Endpoints, models: Path, way: str
) -> None:
    wrong = model(models, "scores", golden=str(models / "wrong"))
    options = endpoints[way] | {"models": [wrong, model(models, "copy")]}
    # Check mode checks all the same.
    result = run_with_ansible("inference_health", options, "--check")
    assert result["failed"]
    assert "The model 'scores' version 1.0.0 answered golden case 'dog' otherwise than expected" in result["msg"]
    assert "element 1 of output 'y' is 6, expected 6.5 within 0.0066 (1 of 3 elements differ)" in result["seen"]
    assert result["where"] == endpoints[way]["endpoint"]
    assert result["failures"] == [result["msg"]]
    scores, copy = result["models"]
    assert scores["golden"][0]["passed"] is False
    assert scores["golden"][0]["max_absolute_error"] == pytest.approx(0.5)
    assert copy["golden"][0]["passed"] is True


@pytest.mark.parametrize("way", ["http", "grpc"])
@pytest.mark.parametrize("asked", [{"name": "unknown"}, {"name": "scores", "version": "9.9.9"}])
def test_model_that_is_not_served(
    run_module: RunModule, endpoints: Endpoints, models: Path, way: str, asked: dict[str, str]
) -> None:
    result = run_module("inference_health", endpoints[way] | {"models": [asked, model(models, "copy")]})
    assert result["failed"]
    assert f"The model '{asked['name']}'" in result["what"]
    assert "is not ready" in result["what"]
    assert [seen["ready"] for seen in result["models"]] == [False, True]


@pytest.mark.parametrize("way", ["https, token", "grpcs, token"])
@pytest.mark.parametrize("token", ["wrong-horse-battery", None])
def test_wrong_token_is_refused(run_module: RunModule, endpoints: Endpoints, way: str, token: str | None) -> None:
    result = run_module("inference_health", endpoints[way] | {"bearer_token": token})
    assert result["failed"]
    assert result["what"] == "The inference server refused the credentials"
    assert "bearer_token" in result["remedy"]


@pytest.mark.parametrize("way", ["https, token", "grpcs, token"])
@pytest.mark.parametrize("right", [True, False])
def test_token_is_not_shown(run_with_ansible: RunModule, endpoints: Endpoints, way: str, right: bool) -> None:
    token = endpoints[way]["bearer_token"] if right else "wrong-horse-battery"
    result = run_with_ansible("inference_health", endpoints[way] | {"bearer_token": token}, "-vvv")
    assert result.get("failed", False) is not right
    assert result["invocation"]["module_args"]["bearer_token"] == "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"
    assert token not in result["output"]


@pytest.mark.parametrize("way", ["https, token", "grpcs, token"])
@pytest.mark.parametrize("change", [{"server_name": None}, {"ca_file": "other.crt"}])
def test_certificate_of_another_name_or_authority(
    run_module: RunModule, endpoints: Endpoints, certificates: Path, way: str, change: dict[str, str | None]
) -> None:
    options = endpoints[way] | change
    if change.get("ca_file"):
        options["ca_file"] = str(certificates / "other.crt")
    result = run_module("inference_health", options)
    assert result["failed"]
    assert result["what"] == "The certificate of the inference server is not trusted"
    assert result["where"] == options["endpoint"]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_server_that_is_down(run_module: RunModule, scheme: str) -> None:
    port = free_port()
    result = run_module("inference_health", {"endpoint": f"{scheme}://127.0.0.1:{port}", "wait": 0.5})
    assert result["failed"]
    assert result["what"] == "The inference server does not answer"
    assert "refused" in result["seen"]
    assert "models" not in result


@pytest.mark.parametrize(("scheme", "protocol"), [("http", "rest"), ("grpc", "grpc")])
def test_waits_for_a_server_that_starts(
    run_module: RunModule, start_server: Callable[..., dict[str, str]], scheme: str, protocol: str
) -> None:
    addresses = start_server()
    result = run_module("inference_health", {"endpoint": f"{scheme}://{addresses[protocol]}", "wait": 30})
    assert not result.get("failed"), result["output"]
    assert result["server"]["name"] == "edgeml-runtime"


@pytest.mark.parametrize(("way", "scheme"), [("http", "grpc"), ("grpc", "http"), ("http", "https")])
def test_scheme_of_another_protocol(run_module: RunModule, endpoints: Endpoints, way: str, scheme: str) -> None:
    endpoint = endpoints[way]["endpoint"].replace(way, scheme, 1)
    result = run_module("inference_health", {"endpoint": endpoint, "timeout": 3})
    assert result["failed"]
    assert result["where"] == endpoint
    assert "check that" in result["remedy"] or "correct scheme" in result["remedy"]
