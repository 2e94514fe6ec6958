# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a host's models to its releases and checks."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.checks import release_checks
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.releases import host_releases

SETTINGS: dict[str, Any] = {
    "listen_address": "0.0.0.0",  # noqa: S104
    "server_listen_address": "127.0.0.1",
    "ports": {"rest": 8000, "grpc": 8001, "metrics": 8002},
    "memory_mb": 0,
    "base_memory_mb": 100,
    "has_broker": True,
}
SERVER = {"rest_port": 8080, "grpc_port": 8081}
RUNTIMES: list[dict[str, Any]] = [
    {"name": "runtime", "recipe": "image.yml"},
    {"name": "vision", "extends": "runtime", "ports": {"rest": 8010, "grpc": 8011, "metrics": 8012}},
    {"name": "other", "image": "x@sha256:0", "server": SERVER, "ports": {"rest": 8020, "grpc": 8021}},
]


def locked(name: str, digit: str) -> dict[str, Any]:
    variant = {
        "repository": f"edgeml/models/{name}",
        "blob": {"digest": "sha256:" + digit * 64, "size": 10},
        "golden_cases": 2,
    }
    return {"1.0.0": {"platform": "any", "variants": {"default": variant}}}


LOCK: dict[str, Any] = {
    "registry": "registry:1",
    "images": {
        name: {"repository": f"edgeml/{name}", "platforms": {"amd64": {"digest": "sha256:" + "e" * 64, "size": 7}}}
        for name in ("runtime", "vision", "other")
    },
    "models": {name: locked(name, digit) for name, digit in (("one", "1"), ("two", "2"), ("three", "3"))},
}


