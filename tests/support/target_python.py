# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the collection runs on targets, and the Python interpreters of this machine that it must run with."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ansible_collections.edgeml.fleet."
#: The oldest Python on targets, as of ansible-core 2.19.
FLOOR = (3, 8)
#: Modules that run on the controller only, or have their work done by an action plugin.
CONTROLLER_MODULES = {
    "content_bundle",
    "fleet_report",
    "host_certificate",
    "ledger",
    "lock_signature",
    "model_artifact",
    "model_source",
    "oci_image",
    "package_report",
    "plan_report",
    "preflight_report",
    "rollout_plan",
    "rollout_wave",
    "variant_table",
    "verify_report",
}
TARGET_MODULES = sorted({path.stem for path in (ROOT / "plugins/modules").glob("*.py")} - CONTROLLER_MODULES)


def target_files() -> list[Path]:
    """Return the modules that run on targets and all of the collection that they import, sorted."""
    todo = [ROOT / f"plugins/modules/{name}.py" for name in TARGET_MODULES]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imports(path)
    return sorted(found)


def _imports(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE):
            place = ROOT / node.module[len(PACKAGE) :].replace(".", "/")
            names = [place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names)]
            yield from (name for name in names if name.exists())


def interpreters() -> dict[str, Path]:
    """Return one interpreter of each version from FLOOR on that this machine has, by version, oldest first."""
    candidates = [
        *(Path.home() / ".pyenv/versions").glob("*/bin/python3.*"),
        *Path("/usr/local/bin").glob("python3.*"),
        *Path("/usr/bin").glob("python3.*"),
        *(ROOT / "build/cache/debian-python").glob("python3.*"),  # of `make newest-python`
    ]
    found: dict[tuple[int, ...], Path] = {}
    for path in [Path(sys.executable), *candidates]:
        minor = path.name[len("python3.") :]
        if path == Path(sys.executable) or minor.isdigit():
            code = "import sys; print(*sys.version_info[:2])"
            seen = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
            if seen.returncode == 0:
                found.setdefault(tuple(map(int, seen.stdout.split())), path)
    return {".".join(map(str, version)): found[version] for version in sorted(found) if version >= FLOOR}
