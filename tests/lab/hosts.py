# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's hosts: containers that boot systemd, each with its own disks and its own SSH key."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import time
from dataclasses import asdict
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.tests.lab import guises
from ansible_collections.edgeml.fleet.tests.lab.images import USER, image_name, recipe
from ansible_collections.edgeml.fleet.tests.lab.machine import run
from ansible_collections.edgeml.fleet.tests.lab.network import LABEL, connect, endpoint, labelled, network_name
from ansible_collections.edgeml.fleet.tests.lab.topology import Host, Topology
from docker import DockerClient
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.types import NetworkingConfig

DATA = "/var/lib/edgeml"
FILL = f"{DATA}/.lab-fill"
HOST_LABEL = "edgeml.lab.host"
DESCRIPTION_LABEL = "edgeml.lab.description"
BOOT_SECONDS = 600

# A container cannot load kernel modules, so this unit may fail where nothing else does.
TOLERATED_UNITS = {"systemd-modules-load.service"}


def container_name(host: Host) -> str:
    """Return the name of a host's container."""
    return f"edgeml-lab-{host.name}"


def find(client: DockerClient, host: Host) -> Container:
    """Return a host's container, or raise FleetError when the lab is not up."""
    try:
        return client.containers.get(container_name(host))
    except NotFound as error:
        raise FleetError(
            "the host does not exist", where=host.name, seen="no container", remedy="run `lab.py up`"
        ) from error


class Access:
    """Keys of one lab: the controller's, and one for each host so that its identity is known beforehand.

    Everything is kept in the lab's state folder, so keys outlive a power cut and, unless the lab goes down,
    this process.
    """

    def __init__(self, state: Path) -> None:
        self.key = state / "id_ed25519"
        self.known_hosts = state / "known_hosts"
        self._host_keys = state / "host_keys"

    def prepare(self, topology: Topology) -> None:
        """Make the keys that are missing and write known_hosts."""
        self._host_keys.mkdir(parents=True, exist_ok=True)
        _ensure_key(self.key, f"edgeml lab {topology.name}")
        lines = []
        for host in topology.hosts.values():
            _ensure_key(self.host_key(host), host.name)
            public = _public(self.host_key(host)).read_text().split()
            lines.append(f"{host.address} {public[0]} {public[1]}\n")
        self.known_hosts.write_text("".join(lines))

    def host_key(self, host: Host) -> Path:
        """Return the path of a host's private SSH key."""
        return self._host_keys / host.name

    def files(self, host: Host) -> list[tuple[str, bytes, int, int]]:
        """Return what a host gets before its first boot: path, content, mode, owner."""
        return [
            (f"home/{USER}/.ssh/authorized_keys", _public(self.key).read_bytes(), 0o600, 1000),
            ("etc/ssh/ssh_host_ed25519_key", self.host_key(host).read_bytes(), 0o600, 0),
            ("etc/ssh/ssh_host_ed25519_key.pub", _public(self.host_key(host)).read_bytes(), 0o644, 0),
        ]

    def command(self, host: Host) -> list[str]:
        """Return the SSH command that reaches a host; a command for the host may follow it."""
        options = {
            "UserKnownHostsFile": f'"{self.known_hosts}"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "30",
            "LogLevel": "ERROR",
        }
        arguments = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-i", str(self.key), *arguments, f"{USER}@{host.address}"]


def ensure_host(client: DockerClient, topology: Topology, host: Host, access: Access, disks: Path) -> bool:
    """Have a host that exists and runs. Returns whether anything was done.

    Raises
    ------
    FleetError
        The host exists but was made from another description, or the engine refuses to start it.
    """
    description = _description(host, access)
    try:
        container = client.containers.get(container_name(host))
    except NotFound:
        container = _create(client, topology, host, access, disks, description)
    if container.labels.get(DESCRIPTION_LABEL) != description:
        raise FleetError(
            "the host was made from another description or with other keys",
            where=container_name(host),
            seen=f"lab {container.labels.get(LABEL)}",
            remedy=f"run `lab.py down --topology {topology.name}`, then `up`",
        )
    if container.status == "running":
        return False
    start(container, host)
    return True


def start(container: Container, host: Host) -> None:
    """Switch a host on. Raises FleetError when the engine cannot, for example after this machine was restarted.

    The engine gives each host an address of IPv4; one that is meant to have none loses it at once.
    """
    try:
        container.start()
        if not any(4 in leg.addresses for leg in host.legs):
            container.exec_run(["ip", "-4", "address", "flush", "dev", "eth0"])
    except APIError as error:
        raise FleetError(
            "the host does not start",
            where=str(container.name),
            seen=str(error.explanation or error),
            remedy="run `lab.py down`, then `up`",
        ) from error


def wait_until_booted(access: Access, host: Host) -> set[str]:
    """Wait until a host answers over SSH and systemd has finished booting.

    Returns
    -------
    set of str
        Units that failed.

    Raises
    ------
    FleetError
        Not booted after BOOT_SECONDS.
    """
    deadline = time.monotonic() + BOOT_SECONDS
    question = "systemctl is-system-running --wait; systemctl --failed --plain --no-legend"
    if host.guise == guises.FOREIGN:
        question = "echo foreign"  # nothing there tells when it has booted but that it answers
    while True:
        remaining = deadline - time.monotonic()
        seen = f"nothing within {BOOT_SECONDS} s"
        try:
            answer = subprocess.run(
                [*access.command(host), question], capture_output=True, text=True, timeout=max(remaining, 1)
            )
            lines = answer.stdout.split("\n")
            if host.guise == guises.FOREIGN and lines[0] == "foreign":
                return set()
            if lines[0] in ("running", "degraded"):
                return {line.split()[0] for line in lines[1:] if line}
            seen = (answer.stdout + answer.stderr).strip() or f"SSH ended with {answer.returncode}"
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() > deadline:
            raise FleetError(
                "the host did not boot",
                where=f"{host.name} ({host.address})",
                seen=seen,
                remedy=f"look at `docker exec {container_name(host)} journalctl -b`",
            )
        time.sleep(0.3)


