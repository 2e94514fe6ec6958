# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks about detached work, and who does it."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._host.detached import Work, key_of


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
