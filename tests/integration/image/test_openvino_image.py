# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime's image with OpenVINO: built from its own recipe and lock, it computes on a device's terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.integration.image.conftest import recipe, run_module
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT, take_built_layers

NAME = "edgeml-test/openvino:built"


def test_the_recipe_is_the_runtimes_own_but_for_the_lock() -> None:
    made, own = recipe("runtime/image/openvino.yml"), recipe("runtime/image/image.yml")
    assert made["python"].pop("requirements") == "requirements/openvino.txt"
    assert own["python"].pop("requirements") == "requirements/runtime.txt"
    assert made == own


@pytest.mark.timeout(300)
def test_it_has_openvino(tmp_path: Path, container: Callable[..., str]) -> None:
    cache, archive = tmp_path / "cache", tmp_path / "image.tar"
    take_built_layers(cache)
    result = run_module(
        {
            "recipe": recipe("runtime/image/openvino.yml"),
            "source_root": str(REPOSITORY_ROOT),
            "architectures": ["amd64"],
            "cache": str(cache),
            "archive": {"path": str(archive), "architecture": "amd64", "name": NAME},
        }
    )
    assert not result.get("failed"), result
    program = "import onnxruntime; print(onnxruntime.get_available_providers())"
    told = container(archive, NAME, "-c", program, entrypoint="/usr/bin/python3.13")
    assert "OpenVINOExecutionProvider" in told
