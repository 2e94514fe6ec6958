# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content tree of a site mirror: exactly what a lock names, switched from one generation to the next at once.

The tree, which a web server delivers as a read-only registry::

    cas/sha256/<hex>                                                       blobs, complete and verified
    staging/                                                               unfinished work, continued by the next run
    sync/                                                                  progress, the uplink's account
    generations/<serial>/v2/<repository>/manifests/<digest>.oci-manifest   or another of EXTENSIONS
    generations/<serial>/v2/<repository>/manifests/sha256-<hex>.sig.oci-manifest
    generations/<serial>/v2/<repository>/referrers/<digest>.oci-index
    generations/<serial>/v2/<repository>/tags/list
    current -> generations/<serial>
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, sync_directory, write_file
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.content import (
    EXTENSIONS,
    Blob,
    MirrorContent,
    blobs_of,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.lock import document_of
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest


class Tree:
    """The directories and files under the mirror's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"
        self.generations = root / "generations"
        self.staging = root / "staging"
        self.cas = root / "cas" / "sha256"
        self.status_file = root / "sync" / "status.json"
        self.account_file = root / "sync" / "uplink.json"

    def blob(self, digest: str) -> Path:
        """Return where a blob is served from."""
        return self.cas / digest.partition(":")[2]

    def partial(self, digest: str) -> Path:
        """Return where a blob is while it is fetched."""
        return self.staging / (digest.partition(":")[2] + ".part")

    def partial_size(self, blob: Blob) -> int:
        """Return the bytes of a blob that an interrupted run left."""
        with contextlib.suppress(FileNotFoundError):
            return min(self.partial(blob.digest).stat().st_size, blob.size)
        return 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directories and keep other synchronizations off them; raise FleetError if one is under way."""
        for directory in (self.root, self.generations, self.staging, self.cas):
            make_directory(directory)
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FleetError(
                    "Another synchronization of this mirror is under way",
                    where=str(self.root),
                    remedy="wait until it has ended, then run again",
                ) from error
            yield

    def current_target(self) -> str | None:
        """Return the name of the generation that is served."""
        return _leads_to(self.current)

    def current_serial(self) -> int | None:
        """Return the serial of the lock whose content is served."""
        target = self.current_target()
        return serial_of(target) if target else None

    def read_generation(self) -> dict[str, bytes]:
        """Return the files of the generation that is served."""
        if not self.current.is_dir():
            return {}
        return {
            path.relative_to(self.current).as_posix(): path.read_bytes()
            for path in self.current.rglob("*")
            if path.is_file()
        }

    def read_served(self, path: str) -> bytes | None:
        """Return a file of the generation that is served, None if it has none of this name."""
        with contextlib.suppress(OSError):
            return (self.current / path).read_bytes()
        return None

    def read_blob(self, digest: str, limit: int) -> bytes | None:
        """Return an intact blob of at most `limit` bytes, None if there is none."""
        with contextlib.suppress(OSError):
            with self.blob(digest).open("rb") as file:
                data = file.read(limit + 1)
            if sha256_digest(data) == digest:
                return data
        return None

    def write_blob(self, digest: str, data: bytes) -> None:
        """Make a blob of bytes at hand, in one step that is safe against a power cut."""
        partial = self.partial(digest)
        partial.unlink(missing_ok=True)
        write_file(partial, data)
        partial.replace(self.blob(digest))
        sync_directory(self.cas)

    def manifests(self) -> dict[str, tuple[bytes, str]]:
        """Return the intact manifests of all generations and their media types, by digest."""
        media_types = {extension: media_type for media_type, extension in EXTENSIONS.items()}
        found = {}
        for path in self.generations.glob("*/v2/**/manifests/sha256:*"):
            digest, _separator, extension = path.name.partition(".")
            data = path.read_bytes()
            if sha256_digest(data) == digest and extension in media_types:
                found[digest] = data, media_types[extension]
        return found

    def switch(self, serial: int, files: Mapping[str, bytes]) -> None:
        """Serve a generation with these files from one moment to the next."""
        target = self.generations / str(serial)
        before = self.current_target()
        if before and before not in (target.name, f"{serial}.new"):
            self._point("previous", before)
        if before == target.name:
            # A directory cannot be replaced at once while it is served: serve an equal one meanwhile.
            self._write_generation(self.generations / f"{serial}.new", files)
            self._point("current", f"{serial}.new")
        self._write_generation(target, files)
        self._point("current", target.name)

    def _write_generation(self, target: Path, files: Mapping[str, bytes]) -> None:
        work = self.staging / "generation"
        _remove_tree(work)
        make_directory(work)
        for name, data in files.items():
            make_directory((work / name).parent)
            write_file(work / name, data)
        for directory, _names, _files in os.walk(work, topdown=False):
            sync_directory(Path(directory))
        self._remove_generation(target)
        work.rename(target)
        sync_directory(self.generations)

    def _point(self, name: str, generation: str) -> None:
        """Have the link `name` lead to a generation from one moment to the next."""
        link = self.root / f"{name}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("generations") / generation)
        link.replace(self.root / name)
        sync_directory(self.root)

    def _remove_generation(self, path: Path) -> None:
        if path.exists():
            doomed = self.staging / "removed"
            _remove_tree(doomed)
            path.rename(doomed)
            _remove_tree(doomed)

    def garbage(
        self, serial: int | None, content: MirrorContent, keep: int, in_use: Collection[str] = ()
    ) -> tuple[list[Path], list[Path], list[Path]]:
        """Return the generations, blobs and leftovers that are of no use once `serial` is served with `content`.

        `keep` generations are kept, the served one and the one before it first, and those that alone have a manifest or
        blob that is `in_use`. With serial None `content` is not there yet: what is served stays, and what was begun.
        """
        current, previous = self.current_target(), _leads_to(self.root / "previous")
        others = [path for path in self.generations.glob("*") if serial is None or path.name != str(serial)]
        # "3.new" is what an interrupted switch left behind.
        others.sort(
            key=lambda path: (
                serial is None and path.name == current,
                path.name == previous,  # serials may begin anew, or go back
                path.name.isdigit(),
                serial_of(path.name),
            ),
            reverse=True,
        )
        used = set(content.blobs)
        missing = set(in_use) - used - {digest for _repository, digest in content.manifests}
        kept: list[Path] = []
        room = max(keep - 1, 1 if serial is None else 0)
        for generation in others:
            if not generation.name.isdigit() and not (serial is None and generation.name == current):
                continue
            with contextlib.suppress(FleetError):  # a damaged generation is of no use
                blobs, manifests = _content_of_generation(generation)
                if room > 0 or missing & (blobs | manifests):
                    room -= 1
                    used |= blobs
                    missing -= blobs | manifests
                    kept.append(generation)
        staged = list(self.staging.glob("*"))
        if serial is None:
            if current and not any(path.name == current for path in kept):
                return [], [], []  # the served generation is damaged: nobody can say what it needs
            begun = {self.partial(digest) for digest in content.blobs}
            staged = [path for path in staged if path not in begun]
        blobs_left = [path for path in self.cas.glob("*") if f"sha256:{path.name}" not in used]
        return [path for path in others if path not in kept], blobs_left, staged

    def remove(self, generations: Sequence[Path], blobs: Sequence[Path], leftovers: Sequence[Path]) -> None:
        """Remove what `garbage` returned."""
        for path in generations:
            self._remove_generation(path)
        sync_directory(self.generations)  # no generation may come back without its blobs
        for path in [*blobs, *leftovers]:
            if path.is_dir():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)


def serial_of(name: str) -> int:
    digits = name.partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _content_of_generation(generation: Path) -> tuple[set[str], set[str]]:
    """Return the digests of a generation's blobs and of its manifests."""
    blobs: set[str] = set()
    manifests: set[str] = set()
    for path in generation.glob("v2/**/manifests/*"):
        manifests.add(path.name.partition(".")[0])
        if path.name.endswith("-manifest"):
            document = document_of(path.read_bytes(), str(path))
            blobs.update(blob.digest for blob in blobs_of(document, "", str(path)))
    return blobs, manifests


def _leads_to(link: Path) -> str | None:
    return Path(os.readlink(link)).name if link.is_symlink() else None


def _remove_tree(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
