# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a release would change, as check mode, --diff and the real run tell it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import NoEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._release import plan as _release_plan
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, Limits, Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release

IMAGE = "registry.edgeml.internal:5443/edgeml/runtime@sha256:" + "a" * 64
DIGITS = Model("digits", "1.0.0", "edgeml/models/digits", "sha256:" + "b" * 64, 1000, "int8")
SOUNDS = Model("sounds", "1.0.0", "edgeml/models/sounds", "sha256:" + "c" * 64, 500)
DESIRED = Desired(IMAGE, 4000, (DIGITS, SOUNDS), {"listen": {"rest": ["127.0.0.1:8000"]}, "engine": {"threads": 1}})


def description(desired: Desired) -> dict[str, Any]:
    """Return what a host has committed of a release, as it reads it from its disk."""
    described = _release_plan.describe(desired, desired.release_id())
    return dict(json.loads(json.dumps(described)))


def plan(before: Desired | None, after: Desired, faults: tuple[str, ...] = ()) -> dict[str, Any]:
    old = description(before) if before else None
    return _release_plan.make_plan("runtime", old, description(after), faults, {"image": 0, "models": 0}, [])


def test_a_new_host_gets_everything() -> None:
    made = plan(None, DESIRED)
    assert made["action"] == "start"
    assert made["image"] == {"before": None, "after": IMAGE}
    assert [(model["name"], model["before"]) for model in made["models"]] == [("digits", None), ("sounds", None)]
    assert made["models"][0]["after"] == {
        "version": "1.0.0", "variant": "int8", "digest": DIGITS.digest, "options": {},
        "protocols": ["rest", "grpc", "mqtt"],
    }  # fmt: skip


def test_nothing_changes_twice() -> None:
    made = plan(DESIRED, DESIRED)
    assert made == {**made, "action": "none", "image": None, "models": [], "settings": [], "faults": []}


def test_models_that_come_go_and_change() -> None:
    newer = replace(DIGITS, version="1.1.0", digest="sha256:" + "d" * 64, variant="fp32")
    other = replace(SOUNDS, name="faces")
    changed = {model["name"]: model for model in plan(DESIRED, replace(DESIRED, models=(newer, other)))["models"]}
    assert changed["digits"]["before"]["version"] == "1.0.0"
    assert changed["digits"]["after"]["version"] == "1.1.0"
    assert changed["digits"]["after"]["variant"] == "fp32"
    assert changed["sounds"]["after"] is None
    assert changed["faces"]["before"] is None


def test_settings_are_named_one_by_one() -> None:
    after = replace(
        DESIRED,
        configuration={**DESIRED.configuration, "engine": {"threads": 2}, "log_level": "debug"},
        limits=Limits(memory_mb=512),
        devices=("/dev/video0",),
    )
    made = plan(DESIRED, after)
    assert made["action"] == "restart"
    assert made["models"] == []
    assert made["settings"] == [
        {"key": "container.devices", "before": [], "after": ["/dev/video0"]},
        {"key": "container.limits.memory_mb", "before": 0, "after": 512},
        {"key": "engine.threads", "before": 1, "after": 2},
        {"key": "log_level", "before": None, "after": "debug"},
    ]


def test_parameters_of_models_are_told_by_name_only() -> None:
    """They may be vaulted in the inventory, and an older version committed them in clear."""
    old, new = (replace(DIGITS, options={"workers": 2, "parameters": {"api_key": key}}) for key in ("S3CRET", "OTHER"))
    before, after = (description(replace(DESIRED, models=(model,))) for model in (old, new))
    in_clear = {**before, "models": [{**before["models"][0], "options": dict(old.options)}]}
    for known in (before, in_clear):
        made = _release_plan.make_plan("runtime", known, after, [], {"image": 0, "models": 0}, [])
        told = json.dumps([made, _release_plan.make_diff(made, known, after), after])
        assert "S3CRET" not in told and "OTHER" not in told
        (changed,) = made["models"]
        assert changed["before"]["options"]["workers"] == 2
        assert changed["before"]["options"]["parameters"].startswith("api_key (")
        assert changed["before"]["options"] != changed["after"]["options"]


