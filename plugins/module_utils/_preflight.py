# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a host and judge whether it can take what is meant for it. Reads only, with the standard library alone."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.edgeml.fleet.plugins.module_utils._preflight_registry import (
    TIMEOUT,
    RegistryAccess,
    RegistryProblem,
    ask_registry,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release_content import SPARE_BYTES, UNPACK_FACTOR

DEFAULT_RUNTIME = "runtime"
REFUSE = "refuse"
WARN = "warn"

#: Names of machines (``uname -m``) as OCI names them.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: Names of accelerators and the device files by which their drivers show them.
ACCELERATORS = {
    "nvidia": ("dev/nvidia0", "dev/nvhost-gpu"),
    "coral": ("dev/apex_0",),
    "hailo": ("dev/hailo0",),
    "npu": ("dev/accel/accel0",),
}
MINIMUM_ENGINE = (20, 10)
MINIMUM_KERNEL = (4, 0)  # overlay2, the engine's storage driver
ENGINE_DIRECTORY = "/var/lib/docker"
#: Room for a thing to come, per byte transferred. A model is kept as a tar until it is unpacked.
SPACE_FACTORS = {"image": UNPACK_FACTOR, "model": 2, "mirrored": 1}
ENGINE_BYTES = 350 << 20  # what Debian's packages of the engine unpack to
BYTES_PER_FILE = 8 << 10  # transferred bytes of an image for each file in it, at least
CLOCK_TOLERANCE = 300.0  # seconds; what TLS and logs of several hosts bear
FIRST_PLAUSIBLE_TIME = 1735689600.0  # 2025: before this collection was made
RENEW_CERTIFICATE = 30 * 86400.0  # seconds before its end

PORTS = {"http": 80, "https": 443}

#: Runs a program: arguments -> (exit code, stdout, stderr), as AnsibleModule.run_command does.
RunCommand = Callable[[list[str]], tuple[int, str, str]]


@dataclass(frozen=True)
class Finding:
    """Something that a person has to know. `severity` is REFUSE or WARN; the other texts are one short line each."""

    name: str
    severity: str
    value: str
    need: str
    remedy: str


@dataclass(frozen=True)
class Content:
    """Something that the host has to hold: an ``image`` of its engine, a ``model``, or what its mirror serves.

    `size` is in bytes as transferred, `digest` that of a manifest (``image``, ``mirrored``) or of a blob (``model``),
    `runtime` the name of the one that serves the model.
    """

    kind: str
    name: str
    repository: str
    digest: str
    size: int
    runtime: str = DEFAULT_RUNTIME


@dataclass(frozen=True)
class Port:
    """A TCP port to listen on, and the variable that sets it."""

    address: str
    port: int
    variable: str


@dataclass(frozen=True)
class Certificate:
    """Validity of a certificate as the controller read it (seconds since the epoch), or why it could not."""

    path: str
    not_before: float = 0.0
    not_after: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Requires:
    """What all models of the host together require of it."""

    packages: Sequence[str] = ()
    devices: Sequence[str] = ()
    kernel_modules: Sequence[str] = ()
    sysctls: Sequence[str] = ()


@dataclass(frozen=True)
class Wanted:
    """What is meant for the host. `memory_mb` is MiB by runtime; times are seconds since the epoch, 0 is unknown."""

    architecture: str = ""
    content: Sequence[Content] = ()
    registry: RegistryAccess | None = None
    root: str = "/var/lib/edgeml"
    mirror_root: str = "/var/lib/edgeml/mirror"
    memory_mb: Mapping[str, int] = field(default_factory=dict)
    ports: Sequence[Port] = ()
    certificates: Sequence[Certificate] = ()
    engine_packages: Sequence[str] = ()
    requires: Requires = Requires()
    controller_time: float = 0.0
    problems: Sequence[str] = ()
    ignore: Sequence[str] = ()

    @property
    def serves_models(self) -> bool:
        """Whether the host is a device."""
        return any(content.kind in ("image", "model") for content in self.content)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Wanted:
        """Return what the options of the module host_preflight say."""
        known = {entry.name for entry in fields(cls)}
        plain = {name: value for name, value in options.items() if name in known and value is not None}
        if "registry" in plain:
            plain["registry"] = RegistryAccess(**plain["registry"])
        if plain.get("requires"):
            plain["requires"] = Requires(**plain["requires"])
        else:
            plain.pop("requires", None)
        for name, kind in (("content", Content), ("ports", Port), ("certificates", Certificate)):
            plain[name] = [kind(**entry) for entry in plain.get(name, ())]
        return cls(**plain)


