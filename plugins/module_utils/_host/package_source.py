# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's own apt repository as a host's source of packages, where it has no other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.distribution import SUITES, distribution
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file

SOURCES = "etc/apt/sources.list.d/edgeml.sources"
SETTINGS = "etc/apt/apt.conf.d/90edgeml"
#: What a flat repository is made of.
POOL, PACKAGES, RELEASE = "pool", "Packages", "InRelease"


def source_entry(address: str, key: str) -> str:
    """Return the text of a file of sources for a flat repository that is signed by an armored OpenPGP key."""
    lines = [f" {line}" if line.strip() else " ." for line in key.strip().splitlines()]
    # A board without a clock starts in the past.
    fields = ["Types: deb", f"URIs: {address}", "Suites: ./", "Check-Date: no", "Signed-By:", *lines]
    return "\n".join(fields) + "\n"


@dataclass(frozen=True)
class PackageSource:
    """Where a host gets packages: from `directory` if its suite is there, else from the mirror `registry`."""

    registry: str
    directory: str
    key: str
    ca_file: str

    def files(self, root: Path = Path("/")) -> dict[str, str]:
        """Return the files below `root` that make apt use it, by path; raise FleetError if the host cannot."""
        found = distribution(root)
        if found.manager != "apt" or found.suite not in SUITES:
            raise FleetError(
                "A bundle brings packages for Debian only, and this host is another system",
                where="edgeml_package_source",
                seen=f"{found.name}, suite {found.suite or 'unknown'}",
                remedy=f"use a host with one of {', '.join(SUITES)}, or set edgeml_package_source: host for it",
            )
        if not self.key.startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----"):
            raise FleetError(
                "The key by which the packages of the site's mirror are verified is unknown",
                where="edgeml_packages_key",
                seen=repr(self.key[:60]),
                remedy="export the bundle with the playbook edgeml.fleet.bundle_export and edgeml_bundle_suites, which "
                "makes the key; or set edgeml_packages_key to an armored OpenPGP key",
            )
        local = root / self.directory.lstrip("/") / found.suite
        address = f"file:{quote(str(local))}/" if local.is_dir() else f"https://{self.registry}/packages/{found.suite}/"
        host = self.registry.rpartition(":")[0].strip("[]") or self.registry
        settings = f'Acquire::https::{host}::CaInfo "{self.ca_file}";\nAcquire::https::Proxy::{host} "DIRECT";\n'
        comment = "# Written by edgeml.fleet: this host's packages come from its site's mirror alone.\n"
        return {SOURCES: comment + source_entry(address, self.key), SETTINGS: settings}


def apply(source: PackageSource | None, *, write: bool, root: Path = Path("/")) -> bool:
    """Make the host use `source`, or its own sources if None; return whether anything changes."""
    wanted = dict.fromkeys((SOURCES, SETTINGS)) if source is None else source.files(root)
    changed = False
    for name, text in wanted.items():
        path = root / name
        now = path.read_text() if path.is_file() else None
        if now == text:
            continue
        changed = True
        if write and text is None:
            path.unlink()
        elif write:
            make_directory(path.parent)
            replace_file(path, str(text).encode())
    return changed
