# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages as a signed apt repository for each suite, made with Debian's own tools.

::

    bookworm/pool/*.deb    packages and all that they depend on, so that a bare host can install them
    bookworm/Packages      what is in pool, of all architectures
    bookworm/InRelease     the digests of Packages, signed
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import (
    file_digest,
    make_directory,
    read_if_there,
    replace_file,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.package_source import PACKAGES, POOL, RELEASE
from ansible_collections.edgeml.fleet.plugins.module_utils._image.base import fetch_with_dependencies

PROGRAMS = {"apt-ftparchive": "apt-utils", "gpg": "gpg", "gpg-agent": "gpg-agent"}
# A host whose clock is behind takes the signature all the same; the collection's certificates begin then, too.
SIGNED_AT = "20200101T000000"
OWNER = "edgeml.fleet packages"


def export_packages(
    root: Path, suites: Mapping[str, Sequence[str]], architectures: Sequence[str], key_file: Path, *, write: bool
) -> bool:
    """Make `root` hold a repository of each suite's packages; return whether anything changes.

    The secret key in `key_file` is made if there is none; the public key is beside it. Raises FleetError if a program
    is missing, or if Debian cannot be read.
    """
    _require_programs()
    if not write and not key_file.exists():
        return True
    with _keyring(key_file) as gpg:
        changed = [_export(root / suite, suite, names, architectures, gpg, write) for suite, names in suites.items()]
    return any(changed)


def _export(
    root: Path, suite: str, names: Sequence[str], architectures: Sequence[str], gpg: Sequence[str], write: bool
) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / POOL).mkdir()
        for architecture in architectures:
            for path in fetch_with_dependencies(names, suite, architecture, work / architecture):
                # As in Debian's own archive, without the epoch: its colon is no character for each file system.
                path.replace(work / POOL / re.sub(r"_\d+%3a", "_", path.name))
        index = _run(["apt-ftparchive", "packages", POOL], work)
        packages = sorted((work / POOL).iterdir())
        if read_if_there(root / PACKAGES) == index and _verified(root / RELEASE, gpg) and _complete(root, packages):
            return False
        if not write:
            return True
        (work / PACKAGES).write_bytes(index)
        options = [f"APT::FTPArchive::Release::{name}={suite}" for name in ("Suite", "Codename")]
        release = _run(
            ["apt-ftparchive", *(word for option in options for word in ("-o", option)), "release", "."], work
        )
        (work / "Release").write_bytes(release)
        signed = _run([*gpg, "--clear-sign", "--digest-algo", "SHA512", "--output", "-", "Release"], work)
        make_directory(root / POOL)
        for path in packages:
            if not _same(root / POOL / path.name, path):
                shutil.copyfile(path, root / POOL / f"{path.name}.part")
                (root / POOL / f"{path.name}.part").replace(root / POOL / path.name)
        replace_file(root / PACKAGES, index)
        replace_file(root / RELEASE, signed)
        for path in set((root / POOL).iterdir()) - {root / POOL / path.name for path in packages}:
            path.unlink()
        os.sync()
    return True


def _complete(root: Path, packages: Sequence[Path]) -> bool:
    return all(_same(root / POOL / path.name, path) for path in packages)


def _same(one: Path, other: Path) -> bool:
    """Return whether a file holds what the other does; one that cannot be read does not."""
    try:
        return one.stat().st_size == other.stat().st_size and file_digest(one) == file_digest(other)
    except OSError:
        return False


def _require_programs() -> None:
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise FleetError(
            "Programs that make an apt repository are missing",
            where="PATH",
            seen=f"no {', '.join(missing)}",
            remedy=f"install them on the controller: apt-get install {' '.join(missing)}",
        )


@contextlib.contextmanager
def _keyring(key_file: Path) -> Iterator[list[str]]:
    """Give the command of gpg that signs by the key in `key_file`."""
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback"]
        gpg += ["--passphrase", "", "--faked-system-time", f"{SIGNED_AT}!", "--no-auto-key-locate"]
        try:
            if not key_file.exists():
                _run([*gpg, "--quick-generate-key", OWNER, "ed25519", "sign", "never"])
                make_directory(key_file.parent)
                replace_file(key_file, _run([*gpg, "--armor", "--export-secret-keys"]), mode=0o600)
            else:
                _run([*gpg, "--import", str(key_file)])
            public = _run([*gpg, "--armor", "--export"])
            beside = key_file.with_name(key_file.name + ".pub")
            if read_if_there(beside) != public:
                replace_file(beside, public)
            yield gpg
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)


def _verified(release: Path, gpg: Sequence[str]) -> bool:
    return subprocess.run([*gpg, "--verify", str(release)], check=False, capture_output=True).returncode == 0


def _run(command: Sequence[str], directory: Path | None = None) -> bytes:
    done = subprocess.run(command, cwd=directory, check=False, capture_output=True)
    if done.returncode:
        raise FleetError(
            "The repository of packages cannot be made",
            where=command[0],
            seen=done.stderr.decode(errors="replace").strip()[-1000:],
            remedy="correct what it names (edgeml_packages_key_file holds a secret OpenPGP key without passphrase)",
        )
    return done.stdout
