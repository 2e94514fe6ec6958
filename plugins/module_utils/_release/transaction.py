# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The release transaction: compare, stage, candidate, gate, hand-over, commit. It runs on the device.

Whatever ends it (an error, a lost connection, a power cut), the old release serves or the new one does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import ModelCheck, check_model
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.latency import (
    ModelObjective,
    measure_model,
    missed_objective,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    RELEASE_LABEL,
    Container,
    check_devices,
    check_port,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.content import (
    bytes_to_fetch,
    check_release_space,
    stage_image,
    stage_model,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, Model, ports_of
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime
from ansible_collections.edgeml.fleet.plugins.module_utils._release.plan import (
    describe,
    described_before,
    make_diff,
    make_plan,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.takeover import Takeover

#: Requests for a latency objective, before the release takes traffic.
GATE_WARMUP = 20
GATE_SAMPLES = 200
GATE_SECONDS = 5.0


class Release:
    """Brings one runtime of a host to a desired release below `host_root` (``/var/lib/edgeml``).

    Parameters
    ----------
    runtimes : sequence of str or None
        Names of all runtimes that the host keeps, in the order in which they are released: with the last one, those
        that are not named are removed. None leaves the others alone.
    """

    def __init__(
        self,
        engine: DockerEngine,
        host_root: Path,
        ca_file: str = "",
        start_timeout: float = 60,
        name: str = DEFAULT_RUNTIME,
        runtimes: Sequence[str] | None = None,
    ) -> None:
        self.engine = engine
        self.installed = InstalledRuntime(engine, host_root, name)
        self.takeover = Takeover(self.installed, self._wait_until_ready)
        self.ca_file = ca_file
        self.start_timeout = start_timeout
        self.runtimes = runtimes

    # -- compare ---------------------------------------------------------------------------------------------------

    def _faults(self, desired: Desired, release_id: str) -> list[str]:
        """Return why the committed release is not what runs on this host, ready and complete."""
        active = self.installed.active
        container = self.engine.container(active)
        if container is None:
            return [f"there is no container {active}"]
        faults = []
        if container["Config"]["Labels"].get(RELEASE_LABEL) != release_id:
            faults.append(f"the container {active} is of another release")
        if not container["State"]["Running"]:
            faults.append(f"the container {active} does not run")
        if container["HostConfig"]["RestartPolicy"]["Name"] != "always":
            faults.append(f"the container {active} would not start with the engine")
        faults += [f"model {m.name} {m.version} is not on the disk" for m in self.installed.missing_models(desired)]
        if not faults and not self._ready(self._container(desired, release_id), active):
            faults.append(f"the container {active} does not say that it is ready")
        return faults

    def converge(self, desired: Desired, check_mode: bool) -> dict[str, Any]:
        """Make `desired` the active release; return what the module returns: changed, release, plan, diff, evidence."""
        release_id = desired.release_id()
        before = described_before(self.installed.state(), self.installed.releases)
        after = describe(desired, release_id)
        committed = before is not None and before["id"] == release_id
        faults = self._faults(desired, release_id) if committed else []
        is_active = committed and not faults
        left_over = self.installed.left_over()
        faults += [f"an earlier run was cut short and left the container {name}" for name in left_over]
        unneeded = self._unneeded(desired)
        missing_image = not is_active and not self.engine.has_image(desired.image)
        missing_models = [] if is_active else self.installed.missing_models(desired)
        if not is_active:
            self._check_ports(desired, unneeded)
        bytes_to_move = {
            "image": desired.image_size if missing_image else 0,
            "models": sum(bytes_to_fetch(self.installed.staging, model) for model in missing_models),
        }
        plan = make_plan(self.installed.name, before, after, faults, bytes_to_move, [other.name for other in unneeded])
        result: dict[str, Any] = {
            "changed": not is_active or bool(unneeded) or bool(left_over),
            "release": after,
            "plan": plan,
            "diff": make_diff(plan, before, after),
            "bytes_fetched": bytes_to_move["models"],
            "evidence": [],
        }
        if check_mode:
            return result
        if not result["changed"]:
            return {**result, "evidence": self.installed.evidence(desired, release_id)}
        with self.installed.lock():
            if not is_active:
                result["bytes_fetched"] = self._stage(desired, missing_image, missing_models)
                self._replace(self._container(desired, release_id), unneeded)
                self.installed.commit(after)
            else:
                self.takeover.recover()
            for other in unneeded:
                other.erase()
            self.installed.prune(after)
        return {**result, "evidence": self.installed.evidence(desired, release_id)}

    def _container(self, desired: Desired, release_id: str) -> Container:
        return Container(self.engine, self.installed.root, desired, release_id, self.installed.active)

    def _unneeded(self, desired: Desired) -> list[InstalledRuntime]:
        """Return the runtimes to remove now: those whose ports we need, or all unlisted ones in the last step."""
        others = self._others()
        if self.runtimes and self.runtimes[-1] == self.installed.name:
            return others
        return [other for other in others if other.ports() & ports_of(desired.listeners())]

    def _others(self) -> list[InstalledRuntime]:
        """Return the runtimes on this host that are not among those to keep."""
        return [] if self.runtimes is None else self.installed.others(self.runtimes)

    # -- stage -----------------------------------------------------------------------------------------------------

    def _check_ports(self, desired: Desired, unneeded: Sequence[InstalledRuntime]) -> None:
        """Refuse a port that another program holds; those of our own running releases are fine."""
        ours = self.installed.ports().union(*(other.ports() for other in unneeded))
        for listener in sorted(desired.listeners()):
            if not ports_of({listener}) & ours:
                check_port(listener)

    def _stage(self, desired: Desired, missing_image: bool, missing_models: Sequence[Model]) -> int:
        """Fetch what is missing; return the bytes of models fetched."""
        check_devices(desired.devices)
        check_release_space(
            self.engine, self.installed.root, desired.image_size if missing_image else 0, missing_models
        )
        stage_image(self.engine, self.installed.staging, desired.image)
        registry = Registry(desired.image.split("/")[0], ca_file=self.ca_file)
        try:
            return sum(
                stage_model(registry, self.installed.staging, self.installed.models, model) for model in missing_models
            )
        finally:
            registry.close()

    # -- candidate and gate ----------------------------------------------------------------------------------------

    def _replace(self, container: Container, unneeded: Sequence[InstalledRuntime]) -> None:
        """Start the release where only this host reaches it; if it is ready, right and fast enough, it takes over."""
        candidate = self.installed.candidate
        self.takeover.recover()
        try:
            container.create(candidate, "candidate")
            self.engine.start(candidate)
            self._wait_until_ready(container, candidate)
            self._check_models(container)
            self.takeover.take_over(container, unneeded)
        except FleetError:
            self.takeover.recover()
            raise

    def _check_models(self, container: Container) -> None:
        """Golden outputs of all models, then their latency objectives, each through the protocol of its clients."""
        for model in container.desired.models:
            cases = str(self.installed.models / model.directory_name / "golden") if model.golden_cases else None
            protocol = "grpc" if model.protocol == "grpc" and model.p95_ms is not None else "rest"
            endpoint = container.endpoint(self.installed.candidate, protocol)
            with connect(endpoint, timeout=self.start_timeout) as client:
                health = check_model(client, ModelCheck(model.name, model.version, cases), client.server_metadata())
                if health.failures:
                    raise health.failures[0]
                if model.p95_ms is None:
                    continue
                objective = ModelObjective(model.name, model.version, cases, p95_ms=model.p95_ms)
                latency = measure_model(
                    client, objective, samples=GATE_SAMPLES, warmup=GATE_WARMUP, max_seconds=GATE_SECONDS
                )
            if not latency.met:
                raise missed_objective("the candidate, before it takes traffic", latency)

    # -- removal ---------------------------------------------------------------------------------------------------

    def remove(self, check_mode: bool, has_engine: bool) -> dict[str, Any]:
        """Remove this runtime and those that are not to keep; other things below the root stay."""
        present = [one for one in (self.installed, *self._others()) if one.is_present(has_engine)]
        if not check_mode:
            for one in present:
                one.erase(has_engine)
            if not self.runtimes:
                (self.installed.host_root / "release.lock").unlink(missing_ok=True)
        names = [one.name for one in present]
        diff = {"before": {"removed_runtimes": names}, "after": {"removed_runtimes": []}} if names else {}
        plan = {"runtime": self.installed.name, "action": "remove" if names else "none", "removed_runtimes": names}
        return {"changed": bool(present), "release": {}, "plan": plan, "diff": diff, "bytes_fetched": 0}

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _ready(self, container: Container, name: str) -> bool:
        try:
            with connect(container.endpoint(name, "rest"), timeout=5) as client:
                return bool(client.ready())
        except FleetError:
            return False

    def _wait_until_ready(self, container: Container, name: str) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not self._ready(container, name):
            state = (self.engine.container(name) or {"State": {"Running": False, "ExitCode": None}})["State"]
            if not state["Running"] or time.monotonic() > deadline:
                seen = (
                    f"not ready after {self.start_timeout:.0f} s"
                    if state["Running"]
                    else f"the container ended with code {state['ExitCode']}"
                )
                raise FleetError(
                    "The new release does not become ready",
                    where=f"container {name}",
                    seen=f"{seen}; its last words: {self.engine.logs(name) or 'none'}",
                    remedy="correct the model or its configuration; the release that served before still serves",
                )
            time.sleep(0.1)
