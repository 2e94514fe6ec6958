# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One content in several files of a directory, for file systems that take no file as large: ``0001``, ``0002`` …"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO, cast

from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import sync_directory


class PartedFile(io.RawIOBase):
    """The files of a directory as one: read from the beginning or from an offset, written at the end.

    `part_bytes` is the size of all parts but the last, when they are written; with 0 nothing can be written.
    """

    def __init__(self, directory: Path, part_bytes: int = 0) -> None:
        self._directory = directory
        self._part_bytes = part_bytes
        self._position = 0
        self._open: tuple[int, BinaryIO] | None = None
        if part_bytes:
            directory.mkdir(exist_ok=True)
            for path in set(_numbered(directory)) - set(_parts(directory)):
                path.unlink()  # behind one that a power cut took
        self._sizes = [path.stat().st_size for path in _parts(directory)]

    def readable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, in bytes of the whole."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset from the beginning."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation
        self._position = offset
        self._close_part()
        return offset

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, at most `size` of them or all; fewer at the end of a part, none at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        start = 0
        for number, length in enumerate(self._sizes):
            if self._position < start + length:
                data = self._part(number, self._position - start).read(size)
                self._position += len(data)
                return data
            start += length
        return b""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Add bytes at the end."""
        if not self._part_bytes:
            raise io.UnsupportedOperation("opened to be read")
        rest = memoryview(data)
        while rest:
            if not self._sizes or self._sizes[-1] >= self._part_bytes:
                self._sizes.append(0)
            number = len(self._sizes) - 1
            piece = rest[: self._part_bytes - self._sizes[number]]
            self._part(number, self._sizes[number]).write(piece)
            self._sizes[number] += len(piece)
            self._position += len(piece)
            rest = rest[len(piece) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Remove all parts."""
        self._close_part()
        for path in _parts(self._directory):
            path.unlink()
        self._sizes = []
        self._position = 0
        return 0

    def sync(self) -> None:
        """Wait until all parts are on the disk, readable by all, and their names."""
        self._close_part()
        for path in _parts(self._directory):
            with path.open("rb") as file:
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
        sync_directory(self._directory)

    def close(self) -> None:
        """Close the part that is open."""
        self._close_part()
        super().close()

    def _part(self, number: int, offset: int) -> BinaryIO:
        """Return the file of a part, at an offset in it."""
        if self._open is None or self._open[0] != number:
            self._close_part()
            path = self._directory / f"{number + 1:04}"
            mode = "rb" if not self._part_bytes else "r+b" if path.exists() else "w+b"
            self._open = (number, cast("BinaryIO", path.open(mode)))
        file = self._open[1]
        if file.tell() != offset:
            file.seek(offset)
        return file

    def _close_part(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _numbered(directory: Path) -> list[Path]:
    """Return what has the name of a part; systems add files of their own, such as ``._0001``."""
    return sorted(
        (path for path in directory.iterdir() if re.fullmatch("(?!0000)[0-9]{4}|[1-9][0-9]{4,}", path.name)),
        key=lambda path: int(path.name),
    )


def _parts(directory: Path) -> list[Path]:
    """Return the parts in their order, up to the first that is missing."""
    return [path for number, path in enumerate(_numbered(directory), 1) if int(path.name) == number]


def whole_size(path: Path) -> int:
    """Return the bytes of a content that is a file, or a directory with parts; -1 if there is none."""
    if path.is_dir():
        return sum(part.stat().st_size for part in _parts(path))
    return path.stat().st_size if path.is_file() else -1


def open_whole(path: Path) -> BinaryIO:
    """Open a content that is a file, or a directory with parts, to be read; raise OSError if there is none."""
    return cast("BinaryIO", PartedFile(path)) if path.is_dir() else path.open("rb")


def is_intact(path: Path, digest: str, size: int) -> bool:
    """Return whether a content is there with this size and digest; one that cannot be read is not."""
    sha256 = hashlib.sha256()
    try:
        if whole_size(path) != size:
            return False
        with open_whole(path) as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    except OSError:
        return False
    return f"sha256:{sha256.hexdigest()}" == digest


def remove(path: Path) -> None:
    """Remove a content that is a file, or a directory with parts, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
