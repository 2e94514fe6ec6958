# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The release transaction: compare, stage, candidate, gate, hand-over, commit. It runs on the device.

Whatever ends it (an error, a lost connection, a power cut), the old release serves or the new one does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, SeenOnce
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import DEFAULT_RUNTIME
from ansible_collections.edgeml.fleet.plugins.module_utils._release.attempt import (
    end_way_back,
    note_left,
    remembered,
    way_back_to,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    RELEASE_LABEL,
    Container,
    check_devices,
    check_port,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.content import (
    bytes_to_fetch,
    check_release_space,
    mirror_of,
    restore_image,
    stage_image,
    stage_model,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, Model, ports_of
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import Gates, Row
from ansible_collections.edgeml.fleet.plugins.module_utils._release.history import (
    no_way_back,
    refused_before,
    stays_after_rollback,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.installed import InstalledRuntime
from ansible_collections.edgeml.fleet.plugins.module_utils._release.plan import (
    describe,
    described_before,
    make_plan,
    make_result,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.readiness import (
    blameless_without,
    says_ready,
    wait_until,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.takeover import Takeover

#: Minutes for which live requests may miss an objective before the guard goes back, unless a run says otherwise.
OBJECTIVE_MINUTES = 5.0


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
        probation_seconds: int = 600,
        objective_minutes: float = OBJECTIVE_MINUTES,
        guard_repairs: bool = False,
    ) -> None:
        self.engine = engine
        self.installed = InstalledRuntime(engine, host_root, name)
        self.takeover = Takeover(self.installed, self.wait_until_ready)
        self.ca_file = ca_file
        self.start_timeout = start_timeout
        self.runtimes = runtimes
        #: What the guard goes by, recorded with the release.
        self.watched = {
            "start_timeout": start_timeout,
            "ca_file": ca_file,
            "probation_seconds": probation_seconds,
            "objective_minutes": objective_minutes,
            "guard_repairs": guard_repairs,
        }
        #: Is told each step as it begins, in a line for people.
        self.say: Callable[[str], object] = lambda text: None

    # -- compare ---------------------------------------------------------------------------------------------------

    def faults(self, desired: Desired, release_id: str) -> list[str]:
        """Return why the committed release is not what runs on this host, ready and complete."""
        faults = self.drift(desired, release_id)
        if not faults and not self.is_ready(desired, release_id):
            faults.append(f"the container {self.installed.active} does not say that it is ready")
        return faults

    def drift(self, desired: Desired, release_id: str) -> list[str]:
        """Return why what is on this host is not the committed release; whether it is ready is not asked."""
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
        return faults + self.installed.damage_of(desired, release_id)

    def is_ready(self, desired: Desired, release_id: str) -> bool:
        """Return whether the active container, which is of this release, says that it is ready."""
        return says_ready(self._container(desired, release_id), self.installed.active)

    def converge(
        self, desired: Desired, check_mode: bool, force: bool = False, by: str = "controller"
    ) -> dict[str, Any]:
        """Make `desired` the active release; return what the module returns: changed, release, plan, diff, evidence.

        Raises FleetError if this host has refused the same release before, unless `force` says to try it again.
        """
        look = self._looking()
        settled = "" if check_mode or not look.installed.is_unsettled() else self.settle()
        look = self._looking() if settled else look
        release_id = desired.release_id()
        before = described_before(self.installed.state(), self.installed.releases)
        after = describe(desired, release_id)
        committed = before is not None and before["id"] == release_id
        faults = look.faults(desired, release_id) if committed else []
        is_active = committed and not faults
        left_over = look.installed.left_over()
        faults += [f"an earlier run was cut short and left the container {name}" for name in left_over]
        faults += [settled] if settled else []
        is_damaged = self.installed.is_damaged()
        faults += [f"{self.installed.state_file} is lost or damaged"] if is_damaged else []
        is_watched_otherwise = committed and not self._is_recorded(desired, release_id)
        faults += ["the guard on the host goes by other objectives or settings"] if is_watched_otherwise else []
        unneeded = self._unneeded(desired)
        missing_image = not is_active and not self.engine.has_image(desired.image)
        # What was fetched long ago is read once more before a container loads it.
        unusable = self.installed.missing_models if check_mode else self.installed.unusable_models
        missing_models = [] if is_active else unusable(desired)
        refusal = None if committed or force else self.installed.history.refusal(desired.attempt_id(release_id))
        if refusal:
            raise refused_before(refusal, f"runtime {self.installed.name}")
        if not is_active:
            self._check_ports(desired, unneeded)
        bytes_to_move = {
            "image": desired.image_size if missing_image else 0,
            "models": sum(bytes_to_fetch(self.installed.staging, model) for model in missing_models),
        }
        plan = make_plan(self.installed.name, before, after, faults, bytes_to_move, [other.name for other in unneeded])
        changed = not is_active or bool(faults) or bool(unneeded)
        result = make_result(changed, plan, before, after)
        if not result["changed"]:
            return {**result, "evidence": look.installed.evidence(desired, release_id)}
        if check_mode:
            return result
        with self.installed.lock():
            if not is_active:
                with remembered(self.installed, desired, after, by) as done:
                    done.reason = "; ".join(faults)
                    result["bytes_fetched"] = self._stage(desired, release_id, missing_image, missing_models)
                    self._record(desired, after)
                    done.gates = self._replace(self._container(desired, release_id), unneeded)
                    self._commit(after)
                result["gates"] = done.gates
            elif is_damaged or is_watched_otherwise:
                self._record(desired, after)
                self._commit(after)
            for other in unneeded:
                other.erase()
            self.installed.prune()
        return {**result, "evidence": self.installed.evidence(desired, release_id)}

    # -- settle ----------------------------------------------------------------------------------------------------

    def settle(self) -> str:
        """Tidy what a transaction that was cut short has left; return what was done, empty for nothing.

        A release that had passed its gates and taken over is the active one then.
        """
        if not self.installed.is_unsettled():
            return ""
        with self.installed.lock():
            self.takeover.recover()
            taken_over = self.installed.unacknowledged()
            recorded = self.installed.recorded(taken_over)
            if not taken_over or recorded is None:
                return "tidied what a run that was cut short had left"
            desired, after = recorded
            told, by = "the run that brought it was cut short", "controller"
            way_back = way_back_to(self.installed, taken_over)
            if way_back:
                by = way_back["by"]
                note_left(self.installed, way_back)
            self.installed.history.add("active", after, desired.attempt_id(taken_over), by=by, reason=told)
            self._commit(after)
            end_way_back(self.installed)
            return f"wrote down that release {taken_over[:12]} is the active one: {told}"

    # -- roll back -------------------------------------------------------------------------------------------------

    def roll_back(self, release: str, check_mode: bool, by: str = "operator", reason: str = "") -> dict[str, Any]:
        """Make a release that this host keeps the active one again: the previous one, or that named `release`.

        Needs nothing but this host. The release that it leaves is not tried again until it changes or is forced. A host
        that has gone back stays where it is unless `release` says otherwise. Returns what `converge` returns.
        """
        if not check_mode:
            self.settle()
        state = self.installed.state()
        active: dict[str, Any] = state.get("active") or {}
        previous: dict[str, Any] = state.get("previous") or {}
        if not release and not previous:
            raise FleetError(
                "There is no previous release to go back to",
                where=str(self.installed.state_file),
                remedy="bring the host to another release with the playbook edgeml.fleet.site",
            )
        release_id = self.installed.find(release) if release else previous["id"]
        recorded = self.installed.recorded(release_id)
        if recorded is None:
            raise FleetError(
                "The release to go back to was not recorded whole",
                where=str(self.installed.releases / release_id),
                seen="an older version of this collection made it active, or its record is damaged",
                remedy="set the inventory back and run the playbook edgeml.fleet.site",
            )
        desired, after = recorded
        refusal = None if release else self.installed.history.refusal(desired.attempt_id(release_id))
        if refusal and refusal["outcome"] == "refused":
            raise no_way_back(refusal, f"runtime {self.installed.name}")
        if refusal and active:
            plan = make_plan(self.installed.name, active, active, [], {"image": 0, "models": 0}, [])
            stays = stays_after_rollback(refusal, self.installed.name)
            return {**make_result(False, plan, active, active), "warnings": [stays]}
        plan = make_plan(self.installed.name, active or None, after, [], {"image": 0, "models": 0}, [])
        result = make_result(active.get("id") != release_id, plan, active or None, after)
        if not result["changed"]:
            return result
        absent = [model.name for model in self.installed.missing_models(desired)]
        if absent or not self.engine.has_image(desired.image):
            raise FleetError(
                "This host no longer has what the release to go back to needs",
                where=f"release {release_id[:12]}",
                seen=f"models {', '.join(absent)}" if absent else f"image {desired.image}",
                remedy="set the inventory back and run the playbook edgeml.fleet.site",
            )
        if check_mode:
            return result
        told = reason or "an operator went back from it"
        way_back = {"left": active["id"], "to": release_id, "by": by, "reason": told} if active else None
        with self.installed.lock():
            with remembered(self.installed, desired, after, by, way_back) as done:
                done.reason = f"back from release {active['id'][:12]}" if active else ""
                done.gates = self._replace(self._container(desired, release_id), (), answers_only=True)
                if way_back:
                    note_left(self.installed, way_back)
                self._record(desired, after)
                self._commit(after)
            result["gates"] = done.gates
        return {**result, "evidence": self.installed.evidence(desired, release_id)}

    # -- what is remembered ----------------------------------------------------------------------------------------

    def _record(self, desired: Desired, after: dict[str, Any]) -> None:
        self.installed.record(desired, after, self.watched)

    def _is_recorded(self, desired: Desired, release_id: str) -> bool:
        """Return whether the guard goes by the objectives and settings of this run."""
        recorded = self.installed.recorded(release_id)
        # What an older version of this collection did not know was off.
        watched = {"guard_repairs": False, **self.installed.watch(release_id)}
        return recorded is not None and recorded[0].models == desired.models and watched == self.watched

    def _commit(self, after: dict[str, Any]) -> None:
        self.say(f"commit: release {after['id'][:12]} is the active one")
        self.installed.commit(after, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

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
            check_port(listener, ours=bool(ports_of({listener}) & ours))

    def restore(self, desired: Desired, release_id: str) -> None:
        """Fetch what is damaged or missing of a release that does not serve."""
        with self.installed.lock():
            self._stage(desired, release_id, False, self.installed.unusable_models(desired))

    def _stage(self, desired: Desired, release_id: str, missing_image: bool, missing_models: Sequence[Model]) -> int:
        """Fetch what is missing or damaged; return the bytes of models fetched."""
        check_devices(desired.devices)
        self.say(f"stage: {'the image and ' if missing_image else ''}{len(missing_models)} models")
        check_release_space(
            self.engine, self.installed.root, desired.image_size if missing_image else 0, missing_models
        )
        stage_image(self.engine, self.installed.staging, desired.image)
        registry = mirror_of(desired.image, self.ca_file)
        try:
            fetched = sum(
                stage_model(registry, self.installed.staging, self.installed.models, model) for model in missing_models
            )
            if damaged := self.installed.damage(release_id)["layers"]:
                restore_image(self.engine, registry, self.installed.staging, desired.image, damaged)
            self.installed.note_damage(release_id, {})
            return fetched
        finally:
            registry.close()

    # -- candidate and gate ----------------------------------------------------------------------------------------

    def _replace(
        self, container: Container, unneeded: Sequence[InstalledRuntime], *, answers_only: bool = False
    ) -> list[Row]:
        """Start the release where only this host reaches it; let it take over if it passes its gates; return them."""
        candidate = self.installed.candidate
        self.takeover.recover()
        try:
            with blameless_without(self.engine):
                self.say(f"candidate: release {container.release_id[:12]} starts")
                container.create(candidate, "candidate")
                self.engine.start(candidate)
                self.wait_until_ready(container, candidate)
                self.say("gates: answers, latency, errors, live requests and memory")
                gates = self._check(container, answers_only)
            self.say("switch: the candidate takes over")
            self.takeover.take_over(container, unneeded)
        except FleetError:
            self.takeover.recover()
            raise
        return gates

    def _check(self, container: Container, answers_only: bool) -> list[Row]:
        return Gates(container, self.installed.candidate, self.start_timeout).check(answers_only=answers_only)

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

    def _looking(self) -> Release:
        """Return what looks at the same runtime, and asks the engine for each container once."""
        return Release(SeenOnce(self.engine), self.installed.host_root, name=self.installed.name)

    def wait_until_ready(self, container: Container, name: str) -> None:
        """Return when the container says that it is ready; raise FleetError if it ends, or is not in time."""
        wait_until(lambda: says_ready(container, name), container, name, self.start_timeout)
