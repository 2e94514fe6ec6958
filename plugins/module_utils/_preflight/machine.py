# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the machine itself: architecture, processor, kernel, engine, disk and memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._host.disk import SPARE_BYTES, UNPACK_FACTOR
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import (
    ARCHITECTURES,
    container_name,
    runtime_root,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    ENGINE_SECONDS,
    REFUSE,
    WARN,
    Content,
    Engine,
    Finding,
    Host,
    Wanted,
    can_load,
)

#: What x86-64-v2, for which numpy and ONNX Runtime are built, adds to the first 64 bit processors, in Linux's names.
X86_64_V2 = ("pni", "ssse3", "cx16", "sse4_1", "sse4_2", "popcnt")
MINIMUM_KERNEL = (4, 0)  # overlay2, the engine's storage driver; SO_REUSEPORT came with 3.9
#: Room for a thing to come, per byte transferred. A model is kept as a tar until it is unpacked.
SPACE_FACTORS = {"image": UNPACK_FACTOR, "model": 2, "mirrored": 1}
ENGINE_BYTES = 350 << 20  # what Debian's packages of the engine unpack to
BYTES_PER_FILE = 8 << 10  # transferred bytes of an image for each file in it, at least


def is_present(host: Host, engine: Engine, wanted: Wanted, content: Content) -> bool:
    digest = content.digest.partition(":")[2]
    if content.kind == "model":
        return (runtime_root(host.path(wanted.root), content.runtime) / "models" / digest).is_dir()
    if content.kind == "mirrored":
        manifest = f"*/v2/{content.repository}/manifests/{content.digest}.oci-manifest"
        return any(host.path(f"{wanted.mirror_root}/generations").glob(manifest))
    if not engine.answers or wanted.registry is None:
        return False
    reference = f"{wanted.registry.address}/{content.repository}@{content.digest}"
    return (
        host.run(["timeout", str(ENGINE_SECONDS), "docker", "image", "inspect", "--format", "{{.Id}}", reference])[0]
        == 0
    )


def architecture(host: Host, wanted: Wanted, seen: str) -> Iterator[Finding]:
    supported = seen in ARCHITECTURES.values() and host.pointer_bits == 64
    if supported and wanted.architecture in ("", seen):
        return
    yield Finding(
        "architecture",
        REFUSE,
        f"{host.machine}, programs of {host.pointer_bits} bit",
        wanted.architecture or " or ".join(sorted(set(ARCHITECTURES.values()))),
        "correct edgeml_architecture in the inventory" if supported else "install a 64 bit system, amd64 or arm64",
    )


