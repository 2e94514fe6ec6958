# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What manifests and blobs are read from: a registry, or a bundle on a disk."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Blob(Protocol):
    """A blob that is read piece by piece, as a context manager.

    Attributes
    ----------
    offset : int
        Position in the blob of the first byte delivered.
    """

    @property
    def offset(self) -> int: ...

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; none at the end."""

    def read_all(self, limit: int) -> bytes:
        """Return what is left, at most `limit` bytes."""

    def __enter__(self) -> Blob: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Source(Protocol):
    """Every method raises FleetError. `address` is for people."""

    address: str

    def another(self, ahead: int = 0) -> Source:
        """Return a source of the same content for another thread: an instance serves one at a time.

        `ahead` limits the bytes that come before they are read, 0 leaves that to the system.
        """

    def close(self) -> None:
        """Close what is kept open between calls."""

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and its media type, by tag or digest."""

    def find_manifest(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        """Return what `get_manifest` returns, None if there is none."""

    def find_referrers(self, repository: str, digest: str) -> bytes | None:
        """Return the index of what refers to a manifest, None where only a tag tells (distribution specification)."""

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> Blob:
        """Start to read a blob from byte `offset`."""
