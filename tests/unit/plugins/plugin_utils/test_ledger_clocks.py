# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has what since when, by devices whose clocks are wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils import ledger
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.site_content import digests_in_use
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.runtimes import last_known
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.events import is_pending

#: Without a battery, and with a bit too much.
PAST, FUTURE = "1970-01-01T00:01:00Z", "2040-05-05T05:05:05Z"


def at(hour: int) -> str:
    """A time by the controller's clock."""
    return f"2026-11-28T{hour:02}:00:00Z"


class Device:
    """Tries releases, and tells of them."""

    def __init__(self, mark: str = "aaaaaaaa") -> None:
        self.mark = mark
        self.history: list[dict[str, Any]] = []

    def makes(self, release: str, time: str, outcome: str = "active") -> Device:
        place = f"{self.mark}-{len(self.history) + 1:06}"
        model = {"name": release, "version": "1", "variant": "default", "digest": f"sha256:{release}"}
        self.history.append(
            {"time": time, "runtime": "runtime", "release": release, "outcome": outcome, "by": "controller",
             "place": place, "models": [model]}
        )  # fmt: skip
        return self

    def tells(self, hour: int, last: int = 1000) -> list[ledger.Line]:
        runtimes = [{"name": "runtime", "history": self.history[-last:]}]
        return ledger.lines_of_history("a", "berlin", runtimes, heard=at(hour))


def releases(lines: list[ledger.Line]) -> list[str]:
    return [line["release"] or line["outcome"] for line in lines]


def served(lines: list[ledger.Line]) -> tuple[str, str]:
    """Return what the host is known to serve, and since when."""
    (runtime,) = last_known(ledger.dated(lines), [])
    return runtime["release"], runtime["since"]


@pytest.mark.parametrize("wrong", [PAST, FUTURE, "no time", ""])
def test_the_device_s_own_order_counts(wrong: str) -> None:
    device = Device().makes("r1", at(1))
    lines = device.tells(2)
    lines = ledger.merge(lines, device.makes("r2", wrong).tells(4))
    assert releases(lines) == ["r1", "r2"]
    assert served(lines) == ("r2", at(4)), "when the controller heard of it"
    lines = ledger.merge(lines, device.makes("r3", at(5)).tells(6))
    assert releases(lines) == ["r1", "r2", "r3"]
    assert served(lines) == ("r3", at(5))


@pytest.mark.parametrize("wrong", [PAST, FUTURE])
def test_the_first_try_of_a_device(wrong: str) -> None:
    assert served(Device().makes("r1", wrong).tells(3)) == ("r1", at(3))


def test_right_clocks_are_believed() -> None:
    """A guard may have acted long before anybody heard of it."""
    device = Device().makes("r1", at(1)).makes("r2", at(2), "rolled_back").makes("r1", at(2))
    lines = ledger.merge(device.tells(9), [ledger.line("a", "pending", time=at(5), serial=7)])
    assert [line["time"] for line in ledger.dated(lines)] == [at(1), at(2), at(2), at(5)]
    assert ledger.dated(lines) == lines


@pytest.mark.parametrize("wrong", [PAST, FUTURE])
def test_what_controllers_say_of_the_device_stands_where_it_happened(wrong: str) -> None:
    device = Device().makes("r1", wrong)
    lines = ledger.merge(device.tells(1), [ledger.line("a", "pending", time=at(2), serial=7)])
    assert is_pending(lines, 7) == {"a"}
    lines = ledger.merge(lines, device.makes("r2", wrong).tells(3))
    assert is_pending(lines, 7) == frozenset()
    lines = ledger.merge(lines, [ledger.line("a", "removed", time=at(4), runtime="runtime", release="r2")])
    assert last_known(ledger.dated(lines), []) == []


@pytest.mark.parametrize("wrong", [PAST, FUTURE])
def test_a_device_that_is_made_anew_begins_another_history(wrong: str) -> None:
    lines = Device().makes("r1", at(1)).makes("r2", FUTURE).makes("r3", at(2)).tells(3)
    removed = ledger.line("a", "removed", time=at(4), runtime="runtime", release="r3")
    lines = ledger.merge(lines, [removed], Device("00000000").makes("n1", wrong).tells(5))
    assert releases(lines) == ["r1", "r2", "r3", "r3", "n1"]
    assert served(lines) == ("n1", at(5))


