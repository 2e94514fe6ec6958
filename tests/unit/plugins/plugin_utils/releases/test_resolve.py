# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From inventory and lock to what a host runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.resolve import resolve_release

DIGEST = "sha256:" + "a" * 64


def variant(digit: str, size: int) -> dict[str, Any]:
    return {
        "repository": "edgeml/models/digits",
        "digest": DIGEST,
        "index": DIGEST,
        "platforms": {},
        "blob": {"digest": "sha256:" + digit * 64, "size": size},
        "golden_cases": 10,
    }


LOCK: dict[str, Any] = {
    "serial": 7,
    "registry": "registry.edgeml.internal:5443",
    "images": {
        "runtime": {
            "repository": "edgeml/runtime",
            "digest": DIGEST,
            "platforms": {"amd64": {"digest": "sha256:" + "b" * 64, "size": 1000}},
        }
    },
    "models": {
        "digits": {
            "1.9.0": {"platform": "onnxruntime_onnx", "variants": {"fp32": variant("c", 40), "int8": variant("d", 20)}},
            "1.10.0": {"platform": "onnxruntime_onnx", "variants": {"default": variant("a", 50)}},
        }
    },
}


def test_release_is_named_by_digest_only() -> None:
    release = resolve_release(LOCK, [{"name": "digits", "slo": {"p95_ms": 5}}], "amd64", "camera-1")
    assert release["image"] == "registry.edgeml.internal:5443/edgeml/runtime@sha256:" + "b" * 64
    assert release["image_size"] == 1000
    assert release["models"] == [
        {
            "name": "digits",
            "version": "1.10.0",
            "variant": "default",
            "repository": "edgeml/models/digits",
            "digest": DIGEST,
            "size": 50,
            "golden_cases": 10,
            "p50_ms": None,
            "p95_ms": 5,
            "p99_ms": None,
            "max_regression": None,
            "concurrency": 0,
            "protocol": "grpc",
            "protocols": ["rest", "grpc"],
            "options": {},
        }
    ]


def test_variant_and_older_version() -> None:
    models = [{"name": "digits", "version": "1.9.0", "variant": "int8"}]
    (model,) = resolve_release(LOCK, models, "amd64", "camera-1")["models"]
    assert (model["version"], model["digest"], model["size"]) == ("1.9.0", "sha256:" + "d" * 64, 20)


def test_options_of_a_model_go_with_it() -> None:
    options = {"batching": {"max_size": 8}, "parameters": {"threshold": 0.5}}
    release = resolve_release(LOCK, [{"name": "digits", "options": options}], "amd64", "camera-1")
    assert release["models"][0]["options"] == options


@pytest.mark.parametrize(
    ("models", "architecture", "words"),
    [
        (
            [{"name": "digit"}],
            "amd64",
            ["host camera-1", "edgeml_models[0]", "Model digit is not in the lock", "digits"],
        ),
        ([{"name": "digits"}], "arm64", ["no runtime image for architecture arm64", "images for amd64"]),
        ([{"name": "digits"}, {"name": "digits"}], "amd64", ["edgeml_models[1]", "placed twice"]),
        ([{"name": "digits", "version": 1.1}], "amd64", ["three-part", "1.1", '"1.10.0"']),
        ([{"name": "digits", "version": "1.8.0"}], "amd64", ["Version 1.8.0", "1.10.0"]),
        ([{"name": "digits", "version": "1.9.0"}], "amd64", ["variant not named", "fp32, int8"]),
        ([{"name": "digits", "version": "1.9.0", "variant": "int4"}], "amd64", ["variant int4", "fp32, int8"]),
        ([{}], "amd64", ["has no name"]),
    ],
)
def test_each_mistake_is_named(models: list[dict[str, Any]], architecture: str, words: list[str]) -> None:
    with pytest.raises(InventoryError) as caught:
        resolve_release(LOCK, models, architecture, "camera-1")
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_malformed_lock_is_refused_with_all_that_is_wrong() -> None:
    lock = copy.deepcopy(LOCK)
    variant = lock["models"]["digits"]["1.10.0"]["variants"]["default"]
    del variant["blob"]
    variant["digest"] = "sha256:a"
    with pytest.raises(InventoryError) as caught:
        resolve_release(lock, [{"name": "digits"}], "amd64", "camera-1")
    place = "the lock, models.digits.1.10.0.variants.default"
    assert [word for word in (f"blob is missing at {place}", f"{place}.digest") if word not in str(caught.value)] == []


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(InventoryError) as caught:
        resolve_release(LOCK, [{"name": "one"}, {"name": "two"}], "riscv64", "camera-1")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("shadow", "expected"),
    [
        ({"share": 0.1, "seconds": 30}, {"shadow": {"share": 0.1, "seconds": 30}}),
        ({"share": 0, "seconds": 30}, {}),
        ({"share": None}, {}),
        ({}, {}),
    ],
)
def test_a_share_of_live_requests_is_asked_where_there_is_one(shadow: dict[str, Any], expected: dict[str, Any]) -> None:
    (model,) = resolve_release(LOCK, [{"name": "digits", "shadow": shadow}], "amd64", "camera-1")["models"]
    assert {key: value for key, value in model.items() if key == "shadow"} == expected
