# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Layers of container images: written byte for byte reproducibly, unpacked as a container engine does."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

GZIP_LEVEL = 6
BLOCK = 1 << 20
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
SYMLINKS_FOLLOWED = 40  # as Linux


@dataclass(frozen=True)
class LayerFile:
    """A gzip-compressed layer on disk; sizes in bytes, `diff_id` is the digest of the uncompressed tar."""

    path: Path
    digest: str
    size: int
    diff_id: str
    uncompressed_size: int | None = None  # unknown for layers of other images


class PathPatterns:
    """Patterns of paths relative to an image's root, matched against a path and all directories above it.

    ``*`` and ``?`` stay within one name, ``**`` also crosses ``/``; a pattern without ``/`` matches a name anywhere.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        expressions = [_expression(pattern.strip("/")) for pattern in patterns]
        self._expression = re.compile("|".join(expressions)) if expressions else None

    def match(self, path: str) -> bool:
        """Return whether `path` (relative, with ``/``) or a directory that holds it matches."""
        if self._expression is None:
            return False
        names = path.split("/")
        return any(self._expression.fullmatch("/".join(names[:count])) for count in range(1, len(names) + 1))


def _expression(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern if "/" in pattern else f"**/{pattern}")
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "(?:" + "".join(wildcards.get(part, re.escape(part)) for part in parts) + ")"


def prune(root: Path, remove: PathPatterns, keep: PathPatterns) -> None:
    """Delete what `remove` matches and `keep` does not, and each directory that is empty because of it."""
    for directory, names, files in os.walk(root, topdown=False):
        here = Path(directory)
        deleted = False
        for name in [*files, *names]:
            path = here / name
            relative = path.relative_to(root).as_posix()
            if not remove.match(relative) or keep.match(relative):
                continue
            if not path.is_symlink() and path.is_dir():
                if any(path.iterdir()):
                    continue  # something in it is kept
                path.rmdir()
            elif path.exists() or path.is_symlink():
                path.unlink()
            deleted = True
        if deleted and here != root and not any(here.iterdir()):
            here.rmdir()


class _Measured:
    """A binary writer that counts and hashes what passes."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._target.write(data)
        return len(data)

    def flush(self) -> None:
        self._target.flush()

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def write_layer(root: Path, destination: Path) -> LayerFile:
    """Write all that is below `root` as a tar+gzip layer.

    The bytes depend on names, contents, links and permission bits only: sorted, owner 0:0, time 0, no extended
    attributes, no set-user-ID or set-group-ID bits. Raise FleetError for devices, pipes and sockets.
    """
    with destination.open("wb") as file:
        compressed = _Measured(file)
        with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=compressed, mtime=0) as packer:
            plain = _Measured(packer)  # type: ignore[arg-type]
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:  # type: ignore[call-overload]
                _add_tree(archive, root)
        file.flush()
        os.fsync(file.fileno())
    return LayerFile(destination, compressed.digest, compressed.size, plain.digest, plain.size)


def _add_tree(archive: tarfile.TarFile, root: Path) -> None:
    first_names: dict[tuple[int, int], str] = {}
    for path in sorted(root.rglob("*"), key=lambda item: item.relative_to(root).parts):
        status = path.lstat()
        entry = tarfile.TarInfo(path.relative_to(root).as_posix())
        entry.mode = stat.S_IMODE(status.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)
        if stat.S_ISDIR(status.st_mode):
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        elif stat.S_ISLNK(status.st_mode):
            entry.type = tarfile.SYMTYPE
            entry.mode = 0o777
            entry.linkname = str(path.readlink())
            archive.addfile(entry)
        elif stat.S_ISREG(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and identity in first_names:
                entry.type = tarfile.LNKTYPE
                entry.linkname = first_names[identity]
                archive.addfile(entry)
            else:
                first_names[identity] = entry.name
                entry.size = status.st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
        else:
            raise FleetError(
                "A layer can hold files, directories and links only",
                where=str(path),
                seen=stat.filemode(status.st_mode),
                remedy="remove it from the source",
            )


def resolve(root: Path, path: str) -> Path:
    """Return where `path` leads when `root` is the root directory; the last name is followed too.

    Links never lead out of `root`; names that do not exist are taken as they are. Raise FleetError on a link loop.
    """
    waiting = list(reversed(PurePosixPath("/", path).parts[1:]))
    current = root
    followed = 0
    while waiting:
        name = waiting.pop()
        if name == "..":
            current = current if current == root else current.parent
            continue
        current = current / name
        if current.is_symlink():
            followed += 1
            if followed > SYMLINKS_FOLLOWED:
                raise FleetError("Too many symbolic links", where=path, remedy="repair the links in the image")
            target = PurePosixPath(current.readlink())
            current = root if target.is_absolute() else current.parent
            waiting.extend(reversed([part for part in target.parts if part != "/"]))
    return current


def unpack(archive: tarfile.TarFile, root: Path) -> None:
    """Unpack one layer, or one package, over what is in `root` (OCI image specification, "Layer filesystem changeset").

    Whiteouts delete what lower layers brought. Owners and devices are left out, so that no privilege is needed; nothing
    is written outside `root`. Raise FleetError for a hard link to a file that is not there.
    """
    directory_modes: dict[Path, int] = {}
    own: set[Path] = set()  # an opaque mark hides lower layers only
    for entry in archive:
        parts = [part for part in PurePosixPath("/", entry.name).parts[1:] if part != ".."]
        if not parts:
            continue
        parent = resolve(root, "/".join(parts[:-1]))
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / parts[-1]
        if path.name == OPAQUE:
            _hide_lower(parent, own)
        elif path.name.startswith(WHITEOUT):
            hidden = path.name.removeprefix(WHITEOUT)
            if hidden in ("", ".", ".."):
                raise FleetError("A whiteout names no file", where=entry.name, remedy="use another base image")
            _delete(parent / hidden)
        elif entry.isdir():
            if path.is_symlink() and resolve(root, "/".join(parts)).is_dir():
                continue  # a directory over a merged-/usr link
            if not path.is_dir() or path.is_symlink():
                _delete(path)
                path.mkdir()
            directory_modes[path] = entry.mode
        elif entry.isfile() or entry.issym() or entry.islnk():
            _put(archive, entry, path, root)
        own.update([path, *path.parents])
    for path, mode in directory_modes.items():
        if path.is_dir() and not path.is_symlink():
            path.chmod(mode | 0o700)


def _put(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path, root: Path) -> None:
    if entry.islnk():
        target_parent = resolve(root, str(PurePosixPath(entry.linkname).parent))
        target = target_parent / PurePosixPath(entry.linkname).name
        if target == path:
            return
        if not target.is_file() and not target.is_symlink():
            raise FleetError(
                "A hard link leads nowhere", where=entry.name, seen=entry.linkname, remedy="use another base image"
            )
        _delete(path)
        os.link(target, path, follow_symlinks=False)
        return
    _delete(path)
    if entry.issym():
        path.symlink_to(entry.linkname)
        return
    source = archive.extractfile(entry)
    with path.open("wb") as file:
        shutil.copyfileobj(source or io.BytesIO(), file, BLOCK)
    path.chmod(entry.mode & 0o777)


def _hide_lower(directory: Path, own: set[Path]) -> None:
    for path in directory.iterdir():
        if path not in own:
            _delete(path)
        elif path.is_dir() and not path.is_symlink():
            _hide_lower(path, own)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