@dataclass(frozen=True)
class Engine:
    """The host's Docker Engine. `answers` is false if it is installed and does not run."""

    installed: bool
    answers: bool = False
    version: str = ""
    directory: str = ENGINE_DIRECTORY
    driver: str = ""
    containers: Sequence[dict[str, Any]] = ()  # ours that run, as `docker container inspect` describes them


@dataclass(frozen=True)
class Examination:
    """What was found, and what the host is."""

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    missing: list[Content] = field(default_factory=list)

    def as_result(self) -> dict[str, Any]:
        """Return keys for the module's result (see RETURN of host_preflight)."""
        return {
            **result_of(self.findings),
            "missing": [asdict(content) for content in self.missing],
            "ansible_facts": {"edgeml_host": self.facts},
        }


class Host:
    """The host's own words. Tests give another `root` for /proc, /sys, /dev and /var, and another machine."""

    def __init__(self, run: RunCommand, root: Path = Path("/"), machine: str = "", pointer_bits: int = 0) -> None:
        self.run = run
        self.root = root
        self.machine = machine or os.uname().machine
        self.pointer_bits = pointer_bits or struct.calcsize("P") * 8

    def now(self) -> float:
        """Return the host's time in seconds since the epoch."""
        return time.time()

    def path(self, name: str) -> Path:
        """Return an absolute path of the host below this root."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """Return the content of a file, "" if it cannot be read."""
        try:
            return self.path(name).read_text(errors="replace")
        except OSError:
            return ""

    def facts(self) -> dict[str, Any]:
        """Return architecture (OCI name), memory_mb, cpu_features and accelerator ("" if there is none)."""
        memory = re.search(r"^MemTotal:\s+(\d+) kB", self.text("/proc/meminfo"), re.M)
        features = re.search(r"^(?:flags|Features)\s*:(.*)$", self.text("/proc/cpuinfo"), re.M)
        found = [name for name, paths in ACCELERATORS.items() if any((self.root / path).exists() for path in paths)]
        return {
            "architecture": ARCHITECTURES.get(self.machine, self.machine),
            "memory_mb": int(memory[1]) // 1024 if memory else 0,
            "cpu_features": sorted(set(features[1].split())) if features else [],
            "accelerator": found[0] if found else "",
        }

    def engine(self) -> Engine:
        """Ask the engine what it is, and for our containers."""
        code, out, _ = self.run(["docker", "info", "--format", "{{json .}}"])
        if code == 127:
            return Engine(installed=False)
        try:
            info = json.loads(out)
        except ValueError:
            info = {}
        if not info.get("ServerVersion"):
            return Engine(installed=True)
        containers: list[dict[str, Any]] = []
        code, out, _ = self.run(["docker", "container", "ls", "--quiet", "--no-trunc", "--filter", "name=^edgeml-"])
        if code == 0 and out.split():
            code, out, _ = self.run(["docker", "container", "inspect", *out.split()])
            containers = json.loads(out) if code == 0 else []
        return Engine(True, True, info["ServerVersion"], info["DockerRootDir"], info.get("Driver", ""), containers)


def examine(host: Host, wanted: Wanted) -> Examination:
    """Judge a host by what is meant for it; return all findings, those that refuse first."""
    facts = host.facts()
    engine = host.engine()
    missing = [content for content in wanted.content if not _is_present(host, engine, wanted, content)]
    findings = [
        *map(inventory_finding, wanted.problems),
        *_architecture(host, wanted, facts["architecture"]),
        *_kernel(host, wanted),
        *_engine(engine, wanted),
        *_space(host, engine, wanted, missing),
        *_memory(host, engine, wanted, missing),
        *_clock(host, wanted, missing),
        *_certificates(host, wanted),
        *_ports(host, engine, wanted),
        *_registry(wanted, missing),
        *_packages(host, engine, wanted),
        *_requirements(host, wanted),
    ]
    return Examination(judge(findings, wanted.ignore), facts, missing)


def judge(findings: Sequence[Finding], ignore: Sequence[str]) -> list[Finding]:
    """Return the findings, those that refuse first; the ignored ones only warn."""
    judged = [replace(finding, severity=WARN) if finding.name in ignore else finding for finding in findings]
    return sorted(judged, key=lambda finding: finding.severity != REFUSE)


def result_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return {"findings", "msg"}, where msg says why the host is refused, or is empty."""
    refused = [finding for finding in findings if finding.severity == REFUSE]
    lines = [f"{f.name}: {f.value}. Needed: {f.need}. What to do: {f.remedy}." for f in refused]
    return {
        "findings": [asdict(finding) for finding in findings],
        "msg": "\n".join(["This host is refused.", *lines]) if lines else "",
    }


