# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the engine: whose it is, what it sees of the host, and what it does to the network."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Sequence

from ansible_collections.edgeml.fleet.plugins.module_utils._oci.proxy import excepts
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    WARN,
    Content,
    Engine,
    Finding,
    Host,
    Wanted,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.machine import version_of

MINIMUM_ENGINE = (20, 10)
#: The network of a new engine's bridge, unless its configuration says another.
BRIDGE = ipaddress.ip_network("172.17.0.0/16")
SSH_PORT = 22
SNAP = "/var/snap/"


def engine_kind(engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    """Whether the engine is one that serves here."""
    if not wanted.needs_engine or not engine.installed:
        return
    need = "a Docker Engine of the system"
    if engine.kind == "podman":
        yield Finding(
            "engine", REFUSE, "the command docker is podman's", need,
            "remove podman-docker and run again, or install a Docker Engine; nothing is replaced unasked",
        )  # fmt: skip
    elif not engine.answers:
        yield Finding(
            "engine", WARN, f"installed, but does not answer {engine.silence}".strip(), "a running Docker Engine",
            "nothing if it is only stopped: it will be started; else read its log (journalctl --unit docker)",
        )  # fmt: skip
    elif version_of(engine.version) < MINIMUM_ENGINE:
        yield Finding(
            "engine", REFUSE, f"Docker Engine {engine.version}", ".".join(map(str, MINIMUM_ENGINE)) + " or newer",
            "upgrade the engine; its containers keep their data",
        )  # fmt: skip
    elif engine.directory.startswith(SNAP):
        yield Finding(
            "engine", REFUSE, f"the engine is snap's ({engine.directory}), which sees home directories alone",
            need, "snap remove docker, and install the distribution's engine or Docker's own",
        )  # fmt: skip
    elif engine.rootless:
        yield Finding(
            "engine", REFUSE, f"the engine runs without root ({engine.directory}), and cannot read what is root's",
            need, "install and start a Docker Engine as root beside it",
        )  # fmt: skip
    elif engine.driver == "vfs":
        yield Finding(
            "storage_driver", WARN, "vfs, which copies each layer whole", "overlay2",
            f"put {engine.directory} on ext4 or xfs, or load the kernel module overlay",
        )  # fmt: skip


def engine_network(host: Host, engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    """Whether the bridge of an engine to come would take the network over which the host is reached."""
    if (
        not wanted.needs_engine
        or engine.installed
        or {"bip", "default-address-pools"} & set(wanted.engine_configuration)
    ):
        return
    for address in sorted(_ssh_clients(host)):
        if address in BRIDGE:
            yield Finding(
                "engine_network", REFUSE, f"{address} is connected over SSH, and a new engine takes {BRIDGE}",
                "another network for the engine",
                "set bip and default-address-pools in docker_engine_configuration to networks that nobody uses",
            )  # fmt: skip


def _ssh_clients(host: Host) -> set[ipaddress.IPv4Address]:
    """Return the addresses from which this host is connected to over SSH."""
    found = set()
    for line in host.text("/proc/net/tcp").splitlines()[1:]:
        parts = line.split()
        if parts[3] == "01" and int(parts[1].partition(":")[2], 16) == SSH_PORT:
            # As the kernel prints it: four bytes of the network, read as a number of this machine.
            number = struct.pack("=I", int(parts[2].partition(":")[0], 16))
            found.add(ipaddress.IPv4Address(number))
    return found


def engine_proxy(engine: Engine, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Whether the engine would ask a proxy for the site's own registry."""
    if wanted.registry is None or not engine.https_proxy or not any(content.kind == "image" for content in missing):
        return
    name, _colon, port = wanted.registry.address.rpartition(":")
    if not any(excepts(entry.strip(), name.strip("[]"), port) for entry in engine.no_proxy.split(",")):
        yield Finding(
            "engine_proxy", REFUSE,
            f"the engine asks the proxy {engine.https_proxy} for {wanted.registry.address}; its NO_PROXY is "
            f"{engine.no_proxy or 'empty'}",
            f"{name} in the engine's NO_PROXY",
            f"add {name} to NO_PROXY where HTTPS_PROXY is set (a drop-in of docker.service, or daemon.json), and "
            "restart the engine",
        )  # fmt: skip
