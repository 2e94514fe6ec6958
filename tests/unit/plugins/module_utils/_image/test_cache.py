# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was built is found again; what was interrupted is not taken for a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache, NotBuiltError, Tree

INPUTS = {"purpose": "test"}


class Maker:
    """Builds a layer of one file and counts how often."""

    def __init__(self, content: str = "content") -> None:
        self.builds = 0
        self._content = content

    def __call__(self, work: Path) -> Tree:
        self.builds += 1
        (work / "root").mkdir()
        (work / "root" / "file").write_text(self._content)
        return Tree(work / "root", {"package": "1.0"})


def test_finds_what_another_run_built(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        cache = LayerCache(tmp_path)
        with cache.locked():
            layer = cache.layer(INPUTS, make)
            assert layer.file.path.stat().st_size == layer.file.size
            assert layer.packages == {"package": "1.0"}
    assert make.builds == 1
    with cache.locked():
        cache.layer({**INPUTS, "architecture": "arm64"}, make)
    assert make.builds == 2


def test_rebuild_builds_once_a_run_and_replaces(tmp_path: Path) -> None:
    for content in ("old", "new"):
        cache = LayerCache(tmp_path, rebuild=True)
        make = Maker(content)
        with cache.locked():
            rebuilt = [cache.layer(INPUTS, make).file.digest for _ in range(2)]
        assert make.builds == 1
    cache = LayerCache(tmp_path)
    with cache.locked():
        assert cache.layer(INPUTS, make).file.digest == rebuilt[0]
    assert make.builds == 1


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 10)])
def test_builds_again_when_the_content_is_lost(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make = Maker()
    cache = LayerCache(tmp_path)
    with cache.locked():
        damage(cache.layer(INPUTS, make).file.path)
        assert cache.layer(INPUTS, make).file.path.stat().st_size == cache.layer(INPUTS, make).file.size
    assert make.builds == 2


def test_check_mode_builds_nothing(tmp_path: Path) -> None:
    make = Maker()
    cache = LayerCache(tmp_path, build=False)
    with cache.locked(), pytest.raises(NotBuiltError):
        cache.layer(INPUTS, make)
    assert make.builds == 0


def test_a_killed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, signal
from ansible_collections.edgeml.fleet.plugins.module_utils._image.cache import LayerCache
def make(work):
    (work / "root").mkdir()
    (work / "root" / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
cache = LayerCache(pathlib.Path({str(tmp_path)!r}))
with cache.locked():
    cache.layer({INPUTS!r}, make)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "work").iterdir()) != []
    make = Maker()
    cache = LayerCache(tmp_path)
    with cache.locked():
        assert list((tmp_path / "work").iterdir()) == []
        cache.layer(INPUTS, make)
    assert make.builds == 1


def test_a_failed_build_is_not_kept(tmp_path: Path) -> None:
    def fail(work: Path) -> Tree:
        raise FleetError("No network")

    cache = LayerCache(tmp_path)
    with cache.locked():
        with pytest.raises(FleetError, match="No network"):
            cache.layer(INPUTS, fail)
        assert cache.layer(INPUTS, Maker()).packages


def test_a_second_build_waits_for_the_first(tmp_path: Path) -> None:
    entered = threading.Event()

    def second() -> None:
        with LayerCache(tmp_path).locked():
            entered.set()

    with LayerCache(tmp_path).locked():
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(240)
    thread.join()


def test_threads_build_one_layer_once(tmp_path: Path) -> None:
    make = Maker()
    cache = LayerCache(tmp_path)
    with cache.locked():
        threads = [threading.Thread(target=cache.layer, args=(INPUTS, make)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert make.builds == 1


def test_an_unusable_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FleetError, match="cache cannot be used"), LayerCache(tmp_path / "file").locked():
        pass