def remove_all(client: DockerClient, topology: str, disks: Path) -> None:
    """Remove every container and volume of a topology, and the loop devices of the files in `disks`."""
    nested = _nested_containers(client, topology)
    for container in client.containers.list(all=True, filters=labelled(topology)):
        container.remove(force=True, v=True)
    for volume in client.volumes.list(filters=labelled(topology)):
        volume.remove()
    for device in _loop_devices(disks):
        run(["losetup", "--detach", device], root=True)
    _remove_control_groups(nested)


def _ensure_key(path: Path, comment: str) -> None:
    if not path.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def _public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def _description(host: Host, access: Access) -> str:
    keys = [content.decode() for _, content, _, _ in access.files(host)]
    return hashlib.sha256(json.dumps([asdict(host), recipe(host.base), keys]).encode()).hexdigest()[:12]


def _create(
    client: DockerClient, topology: Topology, host: Host, access: Access, disks: Path, description: str
) -> Container:
    volumes = {f"{container_name(host)}-docker": "/var/lib/docker"}
    labels = {LABEL: topology.name}
    client.volumes.create(f"{container_name(host)}-docker", labels=labels)
    if host.disk_mb:
        volumes[_ensure_disk(client, host, disks, labels)] = DATA
    environment = {}
    if client.info()["CgroupVersion"] == "1":
        # systemd 256 and later boots on cgroup v1 only when told to.
        environment["SYSTEMD_PROC_CMDLINE"] = "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
    home = host.legs[0]
    networking = NetworkingConfig()
    networking["EndpointsConfig"] = {network_name(home.network): endpoint(client, host, home)}
    host_config = client.api.create_host_config(
        # What --privileged gives, less a capability that not every machine can hand on.
        cap_add=["ALL"],
        cap_drop=["SYS_RESOURCE"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        cgroupns="host",
        tmpfs={"/run": "", "/run/lock": ""},
        binds=["/sys/fs/cgroup:/sys/fs/cgroup:rw", *(f"{name}:{path}" for name, path in volumes.items())],
        network_mode=network_name(home.network),
    )
    created = client.api.create_container(
        image_name(topology.name, host.base),
        guises.command(host.guise),
        name=container_name(host),
        hostname=host.name,
        labels={**labels, HOST_LABEL: host.name, DESCRIPTION_LABEL: description},
        environment=environment,
        host_config={**host_config, "MaskedPaths": [], "ReadonlyPaths": []},
        networking_config=networking,
    )
    container = client.containers.get(created["Id"])
    for leg in host.legs[1:]:
        connect(client, host, leg, container)
    container.put_archive("/", _archive([*access.files(host), *guises.files(host.guise)]))
    if host.guise == guises.FOREIGN:
        container.put_archive("/", guises.python_archive())
    return container


def _ensure_disk(client: DockerClient, host: Host, disks: Path, labels: dict[str, str]) -> str:
    """Return the volume of a file system of limited size. The engine mounts it whenever the host is on."""
    name = f"{container_name(host)}-data"
    disk = disks / f"{host.name}.ext4"
    try:
        client.volumes.get(name)
    except NotFound:
        disks.mkdir(parents=True, exist_ok=True)
        with disk.open("wb") as file:
            file.truncate((host.disk_mb or 0) * 2**20)
        # No blocks reserved for root: a full disk is full for everyone.
        run(["mkfs.ext4", "-q", "-m", "0", disk])
        device = run(["losetup", "--find", "--show", disk], root=True).strip()
        client.volumes.create(name, driver="local", driver_opts={"type": "ext4", "device": device}, labels=labels)
    return name


def _archive(files: list[tuple[str, bytes, int, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content, mode, owner in files:
            member = tarfile.TarInfo(path)
            member.size, member.mode, member.uid, member.gid = len(content), mode, owner, owner
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _loop_devices(disks: Path) -> list[str]:
    listed = run(["losetup", "--list", "--json", "--output", "NAME,BACK-FILE"], root=True)
    devices = json.loads(listed)["loopdevices"] if listed else []
    return [device["name"] for device in devices if str(device["back-file"]).startswith(f"{disks}/")]


def _nested_containers(client: DockerClient, topology: str) -> list[str]:
    """Return the ids of all containers of the engines inside the hosts, running or not."""
    roots = [volume.attrs["Mountpoint"] for volume in client.volumes.list(filters=labelled(topology))]
    if not roots:
        return []
    folders = [f"{root}/containers" for root in roots]
    found = run(["find", *roots, "-mindepth", "2", "-maxdepth", "2", "-type", "d"], root=True)
    return [Path(line).name for line in found.splitlines() if str(Path(line).parent) in folders]


def _remove_control_groups(containers: list[str]) -> None:
    """Remove what engines that lost power left in the kernel (cgroup v1 knows no nesting)."""
    for container in containers:
        for group in Path("/sys/fs/cgroup").glob(f"*/docker/{container}"):
            run(["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], root=True)
