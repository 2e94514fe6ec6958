# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chapter 5 of the CIS Docker Benchmark, asked of a container as `docker container inspect` tells of it.

The numbers are those of docker-bench-security 1.6. Not among them is what is not a container's (5.1 swarm mode, 5.28
the newest image), what depends on the host's kernel (5.2 AppArmor, 5.3 SELinux), and what nobody does here (5.23 and
5.24, `docker exec` with more rights).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Container = Mapping[str, Any]

#: Directories whose mount gives away the host, with all that is below the first ones.
SENSITIVE_TREES = ("/boot", "/dev", "/lib", "/proc", "/sys", "/usr", "/var/lib/docker", "/run", "/var/run")
ALL_ADDRESSES = ("", "0.0.0.0", "::")  # noqa: S104 - nothing is bound here
SENSITIVE = ("/", "/etc", "/var", "/home", "/root")


def _mounts(container: Container) -> list[Mapping[str, Any]]:
    return [mount for mount in container["Mounts"] if mount["Type"] == "bind"]


def _is_sensitive(path: str) -> bool:
    return path in SENSITIVE or any(path == tree or path.startswith(tree + "/") for tree in SENSITIVE_TREES)


def _host_ports(container: Container) -> list[Mapping[str, str]]:
    return [port for ports in (container["HostConfig"]["PortBindings"] or {}).values() for port in ports]


def _user(container: Container) -> int:
    found = re.match(r"(\d+):\d+$", container["Config"]["User"])
    return int(found[1]) if found else 0


def _security(container: Container) -> list[str]:
    return list(container["HostConfig"]["SecurityOpt"] or ())


CHECKS: dict[str, Callable[[Container], bool]] = {
    "4.1 a user of its own": lambda c: _user(c) > 0,
    "5.4 no capabilities": lambda c: c["HostConfig"]["CapDrop"] == ["ALL"] and not c["HostConfig"]["CapAdd"],
    "5.5 not privileged": lambda c: not c["HostConfig"]["Privileged"],
    "5.6 no sensitive directories": lambda c: not any(_is_sensitive(mount["Source"]) for mount in _mounts(c)),
    "5.7 no sshd": lambda c: "sshd" not in " ".join([c["Path"], *c["Args"]]),
    "5.8 no privileged ports": lambda c: all(int(port["HostPort"]) >= 1024 for port in _host_ports(c)),
    "5.10 a network of its own": lambda c: c["HostConfig"]["NetworkMode"] != "host",
    "5.11 memory is limited": lambda c: c["HostConfig"]["Memory"] > 0,
    "5.12 a CPU priority": lambda c: c["HostConfig"]["CpuShares"] > 0,
    "5.13 read-only root": lambda c: bool(c["HostConfig"]["ReadonlyRootfs"]),
    "5.14 bound to an address": lambda c: all(p["HostIp"] not in ALL_ADDRESSES for p in _host_ports(c)),
    "5.15 few restarts": lambda c: 0 < c["HostConfig"]["RestartPolicy"]["MaximumRetryCount"] <= 5,
    "5.16 no processes of the host": lambda c: c["HostConfig"]["PidMode"] != "host",
    "5.17 no IPC of the host": lambda c: c["HostConfig"]["IpcMode"] not in ("host", "shareable"),
    "5.18 no devices": lambda c: not c["HostConfig"]["Devices"],
    "5.19 no other ulimits": lambda c: not c["HostConfig"]["Ulimits"],
    "5.20 no shared mounts": lambda c: all(mount["Propagation"] != "shared" for mount in _mounts(c)),
    "5.21 no host name of the host": lambda c: c["HostConfig"]["UTSMode"] != "host",
    "5.22 seccomp": lambda c: not any("seccomp" in option for option in _security(c)),
    "5.25 the engine's cgroup": lambda c: not c["HostConfig"]["CgroupParent"],
    "5.26 no new privileges": lambda c: any(o.startswith("no-new-privileges") for o in _security(c)),
    "5.27 a health check": lambda c: "Health" in c["State"],
    "5.29 processes are limited": lambda c: (c["HostConfig"]["PidsLimit"] or 0) > 0,
    "5.30 not the default bridge": lambda c: "bridge" not in c["NetworkSettings"]["Networks"],
    "5.31 users of its own": lambda c: c["HostConfig"]["UsernsMode"] != "host",
    "5.32 no socket of the engine": lambda c: not any(Path(m["Source"]).suffix == ".sock" for m in _mounts(c)),
    "logs are rotated": lambda c: (
        c["HostConfig"]["LogConfig"]["Type"] == "local" or "max-size" in c["HostConfig"]["LogConfig"]["Config"]
    ),
}

#: What docker-bench-security says of our containers; docs/operations.md has the reasons.
ALL = {"5.15 few restarts", "5.27 a health check", "5.31 users of its own"}
SERVICES = ALL | {"5.30 not the default bridge"}
EXCEPTIONS = {
    "edgeml-runtime": ALL | {"5.10 a network of its own"},
    "edgeml-mirror": SERVICES,
    "edgeml-store": SERVICES,
}


def failing(container: Container) -> set[str]:
    """Return the checks that a container does not pass."""
    return {name for name, passes in CHECKS.items() if not passes(container)}
