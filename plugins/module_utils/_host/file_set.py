# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory with a few small files, of one owner and mode: certificates, keys, tokens."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file


@dataclass(frozen=True)
class FileSet:
    """What a directory is to hold; other files in it stay.

    `files` are contents by name; `owner` is the number of user and group of the directory and these files.
    `file_modes` are those of single files, by name. `absent` are names of files that are removed.
    """

    directory: Path
    files: Mapping[str, bytes]
    owner: int
    directory_mode: int
    file_mode: int
    file_modes: Mapping[str, int] = field(default_factory=dict)
    absent: Sequence[str] = ()

    def apply(self, *, check_mode: bool) -> dict[str, Any]:
        """Make it so; return ``changed``, names of files ``written`` and ``removed``, and a ``diff`` without contents.

        Raises FleetError for a name that leads elsewhere, and where something else is in the way.
        """
        for name in (*self.files, *self.absent):
            if "/" in name or name in ("", ".", ".."):
                raise FleetError(
                    "Not the name of a file", where="files", seen=repr(name), remedy="give a name without /"
                )
        if os.path.lexists(self.directory) and not self.directory.is_dir():
            raise FleetError(
                "Something else is where a directory has to be",
                where=str(self.directory),
                remedy="move it away, or choose another directory",
            )
        makes = not self.directory.is_dir() or not self._has(self.directory.stat(), self.directory_mode)
        written = sorted(name for name in self.files if not self._holds(name))
        removed = sorted(name for name in self.absent if os.path.lexists(self.directory / name))
        if not check_mode:
            self._write(written, makes=makes)
            for name in removed:
                (self.directory / name).unlink()
        before, after = dict.fromkeys(removed, "there"), dict.fromkeys(written, "written anew")
        return {
            "changed": bool(makes or written or removed),
            "written": written,
            "removed": removed,
            "diff": {"before": before, "after": after} if written or removed else {},
        }

    def _write(self, names: list[str], *, makes: bool) -> None:
        if makes:
            make_directory(self.directory)
            os.chown(self.directory, self.owner, self.owner)
            self.directory.chmod(self.directory_mode)
        for name in names:
            replace_file(self.directory / name, self.files[name], self._mode(name), self.owner)

    def _mode(self, name: str) -> int:
        return self.file_modes.get(name, self.file_mode)

    def _holds(self, name: str) -> bool:
        path = self.directory / name
        try:
            status = path.lstat()
            return (
                stat.S_ISREG(status.st_mode)
                and self._has(status, self._mode(name))
                and path.read_bytes() == self.files[name]
            )
        except FileNotFoundError:
            return False

    def _has(self, status: os.stat_result, mode: int) -> bool:
        return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (self.owner, self.owner, mode)