def test_what_was_removed_as_soon_as_it_was_heard_of() -> None:
    removed = ledger.line("a", "removed", time=at(4), runtime="runtime", release="r1")
    lines = ledger.merge([removed], Device().makes("r1", FUTURE).tells(4))
    assert last_known(ledger.dated(lines), []) == []


def test_the_same_try_at_the_same_time_after_another_start() -> None:
    device = Device().makes("r1", PAST).makes("r2", PAST).makes("r1", PAST)
    assert releases(ledger.merge(device.tells(1), device.tells(2))) == ["r1", "r2", "r1"]


def test_a_gap_that_is_told_later() -> None:
    device = Device()
    for number in range(9):
        device.makes(f"r{number}", (PAST, FUTURE, at(1))[number % 3])
    lines = ledger.merge(device.tells(2, last=3), device.tells(5))
    assert releases(lines) == [f"r{number}" for number in range(9)]
    times = [line["time"] for line in ledger.dated(lines)]
    assert times == sorted(times)
    assert times[-1] <= at(2), "what was heard first is no older for what was heard after it"


def test_merging_is_the_union_whatever_the_order() -> None:
    dice = random.Random(7)  # noqa: S311 - the same orders in each run; nothing is secret
    device = Device()
    for number in range(20):
        device.makes(f"r{number}", dice.choice([PAST, FUTURE, at(number)]))
    told = [line for hour in (20, 21, 22) for line in device.tells(hour, dice.randint(1, 20))]
    told += [{**line, "rollout": "7.1", "reason": str(n)} for n, line in enumerate(device.tells(23))]
    told += [ledger.line("a", "pending", time=at(hour), serial=hour) for hour in (3, 21)]
    old = [{key: value for key, value in line.items() if key != "heard"} for line in device.tells(23)]
    expected = ledger.merge(told, old)
    assert releases([line for line in expected if line["release"]]) == [f"r{number}" for number in range(20)]
    for _ in range(50):
        parts = [dice.sample([*told, *old], dice.randint(0, 40)) for _ in range(3)]
        parts.append([*told, *old])
        dice.shuffle(parts)
        assert ledger.merge(*parts) == expected
        assert ledger.merge(ledger.merge(*parts[:2]), ledger.merge(*parts[2:])) == expected


def test_a_ledger_made_anew_of_the_devices_says_the_same(tmp_path: Path) -> None:
    device = Device()
    kept, anew = str(tmp_path / "kept"), str(tmp_path / "anew")
    for hour, clock in enumerate((at(1), FUTURE, PAST, at(4), FUTURE), start=1):
        ledger.append(kept, device.makes(f"r{hour}", clock).tells(hour + 1))
    ledger.rebuild(anew, device.tells(9))
    assert releases(ledger.read(kept)) == releases(ledger.read(anew)) == ["r1", "r2", "r3", "r4", "r5"]
    assert digests_in_use(kept, "berlin") == digests_in_use(anew, "berlin") == ["sha256:r4", "sha256:r5"]
    before = ledger.read(kept)
    assert ledger.rebuild(kept, device.tells(9)) == 0
    assert ledger.read(kept) == before, "who heard it first keeps its word"


def test_a_ledger_without_places_is_read_as_before(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    lines = [ledger.line("a", "active", runtime="runtime", release=f"r{n}", time=at(n)) for n in (3, 1, 2)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert releases(ledger.read(str(file))) == ["r1", "r2", "r3"]
    device = Device().makes("r4", PAST)
    ledger.append(str(file), device.tells(5))
    assert served(ledger.read(str(file))) == ("r4", at(5))


@pytest.mark.parametrize("key", ["heard", "place"])
def test_a_line_whose_order_is_no_text_is_left_out(tmp_path: Path, key: str) -> None:
    file = tmp_path / "ledger"
    file.write_text(json.dumps({**Device().makes("r1", at(1)).tells(2)[0], key: 5}))
    assert ledger.read(str(file)) == []
