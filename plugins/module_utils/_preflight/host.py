# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is meant to take, what it says of itself, and what is found about it."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import image_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._host.facts import host_facts
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME

REFUSE = "refuse"
WARN = "warn"
ENGINE_DIRECTORY = "/var/lib/docker"
ENGINE_SECONDS = 20  # for each question to the engine
NOT_FOUND, TIMED_OUT = 127, 124  # exit codes of the program timeout
#: Severity and need of each kind of problem that the controller knows of before it looks at a host.
PROBLEMS = {
    "inventory": (REFUSE, "a valid inventory"),
    "signature": (REFUSE, "a lock that trusted keys have signed"),
    "unsigned": (WARN, "signatures that are required"),
    "unchecked": (WARN, "golden cases in each model"),
}
STEP_SECONDS = 5.0  # for each step of a conversation over the network


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
class RegistryAccess:
    """How a registry is reached: ``host:port``, an IP address unless a name service knows the name, and PEM texts of
    the authority and of what is presented to a registry that asks for it."""

    address: str
    ip_address: str = ""
    ca_certificate: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    client_certificate: str = ""
    client_key: str = field(default="", repr=False)


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
    gpus: Sequence[str] = ()
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
    directories: Mapping[str, str] = field(default_factory=dict)  # by the variable that names it
    certificates: Sequence[Certificate] = ()
    engine_packages: Sequence[str] | None = None  # None where the host needs no engine, empty for its system's own
    engine_is_here: bool = False  # it is too late to install one
    packages_from_mirror: bool = False  # which may have none yet: the run that is judged fills it
    engine_configuration: Mapping[str, Any] = field(default_factory=dict)
    requires: Requires = Requires()
    controller_time: float = 0.0
    problems: Sequence[Mapping[str, str]] = ()
    ignore: Sequence[str] = ()

    @property
    def needs_engine(self) -> bool:
        """Whether the host has to have an engine."""
        return self.engine_packages is not None

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
    """The host's engine. `answers` is false if it is installed and does not run; `silence` says how it was asked.

    `kind` is ``docker``, or ``podman`` behind the same name.
    """

    installed: bool
    answers: bool = False
    version: str = ""
    directory: str = ENGINE_DIRECTORY
    image_directory: str = ENGINE_DIRECTORY
    driver: str = ""
    runtimes: Sequence[str] = ()
    cdi: bool = False  # whether it knows devices by names of the Container Device Interface
    kind: str = "docker"
    silence: str = ""
    rootless: bool = False
    https_proxy: str = ""
    no_proxy: str = ""
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
        return host_facts(self.root, self.machine)

    def engine(self) -> Engine:
        """Ask the engine what it is, and for our containers. One that hangs is as good as one that does not run."""
        code, out, _error = self._ask_engine("info", "--format", "{{json .}}")
        if code == NOT_FOUND:
            return Engine(installed=False)
        try:
            info = json.loads(out)
        except ValueError:
            info = {}
        if not info.get("ServerVersion"):
            if "podman" in self._ask_engine("--version")[1].lower():
                return Engine(installed=True, kind="podman")
            return Engine(installed=True, silence=f"within {ENGINE_SECONDS} s" if code == TIMED_OUT else "")
        containers: list[dict[str, Any]] = []
        code, out, _error = self._ask_engine("container", "ls", "--quiet", "--no-trunc", "--filter", "name=^edgeml-")
        if code == 0 and out.split():
            code, out, _error = self._ask_engine("container", "inspect", *out.split())
            containers = json.loads(out) if code == 0 else []
        return Engine(
            installed=True,
            answers=True,
            version=info["ServerVersion"],
            directory=info["DockerRootDir"],
            image_directory=image_directory(info),
            driver=info.get("Driver", ""),
            runtimes=sorted(info.get("Runtimes") or ()),
            cdi=bool(info.get("CDISpecDirs")),
            rootless=any("rootless" in option for option in info.get("SecurityOptions") or ()),
            https_proxy=info.get("HttpsProxy", ""),
            no_proxy=info.get("NoProxy", ""),
            containers=containers,
        )

    def _ask_engine(self, *arguments: str) -> tuple[int, str, str]:
        return self.run(["timeout", str(ENGINE_SECONDS), "docker", *arguments])


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


def inventory_finding(problem: Mapping[str, str]) -> Finding:
    """Return the finding for the parts of a FleetError about the inventory."""
    value = FleetError(problem["what"], where=problem.get("where", ""), seen=problem.get("seen", ""))
    name = problem.get("finding") or "inventory"
    severity, need = PROBLEMS[name]
    return Finding(name, severity, str(value).rstrip("."), need, problem.get("remedy") or "correct it")


def can_load(host: Host, module: str) -> bool:
    name = module.replace("-", "_")
    return host.path(f"/sys/module/{name}").exists() or host.run(["modprobe", "--dry-run", "--quiet", module])[0] == 0
