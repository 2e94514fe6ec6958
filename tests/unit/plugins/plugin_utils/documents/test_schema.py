# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What documents may hold, beyond what JSON Schema can say."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import report
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import validate
from ansible_collections.edgeml.fleet.tests.support.catalogue import PLAIN


def refused(settings: dict[str, Any]) -> str:
    return report(validate({"edgeml_catalogue": [{**PLAIN, **settings}]}, "variables"))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("slo.p95_ms", lambda number: {"slo": {"p95_ms": number}}),
        ("requires.memory_mb", lambda number: {"requires": {"memory_mb": number}}),
        ("options.levels[1]", lambda number: {"options": {"levels": [1.5, number]}}),
    ],
)
def test_a_number_that_no_limit_holds_for(number: str, path: str, settings: Any) -> None:
    problems = refused(settings(float(number)))
    assert f"Not a number that can be compared at edgeml_catalogue[0].{path}. Seen: {number} (number)" in problems


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("version", {"version": "1.0.0\n"}),
        ("name", {"name": "sound\n"}),
        ("source.sha256", {"source": {"url": "https://x/y.onnx", "sha256": "a" * 64 + "\n"}}),
    ],
)
def test_a_line_s_end_is_not_the_end_of_a_pattern(path: str, settings: dict[str, Any]) -> None:
    assert f"Value not allowed at edgeml_catalogue[0].{path}. Seen: " in refused(settings)


def test_a_pattern_that_may_stand_anywhere_still_may() -> None:
    assert refused({"source": "a{{ b }}\n"}) and not refused({"source": "models/a\n"})
