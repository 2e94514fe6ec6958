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