def inventory_finding(problem: str) -> Finding:
    """Return the finding for what a FleetError says about the inventory."""
    value, _, remedy = problem.partition(" What to do: ")
    return Finding("inventory", REFUSE, value.rstrip("."), "a valid inventory", remedy.rstrip(".") or "correct it")


# -- what the host has ---------------------------------------------------------------------------------------------


def _is_present(host: Host, engine: Engine, wanted: Wanted, content: Content) -> bool:
    digest = content.digest.removeprefix("sha256:")
    if content.kind == "model":
        root = wanted.root if content.runtime == DEFAULT_RUNTIME else f"{wanted.root}/runtimes/{content.runtime}"
        return host.path(f"{root}/models/{digest}").is_dir()
    if content.kind == "mirrored":
        manifest = f"*/v2/{content.repository}/manifests/{content.digest}.oci-manifest"
        return any(host.path(f"{wanted.mirror_root}/generations").glob(manifest))
    if not engine.answers or wanted.registry is None:
        return False
    reference = f"{wanted.registry.address}/{content.repository}@{content.digest}"
    return host.run(["docker", "image", "inspect", "--format", "{{.Id}}", reference])[0] == 0


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _words(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _architecture(host: Host, wanted: Wanted, seen: str) -> Iterator[Finding]:
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


def _kernel(host: Host, wanted: Wanted) -> Iterator[Finding]:
    release = host.text("/proc/sys/kernel/osrelease").strip()
    if _version(release) < MINIMUM_KERNEL:
        yield Finding(
            "kernel", REFUSE, release or "unknown", f"{_words(MINIMUM_KERNEL)} or newer", "install a newer kernel"
        )
    if not re.search(r"\boverlay$", host.text("/proc/filesystems"), re.M) and not _can_load(host, "overlay"):
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
    if wanted.serves_models and not hasattr(socket, "SO_REUSEPORT"):
        yield Finding("reuse_port", WARN, "no SO_REUSEPORT", "SO_REUSEPORT", "install a newer kernel and Python")
    if wanted.serves_models and not host.path("/proc/sys/net/ipv4/tcp_migrate_req").exists():
        yield Finding(
            "tcp_migrate_req",
            WARN,
            f"kernel {release} has no net.ipv4.tcp_migrate_req",
            "5.14 or newer",
            "install a newer kernel, or bear that a change of release can reset connections that are being made",
        )


def _controllers(host: Host) -> set[str]:
    unified = host.text("/sys/fs/cgroup/cgroup.controllers").split()
    lines = [line.split() for line in host.text("/proc/cgroups").splitlines() if not line.startswith("#")]
    return set(unified) | {parts[0] for parts in lines if len(parts) == 4 and parts[3] == "1"}


def _engine(engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    if not wanted.engine_packages or not engine.installed:
        return
    if not engine.answers:
        yield Finding(
            "engine",
            WARN,
            "installed, but does not answer",
            "a running Docker Engine",
            "nothing if it is only stopped: it will be started; else read its log (journalctl --unit docker)",
        )
    elif _version(engine.version) < MINIMUM_ENGINE:
        yield Finding(
            "engine",
            REFUSE,
            f"Docker Engine {engine.version}",
            f"{_words(MINIMUM_ENGINE)} or newer",
            "upgrade the engine; its containers keep their data",
        )
    elif engine.driver == "vfs":
        yield Finding(
            "storage_driver",
            WARN,
            "vfs, which copies each layer whole",
            "overlay2",
            f"put {engine.directory} on ext4 or xfs, or load the kernel module overlay",
        )


# -- disk and memory -----------------------------------------------------------------------------------------------


def _space(host: Host, engine: Engine, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Bytes and files of all that comes, by file system. What is there already stays beside it."""
    places = {"image": engine.directory, "model": wanted.root, "mirrored": wanted.mirror_root}
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
    if wanted.engine_packages and not engine.installed:
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


def _memory(host: Host, engine: Engine, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Each new release starts beside the old one, and the next runtime's after that."""
    if not wanted.memory_mb:
        return
    running = {container["Name"]: _resident(host, container["Id"]) >> 20 for container in engine.containers}
    # What is measured counts where the inventory asks for less, or says nothing.
    needs = [
        max(size, running.get("/edgeml-runtime" + ("" if name == DEFAULT_RUNTIME else f"-{name}"), 0))
        for name, size in wanted.memory_mb.items()
    ]
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
    """Return limit and use in bytes of the group that the host itself is in (a container, a virtual server); 0, 0."""
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit = host.text(f"/sys/fs/cgroup/{limit_file}").strip()
        used = host.text(f"/sys/fs/cgroup/{used_file}").strip()
        if limit.isdigit() and used.isdigit() and int(limit) < 1 << 60:  # more is no limit
            return int(limit), int(used)
    return 0, 0


# -- time ----------------------------------------------------------------------------------------------------------


def _clock(host: Host, wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
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


def _certificates(host: Host, wanted: Wanted) -> Iterator[Finding]:
    now = wanted.controller_time or host.now()
    for certificate in wanted.certificates:
        if certificate.error:
            yield Finding(
                "certificate",
                REFUSE,
                f"{certificate.path}: {certificate.error}",
                "a certificate in PEM",
                "run the playbook edgeml.fleet.certificates, or correct the variable that names the file",
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


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


# -- network -------------------------------------------------------------------------------------------------------


def _ports(host: Host, engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    ours = _our_ports(host, engine)
    uses = Counter(port.port for port in wanted.ports)
    for port in wanted.ports:
        if uses[port.port] > 1:
            variables = ", ".join(sorted({other.variable for other in wanted.ports if other.port == port.port}))
            yield Finding(
                "port", REFUSE, f"{port.port} is given twice", "one port for each", f"change one of {variables}"
            )
            uses[port.port] = 0
        if port.port in ours:
            continue
        address = port.address.strip("[]")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port.port))
            except OSError as error:
                where = f"{port.address}:{port.port}"
                if error.errno == errno.EADDRINUSE:
                    value = f"{where} is held by {_listener(host, port.port) or 'another program'}"
                    need, remedy = "a free port", f"stop that program, or change {port.variable}"
                else:
                    value = f"{where}: {error.strerror or error}"
                    need, remedy = "an address of this host", f"correct the address that goes with {port.variable}"
                yield Finding("port", REFUSE, value, need, remedy)


def _our_ports(host: Host, engine: Engine) -> set[int]:
    """Return the ports on which our containers listen, published or in the host's network."""
    ports: set[int] = set()
    identifiers = [container["Id"] for container in engine.containers]
    for container in engine.containers:
        for bindings in (container.get("NetworkSettings", {}).get("Ports") or {}).values():
            ports |= {int(binding["HostPort"]) for binding in bindings or ()}
    if identifiers:
        for port, process in _listeners(host).items():
            group = host.text(f"/proc/{process}/cgroup")
            if any(identifier in group for identifier in identifiers):
                ports.add(port)
    return ports


def _listener(host: Host, port: int) -> str:
    process = _listeners(host).get(port)
    return f"{host.text(f'/proc/{process}/comm').strip()} (process {process})" if process else ""


def _listeners(host: Host) -> dict[int, str]:
    """Return listening TCP ports and the id of a process that holds each."""
    sockets: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        for line in host.text(f"/proc/net/{table}").splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A":  # listening
                sockets[f"socket:[{parts[9]}]"] = int(parts[1].rpartition(":")[2], 16)
    found: dict[int, str] = {}
    for link in host.path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue  # it has ended, or was closed
        if target in sockets:
            found.setdefault(sockets[target], link.parts[-3])
    return found


def _registry(wanted: Wanted, missing: Sequence[Content]) -> Iterator[Finding]:
    """Whether what is missing can be had. A host that has everything needs no registry."""
    if wanted.serves_models:  # what a mirror on the same host lacks comes from elsewhere
        missing = [content for content in missing if content.kind != "mirrored"]
    if wanted.registry is None or not missing:
        return
    try:
        ask_registry(
            wanted.registry,
            [
                (content.name, content.repository, "blobs" if content.kind == "model" else "manifests", content.digest)
                for content in missing
            ],
        )
    except RegistryProblem as problem:
        yield Finding(problem.name, REFUSE, problem.value, problem.need, problem.remedy)


# -- what models ask of the system ---------------------------------------------------------------------------------


def _packages(host: Host, engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    names = sorted({*wanted.requires.packages, *(() if engine.installed else wanted.engine_packages)})
    if not names:
        return
    code, out, _ = host.run(["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\\n", *names])
    if code == 127:
        yield Finding(
            "package",
            REFUSE,
            "the host has no dpkg",
            "Debian 12 or 13",
            "install Debian, or install the engine yourself",
        )
        return
    installed = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    absent = [name for name in names if name not in installed]
    if not absent:
        return
    _, policy, _ = host.run(["env", "LC_ALL=C", "apt-cache", "policy", *absent])
    candidates = dict(re.findall(r"^(\S+):\n\s+Installed: .*\n\s+Candidate: (.*)$", policy, re.M))
    unknown = [name for name in absent if candidates.get(name, "(none)") == "(none)"]
    # A new host has no lists: they are read when the first package is installed.
    if unknown and any(host.path("/var/lib/apt/lists").glob("*_Packages*")):
        yield Finding(
            "package",
            REFUSE,
            f"{', '.join(unknown)}: no package source has it",
            "installed, or in a package source",
            "run apt-get update on the host, correct its package sources, or correct the name",
        )
    unreachable = _unreachable_sources(host)
    if unreachable:
        yield Finding(
            "package_source",
            REFUSE,
            f"{', '.join(absent)} to install, and no connection to {', '.join(unreachable)}",
            "a package source that answers",
            "give the host a source that it reaches (files in /etc/apt), or install the packages beforehand",
        )


def _unreachable_sources(host: Host) -> list[str]:
    """Return the hosts of all package sources if none of them can be connected to (the proxy instead, if there is one).

    apt says where it would read; nothing is read there.
    """
    _, out, _ = host.run(["apt-get", "--print-uris", "update"])
    sources = {urlsplit(uri) for uri in re.findall(r"^'(\w+://[^/']+)", out, re.M)}
    if any(source.scheme not in PORTS for source in sources):
        return []  # a disk, or a way that only apt knows
    _, proxies, _ = host.run(["apt-config", "dump"])
    addresses = set()
    for source in sources:
        proxy = re.search(rf'^Acquire::{source.scheme}::Proxy "(\w+://[^"]+)"', proxies, re.M)
        via = urlsplit(proxy[1] if proxy else os.environ.get(f"{source.scheme}_proxy") or source.geturl())
        addresses.add((via.hostname or "", via.port or PORTS.get(via.scheme, 80)))
    for address in sorted(addresses):
        try:
            socket.create_connection(address, timeout=TIMEOUT).close()
        except OSError:
            continue
        return []
    return sorted(f"{name}:{port}" for name, port in addresses)


def _requirements(host: Host, wanted: Wanted) -> Iterator[Finding]:
    for device in wanted.requires.devices:
        if not host.path(device).exists():
            yield Finding(
                "device",
                REFUSE,
                f"{device} is not there",
                "the device file",
                "connect the device, load its driver, or correct requires.devices",
            )
    for name in wanted.requires.kernel_modules:
        if not _can_load(host, name):
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


def _can_load(host: Host, module: str) -> bool:
    name = module.replace("-", "_")
    return host.path(f"/sys/module/{name}").exists() or host.run(["modprobe", "--dry-run", "--quiet", module])[0] == 0
