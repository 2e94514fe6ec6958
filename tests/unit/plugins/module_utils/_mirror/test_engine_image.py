# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror's own image, for the engine of its host."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, cast

from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.engine_image import load_image
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server
from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils._mirror.test_sync import (
    deliverer,
    image,
    lock_of,
    sync,
)

Serve = Callable[[Callable[[Request], Answer]], Server]


class Engine:
    def __init__(self, load: Callable[[Path], None]) -> None:
        self.load = load


def load(root: Path, entry: dict[str, Any], act: Callable[[Path], None]) -> None:
    digest = entry["platforms"]["amd64"]["digest"]
    load_image(root, f"registry/edgeml/a@{digest}", cast("DockerEngine", Engine(act)))


def test_what_a_killed_process_has_left_goes_with_the_next(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    sync(serve(deliverer(content)), tmp_path, lock_of(1, entry))
    process = os.fork()
    if not process:
        try:
            load(tmp_path, entry, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    os.waitpid(process, 0)
    left = list(tmp_path.glob(".load-*"))
    assert len(left) == 1
    seen: list[Path] = []
    load(tmp_path, entry, lambda archive: seen.append(archive) if archive.is_file() else None)
    assert seen and seen[0].parent not in left
    assert not list(tmp_path.glob(".load-*"))


def test_the_work_of_another_process_stays(serve: Serve, tmp_path: Path) -> None:
    content, entry = image("a")
    sync(serve(deliverer(content)), tmp_path, lock_of(1, entry))

    begun, go_on = threading.Event(), threading.Event()

    def slow(archive: Path) -> None:
        begun.set()
        go_on.wait(30)
        assert archive.is_file()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load, tmp_path, entry, slow)
        assert begun.wait(30)
        second = pool.submit(load, tmp_path, entry, lambda _: None)
        wait([second], timeout=0.2)
        go_on.set()
        first.result()
        second.result()
