# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The code that goes on running on a host: that of the module that asked, kept there, so that it needs nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import marshal
import sys
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file


def launcher(module: str) -> str:
    """Return a program for ``python -c``: puts its first argument on the path and gives the others to a module's main.

    `module` is below module_utils.
    """
    return (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); "
        f"from ansible_collections.edgeml.fleet.plugins.module_utils.{module} import main; main(sys.argv[1:])"
    )


def keep_code(home: Path) -> Path:
    """Keep the code that runs here below `home`, and return what to put on Python's path for it.

    A module's code comes to a host as an archive that is gone when the module ends.
    """
    archive = next((path for path in Path(__file__).parents if path.suffix == ".zip" and path.is_file()), None)
    if archive is None:  # installed as files
        return Path(__file__).parents[6]
    content = archive.read_bytes()
    directory = home / "agent"
    kept = directory / f"{hashlib.sha256(content).hexdigest()[:16]}-{sys.implementation.cache_tag}.zip"
    if not kept.exists():
        make_directory(directory)
        replace_file(kept, with_bytecode(content))
    return kept


def with_bytecode(archive: bytes) -> bytes:
    """Return an archive of modules with the bytecode of each beside it.

    Who starts every few seconds would compile them each time: Python writes no bytecode into archives. It is that of
    PEP 552, unchecked, for this Python; another one compiles the sources.
    """
    import zipfile  # which is not for every start

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as sources, zipfile.ZipFile(made, "w") as kept:
        for name in sources.namelist():
            files = {name: sources.read(name)}
            with contextlib.suppress(SyntaxError, ValueError):  # Ansible adds one that nobody imports
                if name.endswith(".py"):
                    code = marshal.dumps(compile(files[name], name, "exec", dont_inherit=True))
                    files[f"{name}c"] = MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash(files[name]) + code
            for path, data in files.items():
                # With the date that is there without a clock: one before 1980 has no place in an archive.
                kept.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def keep_only(code: Path) -> None:
    """Remove code of other versions."""
    for path in code.parent.glob("*.zip") if code.suffix == ".zip" else ():
        if path != code:
            path.unlink()
