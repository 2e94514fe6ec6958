# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages that a bundle brings, taken over by a mirror once apt has verified what says their digests."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import check_space
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import (
    file_digest,
    make_directory,
    replace_file,
    sync_directory,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._host.package_source import (
    PACKAGES,
    POOL,
    RELEASE,
    source_entry,
)

EXPORT_AGAIN = "export the bundle again with the playbook edgeml.fleet.bundle_export"


@dataclass(frozen=True)
class Package:
    """A package of a repository: its file below the repository, bytes, and hexadecimal SHA-256."""

    path: str
    size: int
    sha256: str


def import_packages(bundle: Path, root: Path, key: str, run: RunCommand, *, write: bool) -> bool:
    """Make `root` hold the repositories below `bundle`, each verified by `key`; return whether anything changes.

    What hosts can read stays whole throughout: a repository is a link, which moves to another directory when all is
    there that the new index names, and what the old one named. Raises FleetError if apt refuses an index or a package
    is not what it says.
    """
    if not bundle.is_dir():
        return False
    suites = sorted(path.name for path in bundle.iterdir() if (path / RELEASE).is_file())
    changed = [_import(bundle / suite, root / suite, key, run, write) for suite in suites]
    return any(changed)


def _import(source: Path, target: Path, key: str, run: RunCommand, write: bool) -> bool:
    release, index = (source / RELEASE).read_bytes(), (source / PACKAGES).read_bytes()
    _verify(source, release, index, key, run)
    wanted = _read(index, source / PACKAGES)
    stale = _content(target / RELEASE) != release or _content(target / PACKAGES) != index
    # "@" is in no suite's name.
    place = target.with_name(f".{target.name}@{sha256(release + index).hexdigest()[:16]}") if stale else target
    at_hand = [package for package in wanted if _is_there(target, package)]
    missing = [package for package in wanted if package not in at_hand and not _is_there(place, package)]
    if not write or not (missing or stale):
        return bool(missing or stale)
    before = _read(_content(target / PACKAGES), target / PACKAGES)
    make_directory(place / POOL)
    check_space(place, sum(package.size for package in missing))
    for package in missing:
        _copy(source, place, package)
    for package in (*at_hand, *before):
        if not (place / package.path).exists() and (target / package.path).is_file():
            os.link(target / package.path, place / package.path)
    kept = {place / package.path for package in (*wanted, *before)}
    for path in set((place / POOL).iterdir()) - kept:
        path.unlink()
    sync_directory(place / POOL)
    if stale:
        replace_file(place / PACKAGES, index)
        replace_file(place / RELEASE, release)
        _serve(target, place)
    return True


def _serve(target: Path, place: Path) -> None:
    """Let `target` lead to `place` from one moment to the next, and remove where it led before."""
    link = target.with_name(f".{target.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(place.name)
    if target.is_dir() and not target.is_symlink():  # as earlier versions made it
        target.rename(target.with_name(f".{target.name}@before"))
    link.replace(target)
    sync_directory(target.parent)
    for path in target.parent.glob(f".{target.name}@*"):
        if path != place:
            shutil.rmtree(path)


def _verify(source: Path, release: bytes, index: bytes, key: str, run: RunCommand) -> None:
    """Have apt verify the index by its signature, in a root of its own; raise FleetError if it refuses."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        for name in ("repository", "lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True)
        (work / "repository" / RELEASE).write_bytes(release)
        (work / "repository" / PACKAGES).write_bytes(index)
        (work / "bundle.sources").write_text(source_entry(f"copy:{work}/repository/", key))
        options = (
            f"Dir::Etc::SourceList={work}/bundle.sources",
            "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::Lists={work}/lists",
            f"Dir::Cache={work}/cache",
            "Acquire::Languages=none",
            "Acquire::GzipIndexes=false",
            "Acquire::AllowInsecureRepositories=false",
            "APT::Sandbox::User=root",
        )
        command = ["apt-get", "--quiet", *(word for option in options for word in ("-o", option)), "update"]
        code, out, err = run(command)
        taken = [path for path in (work / "lists").glob("*_Packages") if path.read_bytes() == index]
        if code != 0 or not taken:
            raise FleetError(
                "apt does not trust the packages of the bundle",
                where=str(source / RELEASE),
                seen=" ".join((err or out).split())[-600:].replace(str(work), ""),
                remedy=f"{EXPORT_AGAIN}; or set edgeml_packages_key to the public key that it was signed by",
            )


def _read(index: bytes | None, where: Path) -> list[Package]:
    found = []
    for paragraph in (index or b"").decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if line[:1].strip() and ": " in line)
        if fields:
            name = Path(fields["Filename"]).name
            if fields["Filename"] != f"{POOL}/{name}":
                raise FleetError(
                    "A package of the bundle has an unknown place", where=str(where), seen=fields["Filename"],
                    remedy=EXPORT_AGAIN,
                )  # fmt: skip
            found.append(Package(f"{POOL}/{name}", int(fields["Size"]), fields["SHA256"]))
    return found


def _is_there(target: Path, package: Package) -> bool:
    path = target / package.path
    return path.is_file() and file_digest(path) == f"sha256:{package.sha256}"


def _copy(source: Path, target: Path, package: Package) -> None:
    partial = target / f"{package.path}.part"
    try:
        shutil.copyfile(source / package.path, partial)
    except FileNotFoundError as error:
        raise _damaged(source / package.path, "no such file") from error
    digest = file_digest(partial)
    if digest != f"sha256:{package.sha256}":
        partial.unlink()
        raise _damaged(source / package.path, digest)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(target / package.path)


def _damaged(path: Path, seen: str) -> FleetError:
    return FleetError(
        "A package of the bundle is not what its index says", where=str(path), seen=seen, remedy=EXPORT_AGAIN
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
