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
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import SERVICE_USER
from ansible_collections.edgeml.fleet.plugins.module_utils._release import transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    RELEASE_LABEL,
    Container,
    mount_source,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.content import _unpack
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    SOCKET_DIRECTORY,
    Desired,
    ForeignServer,
    Limits,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import RefusedError, Row
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._release.memory_engine import (
    ACTIVE,
    CANDIDATE,
    IMAGE,
    MODEL,
    PREVIOUS,
    MemoryEngine,
    activate,
    desired,
)


def test_second_time_nothing_changes(release: Release, engine: MemoryEngine) -> None:
    assert release.converge(desired(), check_mode=False)["changed"]
    assert not release.converge(desired(), check_mode=False)["changed"]
    assert set(engine.containers) == {ACTIVE}
    assert engine.after_power_cut() == [ACTIVE]


@pytest.mark.parametrize("check_mode", [False, True])
def test_where_nothing_changes_the_engine_is_asked_for_each_container_once(
    release: Release, engine: MemoryEngine, check_mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.converge(desired(), check_mode=False)
    asked: list[str] = []
    container = engine.container

    def counted(name: str) -> object:
        asked.append(name)
        return container(name)

    monkeypatch.setattr(engine, "container", counted)
    assert not release.converge(desired(), check_mode=check_mode)["changed"]
    assert sorted(asked) == sorted([ACTIVE, CANDIDATE, PREVIOUS])


def test_the_guard_goes_by_what_the_inventory_says_now(release: Release, engine: MemoryEngine) -> None:
    """An objective or a setting of the guard is no other release: it is recorded, and nothing is made anew."""
    one = replace(desired(), models=(replace(MODEL, p95_ms=25.0),))
    release.converge(one, check_mode=False)
    container = engine.container(release.installed.active)
    stricter = replace(one, models=(replace(MODEL, p95_ms=20.0),))
    planned = release.converge(stricter, check_mode=True)
    assert planned["changed"]
    assert planned["plan"]["faults"] == ["the guard on the host goes by other objectives or settings"]
    assert release.converge(stricter, check_mode=False)["changed"]
    repairs = Release(release.engine, release.installed.host_root, start_timeout=0, guard_repairs=True)
    assert repairs.converge(stricter, check_mode=False)["changed"]
    assert not repairs.converge(stricter, check_mode=False)["changed"]
    recorded = repairs.installed.recorded(one.release_id())
    assert recorded is not None
    assert recorded[0].models[0].p95_ms == 20.0
    assert repairs.installed.watch(one.release_id())["guard_repairs"] is True
    assert engine.container(release.installed.active) == container


def test_check_mode_does_nothing(release: Release, engine: MemoryEngine) -> None:
    result = release.converge(desired(), check_mode=True)
    assert result["changed"]
    assert result["plan"]["action"] == "start"
    assert engine.containers == {}
    assert release.installed.state() == {}


def test_options_of_models_are_part_of_the_release(release: Release) -> None:
    options = {"batching": {"max_size": 8}}
    with_options = replace(desired(), models=(replace(MODEL, options=options),))
    assert with_options.release_id() != desired().release_id()
    release.converge(with_options, check_mode=False)
    written = json.loads((release.installed.releases / with_options.release_id() / "runtime.json").read_text())
    assert written["models"][0]["options"] == options


def test_one_container_is_candidate_and_active(release: Release, engine: MemoryEngine) -> None:
    model = replace(MODEL, protocols=("mqtt",))
    configuration = {"listen": {"rest": [], "grpc": []}, "mqtt": {"host": "broker", "device": "press"}}
    wanted = replace(desired(), models=(model,), configuration=configuration)
    release.converge(wanted, check_mode=False)
    directory = release.installed.releases / wanted.release_id()
    written = json.loads((directory / "runtime.json").read_text())
    assert written["models"][0]["protocols"] == ["mqtt"]
    assert written["mqtt"]["host"] == "broker"
    assert written["listen"]["admin"] == ["unix:/run/edgeml/admin.sock"]
    assert engine.commands[CANDIDATE][-2:] == ("--candidate-file", "/run/edgeml/candidate")
    assert ACTIVE not in engine.commands, "the container that was checked is the one that serves"
    assert replace(wanted, models=(MODEL,)).release_id() != wanted.release_id()


def test_container_has_a_directory_for_optimised_graphs(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[Path, int] = {}
    monkeypatch.setattr(os, "chown", lambda path, user, group: owners.update({path: user}))
    release.converge(desired(), check_mode=False)
    cache = release.installed.root / "cache"
    assert cache.is_dir()
    assert owners[cache] == SERVICE_USER
    assert f"type=bind,source={cache},target=/var/cache/edgeml" in engine.options[CANDIDATE]
    written = json.loads((release.installed.releases / desired().release_id() / "runtime.json").read_text())
    assert written["cache_directory"] == "/var/cache/edgeml"


def test_previous_release_is_remembered(release: Release) -> None:
    release.converge(desired(1), check_mode=False)
    release.converge(desired(2), check_mode=False)
    state = release.installed.state()
    assert state["active"]["id"] == desired(2).release_id()
    assert state["previous"]["id"] == desired(1).release_id()
    release.converge(desired(3), check_mode=False)
    assert {path.name for path in release.installed.releases.iterdir()} == {desired(n).release_id() for n in (2, 3)}


def test_new_release_that_is_not_ready_leaves_the_old_one(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.converge(desired(1), check_mode=False)
    before = dict(engine.containers)
    monkeypatch.setattr(transaction, "says_ready", lambda container, name: name != CANDIDATE)
    with pytest.raises(FleetError, match="no operator Foo"):
        release.converge(desired(2), check_mode=False)
    assert engine.containers == before
    assert release.installed.state()["active"]["id"] == desired(1).release_id()


def test_candidate_that_cannot_take_over_leaves_the_old_one(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.converge(desired(1), check_mode=False)
    before = dict(engine.containers)

    def refuse(container: Container, name: str) -> None:
        raise FleetError("The new release cannot take over the ports", seen="cannot listen on 192.0.2.1:8000")

    monkeypatch.setattr(Container, "activate", refuse)
    with pytest.raises(FleetError, match="cannot listen"):
        release.converge(desired(2), check_mode=False)
    assert engine.containers == before
    assert engine.serving() == [ACTIVE]


def test_sockets_of_two_releases_are_apart(release: Release, engine: MemoryEngine) -> None:
    used = []
    for threads in (1, 2, 3):
        release.converge(desired(threads), check_mode=False)
        used.append(mount_source(engine.containers[ACTIVE], SOCKET_DIRECTORY))
    assert used == [str(release.installed.root / "run" / slot) for slot in "aba"]


class Cut(BaseException):
    """The process is gone: nothing that it would do afterwards is done."""


#: What the transaction does to an engine, in the order of a hand-over, with the container it is done to.
HAND_OVER = [
    ("create", CANDIDATE),
    ("start", CANDIDATE),
    ("activate", CANDIDATE),
    ("rename", ACTIVE),
    ("rename", CANDIDATE),
    ("confirm", ACTIVE),
    ("set_restart_policy", ACTIVE),
    ("set_restart_policy", PREVIOUS),
    ("stop", PREVIOUS),
    ("remove", PREVIOUS),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("step", "container"), HAND_OVER)
def test_hand_over_that_is_cut_at_any_step(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch, step: str, container: str, after: bool
) -> None:
    """A release serves whatever step was the last, also when the power goes; the next run sets everything right."""
    release.converge(desired(1), check_mode=False)
    owner: type = Container if step in ("activate", "confirm") else MemoryEngine
    original = getattr(owner, step)
    cut = []

    def stop_there(self: Any, name: str, *arguments: Any) -> None:
        if name != container:
            original(self, name, *arguments)
            return
        if after:
            original(self, name, *arguments)
        cut.append(name)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stop_there)
        with pytest.raises(Cut):
            release.converge(desired(2), check_mode=False)
    assert cut == [container]
    assert engine.serving(), engine.containers
    assert engine.after_power_cut(), engine.containers

    assert release.converge(desired(2), check_mode=False)["changed"]
    assert set(engine.containers) == {ACTIVE}
    assert engine.serving() == engine.after_power_cut() == [ACTIVE]
    assert engine.containers[ACTIVE]["Config"]["Labels"][RELEASE_LABEL] == desired(2).release_id()
    assert not release.converge(desired(2), check_mode=False)["changed"]


@pytest.fixture
def cut_before_the_end(release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release that has taken over, of a run that was cut short before the previous one went."""
    release.converge(desired(1), check_mode=False)

    def killed(self: MemoryEngine, name: str, seconds: int = 15) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(MemoryEngine, "stop", killed)
        with pytest.raises(Cut):
            release.converge(desired(2), check_mode=False)
    assert set(engine.containers) == {ACTIVE, PREVIOUS}
    return release


def test_release_that_has_taken_over_is_committed_later(cut_before_the_end: Release, engine: MemoryEngine) -> None:
    """The state tells which release serves, whether the guard or another run comes by."""
    assert desired(2).release_id()[:12] in cut_before_the_end.settle()
    assert cut_before_the_end.installed.state()["active"]["id"] == desired(2).release_id()
    assert cut_before_the_end.installed.state()["previous"]["id"] == desired(1).release_id()
    assert cut_before_the_end.installed.history.entries()[-1]["outcome"] == "active"
    assert set(engine.containers) == {ACTIVE}
    assert cut_before_the_end.settle() == ""
    assert not cut_before_the_end.converge(desired(2), check_mode=False)["changed"]


def test_previous_release_goes_only_when_the_new_one_is_ready(
    cut_before_the_end: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has started both again; the new one does not come up."""
    monkeypatch.setattr(transaction, "says_ready", lambda container, name: False)
    cut_before_the_end.settle()
    assert set(engine.containers) == {ACTIVE}
    assert engine.containers[ACTIVE]["Config"]["Labels"][RELEASE_LABEL] == desired(1).release_id()
    assert cut_before_the_end.installed.state()["active"]["id"] == desired(1).release_id()
    assert engine.serving() == engine.after_power_cut() == [ACTIVE]


def test_candidate_that_a_killed_run_left_is_seen(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run may want the release that serves; it tells what it tidies, and does not touch that release."""
    release.converge(desired(1), check_mode=False)
    serving = engine.containers[ACTIVE]

    def killed(self: Release, container: Container, answers_only: bool) -> list[Row]:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Release, "_check", killed)
        with pytest.raises(Cut):
            release.converge(desired(2), check_mode=False)
    assert CANDIDATE in engine.containers
    told = release.converge(desired(1), check_mode=True)
    assert told["plan"]["action"] == "repair"
    assert CANDIDATE in told["plan"]["faults"][0]
    assert release.converge(desired(1), check_mode=False)["changed"]
    assert engine.containers == {ACTIVE: serving}
    assert not release.converge(desired(1), check_mode=False)["changed"]


def refuse(reason: str) -> Any:
    """Return gates that refuse every candidate."""

    def check(self: Release, container: Container, answers_only: bool) -> list[Row]:
        row = {"gate": "p95", "model": "digits", "measured": 9.0, "allowed": 5.0, "unit": "ms", "passed": False}
        raise RefusedError(FleetError(reason), [row])

    return check


def test_refused_release_is_remembered_and_not_tried_again(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.converge(desired(1), check_mode=False)
    before = dict(engine.containers)
    with monkeypatch.context() as patch:
        patch.setattr(Release, "_check", refuse("too slow"))
        with pytest.raises(RefusedError) as caught:
            release.converge(desired(2), check_mode=False)
    assert caught.value.as_result()["gates"][0]["measured"] == 9.0
    assert engine.containers == before
    assert not (release.installed.releases / desired(2).release_id()).exists(), "what was refused does not stay"
    for check_mode in (True, False):
        with pytest.raises(FleetError, match=r"refused here on .* too slow") as told:
            release.converge(desired(2), check_mode=check_mode)
        assert "edgeml_force" in told.value.remedy
    assert not release.converge(desired(1), check_mode=False)["changed"], "it stands in nobody's way"

    relaxed = replace(desired(2), models=(replace(MODEL, p95_ms=50.0),))
    assert relaxed.release_id() == desired(2).release_id()
    assert release.converge(relaxed, check_mode=False)["changed"], "other objectives are another try"


def test_refused_release_is_tried_again_by_force(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Release, "_check", refuse("too slow"))
        with pytest.raises(RefusedError):
            release.converge(desired(), check_mode=False)
    (release.installed.models / MODEL.directory_name).mkdir()
    assert release.converge(desired(), check_mode=False, force=True)["changed"]
    assert not release.converge(desired(), check_mode=False)["changed"]
    outcomes = [entry["outcome"] for entry in release.installed.history.entries()]
    assert outcomes == ["refused", "active"]
    assert release.installed.history.refused() == []


def test_failure_of_something_else_is_no_refusal(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(self: Release, *arguments: object) -> int:
        raise FleetError("The registry does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Release, "_stage", cut_off)
        with pytest.raises(FleetError, match="does not answer"):
            release.converge(desired(), check_mode=False)
    assert release.installed.history.entries()[-1]["outcome"] == "failed"
    assert release.converge(desired(), check_mode=False)["changed"]


def test_back_to_the_previous_release(release: Release, engine: MemoryEngine) -> None:
    for threads in (1, 2):
        release.converge(desired(threads), check_mode=False)
    predicted = release.roll_back("", check_mode=True)
    assert predicted["changed"]
    assert predicted["release"]["id"] == desired(1).release_id()
    assert release.roll_back("", check_mode=False)["changed"]
    assert engine.containers[ACTIVE]["Config"]["Labels"][RELEASE_LABEL] == desired(1).release_id()
    assert engine.pulled == []
    assert not release.converge(desired(1), check_mode=False)["changed"]
    with pytest.raises(FleetError, match="rolled back here"):
        release.converge(desired(2), check_mode=False)
    assert release.converge(desired(2), check_mode=False, force=True)["changed"]


def test_back_to_a_release_by_its_name(release: Release) -> None:
    for threads in (1, 2):
        release.converge(desired(threads), check_mode=False)
    wanted = desired(1).release_id()
    assert not release.roll_back(desired(2).release_id(), check_mode=False)["changed"]
    assert release.roll_back(wanted[:8], check_mode=False)["release"]["id"] == wanted
    for name in (wanted[:7], "0" * 64):
        with pytest.raises(FleetError, match="keeps no such release") as caught:
            release.roll_back(name, check_mode=False)
        assert wanted[:12] in caught.value.remedy


def test_nothing_to_go_back_to(release: Release) -> None:
    release.converge(desired(), check_mode=False)
    with pytest.raises(FleetError, match="no previous release"):
        release.roll_back("", check_mode=True)


@pytest.mark.parametrize("damage", ["lost", "empty", "torn", "of another kind"])
def test_damaged_state_is_made_anew_of_what_runs(release: Release, engine: MemoryEngine, damage: str) -> None:
    for threads in (1, 2):
        release.converge(desired(threads), check_mode=False)
    file = release.installed.state_file
    original = json.loads(file.read_text())
    if damage == "lost":
        file.unlink()
    else:
        file.write_text({"empty": "", "torn": file.read_text()[:50], "of another kind": "[]"}[damage])
    serving = engine.containers[ACTIVE]
    assert release.converge(desired(2), check_mode=True)["plan"]["faults"] == [f"{file} is lost or damaged"]
    assert release.converge(desired(2), check_mode=False)["changed"]
    assert engine.containers == {ACTIVE: serving}, "what serves is not touched"
    rebuilt = json.loads(file.read_text())
    assert [rebuilt[key]["id"] for key in ("active", "previous")] == [
        original[key]["id"] for key in ("active", "previous")
    ]
    assert not release.converge(desired(2), check_mode=False)["changed"]


def test_history_outlives_a_torn_line(release: Release) -> None:
    release.converge(desired(1), check_mode=False)
    history = release.installed.history
    with history.path.open("a") as file:
        file.write('{"time": "2026-1')
    release.converge(desired(2), check_mode=False)
    assert [entry["release"] for entry in history.entries()] == [desired(n).release_id() for n in (1, 2)]


def test_release_comes_back_whole_from_its_record(release: Release) -> None:
    server = ForeignServer(("serve",), {"A": "1"}, 8080, None, None, "/mnt/models", "1000")
    model = replace(MODEL, p99_ms=7.0, max_regression=1.3, options={"queue": 4})
    wanted = replace(desired(), models=(model,), limits=Limits(memory_mb=300), server=server, environment={"B": "2"})
    release.installed.record(wanted, {"id": wanted.release_id(), "image": wanted.image, "models": []}, {})
    recorded = release.installed.recorded(wanted.release_id())
    assert recorded is not None
    assert recorded[0] == wanted
    assert (release.installed.releases / wanted.release_id() / "release.json").stat().st_mode & 0o777 == 0o600


def test_pull_that_a_power_cut_interrupted_is_done_again(release: Release, engine: MemoryEngine) -> None:
    marker = release.installed.root / "staging" / f"pulling-{IMAGE.rpartition(':')[2]}"
    marker.parent.mkdir(parents=True)
    marker.touch()
    release.converge(desired(), check_mode=False)
    assert engine.pulled == [IMAGE]
    assert not marker.exists()


def test_two_controllers_at_once(release: Release) -> None:
    with release.installed.lock(), pytest.raises(FleetError, match="Another controller"):
        release.converge(desired(), check_mode=False)


def test_port_that_another_program_holds(release: Release, engine: MemoryEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        wanted = Desired(IMAGE, 0, (MODEL,), {"listen": {"rest": [f"127.0.0.1:{port}"]}})
        with pytest.raises(FleetError, match=f"Port {port} is already taken") as caught:
            release.converge(wanted, check_mode=False)
    assert "inference_runtime_rest_port" in caught.value.remedy
    assert engine.containers == {}


def test_a_change_of_address_is_a_change_like_any_other(release: Release) -> None:
    def listen_on(*addresses: str) -> Desired:
        listen = {"rest": [f"{address}:{port}" for address in addresses]}
        return Desired(IMAGE, 0, (MODEL,), {"listen": listen})

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    release.converge(listen_on("127.0.0.1"), check_mode=False)
    with socket.create_server(("127.0.0.1", port)):  # what our container holds
        assert release.converge(listen_on("0.0.0.0"), check_mode=False)["changed"]  # noqa: S104
        assert release.converge(listen_on("127.0.0.1"), check_mode=False)["changed"]
        with pytest.raises(FleetError, match=r"cannot listen on 192\.0\.2\.1") as caught:
            release.converge(listen_on("192.0.2.1"), check_mode=False)
    assert "inference_runtime_listen_address" in caught.value.remedy


def test_secrets_are_part_of_the_release_but_not_of_its_record(release: Release, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "bearer_token").write_text("first")
    with_secrets = Desired(IMAGE, 0, (MODEL,), {"listen": {}}, str(secrets))
    first = with_secrets.release_id()
    (secrets / "bearer_token").write_text("second")
    assert with_secrets.release_id() != first
    release.converge(with_secrets, check_mode=False)
    assert "second" not in json.dumps(release.installed.state())


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
        _unpack(archive, tmp_path / "target")
    assert not (tmp_path / "escaped").exists()


def test_archive_is_unpacked_readable_by_all(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("golden/case.json")
        member.size, member.mode = 2, 0o600
        tar.addfile(member, io.BytesIO(b"{}"))
    _unpack(archive, tmp_path / "target")
    path = tmp_path / "target" / "golden" / "case.json"
    assert path.read_bytes() == b"{}"
    assert path.stat().st_mode & 0o777 == 0o644


DEVICE = "/dev/null"


def runtime(release: Release, name: str, runtimes: Sequence[str] | None = None) -> Release:
    return Release(release.engine, release.installed.host_root, "", 0.0, name, runtimes)


def test_limits_environment_and_devices_are_part_of_the_release(release: Release, engine: MemoryEngine) -> None:
    plain = desired()
    others = [
        replace(plain, limits=Limits(memory_mb=300, cpus=1.5, pids=64, shared_memory_mb=128, cpuset="0-1")),
        replace(plain, environment={"OMP_NUM_THREADS": "2"}),
        replace(plain, devices=(DEVICE,)),
    ]
    assert len({one.release_id() for one in [plain, *others]}) == 4
    expected = [
        ["--pids-limit 64", "--memory 300m --memory-swap 300m", "--cpus 1.5", "--shm-size 128m", "--cpuset-cpus 0-1"],
        ["--env OMP_NUM_THREADS=2"],
        ["--device /dev/null:/dev/null:rw"],
    ]
    for one, texts in zip(others, expected, strict=True):
        release.converge(one, check_mode=False)
        line = " ".join(engine.options[CANDIDATE])
        assert all(text in line for text in texts), line
        assert "--cap-drop ALL" in line


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        (("all",), (), ["--gpus", "all"]),
        (("0",), (), ["--gpus", '"device=0"']),
        (("0", "GPU-6c5e"), (), ["--gpus", '"device=0,GPU-6c5e"']),
        ((), ("nvidia.com/gpu=0",), ["--device", "nvidia.com/gpu=0"]),
    ],
)
def test_gpus_are_passed_by_the_engine(
    release: Release, engine: MemoryEngine, gpus: tuple[str, ...], devices: tuple[str, ...], expected: list[str]
) -> None:
    """The second word is read as a line of CSV, hence the quotes; a CDI name is no file of the host."""
    release.converge(replace(desired(), gpus=gpus, devices=devices), check_mode=False)
    options = engine.options[CANDIDATE]
    place = options.index(expected[0])
    assert options[place : place + 2] == expected


def test_a_device_of_a_group_comes_with_that_group(release: Release, engine: MemoryEngine) -> None:
    controller, terminal = os.openpty()  # a device whose mode everybody may change
    try:
        device = Path(os.ttyname(terminal))
        device.chmod(0o660)
        release.converge(replace(desired(), devices=(str(device),)), check_mode=False)
        assert f"--group-add {device.stat().st_gid}" in " ".join(engine.options[CANDIDATE])
        device.chmod(0o666)
        release.converge(replace(desired(2), devices=(str(device),)), check_mode=False)
        assert "--group-add" not in engine.options[CANDIDATE]
    finally:
        os.close(controller)
        os.close(terminal)


def test_an_absent_device_is_told_before_anything_is_fetched(release: Release, engine: MemoryEngine) -> None:
    engine.images.clear()
    wanted = replace(desired(), devices=("/dev/video99",))
    assert release.converge(wanted, check_mode=True)["changed"], "a kernel module may make it"
    with pytest.raises(FleetError, match="device") as caught:
        release.converge(wanted, check_mode=False)
    assert caught.value.where == "/dev/video99"
    assert engine.pulled == []


SERVER = ForeignServer(("serve", "/mnt/models"), {"WORKERS": "0"}, 8080, 8081, 8082, "/mnt/models", "1000")


def test_a_foreign_server_is_a_candidate_without_ports(release: Release, engine: MemoryEngine) -> None:
    listen = {"rest": ["127.0.0.1:8020"], "grpc": ["127.0.0.1:8021"]}
    wanted = replace(desired(), server=SERVER, configuration={"listen": listen}, environment={"OMP": "1"})
    mlserver = runtime(release, "mlserver")
    (mlserver.installed.models / MODEL.directory_name).mkdir(parents=True)
    mlserver.converge(wanted, check_mode=False)
    candidate, active = "edgeml-runtime-mlserver.candidate", "edgeml-runtime-mlserver"
    assert engine.made_networks == [candidate]
    assert engine.networks == set()
    assert set(engine.containers) == {active}
    line = " ".join(engine.options[candidate])
    assert f"--network {candidate}" in line
    assert "--publish" not in line
    line = " ".join(engine.options[active])
    assert "--network bridge" in line
    assert "--publish 127.0.0.1:8020:8080 --publish 127.0.0.1:8021:8081" in line
    assert "--user 1000 " in line
    assert "--env OMP=1 --env WORKERS=0" in line
    assert f"target=/mnt/models/{MODEL.name},readonly" in line
    assert "runtime.json" not in line
    assert engine.commands[active] == ("serve", "/mnt/models")
    assert not mlserver.converge(wanted, check_mode=False)["changed"]


def test_runtimes_live_beside_each_other_until_none_needs_them(release: Release, engine: MemoryEngine) -> None:
    kept = ["runtime", "vision"]
    vision_image = IMAGE.replace("edgeml/runtime", "edgeml/vision")
    first, vision = runtime(release, "runtime", kept), runtime(release, "vision", kept)
    for one, wanted in ((first, desired(1)), (vision, replace(desired(2), image=vision_image))):
        (one.installed.models / MODEL.directory_name).mkdir(parents=True, exist_ok=True)
        assert one.converge(wanted, check_mode=False)["changed"]
    assert set(engine.containers) == {"edgeml-runtime", "edgeml-runtime-vision"}
    assert engine.images == {IMAGE, vision_image}
    assert vision.installed.root == release.installed.host_root / "runtimes" / "vision"

    alone = runtime(release, "runtime", ["runtime"])
    predicted = alone.converge(desired(1), check_mode=True)
    assert predicted["changed"]
    assert predicted["plan"]["action"] == "none"
    assert predicted["plan"]["removed_runtimes"] == ["vision"]
    assert alone.converge(desired(1), check_mode=False)["changed"]
    assert set(engine.containers) == {"edgeml-runtime"}
    assert engine.images == {IMAGE}
    assert not (release.installed.host_root / "runtimes").exists()
    assert not alone.converge(desired(1), check_mode=False)["changed"]


def test_an_image_that_another_runtime_serves_is_kept(release: Release, engine: MemoryEngine) -> None:
    newer = IMAGE.replace("a" * 64, "d" * 64)
    vision = runtime(release, "vision", ["runtime", "vision"])
    (vision.installed.models / MODEL.directory_name).mkdir(parents=True)
    vision.converge(desired(1), check_mode=False)
    for image in (IMAGE, newer, IMAGE.replace("a" * 64, "e" * 64)):
        release.converge(replace(desired(), image=image), check_mode=False)
    assert IMAGE in engine.images
    runtime(release, "runtime", ["runtime"]).converge(replace(desired(), image=newer), check_mode=False)
    assert IMAGE not in engine.images


def test_a_renamed_runtime_takes_the_ports_of_the_old_one(
    release: Release, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:  # what the old container holds
        wanted = replace(desired(), configuration={"listen": {"rest": [f"127.0.0.1:{held.getsockname()[1]}"]}})
        old, new = runtime(release, "old"), runtime(release, "new", ["new", "runtime"])
        for one in (old, new):
            (one.installed.models / MODEL.directory_name).mkdir(parents=True)
        monkeypatch.setattr(Release, "_check_ports", lambda *arguments: None)
        old.converge(wanted, check_mode=False)
        monkeypatch.undo()
        monkeypatch.setattr(os, "chown", lambda *arguments: None)
        monkeypatch.setattr(Release, "_check", lambda self, container, answers_only: [])
        monkeypatch.setattr(Container, "activate", activate)

        monkeypatch.setattr(transaction, "says_ready", lambda container, name: name != "edgeml-runtime-new.candidate")
        with pytest.raises(FleetError, match="does not become ready"):
            new.converge(wanted, check_mode=False)
        assert engine.containers["edgeml-runtime-old"]["State"]["Running"]
        assert set(engine.containers) == {"edgeml-runtime-old"}

        monkeypatch.setattr(transaction, "says_ready", lambda container, name: True)
        new.converge(wanted, check_mode=False)
        assert set(engine.containers) == {"edgeml-runtime-new"}


def test_removal_of_all_runtimes(release: Release, engine: MemoryEngine) -> None:
    vision = runtime(release, "vision")
    (vision.installed.models / MODEL.directory_name).mkdir(parents=True)
    for one in (release, vision):
        one.converge(desired(), check_mode=False)
    everything = runtime(release, "runtime", [])
    predicted = everything.remove(check_mode=True, has_engine=True)
    assert predicted["plan"] == {"runtime": "runtime", "action": "remove", "removed_runtimes": ["runtime", "vision"]}
    assert everything.remove(check_mode=False, has_engine=True)["changed"]
    assert engine.containers == {}
    assert engine.images == set()
    assert list(release.installed.host_root.iterdir()) == []
    assert not everything.remove(check_mode=False, has_engine=True)["changed"]


def test_removal_leaves_what_is_not_its_own(release: Release, engine: MemoryEngine) -> None:
    (release.installed.root / "packages").mkdir()
    release.converge(desired(), check_mode=False)
    assert release.remove(check_mode=True, has_engine=True)["changed"]
    assert set(engine.containers) == {ACTIVE}
    assert release.remove(check_mode=False, has_engine=True)["changed"]
    assert engine.containers == {}
    assert engine.images == set()
    assert [path.name for path in release.installed.root.iterdir()] == ["packages"]
    assert not release.remove(check_mode=False, has_engine=True)["changed"]


def test_staging_keeps_nothing_that_is_not_wanted_any_more(release: Release) -> None:
    """What an interrupted fetch has left of a model is worth keeping for the next run alone, and for a kept model."""
    release.converge(desired(1), check_mode=False)
    staging = release.installed.staging
    staging.mkdir(exist_ok=True)
    gone = "c" * 64
    for name in (f"{gone}.part", f"{gone}.tar", f"{MODEL.directory_name}.part", "pulling-" + "d" * 64):
        (staging / name).touch()
    (staging / f"{gone}.unpacked").mkdir()
    assert not release.converge(desired(1), check_mode=False)["changed"]
    assert len(list(staging.iterdir())) == 5, "what changes nothing tidies nothing"
    release.converge(desired(2), check_mode=False)
    assert sorted(path.name for path in staging.iterdir()) == sorted(
        [f"{MODEL.directory_name}.part", "pulling-" + "d" * 64]
    )