def model(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0.0", "variant": "default", "protocols": ["rest", "grpc"], **settings}


def releases(*models: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    return host_releases(models, LOCK, RUNTIMES, "amd64", "camera-1", {**SETTINGS, **settings})


def test_models_are_grouped_by_runtime_each_with_its_own_ports() -> None:
    first, vision, other = releases(
        model("three", runtime="other"), model("two", runtime="vision"), model("one", runtime="runtime")
    )
    assert [release["name"] for release in (first, vision, other)] == ["runtime", "vision", "other"]
    assert [release["models"][0]["name"] for release in (first, vision, other)] == ["one", "two", "three"]
    assert first["listen"] == {
        "rest": ["0.0.0.0:8000", "unix:/run/edgeml/rest.sock"],
        "grpc": ["0.0.0.0:8001", "unix:/run/edgeml/grpc.sock"],
        "metrics": ["0.0.0.0:8002"],
    }
    assert vision["listen"]["rest"][0] == "0.0.0.0:8010"
    assert vision["image"] == "registry:1/edgeml/vision@sha256:" + "e" * 64
    assert other["server"] == SERVER
    assert other["listen"] == {"rest": ["127.0.0.1:8020"], "grpc": ["127.0.0.1:8021"]}
    assert releases() == []


@pytest.mark.parametrize(
    ("listen", "address", "asked"),
    [
        ("::", "[::]:8000", "https://[::1]:8000"),
        ("[::1]", "[::1]:8000", "https://[::1]:8000"),
        ("0.0.0.0", "0.0.0.0:8000", "https://127.0.0.1:8000"),  # noqa: S104
    ],
)
def test_a_runtime_at_an_address(listen: str, address: str, asked: str) -> None:
    (release,) = releases(model("one", protocols=["rest"]), listen_address=listen)
    assert release["listen"]["rest"][0] == address
    (check,) = release_checks([release], {"tls": True, "directory": "/var/lib/edgeml"})
    assert check["endpoint"] == asked


def test_a_runtime_listens_where_its_models_need_it() -> None:
    (release,) = releases(model("one", protocols=["grpc"]), model("two", protocols=["mqtt"]), listen_address="::1")
    assert release["protocols"] == ["grpc", "mqtt"]
    assert release["listen"]["rest"] == ["unix:/run/edgeml/rest.sock"]
    assert release["listen"]["grpc"][0] == "[::1]:8001"
    (check,) = release_checks([release], {"tls": True, "directory": "/var/lib/edgeml"})
    assert check["endpoint"] == "grpcs://[::1]:8001"
    assert [item["name"] for item in check["models"]] == ["one"]


def test_what_models_need_is_summed_where_each_says_it() -> None:
    needs: dict[str, Any] = {
        "memory_mb": 300,
        "limits": {"cpus": 1.5, "pids": 64, "shared_memory_mb": 32, "cpuset": "0-1"},
    }
    other = {**needs, "limits": {**needs["limits"], "cpuset": "3"}}
    (both,) = releases(model("one", requires=needs), model("two", requires=other))
    assert both["limits"] == {
        "memory_mb": 700, "cpus": 3.0, "pids": 128, "shared_memory_mb": 64, "cpuset": "0-1,3"
    }  # fmt: skip
    (one,) = releases(model("one", requires=needs), model("two"))
    assert one["limits"] == {"memory_mb": 0, "cpus": 0, "pids": 256, "shared_memory_mb": 32, "cpuset": "0-1"}
    (fixed,) = releases(model("one", requires=needs), memory_mb="512")
    assert fixed["limits"]["memory_mb"] == 512


def test_gpus_are_those_of_all_models() -> None:
    one, two = model("one", requires={"gpus": [1, "GPU-6c5e"]}), model("two", requires={"gpus": ["0", 1]})
    (both,) = releases(one, two)
    assert both["gpus"] == ["0", "1", "GPU-6c5e"]
    (every,) = releases(one, model("two", requires={"gpus": "all"}))
    assert every["gpus"] == ["all"]
    (none,) = releases(model("one"))
    assert "gpus" not in none, "releases from before there were any stay as they are"


def test_devices_and_environment_are_those_of_all_models() -> None:
    one = model("one", requires={"devices": ["/dev/video1", "/dev/video0"], "environment": {"A": "1"}})
    two = model("two", requires={"devices": ["/dev/video0"], "environment": {"A": "1", "B": "2"}})
    (release,) = releases(one, two)
    assert release["devices"] == ["/dev/video0", "/dev/video1"]
    assert release["environment"] == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        (
            [model("one", requires={"environment": {"A": "1"}}), model("two", requires={"environment": {"A": "2"}})],
            {},
            ["environment variable A", "the models one and two", "runtime of its own"],
        ),
        ([model("one", protocols=["mqtt"])], {"has_broker": False}, ["no broker", "inference_runtime_mqtt"]),
        ([model("three", runtime="other", protocols=["mqtt"])], {}, ["another server", "leave mqtt out"]),
        (
            [model("three", runtime="other", shadow={"share": 0.1})],
            {},
            ["Live requests for three", "another server", "share: 0"],
        ),
        ([model("one", runtime="third"), model("four")], {}, ["no third image", "Model four is not in the lock"]),
    ],
)
def test_what_does_not_fit_is_told_at_once(
    models: list[dict[str, Any]], settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InventoryError) as caught:
        releases(*models, **settings)
    assert [word for word in words if word not in str(caught.value)] == []


def test_checks_ask_each_runtime_where_it_listens() -> None:
    found = release_checks(
        releases(model("one", slo={"p95_ms": 5}), model("three", runtime="other")),
        {"tls": True, "directory": "/var/lib/edgeml"},
    )
    assert [(check["runtime"], check["endpoint"], check["secured"]) for check in found] == [
        ("runtime", "https://127.0.0.1:8000", True),
        ("runtime", "grpcs://127.0.0.1:8001", True),
        ("other", "http://127.0.0.1:8020", False),
        ("other", "grpc://127.0.0.1:8021", False),
    ]
    assert found[0]["measured"] == [
        {"name": "one", "version": "1.0.0", "golden": f"/var/lib/edgeml/models/{'1' * 64}/golden", "p95_ms": 5}
    ]
    assert found[2]["models"][0]["golden"] == f"/var/lib/edgeml/runtimes/other/models/{'3' * 64}/golden"