def test_secrets_are_told_by_name_only() -> None:
    token = "5f4dcc3b5aa765d61d8327deb882cf99" * 2
    before = replace(DESIRED, environment={"PASSWORD": "hunter2"}, secrets={"bearer_token": token})
    after = replace(DESIRED, environment={"PASSWORD": "hunter3"}, secrets={"bearer_token": token[::-1]})
    made = plan(before, after)
    assert [entry["key"] for entry in made["settings"]] == ["container.environment", "secrets"]
    assert made["settings"][0]["after"].startswith("PASSWORD (")
    assert made["settings"][1]["after"].startswith("bearer_token (")
    shown = json.dumps([made, description(before), description(after)])
    assert "hunter" not in shown
    assert token[:12] not in shown


def test_a_fault_is_repaired() -> None:
    made = plan(DESIRED, DESIRED, ("the container edgeml-runtime does not run",))
    assert made["action"] == "repair"
    assert made["faults"] == ["the container edgeml-runtime does not run"]
    assert made["models"] == made["settings"] == []


class TestStateOfAnOlderVersion:
    """Its models had name, version and digest, and its settings were in the release's runtime.json alone."""

    @pytest.fixture
    def before(self, tmp_path: Path) -> dict[str, Any]:
        models = [{"name": m.name, "version": m.version, "digest": m.digest} for m in DESIRED.models]
        active: dict[str, Any] = {"id": "0" * 64, "image": IMAGE, "models": models}
        (tmp_path / active["id"]).mkdir()
        (tmp_path / active["id"] / "runtime.json").write_text(json.dumps(DESIRED.runtime_configuration()))
        return dict(_release_plan.described_before({"active": active, "previous": None}, tmp_path) or {})

    def test_what_it_did_not_keep_is_no_change(self, before: dict[str, Any]) -> None:
        after = description(DESIRED)
        made = _release_plan.make_plan("runtime", before, after, [], {}, [])
        assert made["action"] == "restart"
        assert made["models"] == made["settings"] == []
        diff = _release_plan.make_diff(made, before, after)
        assert {key for key in diff["after"] if diff["before"].get(key) != diff["after"][key]} == {"id"}

    def test_what_it_kept_is_compared(self, before: dict[str, Any]) -> None:
        newer = replace(DIGITS, version="2.0.0", digest="sha256:" + "e" * 64)
        after = description(replace(DESIRED, models=(newer, SOUNDS), configuration={"engine": {"threads": 4}}))
        made = _release_plan.make_plan("runtime", before, after, [], {}, [])
        assert [model["name"] for model in made["models"]] == ["digits"]
        assert {"key": "engine.threads", "before": 1, "after": 4} in made["settings"]

    def test_without_its_configuration(self, before: dict[str, Any], tmp_path: Path) -> None:
        state = {"active": {key: value for key, value in before.items() if key != "settings"}}
        found = _release_plan.described_before(state, tmp_path / "nowhere")
        assert _release_plan.make_plan("runtime", found, description(DESIRED), [], {}, [])["settings"] == []


def test_a_host_without_engine(tmp_path: Path) -> None:
    staging = tmp_path / "root" / "staging"
    staging.mkdir(parents=True)
    (staging / f"{DIGITS.directory_name}.part").write_bytes(b"x" * 400)
    (staging / f"{SOUNDS.directory_name}.tar").write_bytes(b"x" * SOUNDS.size)
    free = replace(DESIRED, configuration={"listen": {"rest": []}})
    result = Release(NoEngine(), tmp_path / "root").converge(free, check_mode=True)
    assert result["changed"]
    assert result["plan"]["action"] == "start"
    assert result["plan"]["bytes"] == {"image": 4000, "models": 600}
    assert result["bytes_fetched"] == 600
    assert result["diff"]["before"] == {}
    assert result["diff"]["after"]["models"]["digits"]["variant"] == "int8"
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["staging"]
