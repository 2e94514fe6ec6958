# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the disk has lost of what a device reads back: as if it were not there, and in nobody's way."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction, release_as_recorded
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import Guard
from ansible_collections.edgeml.fleet.plugins.module_utils._release.information import runtimes
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import (
    DAMAGE_FILE,
    RECORD_FILE,
    WAY_BACK_FILE,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.scrub import SCRUB_FILE
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._release.memory_engine import (
    MemoryEngine,
    desired,
)

#: What a file may hold after a power cut, or when a sector is another one.
CONTENTS = [
    "",
    "\0" * 20,
    "5",
    "null",
    "[]",
    "[5]",
    '"text"',
    '{"active": 5}',
    '{"active": {"id": 5}}',
    "{}",
    '{"desired": 5}',
]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that the host's own container holds."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield int(held.getsockname()[1])


@pytest.fixture
def serving(release: Release, port: int, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A host that serves its second release on a port, and has tried others."""
    monkeypatch.setattr(Transaction, "is_running", lambda self: False)
    with monkeypatch.context() as patch:
        patch.setattr(Release, "_check_ports", lambda *arguments: None)
        for threads in (1, 2):
            release.converge(on(port, threads), check_mode=False)
    return release


def on(port: int, threads: int) -> Desired:
    configuration = {"listen": {"rest": [f"127.0.0.1:{port}"]}, "threads": threads}
    return replace(desired(), configuration=configuration)


OF_THE_HOST = ("state.json", "guard.json", WAY_BACK_FILE, SCRUB_FILE)
OF_A_RELEASE = ("runtime.json", RECORD_FILE, DAMAGE_FILE)
ODD = [
    ("state.json", '{"active": 5}'),
    ("state.json", '{"active": {"id": 5}}'),
    ("state.json", '{"active": {"id": "5"}}'),
    ("runtime.json", '{"listen": 5}'),
    (RECORD_FILE, '{"desired": 5, "description": 5, "watch": 5}'),
    (RECORD_FILE, '{"desired": {"server": {}, "models": [5]}, "description": {}, "watch": {"start_timeout": "x"}}'),
    (DAMAGE_FILE, '{"models": 5}'),
    (DAMAGE_FILE, '{"models": [[]], "layers": [5]}'),
    (SCRUB_FILE, '{"time": 5, "found": "text"}'),
    (WAY_BACK_FILE, '{"to": 5, "left": [], "by": 5, "reason": 5}'),
    ("guard.json", '{"restarted": ["text"], "latency": {"digits": 5}, "looks": true}'),
    ("state.json", '{"active": {"id": 5, "image": 5, "models": 5}}'),
    ("state.json", '{"active": {"id": "5", "image": "5", "models": [5]}, "since": 5}'),
    (
        "state.json",
        '{"active": {"id": "5", "image": "5", "models": []}, "previous": {"id": [], "models": 5}}',
    ),
]
#: Values of another type in what was recorded with a release.
WATCHES = [
    5,
    {"ca_file": 5, "start_timeout": "x"},
    {"probation_seconds": [], "objective_minutes": {}},
    {"start_timeout": None, "guard_repairs": "x"},
]


@pytest.mark.parametrize(
    ("name", "content"), [(name, text) for name in (*OF_THE_HOST, *OF_A_RELEASE) for text in CONTENTS] + ODD
)
def test_a_damaged_file_stands_in_nobodys_way(
    serving: Release, engine: MemoryEngine, port: int, name: str, content: str
) -> None:
    installed = serving.installed
    directory = installed.root if name in OF_THE_HOST else installed.releases / on(port, 2).release_id()
    (directory / name).write_text(content)
    root = serving.installed.host_root
    Guard(engine, root, "runtime").look()
    assert len(runtimes(engine, root, 20)) == 1
    assert serving.converge(on(port, 3), check_mode=True)["changed"]
    assert serving.converge(on(port, 3), check_mode=False)["changed"]
    assert not serving.converge(on(port, 3), check_mode=False)["changed"]
    assert serving.installed.state()["active"]["id"] == on(port, 3).release_id()


@pytest.mark.parametrize(
    "kept",
    [
        {"restarted": ["text"]},
        {"latency": {"digits": 5}},
        {"latency": {"digits": {"counts": {"0.1": "x"}, "missed": 0, "why": ""}}},
        {"latency": {"digits": {"counts": {}, "missed": "text", "why": ""}}},
    ],
)
def test_what_the_guard_has_seen_of_this_container(
    serving: Release, engine: MemoryEngine, kept: dict[str, object]
) -> None:
    guard = Guard(engine, serving.installed.host_root, "runtime")
    guard.look()
    seen = json.loads(guard.watch_file.read_text())
    guard.watch_file.write_text(json.dumps({**seen, **kept}))
    guard.look()
    again = json.loads(guard.watch_file.read_text())
    assert again["looks"] == 1, "it begins anew"


@pytest.mark.parametrize("watch", WATCHES)
def test_a_watch_of_another_shape_is_as_if_it_were_not_there(
    serving: Release, engine: MemoryEngine, port: int, watch: object
) -> None:
    path = serving.installed.releases / on(port, 2).release_id() / RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "watch": watch}))
    Guard(engine, serving.installed.host_root, "runtime").look()
    release_as_recorded(engine, serving.installed, on(port, 2).release_id())


ODD_ENTRY = {"time": "t", "release": "r", "outcome": "refused", "reason": "", "attempt": "a", "models": [], "gates": []}


@pytest.mark.parametrize(
    "line",
    [
        *CONTENTS,
        '{"active": {}}',
        '{"outcome": "refused"}',
        *(json.dumps({**ODD_ENTRY, key: 5}) for key in ODD_ENTRY),
        json.dumps({**ODD_ENTRY, "attempt": []}),
        json.dumps({**ODD_ENTRY, "models": [5]}),
    ],
)
def test_a_damaged_line_of_the_history_is_left_out(serving: Release, port: int, line: str) -> None:
    history = serving.installed.history
    before = history.entries()
    lines = history.path.read_text().splitlines()
    history.path.write_text("\n".join([line, *lines, line]) + "\n")
    assert history.entries() == before
    assert history.refused() == []
    assert serving.converge(on(port, 3), check_mode=False)["changed"]
    serving.installed.state_file.unlink()
    assert serving.installed.state()["active"]["id"] == on(port, 3).release_id()
    assert json.loads(history.path.read_text().splitlines()[-1])["outcome"] == "active"
