# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge what a host needs to compute models with its GPUs: driver, container toolkit, names of devices."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import is_cdi_name
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import (
    REFUSE,
    Engine,
    Finding,
    Host,
    Wanted,
)

#: Any of these says that the driver is loaded; the last one is Jetson's.
DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvhost-gpu")
#: What the engine starts for --gpus, and the program that configures it.
TOOLKIT = ("/usr/bin/nvidia-container-runtime-hook", "/usr/bin/nvidia-ctk")
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
NVIDIA = "nvidia.com/"


def gpus(host: Host, engine: Engine, wanted: Wanted) -> Iterator[Finding]:
    """Name what is missing for requires.gpus, and for the names of CDI in requires.devices."""
    names = [device for device in wanted.requires.devices if is_cdi_name(device)]
    specifications = _specifications(host) if names or wanted.requires.gpus else []
    if wanted.requires.gpus or any(name.startswith(NVIDIA) for name in names):
        yield from _driver(host, wanted)
    if wanted.requires.gpus:
        yield from _toolkit(host, engine, specifications)
    if names:
        yield from _cdi(engine, names, specifications)


def _driver(host: Host, wanted: Wanted) -> Iterator[Finding]:
    if not any(host.path(name).exists() for name in DRIVER):
        yield Finding(
            "gpu_driver", REFUSE, f"neither {' nor '.join(DRIVER)} is there", "the loaded driver of a GPU of NVIDIA",
            "install the driver and load it (nvidia-smi shows the GPUs then), correct requires.gpus or "
            "requires.devices, or place the model on a host with a GPU",
        )  # fmt: skip
        return
    count = len(list(host.path("/proc/driver/nvidia/gpus").glob("*")))  # Jetson does not tell
    absent = [gpu for gpu in wanted.requires.gpus if count and gpu.isdigit() and int(gpu) >= count]
    if absent:
        yield Finding(
            "gpu", REFUSE,
            f"{', '.join(absent)} of requires.gpus; the host has {count} GPU{'s' if count > 1 else ''}",
            "0" if count == 1 else f"0 to {count - 1}",
            "correct requires.gpus (nvidia-smi --list-gpus tells numbers and ids), or write all",
        )  # fmt: skip


def _toolkit(host: Host, engine: Engine, specifications: list[str]) -> Iterator[Finding]:
    if (
        "nvidia" not in engine.runtimes
        and not any(host.path(name).exists() for name in TOOLKIT)
        and not any(re.search(rf"\b{re.escape(NVIDIA)}gpu\b", text) for text in specifications)
    ):
        yield Finding(
            "gpu_toolkit", REFUSE,
            f"no runtime nvidia in docker info, none of {', '.join(TOOLKIT)}, and no {NVIDIA}gpu below "
            f"{' or '.join(CDI_DIRECTORIES)}",
            "NVIDIA's container toolkit",
            "install nvidia-container-toolkit from NVIDIA's package source (requires.packages can name it), then run "
            "nvidia-ctk runtime configure --runtime=docker, and restart the engine",
        )  # fmt: skip


def _cdi(engine: Engine, names: list[str], specifications: list[str]) -> Iterator[Finding]:
    if engine.answers and not engine.cdi:
        yield Finding(
            "cdi", REFUSE,
            f"Docker Engine {engine.version} does not resolve names of CDI such as {names[0]}",
            "an engine with CDI: 25 or newer, with the feature switched on before 28.2",
            "set docker_engine_configuration: {features: {cdi: true}}, upgrade the engine, or write requires.gpus "
            "instead of the name",
        )  # fmt: skip
        return
    for name in names:
        kind, _separator, device = name.partition("=")
        entry = rf"name[\"']?\s*:\s*[\"']?{re.escape(device)}[\"']?\s*(?:[,}}]|$)"
        if any(kind in text and re.search(entry, text, re.M) for text in specifications):
            continue
        make = " (nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml)" if kind.startswith(NVIDIA) else ""
        yield Finding(
            "cdi", REFUSE, f"{name} is in no file below {' or '.join(CDI_DIRECTORIES)}", "a device that CDI describes",
            f"have the vendor's tool describe its devices{make}, or correct requires.devices",
        )  # fmt: skip


def _specifications(host: Host) -> list[str]:
    """Return the texts that describe the host's devices for CDI."""
    return [
        host.text(f"{directory}/{path.name}")
        for directory in CDI_DIRECTORIES
        for path in sorted(host.path(directory).glob("*"))
        if path.suffix in (".yaml", ".yml", ".json")
    ]
