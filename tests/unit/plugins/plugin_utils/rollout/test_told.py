# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from ansible_collections.edgeml.fleet.plugins.action.ledger import ActionModule
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.told import told_lines

MODEL = {"name": "digits", "version": "1.0.0", "variant": "default", "digest": "sha256:0"}


def entry(release: str, second: int) -> dict[str, Any]:
    return {"time": f"2026-11-28T06:00:{second:02}Z", "runtime": "runtime", "release": release, "outcome": "active"}


def host(*entries: dict[str, Any]) -> dict[str, Any]:
    active = {"id": entries[-1]["release"], "models": [{**MODEL, "options": {}}]} if entries else None
    runtime = {"name": "runtime", "active": active, "history": list(entries)}
    return {"edgeml_site": "berlin", "told": {"runtimes": [runtime]}}


def test_the_serial_belongs_to_the_last_try_only() -> None:
    hosts = {"a": host(entry("r1", 1), entry("r2", 2)), "b": {}, "c": {"told": {"failed": True}}}
    lines = told_lines(hosts, list(hosts), "told", 7)
    assert [(line["host"], line["site"], line["release"], line["serial"]) for line in lines] == [
        ("a", "berlin", "r1", None),
        ("a", "berlin", "r2", 7),
    ]


def test_a_rollout_has_made_the_last_try_only() -> None:
    lines = told_lines({"a": host(entry("r1", 1), entry("r2", 2))}, ["a"], "told", 7, "7.1")
    assert [(line["release"], line["rollout"], line["serial"]) for line in lines] == [
        ("r1", "", None),
        ("r2", "7.1", 7),
    ]


def test_what_a_guard_went_back_to_is_not_of_the_rollout() -> None:
    back = [{**entry("r2", 3), "outcome": "rolled_back", "by": "guard"}, {**entry("r1", 3), "by": "guard"}]
    lines = told_lines({"a": host(entry("r1", 1), entry("r2", 2), *back)}, ["a"], "told", 7, "7.1")
    assert [(line["outcome"], line["release"]) for line in lines if line["rollout"]] == [("rolled_back", "r2")]


def test_what_was_removed_is_told_after_all_else() -> None:
    lines = told_lines({"a": host(entry("r1", 1)), "b": host()}, ["a", "b"], "told", removed=["a", "b"])
    assert [(line["host"], line["outcome"], line["release"], line["by"]) for line in lines] == [
        ("a", "active", "r1", ""),
        ("a", "removed", "r1", "operator"),
    ]
    assert lines[-1]["models"] == [MODEL]


def test_a_host_where_the_removal_failed_is_not_told_as_removed(tmp_path: Path) -> None:
    told = host(entry("r1", 1))
    variables = {
        "hostvars": {"a": told, "b": told},
        "ansible_play_hosts_all": ["a", "b"],
        "ansible_play_hosts": ["b"],
    }
    task = MagicMock(args={"variable": "told", "path": str(tmp_path / "ledger"), "removed": True}, async_val=0)
    action = ActionModule(task, MagicMock(), MagicMock(check_mode=False), MagicMock(), MagicMock(), None)
    assert action.run(None, variables)["lines"] == 3
    assert [line["host"] for line in ledger.read(str(tmp_path / "ledger")) if line["outcome"] == "removed"] == ["b"]
