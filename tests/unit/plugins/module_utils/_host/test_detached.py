# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks about detached work, and who does it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host import detached
from ansible_collections.edgeml.fleet.plugins.module_utils._host.detached import Work, key_of
from ansible_collections.edgeml.fleet.plugins.module_utils._host.own_code import with_bytecode
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.proxy import VARIABLES


class Nothing(Work):
    def is_in_the_way(self, key: str, options: Mapping[str, Any]) -> bool:
        return False


@pytest.fixture
def work(tmp_path: Path) -> Nothing:
    work = Nothing(tmp_path, "nothing", tmp_path, "nothing", [])
    work.lock_file.touch()
    return work


def test_who_only_asks_is_not_taken_for_who_works(work: Nothing) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda _: work.is_running(), range(20_000)))


def test_who_works_is_seen_by_everybody(work: Nothing) -> None:
    with work.lock_file.open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: work.is_running(), range(100)))


def test_who_begins_only_where_nobody_works_is_not_kept_away_by_who_asks(work: Nothing) -> None:
    work.ask_later({})
    with work.lock_file.open("r+b") as asking, ThreadPoolExecutor(1) as pool:
        fcntl.flock(asking, fcntl.LOCK_SH)
        done = pool.submit(work.carry_out, lambda options: {"done": True}, attend=False)
        wait([done], timeout=0.2)
        fcntl.flock(asking, fcntl.LOCK_UN)
        done.result()
    assert work.wait(key_of({})) == {"done": True}


def test_what_is_asked_for_later_takes_nothing_from_others(work: Nothing) -> None:
    key = key_of({"asked": "now"})
    work.ask_later({"asked": "now"})
    work.ask_later({"asked": "later"})
    work.carry_out(lambda options: options)
    work.ask_later({"asked": "later"})
    assert work.wait(key) == {"asked": "now"}, "who waits hears the result"
    request = work.running_request()
    assert request is not None and request["options"] == {"asked": "later"}


def test_what_begins_later_takes_the_way_that_who_asked_took(work: Nothing, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as asking:
        asking.setenv("https_proxy", "http://fleet:s3cret@proxy.example:3128")
        asking.setenv("no_proxy", "store.example")
        work.ask_later({})
    assert oct(work.request_file.stat().st_mode & 0o777) == "0o600"
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})  # what systemd gives
    seen: list[dict[str, str]] = []
    work.carry_out(lambda options: seen.append(dict(os.environ)) or {}, attend=False)  # type: ignore[func-returns-value]
    assert seen[0]["https_proxy"] == "http://fleet:s3cret@proxy.example:3128"
    assert seen[0]["no_proxy"] == "store.example"
    assert "http_proxy" not in seen[0]


def test_every_variable_of_a_proxy_is_taken_along() -> None:
    assert {*VARIABLES, "no_proxy", "NO_PROXY"} <= set(detached.PROXY)


def test_a_proxy_s_password_is_on_no_command_line(
    work: Nothing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    result = json.dumps({"result": {}, "key": key_of({})})

    def run(command: list[str]) -> tuple[int, str, str]:
        asked.append(command)
        work.result_file.write_text(result)
        return 0, "", ""

    monkeypatch.setattr(detached, "SYSTEMD", tmp_path)
    monkeypatch.setattr(detached, "run_program", run)
    for name in detached.PROXY:
        monkeypatch.setenv(name, "http://fleet:s3cret@proxy.example:3128")
    work.launch = ["pass"]
    work.begin({})
    assert asked[0][0] == "systemd-run"
    assert f"--setenv=PATH={os.environ['PATH']}" in asked[0]
    assert "s3cret" not in " ".join(asked[0])
    assert "s3cret" in work.request_file.read_text()


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def answer(path: Path) -> str:
    """Return what the program in an archive prints."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import package.told; print(package.told.ANSWER)"
    return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.strip()


def test_code_that_is_kept_is_not_compiled_at_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"package/__init__.py": b"", "package/told.py": b"ANSWER = 'kept'\n", "no_python.py": b"\\ no Python"}
    sources = archive(tmp_path / "sources.zip", modules)
    kept = tmp_path / "kept.zip"
    with monkeypatch.context() as at_boot:
        at_boot.setattr(time, "time", lambda: 0.0)  # on a board without a clock
        kept.write_bytes(with_bytecode(sources.read_bytes()))
    assert answer(kept) == "kept"
    with zipfile.ZipFile(kept) as file:
        files = {name: file.read(name) for name in file.namelist()}
    assert set(files) - set(modules) == {"package/__init__.pyc", "package/told.pyc"}
    files["package/told.py"] = b"ANSWER = 'compiled'\n"
    assert answer(archive(tmp_path / "other-source.zip", files)) == "kept"
    # That of another Python is passed over.
    files["package/told.pyc"] = b"\0\0\r\n" + files["package/told.pyc"][4:]
    assert answer(archive(tmp_path / "other-python.zip", files)) == "compiled"
