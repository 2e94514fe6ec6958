# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge time, certificates, packages, and what models ask of the system."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._host.distribution import Distribution, distribution
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import is_cdi_name
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    STEP_SECONDS,
    WARN,
    Content,
    Engine,
    Finding,
    Host,
    Wanted,
    can_load,
)

CLOCK_TOLERANCE = 300.0  # seconds; more, and TLS fails or logs of several hosts mislead
FIRST_PLAUSIBLE_TIME = 1735689600.0  # 2025: before this collection was made
RENEW_CERTIFICATE = 30 * 86400.0  # seconds before its end
PROGRAM_PLACES = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin", "/sbin")
PORTS = {"http": 80, "https": 443}


def clock(host: Host, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """A board without a clock serves all the same: only TLS that would fail is a reason to refuse."""
    now = host.now()
    reference = wanted.controller_time or now
    if abs(now - reference) <= CLOCK_TOLERANCE and now >= FIRST_PLAUSIBLE_TIME:
        return
    known = [certificate for certificate in wanted.certificates if not certificate.error]
    fails = [
        certificate.path
        for certificate in known
        if not certificate.not_before <= now <= certificate.not_after
        and certificate.not_before <= reference <= certificate.not_after
    ]
    yield Finding(
        "clock",
        REFUSE if fails and missing and wanted.registry else WARN,
        f"{_date(now)}, {abs(now - reference):.0f} s off the controller" if wanted.controller_time else _date(now),
        f"a time at which {fails[0]} is valid" if fails else f"within {CLOCK_TOLERANCE:.0f} s of the controller",
        "set the clock, and let NTP or a clock with a battery keep it",
    )


def certificates(host: Host, wanted: Wanted) -> Iterator[Finding]:
    now = wanted.controller_time or host.now()
    for certificate in wanted.certificates:
        if certificate.error:
            yield Finding(
                "certificate",
                REFUSE,
                f"{certificate.path}: {certificate.error}",
                "a certificate in PEM",
                "run the playbook edgeml.fleet.certificates, or correct the variable that names the file "
                "(edgeml_inventory_directory, where a program made the inventory)",
            )
        elif not certificate.not_before <= now <= certificate.not_after - RENEW_CERTIFICATE:
            valid = certificate.not_before <= now <= certificate.not_after
            yield Finding(
                "certificate",
                WARN if valid else REFUSE,
                f"{certificate.path} is valid from {_date(certificate.not_before)} to {_date(certificate.not_after)}",
                f"validity for {RENEW_CERTIFICATE / 86400:.0f} more days" if valid else f"validity on {_date(now)}",
                "renew it: remove the file and run the playbook edgeml.fleet.certificates, or bring your own",
            )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def packages(host: Host, engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    found = distribution(host.root)
    if wanted.engine_is_here and wanted.needs_engine and not engine.installed:
        yield Finding(
            "engine",
            REFUSE,
            "there is none",
            "a Docker Engine",
            "put the role edgeml.fleet.docker_engine before this one in the play, or install an engine and run again",
        )
        return
    coming = () if engine.installed or not wanted.needs_engine else wanted.engine_packages or found.engine_packages
    if wanted.needs_engine and not engine.installed and not (coming and found.manager):
        yield Finding(
            "engine",
            REFUSE,
            f"none, and {found.name} is no system on which the collection knows how to install one",
            "a Docker Engine",
            "install an engine and run again; where apt or dnf brings it, docker_engine_packages can name its packages",
        )
        coming = ()
    names = sorted({*wanted.requires.packages, *coming})
    if not names:
        return
    if found.manager != "apt":
        yield from _unmanaged(host, found, names)
        return
    _code, out, _error = host.run(["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\\n", *names])
    installed = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    absent = [name for name in names if name not in installed]
    if not absent:
        return
    unknown = [] if wanted.packages_from_mirror else _without_candidate(host, absent)
    # A new host has no lists: they are read when the first package is installed.
    if unknown and any(host.path("/var/lib/apt/lists").glob("*_Packages*")):
        yield Finding(
            "package",
            REFUSE,
            f"{', '.join(unknown)}: no package source has it",
            "installed, or in a package source",
            "run apt-get update on the host, correct its package sources, or correct the name",
        )
    if any(host.path("/var/lib/dpkg/updates").glob("[0-9]*")):
        yield Finding(
            "package_manager",
            REFUSE,
            f"{', '.join(absent)} to install, and an installation before was interrupted",
            "packages that are all configured",
            "run dpkg --configure -a on the host",
        )
        return
    simulation = host.run(["env", "LC_ALL=C", "apt-get", "--simulate", "--no-install-recommends", "install", *absent])[
        1
    ]
    removed = re.findall(r"^Remv (\S+)", simulation, re.M)
    if removed:
        yield Finding(
            "package_conflict",
            REFUSE,
            f"{', '.join(absent)} would remove {', '.join(removed)}",
            "packages that go with those of the host",
            "remove them yourself, or name packages that go with them in docker_engine_packages",
        )
    unreachable = [] if wanted.packages_from_mirror else _unreachable_sources(host)
    if unreachable:
        yield Finding(
            "package_source",
            REFUSE,
            f"{', '.join(absent)} to install, and no connection to {', '.join(unreachable)}",
            "a package source that answers",
            "give the host a source that it reaches (files in /etc/apt), or install the packages beforehand",
        )


def _without_candidate(host: Host, names: Sequence[str]) -> list[str]:
    _code, policy, _error = host.run(["env", "LC_ALL=C", "apt-cache", "policy", *names])
    candidates = dict(re.findall(r"^(\S+):\n\s+Installed: .*\n\s+Candidate: (.*)$", policy, re.M))
    return [name for name in names if candidates.get(name, "(none)") == "(none)"]


def _unmanaged(host: Host, found: Distribution, names: Sequence[str]) -> Iterator[Finding]:
    """What is missing where dnf installs it or nothing does. A program of a package's name stands for the package."""
    if found.manager:
        absent = [name for name in names if host.run(["rpm", "--query", name])[0] != 0]
        unknown = [name for name in absent if not host.run(["dnf", "--quiet", "--cacheonly", "list", name])[1].strip()]
        # A new host has no lists: they are read when the first package is installed.
        if not unknown or not any(host.path("/var/cache/dnf").glob("*")):
            return
        value, remedy = (
            f"{', '.join(unknown)}: no package source has it",
            "add the source that has it, or correct the name",
        )
    else:
        absent = [name for name in names if not any(host.path(f"{place}/{name}").exists() for place in PROGRAM_PLACES)]
        if not absent:
            return
        value = f"{', '.join(absent)}, and {found.name} has neither apt nor dnf"
        remedy = "install what it stands for by the host's own means, and leave it out of requires.packages"
    yield Finding("package", REFUSE, value, "installed, or in a package source", remedy)


def _unreachable_sources(host: Host) -> list[str]:
    """Return the hosts of all package sources if none of them can be connected to (the proxy instead, if there is one).

    apt says where it would read; nothing is read there.
    """
    _code, out, _error = host.run(["apt-get", "--print-uris", "update"])
    sources = {urlsplit(uri) for uri in re.findall(r"^'(\w+://[^/']+)", out, re.M)}
    if any(source.scheme not in PORTS for source in sources):
        return []  # a disk, or a way that only apt knows
    _code, proxies, _error = host.run(["apt-config", "dump"])
    addresses = set()
    for source in sources:
        proxy = re.search(rf'^Acquire::{source.scheme}::Proxy "(\w+://[^"]+)"', proxies, re.M)
        via = urlsplit(proxy[1] if proxy else os.environ.get(f"{source.scheme}_proxy") or source.geturl())
        addresses.add((via.hostname or "", via.port or PORTS.get(via.scheme, 80)))
    for address in sorted(addresses):
        try:
            socket.create_connection(address, timeout=STEP_SECONDS).close()
        except OSError:
            continue
        return []
    return sorted(f"{name}:{port}" for name, port in addresses)


def requirements(host: Host, wanted: Wanted) -> Iterator[Finding]:
    for device in wanted.requires.devices:
        if not is_cdi_name(device) and not host.path(device).exists():
            yield Finding(
                "device",
                REFUSE,
                f"{device} is not there",
                "the device file",
                "connect the device, load its driver, or correct requires.devices",
            )
    for name in wanted.requires.kernel_modules:
        if not can_load(host, name):
            yield Finding(
                "kernel_module",
                REFUSE,
                f"{name} is neither loaded nor found",
                "a module of the running kernel",
                "install the package that has it, or correct requires.kernel_modules",
            )
    for name in wanted.requires.sysctls:
        if not host.path("/proc/sys/" + name.replace(".", "/")).exists():
            yield Finding(
                "sysctl",
                REFUSE,
                f"{name} does not exist",
                "a setting of the running kernel",
                "load the kernel module that brings it, or correct requires.sysctls",
            )
