# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel modules and kernel parameters of a host: set now and at every start, and put back when nobody needs them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object

MODULES_FILE = "etc/modules-load.d/edgeml.conf"
SYSCTLS_FILE = "etc/sysctl.d/90-edgeml.conf"
RECORD_FILE = "var/lib/edgeml/kernel_settings.json"
HEADER = "# Written by edgeml.fleet.kernel_settings; what is changed here does not stay.\n"


class KernelSettings:
    """The settings of the host below `root` (``/``; another directory in tests).

    A record holds the value that each parameter had before, and which modules were not loaded.
    """

    def __init__(self, run_command: RunCommand, root: Path = Path("/")) -> None:
        self._run_command = run_command
        self._root = root

    def apply(
        self,
        modules: Sequence[str],
        sysctls: Mapping[str, str],
        optional_sysctls: Mapping[str, str],
        *,
        check_mode: bool,
    ) -> dict[str, Any]:
        """Make exactly these the settings of ours; return {"changed", "diff", "plan", "skipped"}.

        An optional parameter that this kernel lacks, or that cannot be written or kept here, is skipped and named.

        Raises
        ------
        FleetError
            Module that cannot be loaded, parameter that the kernel lacks or refuses.
        """
        record = self._record()
        wanted, skipped = dict(sysctls), []
        for name, value in optional_sysctls.items():
            if not self._is_writable(name):
                skipped.append(f"{name}: this kernel lacks it, or it cannot be changed here")
            elif not self._can_keep(SYSCTLS_FILE):
                skipped.append(f"{name}: /{SYSCTLS_FILE} cannot be written, so that it would not stay")
            else:
                wanted.setdefault(name, value)
        missing = [name for name in modules if not self._is_loaded(name)]
        if not check_mode:
            self._load(missing, record)  # first, since a module brings parameters of its own
        found = {name: self._read(name, check_mode) for name in wanted}
        changes = {name: value for name, value in wanted.items() if found[name] != _normal(value)}
        restored = {name: value for name, value in record["sysctls"].items() if name not in wanted}
        found.update({name: self._read(name, True) for name in restored})
        unloaded = [name for name in record["modules"] if name not in modules]
        plan = [
            *({"kind": "module", "name": name, "before": "not loaded", "after": "loaded"} for name in missing),
            *({"kind": "module", "name": name, "before": "loaded", "after": "not loaded"} for name in unloaded),
            *(
                {"kind": "sysctl", "name": name, "before": found[name], "after": _normal(value)}
                for name, value in sorted({**changes, **restored}.items())
            ),
        ]
        files = {
            MODULES_FILE: "".join(f"{name}\n" for name in sorted(modules)),
            SYSCTLS_FILE: "".join(f"{name} = {value}\n" for name, value in sorted(wanted.items())),
        }
        before = {path: self._text(path) for path in files}
        after = {path: HEADER + text if text else "" for path, text in files.items()}
        differing = [path for path in files if before[path] != after[path]]
        if not plan:  # else the files follow what is listed
            plan = [{"kind": "file", "name": f"/{path}", "before": "differs", "after": "written"} for path in differing]
        result = {
            "changed": bool(plan),
            "diff": [
                {"before_header": path, "after_header": path, "before": before[path], "after": after[path]}
                for path in differing
            ],
            "plan": plan,
            "skipped": skipped,
        }
        if check_mode or not result["changed"]:
            return result
        for name in wanted:
            record["sysctls"].setdefault(name, found[name])
        self._save(record)  # before anything changes: what was must not be lost
        for name, value in changes.items():
            self._write(name, value)
        for name, value in restored.items():
            if self._is_writable(name):
                self._write(name, value)
            del record["sysctls"][name]
        for name in unloaded:
            self._run_command(["modprobe", "--remove", name])  # another user of it keeps it loaded
            record["modules"].remove(name)
        for path, text in after.items():
            self._replace(path, text)
        self._save(record)
        return result

    def _load(self, modules: Sequence[str], record: dict[str, Any]) -> None:
        for name in modules:
            code, out, err = self._run_command(["modprobe", name])
            if code != 0:
                raise FleetError(
                    f"The kernel module {name} cannot be loaded",
                    where="requires.kernel_modules",
                    seen=(err or out).strip(),
                    remedy="install the package that brings it (requires.packages), correct its name, or place the "
                    "model on another host",
                )
            if name not in record["modules"]:
                record["modules"].append(name)
            self._save(record)

    def _is_loaded(self, name: str) -> bool:
        return (self._root / "sys/module" / name.replace("-", "_")).exists()

    def _path(self, name: str) -> Path:
        # As sysctl reads names: whichever of "." and "/" comes first separates, the other one belongs to the name.
        swap = str.maketrans("./", "/.")
        separator = next((character for character in name if character in "./"), ".")
        return self._root / "proc/sys" / (name if separator == "/" else name.translate(swap))

    def _is_writable(self, name: str) -> bool:
        try:
            with self._path(name).open("r+b"):
                return True
        except OSError:
            return False

    def _can_keep(self, path: str) -> bool:
        place = (self._root / path).parent
        while not place.exists():
            place = place.parent
        return not os.statvfs(place).f_flag & os.ST_RDONLY

    def _read(self, name: str, check_mode: bool) -> str | None:
        try:
            return _normal(self._path(name).read_text())
        except OSError as error:
            if check_mode:  # a module that is not loaded yet may bring it
                return None
            raise FleetError(
                f"This kernel has no parameter {name}",
                where=str(self._path(name)),
                seen=error.strerror or str(error),
                remedy="correct the name in the model's requires.sysctls, name the module that brings it in "
                "requires.kernel_modules, or place the model on another host",
            ) from error

    def _write(self, name: str, value: str) -> None:
        try:
            self._path(name).write_text(value)
        except OSError as error:
            raise FleetError(
                f"The kernel parameter {name} cannot be set to {value}",
                where=str(self._path(name)),
                seen=error.strerror or str(error),
                remedy="correct the value in the model's requires.sysctls; in a container /proc/sys may be read-only",
            ) from error

    def _text(self, path: str) -> str:
        try:
            return (self._root / path).read_text()
        except FileNotFoundError:
            return ""

    def _replace(self, path: str, text: str) -> None:
        target = self._root / path
        if text:
            make_directory(target.parent)
            replace_file(target, text.encode())
        else:
            target.unlink(missing_ok=True)

    def _record(self) -> dict[str, Any]:
        """Return what was before: by parameter its value, and the modules that we have loaded."""
        kept = read_object(self._root / RECORD_FILE)
        sysctls, modules = kept.get("sysctls"), kept.get("modules")
        return {
            "sysctls": {name: value for name, value in sysctls.items() if isinstance(value, str)}
            if isinstance(sysctls, dict)
            else {},
            "modules": [name for name in modules if isinstance(name, str)] if isinstance(modules, list) else [],
        }

    def _save(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, indent=2, sort_keys=True) if record["sysctls"] or record["modules"] else ""
        self._replace(RECORD_FILE, text)


def _normal(value: object) -> str:
    """Return a parameter's value with its columns one space apart, as a person writes it."""
    return " ".join(str(value).split())
