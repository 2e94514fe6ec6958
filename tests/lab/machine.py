# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine: its tools, its Docker Engine and its emulation of arm64."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import docker
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from docker.errors import DockerException

# Tool to the Debian package that has it.
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "losetup": "mount",
    "iptables": "iptables",
}
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
EMULATOR_PACKAGE = "qemu-user-static"

# Linux lets a user have 128. Three labs at once need more: what starts last on a host then fails.
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 1024

BINFMT = Path("/proc/sys/fs/binfmt_misc")
# ELF header of a little-endian 64-bit arm64 executable or shared object, as in binfmt.d(5).
ARM64_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
ARM64_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(text, flush=True)


def run(command: Sequence[str | Path], *, root: bool = False, stdin: str | None = None) -> str:
    """Run a program and return what it wrote to standard output.

    Parameters
    ----------
    command : sequence of str or Path
        The program, found on PATH or in the system's sbin folders, and its arguments.
    root : bool
        Run it as root, through sudo when this process is not root.
    stdin : str, optional
        Text for its standard input.

    Raises
    ------
    FleetError
        The program is missing or ends with another code than 0.
    """
    arguments = [str(part) for part in command]
    if root and os.geteuid() != 0:
        arguments = ["sudo", *arguments]
    environment = os.environ | {"PATH": _search_path()}
    try:
        done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, env=environment, check=True)
    except FileNotFoundError as error:
        raise FleetError("a program is missing", where=arguments[0], remedy="install it and try again") from error
    except subprocess.CalledProcessError as error:
        raise FleetError(
            "a command failed",
            where=" ".join(arguments),
            seen=" ".join((error.stderr or error.stdout).split())[-600:] or f"exit code {error.returncode}",
            remedy="repair what the command reports and try again",
        ) from error
    return done.stdout


def connect_engine() -> docker.DockerClient:
    """Return a client of the machine's Docker Engine, or raise FleetError when none answers."""
    try:
        client = docker.from_env(timeout=180)
        client.ping()
    except DockerException as error:
        raise FleetError(
            "no Docker Engine answers",
            where=os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"),
            seen=str(error),
            remedy="run `make engine`; when permission is denied, run as root or join the group docker",
        ) from error
    return client


def prepare() -> None:
    """Have this machine's tools, arm64 programs and room for many hosts. Raises FleetError when that fails."""
    _ensure_tools()
    _ensure_arm64_emulation()
    _ensure_inotify_instances()


def _ensure_tools() -> None:
    """Install the Debian packages of the tools that are missing. Raises FleetError when that fails."""
    missing = {package for tool, package in TOOLS.items() if not _find(tool)}
    if not _find(*EMULATORS):
        missing.add(EMULATOR_PACKAGE)
    if missing:
        packages = sorted(missing)
        say(f"this machine: installing {', '.join(packages)}")
        run(["apt-get", "update", "-q"], root=True)
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        run(["env", "DEBIAN_FRONTEND=noninteractive", *install], root=True)


def _ensure_arm64_emulation() -> None:
    """Have the kernel run arm64 programs, also in containers and in engines nested in them.

    Raises FleetError when the kernel has no binfmt_misc or the emulator is missing.
    """
    if not (BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], root=True)
    entry = BINFMT / "qemu-aarch64"
    if entry.exists():
        lines = entry.read_text().splitlines()
        # Flag F: the kernel keeps the emulator open, so that it need not exist inside the container.
        if lines[0] == "enabled" and any(line.startswith("flags:") and "F" in line for line in lines):
            return
        run(["tee", entry], root=True, stdin="-1")
    emulator = _find(*EMULATORS)
    if not emulator:
        raise FleetError("no arm64 emulator", where="PATH", remedy=f"install the package {EMULATOR_PACKAGE}")
    say("this machine: registering the arm64 emulator")
    rule = f":qemu-aarch64:M::{ARM64_MAGIC}:{ARM64_MASK}:{emulator}:F"
    run(["tee", BINFMT / "register"], root=True, stdin=rule)


def _ensure_inotify_instances() -> None:
    """Let all labs' hosts watch files: each needs about six instances, and the kernel counts them together."""
    if int(INOTIFY.read_text()) < INOTIFY_INSTANCES:
        run(["tee", INOTIFY], root=True, stdin=str(INOTIFY_INSTANCES))


def _search_path() -> str:
    # A user's PATH lacks the folders of the system's own tools.
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _find(*names: str) -> str | None:
    return next((path for name in names if (path := shutil.which(name, path=_search_path()))), None)
