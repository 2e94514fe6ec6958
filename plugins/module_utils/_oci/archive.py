# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tar of a model. Names, kinds and content alone decide its bytes, so that unpacked files can be checked by it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def write_tar(entries: Mapping[str, Path | bytes], output: IO[bytes] | io.RawIOBase) -> None:
    """Write directories, files and bytes by their names, sorted, without owner and time; modes are 0644 and 0755."""
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="strict") as tar:
        for name, content in sorted(entries.items()):
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.mode, member.size = 0o644, len(content)
                tar.addfile(member, io.BytesIO(content))
            elif content.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.mode, member.size = 0o644, content.stat().st_size
                with content.open("rb") as file:
                    tar.addfile(member, file)


def tar_digest(entries: Mapping[str, Path | bytes]) -> tuple[str, int]:
    """Return digest and size of what `write_tar` writes."""
    sink = HashingSink()
    write_tar(entries, sink)
    return "sha256:" + sink.sha256.hexdigest(), sink.size


def unpacked_digest(directory: Path) -> str:
    """Return the digest of the tar that `directory` was unpacked from; "" if it cannot be read."""
    try:
        entries = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
        return tar_digest(entries)[0]
    except OSError:
        return ""


class HashingSink(io.RawIOBase):
    """Takes bytes, keeps their number and SHA-256."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self.size

    def write(self, data: Any) -> int:
        """Take in bytes."""
        self.sha256.update(data)
        self.size += len(data)
        return len(data)
