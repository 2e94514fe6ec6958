# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of an image: a root file system made of Debian packages, nothing installed and nothing executed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import PathPatterns, prune, unpack
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import Base, User

# Packages of suites before Debian 13 rely on these links, which the installer makes there.
MERGED_USR = ("bin", "sbin", "lib", "lib64")
PACKAGE_DIRECTORY = "var/cache/apt/archives"
TIMEOUT = 1800  # seconds


@dataclass(frozen=True)
class Package:
    """A Debian package that was fetched: its file and the name and version in that file's name."""

    path: Path
    name: str
    version: str


def fetch_packages(base: Base, architecture: str, directory: Path) -> list[Package]:
    """Download the recipe's packages for one architecture into `directory`, checked by Debian's signatures.

    Raise FleetError as `fetch_with_dependencies` does, or if Debian has not all of the packages.
    """
    # Unpacking is done below, because mmdebstrap's own follows dependencies and leaves files of this machine behind.
    paths = fetch_with_dependencies(base.packages, base.suite, architecture, directory, base.mirror)
    fetched = {package.name: package for package in map(_package, paths)}
    missing = [name for name in base.packages if name not in fetched]
    if missing:
        raise FleetError(
            "Debian packages of the recipe were not delivered",
            where=f"suite {base.suite}, architecture {architecture}",
            seen=", ".join(missing),
            remedy="name real packages, not virtual ones",
        )
    return [fetched[name] for name in sorted(base.packages)]


def fetch_with_dependencies(
    names: Collection[str], suite: str, architecture: str, directory: Path, mirror: str = ""
) -> list[Path]:
    """Download packages of a suite and all that they depend on into the new `directory`; return their files.

    They are checked by Debian's signatures. `architecture` is named as in OCI, which for amd64 and arm64 is Debian's
    name too. Raise FleetError if mmdebstrap is missing or fails.
    """
    if shutil.which("mmdebstrap") is None:
        raise FleetError(
            "The program mmdebstrap is missing",
            where="PATH",
            remedy="install it on the controller: apt-get install mmdebstrap",
        )
    directory.mkdir()
    command = [
        "mmdebstrap",
        f"--architectures={architecture}",
        "--mode=chrootless",  # nothing is executed, so neither root nor user namespaces are needed
        "--variant=extract",
        f"--include={','.join(names)}",
        f"--extract-hook=copy-out /{PACKAGE_DIRECTORY} {shlex.quote(str(directory))}",
        "--format=null",
        suite,
        "-",
        *([mirror] if mirror else []),
    ]
    where = f"suite {suite}, architecture {architecture}"
    try:
        run = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise FleetError(
            "The Debian packages could not be fetched in time",
            where=where,
            seen=f"{TIMEOUT} seconds",
            remedy="check this machine's access to a Debian mirror, or set base.mirror to one that it reaches",
        ) from error
    if run.returncode:
        raise FleetError(
            "The Debian packages could not be fetched",
            where=where,
            seen=_failure(run.stderr),
            remedy="check the package names and this machine's access to a Debian mirror (base.mirror names another);"
            " for a suite unknown to its keyring: apt-get install debian-archive-keyring",
        )
    return sorted(directory.rglob("*.deb"))


def _package(path: Path) -> Package:
    name, version, _architecture = path.stem.split("_")
    return Package(path, name, unquote(version))


def _failure(output: str) -> str:
    """Return the lines that say why; without user names and passwords in addresses."""
    lines = [line.strip() for line in output.splitlines() if line.startswith(("E:", "W: Failed", "Err:", "  "))]
    text = " | ".join(lines[-6:]) or output.strip()[-500:]
    return re.sub(r"//[^/@\s]+@", "//", text)


def unpack_base(base: Base, packages: list[Package], root: Path) -> None:
    """Make the root file system of `packages` in the new directory `root`, with users, without what is not wanted.

    The control data of each package goes to var/lib/dpkg/status.d, where scanners for vulnerabilities look for it.
    """
    root.mkdir()
    for name in MERGED_USR:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        _unpack_package(package, root)
    prune(root, PathPatterns(base.remove), PathPatterns(base.keep))
    for package in packages:
        _write(root / "var/lib/dpkg/status.d" / package.name, _control(package))
    _write_names(root, base.users)
    for directory in [root / "usr", *root.glob("usr/*"), *(root / "var/lib/dpkg").rglob(""), root / "etc"]:
        if directory.is_dir() and not directory.is_symlink():
            directory.chmod(0o755)


def _unpack_package(package: Package, root: Path) -> None:
    command = ["dpkg-deb", "--fsys-tarfile", str(package.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        errors = cast(IO[bytes], process.stderr)  # a pipe
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                unpack(archive, root)
        except tarfile.TarError as error:
            raise _damaged(package, errors.read().decode(errors="replace").strip()) from error
        message = errors.read().decode(errors="replace").strip()
    if process.returncode:
        raise _damaged(package, message)


def _control(package: Package) -> bytes:
    run = subprocess.run(["dpkg-deb", "--field", str(package.path)], check=False, capture_output=True)
    if run.returncode:
        raise _damaged(package, run.stderr.decode(errors="replace").strip())
    return run.stdout


def _damaged(package: Package, message: str) -> FleetError:
    return FleetError(
        "A Debian package cannot be unpacked", where=package.path.name, seen=message, remedy="run the build again"
    )


def _write_names(root: Path, users: tuple[User, ...]) -> None:
    """Write the files by which the C library and Go look up users and hosts; no package brings them."""
    if not users:
        return
    passwd = [f"{user.name}:x:{user.uid}:{user.gid}:{user.name}:{user.home}:/usr/sbin/nologin\n" for user in users]
    groups = {user.gid: f"{user.name}:x:{user.gid}:\n" for user in reversed(users)}
    _write(root / "etc/passwd", "".join(passwd).encode())
    _write(root / "etc/group", "".join(groups[gid] for gid in sorted(groups)).encode())
    _write(root / "etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
