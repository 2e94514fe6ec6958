# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a converge left on a host is seen again, and every kind of change to it too."""

from __future__ import annotations

import json
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host import record as _record
from ansible_collections.edgeml.fleet.plugins.module_utils._host.evidence import Item, observe

CONTAINER = {
    "Id": "1f",
    "Name": "/edgeml-runtime",
    "Image": "sha256:aa",
    "Config": {"Labels": {"io.edgeml.release": "r1"}},
    "HostConfig": {"RestartPolicy": {"Name": "always"}, "Memory": 0},
    "State": {"Running": True},
}


class Programs:
    """The programs of a host: answers by the first word, and how often each was started."""

    def __init__(self) -> None:
        self.containers: list[dict[str, Any]] = [CONTAINER]
        self.installed = {"docker.io"}
        self.started: list[str] = []

    def __call__(self, arguments: list[str]) -> tuple[int, str, str]:
        self.started.append(arguments[0])
        if arguments[0] == "docker":
            found = [entry for entry in self.containers if entry["Name"].lstrip("/") in arguments]
            return 1, json.dumps(found), "Error: No such container: another"
        if arguments[0] == "dpkg-query":
            names = [name for name in arguments if name in self.installed]
            return 1, "".join(f"{name} installed\n" for name in names) + "half config-files\n", ""
        raise AssertionError(arguments)


@pytest.fixture
def programs() -> Programs:
    return Programs()


def chmod(path: Path) -> None:
    path.chmod(0o600)


def rewrite(path: Path) -> None:
    path.write_text("other")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [chmod, rewrite, remove])
