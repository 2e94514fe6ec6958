# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The release transaction where it is cut short: who serves afterwards. The fleet test runs it for real."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils import _release
from ansible_collections.edgeml.fleet.plugins.module_utils._engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release import (
    ACTIVE,
    CANDIDATE,
    PREVIOUS,
    Desired,
    Model,
    Release,
)

IMAGE = "registry.edgeml.internal:5443/edgeml/runtime@sha256:" + "a" * 64
MODEL = Model("digits", "1.0.0", "edgeml/models/digits", "sha256:" + "b" * 64, 10)


class MemoryEngine(DockerEngine):
    """An engine whose containers are entries of a dictionary."""

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.images = {IMAGE}
        self.pulled: list[str] = []
        self.options: dict[str, Sequence[str]] = {}

    def container(self, name: str) -> dict[str, Any] | None:
        return self.containers.get(name)

    def has_image(self, reference: str) -> bool:
        return reference in self.images

    def pull(self, reference: str) -> None:
        self.pulled.append(reference)
        self.images.add(reference)

    def remove_image(self, reference: str) -> None:
        self.images.discard(reference)

    def images_of(self, repository: str) -> list[str]:
        return [image for image in self.images if image.startswith(repository + "@")]

    def create(self, name: str, image: str, options: Sequence[str]) -> None:
        self.options[name] = options
        label = options[list(options).index("--label") + 1].partition("=")[2]
        self.containers[name] = {
            "Config": {"Labels": {_release.RELEASE_LABEL: label}},
            "State": {"Running": False, "ExitCode": 0},
            "HostConfig": {"RestartPolicy": {"Name": "no"}},
        }

    def start(self, name: str) -> None:
        self.containers[name]["State"]["Running"] = True

    def stop(self, name: str, seconds: int = 15) -> None:
        self.containers[name]["State"]["Running"] = False

    def rename(self, name: str, new_name: str) -> None:
        self.containers[new_name] = self.containers.pop(name)

    def set_restart_policy(self, name: str, policy: str) -> None:
        self.containers[name]["HostConfig"]["RestartPolicy"]["Name"] = policy

    def remove(self, name: str) -> None:
        self.containers.pop(name, None)

    def logs(self, name: str, lines: int = 20) -> str:
        return "the model has no operator Foo"

    def after_power_cut(self) -> list[str]:
        """Return the containers that the engine starts when the host comes back."""
        return [n for n, c in self.containers.items() if c["HostConfig"]["RestartPolicy"]["Name"] == "always"]


