# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger


def entry(number: int, host: str = "camera-1", **more: Any) -> dict[str, Any]:
    return ledger.line(host, "active", time=f"2026-11-28T06:00:{number:02}Z", release=f"r{number}", **more)


def test_a_line_is_canonical_and_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "new" / "fleet.ledger.jsonl"
    assert ledger.append(str(file), [entry(2), entry(1)]) == 2
    assert file.read_text().splitlines() == [
        '{"by":"controller","host":"camera-1","image":"","models":[],"outcome":"active","reason":"","release":"r1",'
        '"rollout":"","runtime":"","serial":null,"site":"","time":"2026-11-28T06:00:01Z"}',
        '{"by":"controller","host":"camera-1","image":"","models":[],"outcome":"active","reason":"","release":"r2",'
        '"rollout":"","runtime":"","serial":null,"site":"","time":"2026-11-28T06:00:02Z"}',
    ]


def test_what_is_known_is_not_written_again(tmp_path: Path) -> None:
    file = str(tmp_path / "ledger")
    assert ledger.append(file, [entry(1, rollout="7.1", serial=7)]) == 1
    assert ledger.append(file, [entry(1), entry(2)]) == 1
    assert [line["rollout"] for line in ledger.read(file)] == ["7.1", ""]


def test_text_that_is_not_utf_8_is_written_escaped(tmp_path: Path) -> None:
    """SSH may answer in another encoding; Python keeps its bytes as lone surrogates."""
    file = tmp_path / "ledger"
    model = {"name": "caf\udce9"}
    assert ledger.append(str(file), [entry(1, reason="no route to B\udcfcro", models=[model])]) == 1
    (line,) = ledger.read(str(file))
    assert (line["reason"], line["models"]) == ("no route to B\\udcfcro", [{"name": "caf\\udce9"}])
    file.write_text(json.dumps(entry(2) | {"reason": "\udcfc"}) + "\n")
    assert ledger.read(str(file))[0]["reason"] == "\\udcfc"


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c"])
def test_a_line_ends_at_its_newline_alone(tmp_path: Path, separator: str) -> None:
    file = str(tmp_path / "ledger")
    ledger.append(file, [entry(1, reason=f"no{separator}route")])
    assert [line["reason"] for line in ledger.read(file)] == [f"no{separator}route"]


def test_what_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert ledger.note(str(tmp_path / "ledger"), [{**entry(1), "reason": "\udcfc"}], warnings.append) == 0
    assert "surrogates not allowed" in warnings[0]


def test_missing_lines_are_those_of_other_events() -> None:
    known = [entry(1, rollout="7.1"), entry(2)]
    assert ledger.missing(known, [entry(1), entry(3)]) == [entry(3)]


def test_missing_file_is_empty(tmp_path: Path) -> None:
    assert ledger.read(str(tmp_path / "none")) == []
    assert ledger.append(str(tmp_path / "none"), []) == 0
    assert not (tmp_path / "none").exists()


def test_what_is_no_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    lines = [entry(2, "b"), entry(1, "a"), {"host": "c"}, {"time": "2026-11-28"}, ["d"], 5]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert [line["host"] for line in ledger.read(str(file))] == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_that_a_kill_has_torn_swallows_no_other(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "ledger"
    ledger.append(str(file), [entry(1), entry(2)])
    file.write_bytes(file.read_bytes()[:-cut])
    ledger.append(str(file), [entry(2), entry(3)])
    # Cut by the newline alone, the line is whole.
    assert [line["release"] for line in ledger.read(str(file))] == ["r1", "r2", "r3"]


def test_merge_is_the_union_whatever_the_order() -> None:
    dice = random.Random(3)  # noqa: S311
    lines = [entry(number, host) for number in range(20) for host in ("a", "b")]
    richer = [entry(number, "a", rollout="7.1", serial=7) for number in range(10)]
    expected = ledger.merge(lines, richer)
    assert [line["rollout"] for line in expected if line["host"] == "a"] == ["7.1"] * 10 + [""] * 10
    for _ in range(50):
        parts = [dice.sample([*lines, *richer], dice.randint(0, 50)) for _ in range(3)]
        parts.append([*lines, *richer])
        dice.shuffle(parts)
        assert ledger.merge(*parts) == expected
        assert ledger.merge(ledger.merge(*parts[:2]), *parts[2:]) == expected


def test_git_merges_ledgers_of_two_branches(tmp_path: Path) -> None:
    """Both have appended; with `merge=union` there is no conflict, and what is read is all of it."""

    def git(*arguments: str) -> None:
        names = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    file = str(tmp_path / "fleet.ledger.jsonl")
    (tmp_path / ".gitattributes").write_text("*.ledger.jsonl merge=union\n")
    git("init")
    ledger.append(file, [entry(1)])
    git("add", ".")
    git("commit", "-m", "one")
    git("checkout", "-b", "other")
    ledger.append(file, [entry(2), entry(4)])
    git("commit", "-a", "-m", "other")
    git("checkout", "main")
    ledger.append(file, [entry(2, rollout="7.1"), entry(3)])
    git("commit", "-a", "-m", "main")
    git("merge", "other")
    read = ledger.read(file)
    assert [(line["release"], line["rollout"]) for line in read] == [("r1", ""), ("r2", "7.1"), ("r3", ""), ("r4", "")]


def test_rebuild_keeps_what_no_device_remembers(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    ledger.append(str(file), [entry(3), entry(2, "gone"), entry(5, rollout="7.1")])
    file.write_text(file.read_text() + "<<<<<<< HEAD\nnot json\n")
    assert ledger.rebuild(str(file), [entry(1), entry(5)]) == 1
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["release"], line["host"], line["rollout"]) for line in lines] == [
        ("r1", "camera-1", ""),
        ("r2", "gone", ""),
        ("r3", "camera-1", ""),
        ("r5", "camera-1", "7.1"),
    ]
    before = file.stat()
    assert ledger.rebuild(str(file), [entry(1)]) == 0
    assert file.stat() == before, "nothing was written"


