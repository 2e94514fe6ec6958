# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host of the lab looks like where it is no plain Debian server: files before its first boot, and what boots it.

A guise changes what a host says of itself and what programs it has; the kernel and libraries stay.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError

NONE, UBUNTU, RASPBERRY_PI, FOREIGN = "", "ubuntu", "raspberry_pi", "foreign"
HARDENED, IMAGE_BASED, CONTAINERD = "hardened", "image_based", "containerd"
GUISES = (NONE, UBUNTU, RASPBERRY_PI, FOREIGN, HARDENED, IMAGE_BASED, CONTAINERD)

OS_RELEASE = {
    UBUNTU: 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\nVERSION_CODENAME=jammy\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    RASPBERRY_PI: 'ID=raspbian\nID_LIKE=debian\nVERSION_ID="12"\nPRETTY_NAME="Raspbian GNU/Linux 12 (bookworm)"\n',
    FOREIGN: "ID=buildroot\nVERSION_ID=2021.02\nPRETTY_NAME='Buildroot 2021.02'\n",
}

#: The oldest Python that Ansible supports on targets, as pyenv built it on this machine.
PYTHON = "3.8"
PYTHON_HOME = "opt/python"

# What a small system built from source does at its start. The first time it drops what such a system never had.
FOREIGN_INIT = r"""#!/bin/sh
if [ -e /usr/bin/dpkg ]; then
    mkdir -p /opt/bin
    mv /usr/bin/docker /usr/sbin/dockerd /usr/bin/containerd* /usr/sbin/runc /usr/bin/docker-* /usr/libexec/docker/* \
        /usr/local/bin/ 2> /dev/null
    mv /usr/sbin/docker* /usr/local/bin/ 2> /dev/null
    rm -rf /usr/bin/apt* /usr/bin/dpkg* /var/lib/dpkg /var/lib/apt /etc/apt /usr/lib/apt /usr/bin/systemctl \
        /usr/bin/journalctl /usr/bin/systemd* /usr/lib/systemd /etc/systemd /usr/sbin/start-stop-daemon /sbin/init \
        /usr/bin/python3* /usr/lib/python3* /etc/init.d /usr/sbin/update-rc.d /usr/sbin/service
    echo /opt/python/lib > /etc/ld.so.conf.d/python.conf
    ldconfig
fi
mkdir -p /run/sshd /run/lock
/usr/sbin/sshd
trap 'kill -TERM -1; exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""

#: What sudo asks for on a hardened host.
PASSWORD = "asked by sudo"
# sudo wants a terminal of its own and a password.
HARDENED_SUDOERS = "Defaults requiretty, use_pty, timestamp_timeout=0\nedge ALL=(ALL:ALL) ALL\n"
#: The directories for temporary files, from which nothing can be started.
NOEXEC = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - they are mounted there
HARDENED_INIT = f"""#!/bin/sh
set -e
echo 'edge:{PASSWORD}' | chpasswd
for place in {" ".join(NOEXEC)}; do mount -t tmpfs -o noexec,nosuid,nodev none $place; done
exec /sbin/init
"""
#: What a hardening guide asks of the engine for every container that does not say otherwise.
HARDENED_ENGINE = {
    "userns-remap": "default",
    "no-new-privileges": True,
    "icc": False,
    "seccomp-profile": "/etc/docker/seccomp.json",
}
HARDENED_SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {
            "names": ["add_key", "bpf", "io_uring_setup", "keyctl", "mount", "perf_event_open", "ptrace", "umount2"],
            "action": "SCMP_ACT_ERRNO",
        }
    ],
}
#: Images are containerd's, as Docker's own engine has it from version 29 on.
CONTAINERD_ENGINE = {"features": {"containerd-snapshotter": True}}
# On the volume that a host has for its engine: what it unpacks there cannot lie on the host's own layers.
CONTAINERD_CONFIGURATION = 'version = 2\nroot = "/var/lib/docker/containerd"\n'
# The root is read-only. Writable is what the maker of such an image has to keep so for us, and not one place more.
IMAGE_BASED_INIT = """#!/bin/sh
set -e
for place in /etc/docker /etc/systemd/system /home /root /var; do
    mkdir -p $place
    mount --rbind $place $place
done
mount -t tmpfs none /tmp
mount -o remount,bind,ro /
exec /sbin/init
"""
INITS = {FOREIGN: FOREIGN_INIT, HARDENED: HARDENED_INIT, IMAGE_BASED: IMAGE_BASED_INIT}


def command(guise: str) -> list[str]:
    """Return what a host runs as its first process."""
    return ["/opt/init"] if guise in INITS else ["/sbin/init"]


def files(guise: str) -> list[tuple[str, bytes, int, int]]:
    """Return what a host gets before its first boot: path, content, mode, owner."""
    found = [("usr/lib/os-release", OS_RELEASE[guise].encode(), 0o644, 0)] if guise in OS_RELEASE else []
    if guise in INITS:
        found.append(("opt/init", INITS[guise].encode(), 0o755, 0))
    if guise == HARDENED:
        found += [
            ("etc/sudoers.d/edge", HARDENED_SUDOERS.encode(), 0o440, 0),
            ("etc/docker/daemon.json", json.dumps(HARDENED_ENGINE).encode(), 0o644, 0),
            ("etc/docker/seccomp.json", json.dumps(HARDENED_SECCOMP).encode(), 0o644, 0),
        ]
    if guise == CONTAINERD:
        found += [
            ("etc/docker/daemon.json", json.dumps(CONTAINERD_ENGINE).encode(), 0o644, 0),
            ("etc/containerd/config.toml", CONTAINERD_CONFIGURATION.encode(), 0o644, 0),
        ]
    return found


def python_archive() -> bytes:
    """Return a tar with the interpreter PYTHON below PYTHON_HOME.

    Raises
    ------
    FleetError
        This machine has none.
    """
    home = next(iter(sorted((Path.home() / ".pyenv/versions").glob(f"{PYTHON}.*"))), None)
    if home is None:
        raise FleetError(
            "the lab's foreign host needs a Python to copy",
            where="~/.pyenv/versions",
            seen=f"no {PYTHON}",
            remedy=f"build it: pyenv install {PYTHON}",
        )
    buffer = io.BytesIO()
    left_out = ("/test", "/tests", "/site-packages", "/__pycache__", "/idlelib", "/tkinter", f"/config-{PYTHON}")
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
            wanted = not any(part in f"/{member.name}" for part in left_out) and not member.name.endswith(".a")
            return member if wanted else None

        for name in ("bin", "lib"):
            tar.add(home / name, f"{PYTHON_HOME}/{name}", filter=keep)
    return buffer.getvalue()
