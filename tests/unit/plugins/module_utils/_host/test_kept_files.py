# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file that a host reads back may hold anything after a power cut: no run ends in an error of its own for that.

Those of a runtime are in _release/test_damaged_files.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host import record
from ansible_collections.edgeml.fleet.plugins.module_utils._host.detached import Work, key_of
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kernel import RECORD_FILE, KernelSettings
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror import agent
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.agent import Synchronization
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import Account
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release.approval import ACCEPTED_LOCK, accepted_serial

CONTENTS = [
    b"",
    b"\0" * 20,
    b"\xff\xfe\x80",
    b"5",
    b"null",
    b"[]",
    b"[5]",
    b'"text"',
    b'{"key": "k"',
    b'{"key": 5}',
    b'{"key": "k", "options": [], "result": [], "error": 5}',
    b'{"key": "k", "options": {}, "environment": {"PATH": 5}, "error": {"what": "x"}}',
    b'{"options": 5, "lock": [], "limits": [], "state": "waiting", "until": 5}',
    b'{"day": 5, "seen": [], "left": "text"}',
    b'{"day": "2026-11-29", "seen": "2026-11-29", "left": Infinity}',
    b'{"document": 5, "note": 5, "evidence": [{"kind": "file"}], "seen": [5]}',
    b'{"document": 5, "note": 5, "evidence": [{"kind": "kernel", "modules": 5, "sysctls": 5}], "seen": [5]}',
    b'{"document": 5, "note": 5, "evidence": [{"kind": "file", "path": "/"}], "seen": []}',
    b'{"sysctls": 5, "modules": 5}',
    b'{"sysctls": {"a": 5}, "modules": [5]}',
    b'{"serial": "text"}',
    b"[" * 100_000,
]
damaged = pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))


class Nothing(Work):
    def is_in_the_way(self, key: str, options: Mapping[str, Any]) -> bool:
        return False


def whatever(command: list[str]) -> tuple[int, str, str]:
    return 1, "", ""


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def work(tmp_path: Path, warnings: list[str]) -> Nothing:
    work = Nothing(tmp_path, "nothing", tmp_path, "nothing", [])
    work.warn = warnings.append
    work.lock_file.touch()
    return work


def put(path: Path, content: bytes) -> Path:
    """Damage a file, and return where it is put aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.with_name(f"{path.name}.damaged")


@damaged
def test_a_request_is_put_aside_and_the_next_one_carried_out(
    work: Nothing, warnings: list[str], content: bytes
) -> None:
    aside = put(work.request_file, content)
    assert work.running_request() is None
    work.carry_out(lambda options: pytest.fail("nothing was asked for"))
    assert aside.read_bytes() == content
    assert not work.request_file.exists()
    assert [str(work.request_file) in text and aside.name in text for text in warnings] == [True]
    put(work.request_file, content)
    work.ask_later({"asked": "later"})
    work.carry_out(lambda options: options)
    assert work.wait(key_of({"asked": "later"})) == {"asked": "later"}


@damaged
def test_a_result_is_put_aside_and_told(work: Nothing, warnings: list[str], content: bytes) -> None:
    aside = put(work.result_file, content)
    assert not work.has_result("k")
    assert aside.read_bytes() == content
    put(work.result_file, content)
    work.untold_file.touch()
    assert work.untold() is None
    put(work.result_file, content)
    work.log_file.touch()
    with pytest.raises(FleetError, match="ended without a result"):
        work.wait("k")
    assert [aside.name in text for text in warnings] == [True] * 3


@damaged
def test_the_result_of_a_transaction_stops_no_run(tmp_path: Path, warnings: list[str], content: bytes) -> None:
    transaction = Transaction(tmp_path, "runtime")
    transaction.warn = warnings.append
    put(transaction.result_file, content)
    transaction.untold_file.touch()
    assert transaction.what_became_of_it() == ""
    assert len(warnings) == 1


@pytest.mark.parametrize("result", [{}, {"release": 5}, {"release": {"id": 5}}])
def test_a_result_of_another_shape_is_told_as_far_as_it_goes(tmp_path: Path, result: dict[str, Any]) -> None:
    transaction = Transaction(tmp_path, "runtime")
    put(transaction.result_file, json.dumps({"key": "k", "result": result}).encode())
    transaction.untold_file.touch()
    assert "is the active one" in transaction.what_became_of_it()


@damaged
def test_what_a_mirror_says_and_knows(tmp_path: Path, content: bytes) -> None:
    work = Synchronization(tmp_path)
    put(work.status_file, content)
    assert work.status() == {}
    work.look()
    aside = put(work.last_file, content)
    put(work.damaged_file, b"sha256:" + b"0" * 64 + b"\n")
    assert work.scrub() == [], "nothing can be copied again without options"
    assert aside.exists()


@pytest.mark.parametrize("content", [*CONTENTS, b"sha256:5\n", b"sha256:" + b"0" * 64, b"sha256:../../request\n"])
def test_blobs_are_read_anew_where_nobody_knows_which_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    work = Synchronization(tmp_path)
    blob = Tree(tmp_path).cas / ("1" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"damaged")
    copied: list[bool] = []

    def patient(*arguments: object, **options: object) -> dict[str, Any]:
        copied.append(blob.exists())
        return {"changed": False}

    monkeypatch.setattr(agent, "install_units", lambda units: None)
    monkeypatch.setattr(agent, "patient", patient)
    work.ask_later({"limits": {}, "signatures": {}})
    aside = put(work.damaged_file, content)
    work.work(resumed=True)
    assert aside.exists()
    assert not work.damaged_file.exists()
    assert copied == [True, False], "copied again after it was taken away"


@damaged
def test_the_account_of_an_uplink_begins_anew(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "account", content)
    account = Account(tmp_path / "account", 100, date(2026, 11, 29))
    assert account.left == 100
    account.keep()
    assert Account(tmp_path / "account", 100, date(2026, 11, 29)).left == 100


@damaged
def test_the_record_of_a_converge_has_the_host_converged_again(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / "section.json", content)
    found = record.compare(tmp_path, ["section"], whatever)
    assert "cannot be read" in found["drift"]["section"][0]
    assert found["documents"] == found["notes"] == {}
    record.record(tmp_path, "section", "document", [], {}, whatever)
    assert record.compare(tmp_path, ["section"], whatever)["drift"] == {"section": []}


@damaged
def test_the_record_of_kernel_settings_is_made_anew(tmp_path: Path, content: bytes) -> None:
    put(tmp_path / RECORD_FILE, content)
    parameter = tmp_path / "proc/sys/net/core/somaxconn"
    put(parameter, b"128\n")
    settings = KernelSettings(whatever, tmp_path)
    assert settings.apply([], {"net.core.somaxconn": "256"}, {}, check_mode=False)["changed"]
    assert not settings.apply([], {"net.core.somaxconn": "256"}, {}, check_mode=False)["changed"]
    settings.apply([], {}, {}, check_mode=False)
    assert parameter.read_text().strip() == "128"


@damaged
def test_which_lock_was_accepted_is_asked_of_a_person(tmp_path: Path, content: bytes) -> None:
    """Taken for none, a damaged file would let an older lock in."""
    put(tmp_path / ACCEPTED_LOCK, content)
    with pytest.raises(FleetError, match="remove the file if"):
        accepted_serial(tmp_path)