#: Appends lines of a host of its own, and the same lines as all others.
APPEND = """
import sys
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
file, own = sys.argv[1:]
for second in range(10):
    time = f"2026-11-28T06:00:{second:02}Z"
    ledger.append(file, [ledger.line(host, "active", time=time) for host in (own, "all")])
"""


def test_controllers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    commands = [[sys.executable, "-c", APPEND, str(file), f"h{number}"] for number in range(4)]
    controllers = [subprocess.Popen(command) for command in commands]
    assert [controller.wait(600) for controller in controllers] == [0] * 4
    assert len(file.read_text().splitlines()) == 50


def test_history_of_a_host_becomes_lines() -> None:
    model = {"name": "digits", "version": "1.0.0", "variant": "default", "digest": "sha256:0"}
    told = {
        "time": "2026-11-28T06:00:00Z", "runtime": "vision", "release": "r1", "attempt": "a", "outcome": "refused",
        "reason": "too slow", "by": "controller", "image": "store/runtime@sha256:1", "models": [model],
        "gates": [{"gate": "p95"}], "place": "1f0c9a2e-000017",
    }  # fmt: skip
    runtimes = [{"name": "vision", "history": [told]}]
    assert ledger.lines_of_history("camera-1", "berlin", runtimes, heard="2026-11-28T07:00:00Z") == [
        {
            "time": "2026-11-28T06:00:00Z", "host": "camera-1", "site": "berlin", "runtime": "vision", "release": "r1",
            "outcome": "refused", "reason": "too slow", "by": "controller", "image": "store/runtime@sha256:1",
            "models": [model], "serial": None, "rollout": "", "place": "1f0c9a2e-000017",
            "heard": "2026-11-28T07:00:00Z",
        }
    ]  # fmt: skip


def test_a_path_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError, match="edgeml_ledger_file"):
        ledger.append(str(tmp_path / "file" / "ledger"), [entry(1)])


def test_a_ledger_that_cannot_be_written_is_a_warning_where_devices_know_all_of_it(tmp_path: Path) -> None:
    warnings: list[str] = []
    (tmp_path / "file").write_text("")
    lines = [ledger.line("camera-1", "removed")]
    assert ledger.note(str(tmp_path / "file" / "ledger.jsonl"), lines, warnings.append) == 0
    assert len(warnings) == 1
    assert ledger.note(str(tmp_path / "ledger.jsonl"), lines, warnings.append) == 1
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("odd", "known"),
    [
        ('{"host": "b", "time": "2026-01-01T00:00:00Z"}', {"site": "", "models": [], "outcome": ""}),
        ('{"host": "b", "time": "2026-01-01T00:00:00Z", "models": "digits"}', None),
        ('{"host": "b", "time": "2026-01-01T00:00:00Z", "models": [{}]}', None),
        ('{"host": "b", "time": "2026-01-01T00:00:00Z", "serial": NaN}', None),
        ('{"host": "b", "time": "2026-01-01T00:00:00Z", "reason": null}', None),
        ("[" * 100_000, None),
    ],
)
def test_a_line_that_somebody_has_edited(tmp_path: Path, odd: str, known: dict[str, Any] | None) -> None:
    """It has all that readers count on, or is left out; the others stay."""
    file = tmp_path / "ledger.jsonl"
    ledger.append(str(file), [ledger.line("a", "active", time="2026-01-02T00:00:00Z")])
    file.write_text(f"{odd}\n{file.read_text()}")
    *edited, whole = ledger.read(str(file))
    assert whole["host"] == "a"
    assert [known.items() <= one.items() for one in edited if known] == [True] * bool(known)
    assert len(edited) == bool(known)