@pytest.mark.parametrize("kind", ["file", "files", "tree", "line"])
def test_change_of_a_file_is_seen(
    tmp_path: Path, programs: Programs, kind: str, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "below" / "a"
    path.parent.mkdir()
    path.write_text("one\ntwo\n")
    path.chmod(0o644)
    place = str(path if kind in ("file", "line") else path.parent)
    items = [{"kind": kind, "path": place, "line": "two"}]
    before = observe(items, programs)
    assert observe(items, programs) == before
    change(path)
    # Names and sizes are all that is looked at where content is large; a line does not depend on the file's mode.
    unseen = change is chmod and kind in ("tree", "line")
    assert (observe(items, programs) == before) == unseen


def test_owner_and_mode_of_a_directory_are_seen(tmp_path: Path, programs: Programs) -> None:
    items = [{"kind": "directory", "path": str(tmp_path / "d")}]
    assert observe(items, programs) == ["absent"]
    (tmp_path / "d").mkdir(mode=0o755)
    before = observe(items, programs)
    (tmp_path / "d").chmod(0o700)
    assert observe(items, programs) != before


def test_what_is_new_in_a_tree_is_seen(tmp_path: Path, programs: Programs) -> None:
    """Also behind a link, as the mirror's current generation is."""
    (tmp_path / "1" / "deep").mkdir(parents=True)
    (tmp_path / "current").symlink_to("1")
    items = [{"kind": "tree", "path": str(tmp_path / "current")}]
    before = observe(items, programs)
    (tmp_path / "1" / "deep" / "x").write_text("")
    assert observe(items, programs) != before


def stopped(container: dict[str, Any]) -> dict[str, Any]:
    return {**container, "State": {"Running": False}}


def updated(container: dict[str, Any]) -> dict[str, Any]:
    return {**container, "HostConfig": {**container["HostConfig"], "RestartPolicy": {"Name": "no"}}}


def replaced(container: dict[str, Any]) -> dict[str, Any]:
    return {**container, "Id": "2f"}


@pytest.mark.parametrize("change", [stopped, updated, replaced])
def test_change_of_a_container_is_seen(programs: Programs, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    items = [{"kind": "container", "name": name} for name in ("edgeml-runtime", "edgeml-runtime.candidate")]
    before = observe(items, programs)
    assert before[1] == "absent"
    programs.containers = [{**CONTAINER, "State": {"Running": True, "Pid": 7}}]
    assert observe(items, programs) == before
    assert programs.started == ["docker", "docker"], "one question for all containers"
    programs.containers = [change(CONTAINER)]
    assert observe(items, programs) != before
    programs.containers = [CONTAINER, {**CONTAINER, "Name": "/edgeml-runtime.candidate"}]
    assert observe(items, programs)[1] != "absent", "what a killed run left behind"


def test_host_without_an_engine(programs: Programs) -> None:
    def none(arguments: list[str]) -> tuple[int, str, str]:
        return 127, "", ""

    items: list[Item] = [{"kind": "container", "name": "edgeml-runtime"}, {"kind": "packages", "names": ["docker.io"]}]
    assert observe(items, none) == ["absent", []]
    assert observe(items, programs) != ["absent", []]


def test_kernel_values_are_seen(programs: Programs) -> None:
    items: list[Item] = [{"kind": "kernel", "modules": ["no_such"], "sysctls": ["kernel.ostype", "net.ipv4.no_such"]}]
    assert observe(items, programs) == [
        {"modules": {"no_such": False}, "sysctls": {"kernel.ostype": "Linux", "net.ipv4.no_such": None}}
    ]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/ready" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        del arguments

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def unix_server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rest.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield path
        server.shutdown()


def test_server_is_asked(unix_server: Path, programs: Programs) -> None:
    def ready(endpoint: str, path: str, **more: object) -> Any:
        return observe([{"kind": "ready", "endpoint": endpoint, "path": path, **more}], programs)[0]

    endpoint = f"http+unix://{unix_server}"
    assert ready(endpoint, "/v2/health/ready") is True
    assert ready(endpoint, "/v2/") is False
    assert ready(endpoint, "/v2/", status=401) is True
    assert ready(f"{endpoint}.gone", "/v2/health/ready") is False


def test_record_tells_drift_in_words(tmp_path: Path, programs: Programs) -> None:
    file = tmp_path / "daemon.json"
    file.write_text("{}")
    items: list[Item] = [{"kind": "file", "path": str(file)}, {"kind": "packages", "names": ["docker.io"]}]
    directory = tmp_path / "converged"
    _record.record(directory, "engine", "d1", items, {"p50": 1}, programs)
    assert oct(directory.stat().st_mode & 0o777) == "0o700"
    asked = _record.compare(directory, ["engine", "mirror"], programs)
    assert asked == {
        "documents": {"engine": "d1"},
        "notes": {"engine": {"p50": 1}},
        "drift": {"engine": [], "mirror": ["no converge has been recorded on this host"]},
    }
    programs.installed.clear()
    file.unlink()
    lines = _record.compare(directory, ["engine"], programs)["drift"]["engine"]
    assert [line.split(" is not as it was: ")[0] for line in lines] == [f"file {file}", "packages docker.io"]
    assert lines[0].endswith("now absent")


def test_record_is_forgotten(tmp_path: Path, programs: Programs) -> None:
    directory = tmp_path / "converged"
    for section in ("engine", "mirror"):
        _record.record(directory, section, "d", [], None, programs)
    assert _record.forget(directory, "engine", check_mode=True)
    assert _record.forget(directory, "engine", check_mode=False)
    assert not _record.forget(directory, "engine", check_mode=False)
    assert _record.forget(directory, "mirror", check_mode=False)
    assert not directory.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"document": "d"}', '{"document": "d", "note": 1, "evidence": 5}'])
def test_damaged_record_is_no_record(tmp_path: Path, programs: Programs, text: str) -> None:
    (tmp_path / "engine.json").write_text(text)
    (line,) = _record.compare(tmp_path, ["engine"], programs)["drift"]["engine"]
    assert line.startswith("the record of the last converge cannot be read")


def test_record_of_another_version_is_no_record(tmp_path: Path, programs: Programs) -> None:
    items = [{"kind": "smell", "path": os.fspath(tmp_path)}]
    content = {"document": "d", "note": None, "evidence": items, "seen": ["roses"]}
    (tmp_path / "engine.json").write_text(json.dumps(content))
    (line,) = _record.compare(tmp_path, ["engine"], programs)["drift"]["engine"]
    assert line.startswith("the record of the last converge cannot be read")
