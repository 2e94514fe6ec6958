# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host's distribution is, how it installs packages, and which of them bring a Docker Engine.

All that the collection knows of distributions is here. The inventory overrides it with docker_engine_packages.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

#: Program that installs packages, and the name by which it is spoken of, in the order of preference.
MANAGERS = {"usr/bin/apt-get": "apt", "usr/bin/dnf": "dnf"}

#: By ID of os-release, or one of ID_LIKE: packages from the host's own sources.
ENGINE_PACKAGES = {
    "debian": ("docker.io", "iptables", "ca-certificates"),
    "ubuntu": ("docker.io", "iptables", "ca-certificates"),
    "fedora": ("moby-engine", "docker-cli", "iptables", "ca-certificates"),
    # From the sources of Docker itself, which the host has to have: these distributions bring podman.
    "rhel": ("docker-ce", "docker-ce-cli", "containerd.io"),
}
#: The command line client became a package of its own.
DEBIAN_WITH_SEPARATE_CLIENT = 13
SUITES = {"bookworm": 12, "trixie": 13}


def engine_packages_of(suite: str) -> tuple[str, ...]:
    """Return the packages that bring an engine to a host of one of Debian's SUITES."""
    return _of_debian(SUITES[suite])


def _of_debian(version: int) -> tuple[str, ...]:
    packages = ENGINE_PACKAGES["debian"]
    return (*packages, "docker-cli") if version >= DEBIAN_WITH_SEPARATE_CLIENT else packages


@dataclass(frozen=True)
class Distribution:
    """A host's distribution. `manager` is ``apt``, ``dnf`` or "" where the collection cannot install anything."""

    name: str
    manager: str
    engine_packages: tuple[str, ...]
    suite: str = ""


def distribution(root: Path = Path("/")) -> Distribution:
    """Read what the host below `root` is."""
    release = _os_release(root)
    manager = next((name for path, name in MANAGERS.items() if (root / path).exists()), "")
    families = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    family = next((family for family in families if family in ENGINE_PACKAGES), "")
    packages = ENGINE_PACKAGES.get(family, ()) if manager else ()
    version = release.get("VERSION_ID", "").partition(".")[0]
    if packages and family == "debian" and version.isdigit():
        packages = _of_debian(int(version))
    return Distribution(
        release.get("PRETTY_NAME") or release.get("ID") or "an unknown system",
        manager,
        packages,
        release.get("VERSION_CODENAME", ""),
    )


def _os_release(root: Path) -> dict[str, str]:
    for place in ("etc/os-release", "usr/lib/os-release"):
        try:
            lines = (root / place).read_text(errors="replace").splitlines()
        except OSError:
            continue
        pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
        return {name: " ".join(shlex.split(value)) for name, _equals, value in pairs}
    return {}
