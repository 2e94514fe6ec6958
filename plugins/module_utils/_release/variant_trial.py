# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures variants of models on the host that is to serve one of them, beside the release that serves.

Each runs alone in a container of the release's own image: on private sockets, with little weight when processors are
short, and gone afterwards. What a measurement that was killed has left is cleared by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.energy import EnergyMeter
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import ModelCheck, check_model
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import ModelObjective, measure_model
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.throughput import measure_throughput
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import Container, check_devices
from ansible_collections.edgeml.fleet.plugins.module_utils._release.content import (
    check_release_space,
    mirror_of,
    stage_image,
    stage_model,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import SOCKET_DIRECTORY, Desired, Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import MIB, most_resident_bytes
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release

#: The weight of a trial when processors are short; a release that serves has 1024.
TRIAL_CPU_SHARES = 256
#: How much less than others the process that asks may have of the processors.
NICENESS = 10
WARMUP = 20


@dataclass(frozen=True)
class Effort:
    """How much is asked of each variant: requests one after another, seconds for them, and as many seconds for all
    clients at once. After `max_seconds` no other variant begins.
    """

    samples: int
    seconds: float
    max_seconds: float


def measure_variants(release: Release, desired: Desired, effort: Effort) -> dict[str, Any]:
    """Return {"measured", "failures", "left"}: what each model of `desired` does, alone.

    One that does not serve on this host is measured as well: its row says why in ``failure``. What says nothing of the
    variant, such as a mirror that lacks it, is among the failures. `left` names those for which no time was left.
    """
    installed = release.installed
    measured: list[dict[str, Any]] = []
    failures: list[FleetError] = []
    left: list[str] = []
    end = time.monotonic() + effort.max_seconds
    with _alone(installed):
        _clear(installed)
        try:
            os.nice(NICENESS)
            _stage_image(release, desired)
            for model in desired.models:
                if time.monotonic() >= end:
                    left.append(f"{model.name} {model.version} {model.variant}")
                    continue
                try:
                    measured.append(_measure(release, replace(desired, models=(model,)), model, effort))
                except FleetError as error:
                    failures.append(error)
        finally:
            _clear(installed)
    return {"measured": measured, "failures": failures, "left": left}


@contextmanager
def _alone(installed: InstalledRuntime) -> Iterator[None]:
    """Keep every other measurement off this host. Releases may go on: the lock is not theirs."""
    make_directory(installed.host_root)
    path = installed.host_root / "trial.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetError(
                "Another controller measures variants on this host right now",
                where=str(path),
                remedy="wait until its run has ended, then run again",
            ) from None
        yield


def _clear(installed: InstalledRuntime) -> None:
    installed.engine.remove(installed.trial)
    installed.engine.remove_network(installed.trial)
    shutil.rmtree(installed.trial_root, ignore_errors=True)


def _stage_image(release: Release, desired: Desired) -> None:
    installed = release.installed
    check_devices(desired.devices)
    make_directory(installed.trial_root)
    missing = not release.engine.has_image(desired.image)
    check_release_space(
        release.engine, installed.trial_root, desired.image_size if missing else 0, _largest(desired.models)
    )
    stage_image(release.engine, installed.trial_root / "staging", desired.image)


def _largest(models: Sequence[Model]) -> list[Model]:
    """Return the model that takes most of the disk: each goes before the next one comes."""
    return sorted(models, key=lambda model: model.size)[-1:]


def _measure(release: Release, desired: Desired, model: Model, effort: Effort) -> dict[str, Any]:
    root, trial = release.installed.trial_root, release.installed.trial
    registry = mirror_of(desired.image, release.ca_file)
    try:
        stage_model(registry, root / "staging", root / "models", model)
    except FleetError as error:
        raise FleetError(
            f"Variant {model.variant} of model {model.name} {model.version} cannot be fetched to be measured",
            where=error.where,
            seen=f"{error.what}: {error.seen}",
            remedy=f"let the site's mirror hold all variants: site_mirror_pinned: [{{name: {model.name}, version: "
            f"{model.version}}}], then run the playbook edgeml.fleet.mirror",
        ) from error
    finally:
        registry.close()
    container = Container(release.engine, root, desired, desired.release_id(), trial, TRIAL_CPU_SHARES)
    row: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "variant": model.variant,
        "digest": model.digest,
        "bytes": model.size,
        "image": desired.image.rpartition("@")[2],
        "protocol": model.protocol,
    }
    try:
        container.create(trial, "candidate")
        started = time.monotonic()
        release.engine.start(trial)
        release.wait_until_ready(container, trial)
        row["cold_start_s"] = round(time.monotonic() - started, 2)
        row.update(_figures(release, container, model, effort))
    except FleetError as error:
        row["failure"] = f"{error.what}. {error.seen}".strip()[:500]
    finally:
        container.remove(trial)
        shutil.rmtree(root / "models" / model.directory_name, ignore_errors=True)
    return row


def _figures(release: Release, container: Container, model: Model, effort: Effort) -> dict[str, Any]:
    trial = release.installed.trial
    golden = container.golden(model)
    endpoint = container.endpoint(trial, model.protocol)
    reach: Callable[[], Any] = partial(connect, endpoint, timeout=release.start_timeout)
    objective = ModelObjective(model.name, model.version, golden)
    with reach() as client:
        health = check_model(client, ModelCheck(model.name, model.version, golden), client.server_metadata())
        if len(health.golden) < model.golden_cases and health.failures:
            raise health.failures[0]
        latency = measure_model(
            client, objective, samples=effort.samples, warmup=WARMUP, max_seconds=effort.seconds
        ).as_result()
    meter = EnergyMeter()
    cores = len(os.sched_getaffinity(0))
    throughput = measure_throughput(reach, objective, cores, effort.seconds)
    joules = meter.joules()
    deviations = [result.max_absolute_error for result in health.golden if result.max_absolute_error is not None]
    memory = sum(most_resident_bytes(process) for process in release.engine.processes(trial)) / MIB
    return {
        **{key: latency[key] for key in ("p50_ms", "p95_ms", "p99_ms", "samples")},
        "throughput": round(throughput.per_second, 1),
        "clients": cores,
        "memory_mb": round(memory, 1),
        "energy_j": None if joules is None else round(joules / throughput.requests, 6),
        "golden_passed": sum(result.passed for result in health.golden),
        "golden_cases": model.golden_cases,
        "deviation": float(f"{max(deviations):.3g}") if deviations else None,
    }


def trial_configuration(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a server's configuration in which it listens where only this host reaches it."""
    if options["server"]:
        return {"listen": {}}  # its ports are not published
    sockets = {protocol: [f"unix:{SOCKET_DIRECTORY}/{protocol}.sock"] for protocol in ("rest", "grpc")}
    return {**options["configuration"], "listen": sockets}


def release_for(engine: DockerEngine, options: Mapping[str, Any]) -> Release:
    """Return what a trial takes of a release on the host that the module's options name."""
    return Release(engine, Path(options["root"]), options["ca_file"], options["start_timeout"], options["name"])
