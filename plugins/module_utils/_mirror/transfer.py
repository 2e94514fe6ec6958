# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs on their way to a mirror: several at a time, within the uplink's limits, with progress that others can read."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import StorageError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import Blob
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sources import Sources
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.tree import Tree
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import PausedError, Uplink

PARALLEL = 4  # transfers at a time: enough for a link with a long way, and few for a small store
NOTE_SECONDS = 1.0
WINDOW_SECONDS = 30.0  # over which the rate is taken
AHEAD_SECONDS = 0.25  # of the rate may come before it is read
AHEAD_RANGE = (16 << 10, 4 << 20)


class Progress:
    """What a synchronization does now, in a file: ``{"state", "serial", "bytes_done", "bytes_total", ...}``.

    ``state`` is ``running``, ``waiting`` (then ``why`` and ``until`` say for what), ``done`` or ``failed``.
    """

    def __init__(
        self, path: Path, serial: int, *, write: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._serial = serial
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._noted = float("-inf")
        self._marks: deque[tuple[float, int]] = deque()
        self.done = 0
        self.total = 0

    def begin(self, total: int) -> None:
        """Say how much there is to move."""
        self.total = total
        self._marks.append((self._clock(), 0))
        self.note("running")

    def add(self, size: int) -> None:
        """Count bytes that came."""
        with self._lock:
            self.done += size
            now = self._clock()
            if now - self._noted < NOTE_SECONDS:
                return
            self._marks.append((now, self.done))
            while now - self._marks[0][0] > WINDOW_SECONDS:
                self._marks.popleft()
            self._note(now, "running", {})

    def note(self, state: str, **more: Any) -> None:
        """Write the file."""
        with self._lock:
            self._note(self._clock(), state, more)

    def rate(self, now: float) -> float:
        """Return the bytes per second of the last while."""
        since, before = self._marks[0] if self._marks else (now, self.done)
        return (self.done - before) / (now - since) if now > since else 0.0

    def _note(self, now: float, state: str, more: dict[str, Any]) -> None:
        if not self._write:
            return
        self._noted = now
        rate = self.rate(now)
        left = max(0, self.total - self.done)
        content = {
            "state": state,
            "serial": self._serial,
            "bytes_done": self.done,
            "bytes_total": self.total,
            "bytes_per_second": round(rate),
            "seconds_left": round(left / rate) if rate else None,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            **more,
        }
        make_directory(self._path.parent)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(content) + "\n")
        temporary.replace(self._path)


class _StoppedError(Exception):
    """Another transfer has failed."""


def transfer(
    tree: Tree,
    sources: Sources,
    blobs: Sequence[Blob],
    uplink: Uplink,
    progress: Progress,
    *,
    parallel: int = PARALLEL,
) -> int:
    """Fetch `blobs` into the tree and return the bytes that came. At a limit of the uplink, raise PausedError.

    What was begun before goes first, then the largest, so that none is left alone at the end.
    """
    order = sorted(blobs, key=lambda blob: (-tree.partial_size(blob), -blob.size))
    try:
        uplink.check()
        _round(tree, sources, order, uplink, progress, parallel)
        return progress.done
    except PausedError as pause:
        progress.note("waiting", why=pause.why, until=pause.until.isoformat(timespec="minutes"))
        raise
    except StorageError:
        for blob in blobs:  # a full disk is not kept full: others on this host need it too
            tree.partial(blob.digest).unlink(missing_ok=True)
        raise
    finally:
        uplink.close()


def _round(
    tree: Tree, sources: Sources, blobs: Sequence[Blob], uplink: Uplink, progress: Progress, parallel: int
) -> None:
    stopped = threading.Event()
    ahead = 0
    if uplink.limits.rate:
        ahead = int(min(max(uplink.limits.rate * AHEAD_SECONDS, AHEAD_RANGE[0]), AHEAD_RANGE[1]))
    local = threading.local()
    opened: list[Sources] = []

    def spend(size: int, more: bool) -> None:
        progress.add(size)
        uplink.spend(size, more)
        if stopped.is_set():
            raise _StoppedError

    def fetch(blob: Blob) -> None:
        if stopped.is_set():
            return
        if not hasattr(local, "sources"):
            local.sources = sources.another(ahead)
            opened.append(local.sources)
        destination, partial = tree.blob(blob.digest), tree.partial(blob.digest)
        try:
            if tree.partial_size(blob) < blob.size:
                uplink.check()
            local.sources.fetch(blob.repository, blob.digest, blob.size, destination, partial, spend)
        except _StoppedError:
            pass
        except BaseException:
            stopped.set()
            raise

    try:
        with ThreadPoolExecutor(max_workers=max(1, min(parallel, len(blobs)))) as pool:
            list(pool.map(fetch, blobs))  # raises what the first of them raised
    finally:
        for one in opened:
            one.close()
