# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variant a host fits."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.variants import choose_variant
from ansible_collections.edgeml.fleet.tests.support.catalogue import DIGITS


@pytest.mark.parametrize(
    ("host", "variant", "missing"),
    [
        (Host("h", "arm64", 1024), "int8", []),
        (Host("h", "arm64", 4096), "fp32", []),
        (Host("h", "amd64"), "fp32", []),
        (Host("h", "arm64"), None, ["memory_mb"]),
        (Host("h"), None, ["architecture", "memory_mb"]),
        (Host("h", None, 4096), "fp32", []),
    ],
)
def test_first_variant_that_fits_and_no_guess(host: Host, variant: str | None, missing: list[str]) -> None:
    assert choose_variant(DIGITS, host) == (variant, missing)


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ({"architecture": ["amd64", "arm64"]}, True),
        ({"min_memory_mb": 2048}, False),
        ({"cpu_features": ["asimd", "sve"]}, True),
        ({"cpu_features": ["avx2"]}, False),
        ({"accelerator": "hailo8"}, True),
        ({"accelerator": "npu"}, False),
        ({"groups": ["cameras", "other"]}, True),
        ({"groups": ["other"]}, False),
        ({"variables": {"line": [3, 4]}}, True),
        ({"variables": {"line": 5}}, False),
        ({"variables": {"nothing": 5}}, False),
        ({"accelerator": "hailo8", "groups": ["other"]}, False),
    ],
)
def test_each_condition(when: dict[str, Any], fits: bool) -> None:
    host = Host("h", "arm64", 1024, frozenset({"asimd", "sve"}), "hailo8", frozenset({"cameras"}), {"line": 3})
    model = {"variants": [{"name": "one", "when": when}]}
    assert choose_variant(model, host) == ("one" if fits else None, [])


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [
        (3, 3.0, True),
        (3, "3", False),
        (1, True, False),
        (True, 1, False),
        (0, [False, 2], False),
        (True, [1, True], True),
        (None, False, False),
    ],
)
def test_variables_are_compared_by_their_types(value: Any, wanted: Any, fits: bool) -> None:
    host = Host("h", variables={"line": value})
    model = {"variants": [{"name": "one", "when": {"variables": {"line": wanted}}}]}
    assert choose_variant(model, host) == ("one" if fits else None, [])
