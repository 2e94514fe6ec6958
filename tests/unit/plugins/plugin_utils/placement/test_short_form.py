# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Short forms of placed models: nothing is lost, and what hosts share is said once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.short_form import expand, shorten
from hypothesis import given
from hypothesis import strategies as st

ITEMS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["digits", "sound"]),
        "version": st.sampled_from(["1.0.0", "2.0.0"]),
        "slo": st.sampled_from([{}, {"p95_ms": 25}, {"p95_ms": 7}]),
        "options": st.sampled_from([{}, {"batching": {"max_size": 8}}]),
    },
    optional={"variant": st.sampled_from(["int8", "fp32"])},
)


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(ITEMS, max_size=4)))
def test_expanding_gives_what_was_shortened(hosts: dict[str, list[dict[str, Any]]]) -> None:
    models, short = shorten(hosts)
    read = json.loads(json.dumps([models, short]))  # as an export goes to AWX and back
    assert {name: expand(items, read[0]) for name, items in read[1].items()} == hosts


def test_the_settings_of_most_hosts_are_the_models() -> None:
    usual, other = ({"name": "digits", "version": "1.0.0", "slo": {"p95_ms": limit}} for limit in (25, 7))
    models, short = shorten({"first": [other], "second": [usual], "third": [usual]})
    assert models == {"digits 1.0.0": usual}
    assert short["first"] == [{"model": "digits 1.0.0", "slo": {"p95_ms": 7}}]
    assert short["second"] is short["third"], "equal hosts share one list"


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"digits 1\.0\.0"):
        expand(["digits 1.0.0"], {})
