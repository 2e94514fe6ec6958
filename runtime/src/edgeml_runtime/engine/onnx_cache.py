# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Optimised graphs on disk, so that the next start of a model on this host need not optimise again.

A file is named ``<key>-<sha256 of its content>.onnx``; the key stands for all that the graph depends
on. An empty ``<key>-refused`` says that keeping the graph does not pay, or cannot be done.
"""

import hashlib
import logging
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LARGEST_TOTAL_BYTES = 2 << 30
FORGOTTEN_SECONDS = 3600.0

_NAME = re.compile(r"[0-9a-f]{64}-([0-9a-f]{64}\.onnx|refused)|unfinished-.*")
#: The key that says in which file a tensor lies, as protobuf writes it.
_EXTERNAL_DATA = b"\x08location"
#: What /proc/cpuinfo says of instructions and caches, on amd64 and arm64.
_PROCESSOR = re.compile(
    r"^(vendor_id|model name|flags|Features|CPU (?:implementer|architecture|part)|cache_alignment)\s*:(.*)$",
    re.MULTILINE,
)

logger = logging.getLogger(__name__)


class GraphCache:
    """A directory of optimised graphs. Its methods raise OSError where the directory cannot be used."""

    def __init__(self, directory: Path) -> None:
        """Create the directory when it is not there."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def find(self, key: str) -> Path | None:
        """The graph of that key, after its content was checked; a corrupt one is removed."""
        for file in self._directory.glob(f"{key}-*.onnx"):
            if file.name == f"{key}-{digest(file)}.onnx":
                os.utime(file)  # used lately
                return file
            logger.warning("%s: its content is not what was written; it is made again", file)
            self.remove(file)
        return None

    def refuses(self, key: str) -> bool:
        """Whether it was found out before that keeping that graph does not pay."""
        return (self._directory / f"{key}-refused").exists()

    def refuse(self, key: str) -> None:
        """Do not try to keep that graph again."""
        (self._directory / f"{key}-refused").touch()

    @contextmanager
    def unfinished(self) -> Iterator[Path]:
        """A file to write a graph to, removed at the end."""
        descriptor, name = tempfile.mkstemp(prefix="unfinished-", suffix=".onnx", dir=self._directory)
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            self.remove(Path(name))

    def keep(self, key: str, written: Path) -> None:
        """Give a written graph its name, durably, and remove the least used when there are too many bytes."""
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.rename(self._directory / f"{key}-{digest(written)}.onnx")
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._evict()

    def remove(self, file: Path) -> None:
        """Remove a file of the cache."""
        with suppress(OSError):
            file.unlink(missing_ok=True)

    def _evict(self) -> None:
        now = time.time()
        total = 0
        files = []
        for file in self._directory.iterdir():
            with suppress(FileNotFoundError):
                if _NAME.fullmatch(file.name):
                    files.append((file.stat(), file))
        for status, file in sorted(files, key=lambda item: -item[0].st_mtime):
            if file.name.startswith("unfinished-"):
                if now - status.st_mtime > FORGOTTEN_SECONDS:  # of a process that was killed
                    self.remove(file)
                continue
            total += max(status.st_size, 4096)
            if total > LARGEST_TOTAL_BYTES:
                self.remove(file)


def cache_key(file: Path, engine_version: str, optimization: str) -> str | None:
    """What the optimised graph of ``file`` depends on, as 64 hexadecimal digits; None when other files matter too.

    Raises OSError.
    """
    content = hashlib.sha256()
    with file.open("rb") as opened:
        end = b""
        while part := opened.read(1 << 20):
            if _EXTERNAL_DATA in end + part:
                return None
            content.update(part)
            end = part[1 - len(_EXTERNAL_DATA) :]
    processor = sorted({" ".join(found) for found in _PROCESSOR.findall(Path("/proc/cpuinfo").read_text())})
    parts = ("1", content.hexdigest(), engine_version, optimization, platform.machine(), *processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
