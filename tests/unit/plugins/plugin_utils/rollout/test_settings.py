# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.schema import SCHEMAS
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import (
    Settings,
    check_agreement,
    read_settings,
)


def test_defaults_are_those_of_the_schema() -> None:
    schema = json.loads((SCHEMAS / "rollout.schema.json").read_text())
    defaults = {name: option.get("default") for name, option in schema["properties"].items()}
    assert read_settings(None) == read_settings({}) == Settings(**defaults)


def test_all_that_can_be_set() -> None:
    text = """
    canary: canary:&site_berlin
    first: 10%
    growth: 2
    pause_seconds: 60
    max_failed: 5%
    per_site: 2
    window: {days: [mon, tue], from: "22:00", to: "05:00", utc: false}
    approval: {url: "https://approve.example/{rollout}/{wave}", wait_seconds: 600}
    rollback: true
    """
    settings = read_settings(yaml.safe_load(text))
    assert settings.first_size(95) == 10
    assert settings.window == {"days": ["mon", "tue"], "from": "22:00", "to": "05:00", "utc": False}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"grow": 3}, ["Unknown key at edgeml_rollout.grow", "did you mean growth"]),
        ({"growth": 0.5}, ["edgeml_rollout.growth", "0.5", "1 or more"]),
        ({"growth": math.inf}, ["edgeml_rollout.growth", "inf", "1 or more"]),
        ({"growth": math.nan}, ["edgeml_rollout.growth", "nan", "1 or more"]),
        ({"pause_seconds": math.inf}, ["edgeml_rollout.pause_seconds", "inf", "0 or more"]),
        ({"first": 0}, ["edgeml_rollout.first", "0 (number)", "minimum is 1"]),
        ({"first": "ten"}, ["edgeml_rollout.first", "'ten'", "percent, such as 10%"]),
        ({"first": "200%"}, ["edgeml_rollout.first", "'200%'", "such as 10%"]),
        ({"max_failed": "none"}, ["edgeml_rollout.max_failed", "such as 10%"]),
        ({"pause_seconds": "5m"}, ["edgeml_rollout.pause_seconds", "'5m'", "give a number"]),
        ({"window": {"from": 1320, "to": "05:00"}}, ["edgeml_rollout.window.from", "1320 (number)", "in quotes"]),
        ({"window": {"from": "22:00"}}, ["key to is missing at edgeml_rollout.window"]),
        ({"window": {"from": "25:00", "to": "05:00"}}, ["edgeml_rollout.window.from", "'25:00'", "HH:MM"]),
        (
            {"window": {"days": ["monday"], "from": "1:00", "to": "05:00"}},
            ["did you mean mon", "edgeml_rollout.window.from"],
        ),
        ({"approval": "yes"}, ["edgeml_rollout.approval", "'yes'", "none, prompt"]),
        ({"approval": {"url": "http://x.example"}}, ["edgeml_rollout.approval", "http://x.example", "https://"]),
        ({"rollback": "true"}, ["edgeml_rollout.rollback", "give true or false"]),
        ("{first: 1}", ["edgeml_rollout", "give a mapping"]),
    ],
)
def test_what_makes_no_sense_is_refused_with_place_value_and_remedy(value: Any, words: list[str]) -> None:
    with pytest.raises(FleetError) as refused:
        read_settings(value)
    assert [word for word in words if word not in str(refused.value)] == [], str(refused.value)


def test_secrets_of_an_address_are_not_told() -> None:
    secret = "https://ada:hush@x.example/{rollout}?token=hush"
    hosts = {"a": {"edgeml_rollout": {"approval": {"url": secret}}}, "b": {}}
    with pytest.raises(FleetError, match=r"https://x\.example/\{rollout\}'") as refused:
        check_agreement(None, hosts, "ab")
    assert "hush" not in str(refused.value)
    for more in ({}, {"first": 0}):
        with pytest.raises(FleetError, match=r"x\.example") as refused:
            read_settings({"approval": {"url": secret.replace("https", "http")}, **more})
        assert "hush" not in str(refused.value)


def test_hosts_of_one_rollout_agree() -> None:
    two, three = {"edgeml_rollout": {"first": 2}}, {"edgeml_rollout": {"first": 3}}
    check_agreement({"first": 2}, {"a": two, "b": two}, "ab")
    check_agreement(None, {"a": {}, "b": {}}, "ab")
    with pytest.raises(FleetError, match=r"differs between hosts.*a: \{'first': 2\}.*b: None"):
        check_agreement({"first": 2}, {"a": two, "b": {}}, "ab")
    check_agreement({"first": 9}, {"a": two, "b": three, "c": {}}, "abc")  # the play's own variable holds for all
