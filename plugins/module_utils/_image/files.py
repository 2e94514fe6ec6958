# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of the project that go into an image as they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import SourceFiles

EXCLUDED_DIRECTORIES = frozenset({"__pycache__", "tests"})
EXCLUDED_SUFFIXES = frozenset({".pyc"})


def hash_sources(files: Sequence[SourceFiles], source_root: Path) -> list[list[str | bool]]:
    """Return path in the image, SHA-256 and executable bit of each file, in order. Raise FleetError as copy_sources."""
    return [
        [target, hashlib.sha256(_read(path)).hexdigest(), _executable(path)]
        for path, target in _walk(files, source_root)
    ]


def copy_sources(files: Sequence[SourceFiles], source_root: Path, root: Path) -> None:
    """Copy sources to their places below `root`, which is made; modes become 0644 or 0755, directories 0755.

    Directories named tests or __pycache__ and bytecode are left out. Raise FleetError for what cannot be read, and for
    links and special files.
    """
    root.mkdir()
    for path, target in _walk(files, source_root):
        copy = root / target.lstrip("/")
        for directory in reversed(copy.relative_to(root).parents):
            made = root / directory
            made.mkdir(exist_ok=True)
            made.chmod(0o755)
        shutil.copyfile(path, copy)
        copy.chmod(0o755 if _executable(path) else 0o644)


def _walk(files: Sequence[SourceFiles], source_root: Path) -> Iterator[tuple[Path, str]]:
    for item in files:
        source = source_root / item.source
        if source.is_dir() and not source.is_symlink():
            for here, names, leaves in os.walk(source):
                names[:] = sorted(set(names) - EXCLUDED_DIRECTORIES)
                for name in [*sorted(leaves), *names]:
                    path = Path(here, name)
                    if path.suffix not in EXCLUDED_SUFFIXES and (path.is_symlink() or name in leaves):
                        yield _checked(path), f"{item.target}/{path.relative_to(source).as_posix()}"
        else:
            yield _checked(source), item.target


def _checked(path: Path) -> Path:
    if path.is_symlink() or not path.is_file():
        raise FleetError(
            "A source of the image is not a regular file",
            where=str(path),
            seen="a symbolic link" if path.is_symlink() else "a special file" if path.exists() else "nothing",
            remedy="correct recipe.files or source_root; links and special files are not taken",
        )
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FleetError(
            "A source of the image cannot be read", where=str(path), seen=str(error), remedy="correct its mode"
        ) from error


def _executable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o100)
