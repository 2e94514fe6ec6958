# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several places that hold the same content: the next one is asked when one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import StorageError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.uplink import PausedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import UnreachableError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.source import Blob, Source
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob

Found = TypeVar("Found")


class Sources:
    """Sources in the order in which they are asked; one that could not be reached is asked last from then on.

    Whatever comes from whichever of them is verified by its digest, and by signatures where these count.
    """

    def __init__(self, sources: Sequence[Source], unreachable: set[str] | None = None) -> None:
        self.address = sources[0].address
        self._sources = list(sources)
        self._unreachable = set() if unreachable is None else unreachable

    def another(self, ahead: int = 0) -> Sources:
        """Return sources of the same content for another thread, as Source.another says."""
        return Sources([source.another(ahead) for source in self._sources], self._unreachable)

    def close(self) -> None:
        """Close what is kept open between calls."""
        for source in self._sources:
            source.close()

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and its media type, by tag or digest."""
        return self._first(lambda source: source.get_manifest(repository, reference))

    def find_manifest(self, repository: str, reference: str) -> tuple[bytes, str] | None:
        """Return what `get_manifest` returns, None if no source that answers has it."""
        return self._find(lambda source: source.find_manifest(repository, reference))

    def find_referrers(self, repository: str, digest: str) -> bytes | None:
        """Return the index of what refers to a manifest, None where only a tag tells."""
        return self._find(lambda source: source.find_referrers(repository, digest))

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> Blob:
        """Start to read a blob from byte `offset`."""
        return self._first(lambda source: source.open_blob(repository, digest, offset))

    def fetch(
        self,
        repository: str,
        digest: str,
        size: int,
        destination: Path,
        partial: Path,
        spend: Callable[[int, bool], object],
    ) -> None:
        """Do what `fetch_blob` does; the next source goes on where one failed."""
        self._first(lambda source: fetch_blob(source, repository, digest, size, destination, partial, spend))

    def _first(self, action: Callable[[Source], Found]) -> Found:
        errors: list[FleetError] = []
        for source in sorted(self._sources, key=lambda source: source.address in self._unreachable):
            try:
                return action(source)
            except (PausedError, StorageError):
                raise
            except FleetError as error:
                if isinstance(error, UnreachableError):
                    self._unreachable.add(source.address)
                errors.append(error)
        raise errors[0]

    def _find(self, action: Callable[[Source], Found | None]) -> Found | None:
        def found(source: Source) -> Found:
            answer = action(source)
            if answer is None:
                raise _NotFoundError("There is nothing of this name", where=source.address)
            return answer

        try:
            return self._first(found)
        except _NotFoundError:
            return None


class _NotFoundError(FleetError):
    """A source answered that it has nothing of this name."""
