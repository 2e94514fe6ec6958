# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images of the lab's hosts: small Debian servers, made from packages and kept as tar files."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.edgeml.fleet.tests.lab.machine import run, say
from docker import DockerClient
from docker.errors import ImageNotFound

USER = "edge"
RECIPE_LABEL = "edgeml.lab.recipe"

# What a freshly installed server has: no container engine.
PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)

# What the roles install, for hosts where the installation is not the subject.
ROLE_PACKAGES = ("iptables",)
#: What a base image has that is no plain server: by the whole name of the base.
ADDED_PACKAGES = {
    "bookworm-engine": ("docker.io", *ROLE_PACKAGES),
    "trixie-engine": ("docker.io", "docker-cli", *ROLE_PACKAGES),
    "bookworm-dnf": ("createrepo-c", "dnf", "rpm"),
}

# Left out, as container images of Debian do: a fifth of the bytes, most of the files.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

# Shell commands; $1 is the new root directory.
STEPS = (
    # Each host gets a key and an identity of its own.
    'rm "$1"/etc/ssh/ssh_host_*',
    ': > "$1/etc/machine-id"',
    f'chroot "$1" useradd --uid 1000 --create-home --shell /bin/bash {USER}',
    f'install -d -m 0700 -o 1000 -g 1000 "$1/home/{USER}/.ssh"',
    f'echo "{USER} ALL=(ALL:ALL) NOPASSWD: ALL" > "$1/etc/sudoers.d/{USER}"',
    f'chmod 0440 "$1/etc/sudoers.d/{USER}"',
    'printf "PermitRootLogin no\\nPasswordAuthentication no\\n" > "$1/etc/ssh/sshd_config.d/lab.conf"',
)


def adding_steps(base: str) -> tuple[str, ...]:
    """Return shell commands that make of the root directory $1 a server that has been in use.

    It has more packages and, other than a new one, lists of packages.
    """
    options = [f"-oDPkg::Options::=--path-exclude={pattern}" for pattern in EXCLUDED]
    install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *options, *ADDED_PACKAGES[base]]
    return (
        'cp /etc/resolv.conf "$1/etc/resolv.conf"',
        'chroot "$1" apt-get update -qq',
        f'DEBIAN_FRONTEND=noninteractive chroot "$1" {shlex.join(install)}',
        'chroot "$1" apt-get clean',
        ': > "$1/etc/machine-id"',
    )


def options(base: str) -> list[str]:
    """Return the options of mmdebstrap that make a base image, which is called as `Host.base` says."""
    if base in ADDED_PACKAGES:
        # Upon the plain image of the same suite, which is given as a tar file.
        return ["--variant=custom", "--skip=setup,update,cleanup", *_hooks(adding_steps(base))]
    excluded = (f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED)
    return ["--variant=minbase", f"--include={','.join(PACKAGES)}", *excluded, *_hooks(STEPS)]


def _hooks(steps: tuple[str, ...]) -> list[str]:
    return [f"--customize-hook={step}" for step in steps]


def recipe(base: str) -> str:
    """Return 12 hex digits that change with whatever a base image is made from."""
    suite = base.partition("-")[0]
    below = recipe(suite) if base in ADDED_PACKAGES else ""
    return hashlib.sha256(json.dumps([suite, below, options(base)]).encode()).hexdigest()[:12]


def image_name(topology: str, base: str) -> str:
    """Return the name and tag of a topology's base image."""
    return f"edgeml-lab-{topology}:{base}"


def ensure_base_images(client: DockerClient, topology: str, bases: set[str], cache: Path) -> None:
    """Have each base image in the engine: as it is, from the cache or new.

    Raises FleetError when packages cannot be fetched or unpacked.
    """
    wanted = [base for base in sorted(bases) if not _is_current(client, topology, base)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda base: _import(client, topology, base, ensure_archive(base, cache)), wanted))


def _import(client: DockerClient, topology: str, base: str, archive: Path) -> None:
    repository, tag = image_name(topology, base).split(":")
    labels = [f"LABEL edgeml.lab={topology}", f"LABEL {RECIPE_LABEL}={recipe(base)}"]
    client.api.import_image_from_file(str(archive), repository, tag, changes=labels)
    say(f"{base}: base image imported")


def _is_current(client: DockerClient, topology: str, base: str) -> bool:
    try:
        image = client.images.get(image_name(topology, base))
    except ImageNotFound:
        return False
    return image.labels.get(RECIPE_LABEL) == recipe(base)


def ensure_archive(base: str, cache: Path) -> Path:
    """Return the tar file of a base image in the directory `cache`; it is made if it is not there or outdated."""
    archive = cache / f"{base}-{recipe(base)}.tar"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{base}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # labs may come up at the same time
        if not archive.exists():
            _build_archive(base, archive)
    return archive


def _build_archive(base: str, archive: Path) -> None:
    suite = base.partition("-")[0]
    below = []
    if base in ADDED_PACKAGES:
        plain = shlex.quote(str(ensure_archive(suite, archive.parent)))
        below = [f'--setup-hook=tar --directory "$1" --numeric-owner --extract --file {plain}']
    say(f"{base}: building the base image from packages (half a minute or so, then kept)")
    part = archive.with_suffix(".part")
    run(["mmdebstrap", "--mode=root", "--format=tar", *below, *options(base), suite, part], root=True)
    for outdated in archive.parent.glob(f"{base}-{'[0-9a-f]' * 12}.tar"):
        outdated.unlink()
    part.rename(archive)
