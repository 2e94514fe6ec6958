# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From inventory and lock to what a host runs."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.models import (
    htpasswd,
    oci_architecture,
    placed_models,
    resolve_release,
)

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
            "p95_ms": 5,
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
    with pytest.raises(AnsibleFilterError) as caught:
        resolve_release(LOCK, models, architecture, "camera-1")
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_malformed_lock_is_refused_with_all_that_is_wrong() -> None:
    lock = copy.deepcopy(LOCK)
    variant = lock["models"]["digits"]["1.10.0"]["variants"]["default"]
    del variant["blob"]
    variant["digest"] = "sha256:a"
    with pytest.raises(AnsibleFilterError) as caught:
        resolve_release(lock, [{"name": "digits"}], "amd64", "camera-1")
    place = "the lock, models.digits.1.10.0.variants.default"
    assert [word for word in (f"blob is missing at {place}", f"{place}.digest") if word not in str(caught.value)] == []


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        resolve_release(LOCK, [{"name": "one"}, {"name": "two"}], "riscv64", "camera-1")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [("x86_64", "amd64"), ("amd64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")],
)
def test_architecture_names(machine: str, architecture: str) -> None:
    assert oci_architecture(machine) == architecture


def test_unknown_architecture() -> None:
    with pytest.raises(AnsibleFilterError, match="riscv64"):
        oci_architecture("riscv64")


@pytest.mark.parametrize(
    ("library", "program"),
    [
        ("bcrypt", "plugins.plugin_utils.releases.models import htpasswd as call; call('edgeml', 'one')"),
        ("jsonschema", "plugins.plugin_utils.documents.schema import validate as call; call({}, 'lock')"),
    ],
)
def test_a_library_that_the_controller_lacks_is_named(library: str, program: str) -> None:
    program = f"import sys; sys.modules['{library}'] = None; from ansible_collections.edgeml.fleet.{program}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"The controller lacks the Python library {library} at {sys.executable}." in ended.stderr
    assert "What to do: install what meta/ee-requirements.txt of the collection names" in ended.stderr


def test_htpasswd_changes_only_with_user_or_password() -> None:
    first = htpasswd("edgeml", "one")
    assert first.startswith("edgeml:$2b$")
    assert htpasswd("edgeml", "one", first) == first
    assert htpasswd("edgeml", "two", first) != first
    assert not htpasswd("other", "one", first).startswith("edgeml:")
    assert htpasswd("edgeml", "one", "edgeml:plain").startswith("edgeml:$2b$")


def test_a_placed_model_that_is_missing_is_named() -> None:
    with pytest.raises(AnsibleFilterError, match=r"edgeml_placed.*Seen: 'digits 1\.0\.0'"):
        placed_models(["digits 1.0.0"], {})