def processor(wanted: Wanted, facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Say what an amd64 processor lacks: servers of models would die of SIGILL on it, without a word."""
    flags = facts["cpu_features"]
    missing = [flag for flag in X86_64_V2 if flag not in flags]
    if wanted.serves_models and facts["architecture"] == "amd64" and flags and missing:
        yield Finding(
            "processor",
            REFUSE,
            f"lacks {', '.join(missing)}",
            "x86-64-v2 (Intel from 2009, AMD from 2011)",
            "use a newer processor; in a virtual machine, give it the host's processor model",
        )


def kernel(host: Host, wanted: Wanted) -> Iterator[Finding]:
    release = host.text("/proc/sys/kernel/osrelease").strip()
    if version_of(release) < MINIMUM_KERNEL:
        yield Finding(
            "kernel", REFUSE, release or "unknown", f"{_words(MINIMUM_KERNEL)} or newer", "install a newer kernel"
        )
    if not re.search(r"\boverlay$", host.text("/proc/filesystems"), re.M) and not can_load(host, "overlay"):
        yield Finding(
            "overlayfs",
            REFUSE,
            "the kernel has no overlay file system",
            "overlay, in the kernel or as a module",
            "install the kernel's modules, or a kernel with CONFIG_OVERLAY_FS",
        )
    for name in sorted({"memory", "pids", "cpu"} - _controllers(host)):
        yield Finding(
            "cgroup",
            WARN,
            f"controller {name} is off: the engine cannot limit it",
            f"controller {name}",
            "add cgroup_enable=memory to the kernel's command line" if name == "memory" else "use another kernel",
        )
    if wanted.serves_models and not host.path("/proc/sys/net/ipv4/tcp_migrate_req").exists():
        yield Finding(
            "tcp_migrate_req",
            WARN,
            f"kernel {release} has no net.ipv4.tcp_migrate_req",
            "5.14 or newer",
            "install a newer kernel, or accept that a release may reset new connections",
        )


def _controllers(host: Host) -> set[str]:
    unified = host.text("/sys/fs/cgroup/cgroup.controllers").split()
    lines = [line.split() for line in host.text("/proc/cgroups").splitlines() if not line.startswith("#")]
    return set(unified) | {parts[0] for parts in lines if len(parts) == 4 and parts[3] == "1"}


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _words(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def disk(host: Host, engine: Engine, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Bytes and files of all that comes, by file system. What is there already stays beside it."""
    places = {"image": engine.image_directory, "model": wanted.root, "mirrored": wanted.mirror_root}
    needs: dict[int, tuple[str, Path, int, int]] = {}

    def add(place: str, size: int, files: int) -> None:
        existing = host.path(place)
        while not existing.exists():
            existing = existing.parent
        device = existing.stat().st_dev
        name, path, known_size, known_files = needs.get(device, (place, existing, SPARE_BYTES, 0))
        needs[device] = (name, path, known_size + size, known_files + files)

    for content in missing:
        files = 64 if content.kind == "model" else content.size // BYTES_PER_FILE if content.kind == "image" else 1
        add(places[content.kind], SPACE_FACTORS[content.kind] * content.size, files)
    if wanted.needs_engine and not engine.installed:
        add("/usr", ENGINE_BYTES, 1000)
    for place, path, size, files in needs.values():
        figures = os.statvfs(path)
        free = figures.f_bavail * figures.f_frsize
        if free < size:
            yield Finding(
                "disk_space",
                REFUSE,
                f"{_mib(free)} free at {place}",
                f"{_mib(size)} for what will come, beside what is there",
                "free disk space there or use a larger disk",
            )
        if figures.f_files and figures.f_favail < files:
            yield Finding(
                "disk_inodes",
                REFUSE,
                f"{figures.f_favail} inodes free at {place}",
                f"{files} for what will come",
                "remove small files there, or make the file system anew with more inodes",
            )


def memory(host: Host, engine: Engine, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Each new release starts beside the old one, and the next runtime's after that."""
    if not wanted.memory_mb:
        return
    running = {container["Name"]: _resident(host, container["Id"]) >> 20 for container in engine.containers}
    # What is measured counts where the inventory asks for less, or says nothing.
    needs = [max(size, running.get(f"/{container_name(name)}", 0)) for name, size in wanted.memory_mb.items()]
    taken = sum(running.values())
    need = max(0, *needs, sum(needs) - taken + max(running.values(), default=0))
    figures = dict(re.findall(r"^(\w+):\s+(\d+) kB", host.text("/proc/meminfo"), re.M))
    available = int(figures.get("MemAvailable", 0)) >> 10
    total = int(figures.get("MemTotal", 0)) >> 10
    limit, used = _cgroup_memory(host)
    if limit:
        total = min(total, limit >> 20)
        available = min(available, max(0, limit - used) >> 20)
    if available < need:
        yield Finding(
            "memory",
            REFUSE if missing else WARN,
            f"{available} of {total} MiB available, beside {taken} MiB of what runs",
            f"{need} MiB, so that old and new release run side by side",
            "stop other programs, place fewer models here, or correct requires.memory_mb",
        )


def _resident(host: Host, container: str) -> int:
    """Return the bytes in memory of a container's processes."""
    pages = 0
    for process in host.path("/proc").glob("[0-9]*"):
        if container in host.text(f"/proc/{process.name}/cgroup"):
            pages += int((host.text(f"/proc/{process.name}/statm").split() or ["0", "0"])[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cgroup_memory(host: Host) -> tuple[int, int]:
    """Return limit and use in bytes of the group that the host itself is in (a container, a virtual server); 0, 0.

    Cached files that nobody uses at the moment count as free: the kernel gives them up for whoever needs memory.
    """
    for limit_file, used_file, details_file, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        limit = host.text(f"/sys/fs/cgroup/{limit_file}").strip()
        used = host.text(f"/sys/fs/cgroup/{used_file}").strip()
        if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:  # more is no limit
            found = re.search(rf"^{cached} (\d+)$", host.text(f"/sys/fs/cgroup/{details_file}"), re.M)
            return int(limit), max(0, int(used) - int(found[1] if found else 0))
    return 0, 0


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