def desired(threads: int = 1) -> Desired:
    return Desired(
        image=IMAGE,
        image_size=0,
        models=(MODEL,),
        configuration={"listen": {"rest": ["unix:/run/edgeml/rest.sock"]}, "threads": threads},
        secrets_directory="",
        memory_mb=0,
    )


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def release(engine: MemoryEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release below a temporary directory, whose runtime is always ready and right."""
    monkeypatch.setattr(os, "chown", lambda *arguments: None)
    monkeypatch.setattr(Release, "_ready", lambda self, sockets: True)
    monkeypatch.setattr(Release, "_check_models", lambda self, desired: None)
    (tmp_path / "models" / MODEL.directory_name).mkdir(parents=True)
    return Release(engine, tmp_path, "", 0.0)


def test_second_time_nothing_changes(release: Release, engine: MemoryEngine) -> None:
    assert release.converge(desired(), check_mode=False)["changed"]
    assert not release.converge(desired(), check_mode=False)["changed"]
    assert set(engine.containers) == {ACTIVE}
    assert engine.after_power_cut() == [ACTIVE]


def test_check_mode_does_nothing(release: Release, engine: MemoryEngine) -> None:
    result = release.converge(desired(), check_mode=True)
    assert result["changed"]
    assert result["steps"] == [f"switch to release {desired().release_id()[:12]}"]
    assert engine.containers == {}
    assert release.state() == {}


def test_options_of_models_are_part_of_the_release(release: Release) -> None:
    options = {"batching": {"max_size": 8}}
    with_options = replace(desired(), models=(replace(MODEL, options=options),))
    assert with_options.release_id() != desired().release_id()
    release.converge(with_options, check_mode=False)
    for name in ("runtime.json", "candidate.json"):
        written = json.loads((release.releases / with_options.release_id() / name).read_text())
        assert written["models"][0]["options"] == options


def test_container_has_a_directory_for_optimised_graphs(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[Path, int] = {}
    monkeypatch.setattr(os, "chown", lambda path, user, group: owners.update({path: user}))
    release.converge(desired(), check_mode=False)
    cache = release.root / "cache"
    assert cache.is_dir()
    assert owners[cache] == _release.USER
    assert f"type=bind,source={cache},target=/var/cache/edgeml" in engine.options[ACTIVE]
    written = json.loads((release.releases / desired().release_id() / "runtime.json").read_text())
    assert written["cache_directory"] == "/var/cache/edgeml"


def test_previous_release_is_remembered(release: Release) -> None:
    release.converge(desired(1), check_mode=False)
    release.converge(desired(2), check_mode=False)
    state = release.state()
    assert state["active"]["id"] == desired(2).release_id()
    assert state["previous"]["id"] == desired(1).release_id()
    release.converge(desired(3), check_mode=False)
    assert {path.name for path in release.releases.iterdir()} == {desired(n).release_id() for n in (2, 3)}


def test_new_release_that_is_not_ready_leaves_the_old_one(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.converge(desired(1), check_mode=False)
    before = dict(engine.containers)
    monkeypatch.setattr(Release, "_ready", lambda self, sockets: sockets.name != "candidate")
    with pytest.raises(FleetError, match="no operator Foo"):
        release.converge(desired(2), check_mode=False)
    assert engine.containers == before
    assert release.state()["active"]["id"] == desired(1).release_id()


def test_switch_that_fails_brings_the_old_one_back(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.converge(desired(1), check_mode=False)
    started: list[str] = []

    def ready(self: Release, sockets: Path) -> bool:
        label = (engine.container(ACTIVE) or {"Config": {"Labels": {}}})["Config"]["Labels"].get(_release.RELEASE_LABEL)
        started.append(sockets.name)
        return sockets.name == "candidate" or label == desired(1).release_id()

    monkeypatch.setattr(Release, "_ready", ready)
    with pytest.raises(FleetError):
        release.converge(desired(2), check_mode=False)
    assert "candidate" in started
    active = engine.containers[ACTIVE]
    assert active["Config"]["Labels"][_release.RELEASE_LABEL] == desired(1).release_id()
    assert active["State"]["Running"]
    assert set(engine.containers) == {ACTIVE}


STEPS = ["stop", "rename", "create", "start", "set_restart_policy", "remove"]


@pytest.mark.parametrize("step", STEPS)
def test_power_cut_at_any_step_leaves_one_that_starts_by_itself(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    release.converge(desired(1), check_mode=False)
    original = getattr(MemoryEngine, step)

    def cut(self: MemoryEngine, name: str, *arguments: Any) -> None:
        if name == CANDIDATE or (step == "remove" and name == ACTIVE):
            original(self, name, *arguments)
            return
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryEngine, step, cut)
    with pytest.raises(KeyboardInterrupt):
        release.converge(desired(2), check_mode=False)
    assert engine.after_power_cut() in ([ACTIVE], [PREVIOUS], [PREVIOUS, ACTIVE])

    monkeypatch.setattr(MemoryEngine, step, original)
    release.converge(desired(2), check_mode=False)
    assert set(engine.containers) == {ACTIVE}
    assert engine.containers[ACTIVE]["Config"]["Labels"][_release.RELEASE_LABEL] == desired(2).release_id()


def test_pull_that_a_power_cut_interrupted_is_done_again(release: Release, engine: MemoryEngine) -> None:
    marker = release.root / "staging" / f"pulling-{IMAGE.rpartition(':')[2]}"
    marker.parent.mkdir(parents=True)
    marker.touch()
    release.converge(desired(), check_mode=False)
    assert engine.pulled == [IMAGE]
    assert not marker.exists()


def test_two_controllers_at_once(release: Release) -> None:
    with release._lock(), pytest.raises(FleetError, match="Another controller"):
        release.converge(desired(), check_mode=False)


def test_port_that_another_program_holds(release: Release, engine: MemoryEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        wanted = Desired(IMAGE, 0, (MODEL,), {"listen": {"rest": [f"127.0.0.1:{port}"]}}, "", 0)
        with pytest.raises(FleetError, match=f"Port {port} is already taken") as caught:
            release.converge(wanted, check_mode=False)
    assert "inference_runtime_rest_port" in caught.value.remedy
    assert engine.containers == {}


def test_secrets_are_part_of_the_release_but_not_of_its_record(release: Release, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "bearer_token").write_text("first")
    with_secrets = Desired(IMAGE, 0, (MODEL,), {"listen": {}}, str(secrets), 0)
    first = with_secrets.release_id()
    (secrets / "bearer_token").write_text("second")
    assert with_secrets.release_id() != first
    release.converge(with_secrets, check_mode=False)
    assert "second" not in json.dumps(release.state())


@pytest.mark.parametrize("kind", ["symlink", "outside", "device"])
def test_archive_that_leads_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "model.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("../escaped" if kind == "outside" else "model.onnx")
        if kind == "symlink":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif kind == "device":
            member.type = tarfile.CHRTYPE
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(FleetError, match="something other than files"):
        _release._unpack(archive, tmp_path / "target")
    assert not (tmp_path / "escaped").exists()


def test_archive_is_unpacked_readable_by_all(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("golden/case.json")
        member.size, member.mode = 2, 0o600
        tar.addfile(member, io.BytesIO(b"{}"))
    _release._unpack(archive, tmp_path / "target")
    path = tmp_path / "target" / "golden" / "case.json"
    assert path.read_bytes() == b"{}"
    assert path.stat().st_mode & 0o777 == 0o644


def test_removal_leaves_what_is_not_its_own(release: Release, engine: MemoryEngine) -> None:
    (release.root / "packages").mkdir()
    release.converge(desired(), check_mode=False)
    assert release.remove(check_mode=True, has_engine=True)["changed"]
    assert set(engine.containers) == {ACTIVE}
    assert release.remove(check_mode=False, has_engine=True)["changed"]
    assert engine.containers == {}
    assert engine.images == set()
    assert [path.name for path in release.root.iterdir()] == ["packages"]
    assert not release.remove(check_mode=False, has_engine=True)["changed"]
