# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a runtime has on a host: its containers, images, models and committed state, and how all of it is removed."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file
from ansible_collections.edgeml.fleet.plugins.module_utils._host.kept import read_object
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import (
    DEFAULT_RUNTIME,
    container_name,
    runtime_root,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.archive import unpacked_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import (
    CONFIGURATION_FILE,
    RELEASE_LABEL,
    is_confirmed,
    mount_source,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    SOCKET_DIRECTORY,
    Desired,
    Model,
    ports_of,
    tcp_listeners,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._release.history import History

#: All that makes a release, below releases/<id>/.
RECORD_FILE = "release.json"
#: What a scrub has found to be damaged of a release, beside its record; the converge that heals it removes it.
DAMAGE_FILE = "damage.json"  #: Begins the names of files in staging/ that are there while an image is pulled.
PULLING = "pulling-"

#: The way back that is under way: the release that it leaves (``left``), to which it goes (``to``), ``by``, ``reason``.
WAY_BACK_FILE = "way_back.json"

#: What the guard goes by, as far as its type decides whether it can.
_WATCHED: dict[str, tuple[type, ...]] = {
    "ca_file": (str,),
    **dict.fromkeys(("start_timeout", "probation_seconds", "objective_minutes"), (int, float)),
}

#: What the runtime without a directory of its own has in the host's root.
OWN_PATHS = ("models", "releases", "cache", "state.json", "history.jsonl", "guard.json", "scrub.json", "run",
             "staging", "trial", WAY_BACK_FILE)  # fmt: skip


class InstalledRuntime:
    """One runtime of a host, below `host_root` (``/var/lib/edgeml``), whether it is there yet or not.

    `active`, `candidate`, `previous` and `trial` (of a variant that is measured) are names of containers; `models`,
    `releases`, `staging` and `trial_root` are directories.
    """

    def __init__(self, engine: DockerEngine, host_root: Path, name: str = DEFAULT_RUNTIME) -> None:
        self.engine = engine
        self.host_root = host_root
        self.name = name
        self.root = runtime_root(host_root, name)
        self.active = container_name(name)
        self.candidate = f"{self.active}.candidate"
        self.previous = f"{self.active}.previous"
        self.trial = f"{self.active}.trial"
        self.trial_root = self.root / "trial"
        self.models = self.root / "models"
        self.releases = self.root / "releases"
        self.staging = self.root / "staging"
        self.state_file = self.root / "state.json"
        self.history = History(self.root / "history.jsonl", name)

    def state(self) -> dict[str, Any]:
        """Return the committed state: {} or {"active": {"id", "image", "models"}, "previous": the same or None}.

        Where its file is lost or damaged, it is made anew of what runs.
        """
        state = self._committed()
        return self._rebuilt() if state is None else state

    def is_damaged(self) -> bool:
        """Return whether the state's file is lost or damaged although a release serves."""
        return self._committed() is None and bool(self._rebuilt())

    def commit(self, active: dict[str, Any], since: str) -> None:
        """Write down that `active` is the release that serves `since` then, and which one served before it."""
        state = self.state()
        previous = state.get("active")
        if previous and previous["id"] == active["id"]:
            previous, since = state.get("previous"), state.get("since") or since
        committed = {"active": active, "previous": previous, "since": since}
        replace_file(self.state_file, json.dumps(committed, indent=2, sort_keys=True).encode())

    def record(self, desired: Desired, description: dict[str, Any], watch: dict[str, Any]) -> None:
        """Keep all that makes a release, so that this host can come back to it without anybody's help.

        `watch` is what the guard goes by (`Release.watched`).
        """
        directory = self.releases / description["id"]
        make_directory(directory)
        content = {"description": description, "desired": desired.as_record(), "watch": watch}
        replace_file(directory / RECORD_FILE, json.dumps(content, sort_keys=True).encode(), 0o600)

    def watch(self, release_id: str) -> dict[str, Any]:
        """Return what the guard goes by for a release; {} for one that was not recorded."""
        watch = self._record(release_id).get("watch")
        kept = watch if isinstance(watch, dict) else {}
        return {key: value for key, value in kept.items() if isinstance(value, _WATCHED.get(key, (object,)))}

    def recorded(self, release_id: str) -> tuple[Desired, dict[str, Any]] | None:
        """Return a release that `record` has kept, and its description; None if there is none that can be read."""
        record = self._record(release_id)
        try:
            desired, description = Desired.from_record(record["desired"]), dict(record["description"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return (desired, description) if _is_description(description) else None

    def find(self, release: str) -> str:
        """Return the id of a kept release, of which `release` is the id or its beginning (8 characters or more)."""
        kept = sorted(path.parent.name for path in self.releases.glob(f"*/{RECORD_FILE}"))
        found = [one for one in kept if len(release) >= 8 and one.startswith(release)]
        if len(found) == 1:
            return found[0]
        raise FleetError(
            "This host keeps no such release",
            where=str(self.releases),
            seen=repr(release),
            remedy=f"name one of {', '.join(one[:12] for one in kept) or 'none that is kept'}, by 8 characters or more",
        )

    def _record(self, release_id: str) -> dict[str, Any]:
        """Return what `record` has kept of a release, {} if that is lost or damaged."""
        return read_object(self.releases / release_id / RECORD_FILE)

    def _committed(self) -> dict[str, Any] | None:
        state = read_object(self.state_file)
        kept = [state.get("active"), *([state["previous"]] if state.get("previous") else [])]
        return state if all(map(_is_description, kept)) and isinstance(state.get("since", ""), str) else None

    def _rebuilt(self) -> dict[str, Any]:
        container = self.engine.container(self.active)
        label = container["Config"]["Labels"].get(RELEASE_LABEL, "") if container else ""
        active = self.recorded(label)
        if active is None:
            return {}
        served = {entry["release"] for entry in self.history.entries() if entry["outcome"] == "active"} - {label}
        others = [path.name for path in self.releases.iterdir() if path.name in served]
        found = [recorded for recorded in map(self.recorded, others) if recorded]
        return {"active": active[1], "previous": found[0][1] if found else None, "since": ""}

    def ports(self) -> set[str]:
        """Return the TCP ports on which the running release serves."""
        container = self.engine.container(self.active)
        if container is None or not container["State"]["Running"]:
            return set()
        label = container["Config"]["Labels"].get(RELEASE_LABEL, "")
        # The host's directory may have been another one when the container was made.
        path = mount_source(container, CONFIGURATION_FILE) or self.releases / label / "runtime.json"
        configuration = read_object(Path(path))
        if not isinstance(configuration.get("listen"), dict):
            recorded = self.recorded(label)
            configuration = recorded[0].configuration if recorded else {}
        return ports_of(tcp_listeners(configuration))

    def shares_ports(self) -> bool:
        """Return whether another process may listen on the ports of the running release, beside it."""
        container = self.engine.container(self.active)
        return container is None or container["HostConfig"].get("NetworkMode") == "host"

    def left_over(self) -> list[str]:
        """Return the containers that a transaction which was cut short has left."""
        return [name for name in (self.candidate, self.previous) if self.engine.container(name) is not None]

    def unacknowledged(self) -> str:
        """Return the id of a release that has taken over without being committed, empty if there is none."""
        container = self.engine.container(self.active)
        if container is None or not is_confirmed(container):
            return ""
        release_id = str(container["Config"]["Labels"].get(RELEASE_LABEL, ""))
        active = self.state().get("active")
        return release_id if active and active["id"] != release_id and self.recorded(release_id) else ""

    def is_unsettled(self) -> bool:
        """Return whether a transaction that was cut short has left anything to tidy."""
        return bool(self.left_over() or self.unacknowledged())

    def missing_models(self, desired: Desired) -> list[Model]:
        """Return the models of `desired` that are not on the disk."""
        return [model for model in desired.models if not (self.models / model.directory_name).is_dir()]

    def damage(self, release_id: str) -> dict[str, list[str]]:
        """Return what is known to be damaged of a release: names of ``models``, digests of the image's ``layers``."""
        noted = read_object(self.releases / release_id / DAMAGE_FILE)
        found = {key: noted.get(key) for key in ("models", "layers")}
        return {key: names if isinstance(names, list) else [] for key, names in found.items()}

    def damage_of(self, desired: Desired, release_id: str) -> list[str]:
        """Return the same in words."""
        noted = self.damage(release_id)
        words = [
            f"the files of model {model.name} {model.version} are not what their digest says"
            for model in desired.models
            if model.directory_name in noted["models"]
        ]
        if noted["layers"]:
            words.append(f"{len(noted['layers'])} layers of the image are not what their digests say")
        return words

    def note_damage(self, release_id: str, found: Mapping[str, Sequence[str]]) -> None:
        """Write down what is damaged of a release, or that nothing is."""
        path = self.releases / release_id / DAMAGE_FILE
        if any(found.values()):
            replace_file(path, json.dumps(found, sort_keys=True).encode())
        else:
            path.unlink(missing_ok=True)

    def unusable_models(self, desired: Desired) -> list[Model]:
        """Return the models of `desired` that are not on the disk, or not what their digests say."""
        return [
            model for model in desired.models if unpacked_digest(self.models / model.directory_name) != model.digest
        ]

    def others(self, kept: Collection[str]) -> list[InstalledRuntime]:
        """Return the other runtimes on this host, without those whose names are in `kept`."""
        return [self._sibling(name) for name in self.names() if name != self.name and name not in kept]

    def evidence(self, desired: Desired, release_id: str) -> list[dict[str, Any]]:
        """Return what a later run can look at to see that this release still is what the host has (host_state)."""
        container = self.engine.container(self.active) or {}
        if sockets := mount_source(container, SOCKET_DIRECTORY):
            ready = [f"http+unix://{sockets}/rest.sock"]
        else:
            ready = [f"http://{address}" for address in desired.configuration["listen"].get("rest", ())[:1]]
        return [
            {"kind": "file", "path": str(self.state_file)},
            {"kind": "tree", "path": str(self.releases / release_id)},
            *({"kind": "tree", "path": str(self.models / model.directory_name)} for model in desired.models),
            *({"kind": "container", "name": name} for name in (self.active, self.candidate, self.previous)),
            *({"kind": "ready", "endpoint": url, "path": "/v2/health/ready"} for url in ready),
        ]

    def prune(self, tried: str = "") -> None:
        """Remove what neither the active nor the previous release needs, `tried` (an image) among it."""
        state = self.state()
        kept = [state[key] for key in ("active", "previous") if state.get(key)]
        releases = {release["id"] for release in kept}
        models = {model["digest"].partition(":")[2] for release in kept for model in release["models"]}
        for directory, names in ((self.releases, releases), (self.models, models)):
            for path in directory.iterdir() if directory.is_dir() else ():
                if path.name not in names:
                    shutil.rmtree(path)
        for path in self.staging.iterdir() if self.staging.is_dir() else ():
            # The mark of an interrupted pull holds nothing, and says that the image may not be whole.
            if path.name.partition(".")[0] not in models and not path.name.startswith(PULLING):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        images = {release["image"] for release in kept}
        for image in self._images(images | ({tried} if tried else set())) - images:
            self.engine.remove_image(image)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other transaction off this host; raise FleetError if one runs."""
        make_directory(self.root)
        lock = self.host_root / "release.lock"
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise in_another_hand(lock) from error
            yield

    def is_present(self, has_engine: bool) -> bool:
        """Return whether anything of this runtime is on the host."""
        return any(self._traces(has_engine))

    def erase(self, has_engine: bool = True) -> None:
        """Remove this runtime's containers, images, models and state."""
        containers, images, paths = self._traces(has_engine)
        for name in containers:
            self.engine.remove(name)
        if has_engine:
            self.engine.remove_network(self.candidate)
        for image in images:
            self.engine.remove_image(image)
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.name != DEFAULT_RUNTIME and not self._names_below_root():
            shutil.rmtree(self.host_root / "runtimes", ignore_errors=True)

    def _traces(self, has_engine: bool) -> tuple[list[str], list[str], list[Path]]:
        """Return this runtime's containers, images and paths."""
        containers: list[str] = []
        images: set[str] = set()
        if has_engine:
            names = (self.active, self.candidate, self.previous, self.trial)
            containers = [name for name in names if self.engine.container(name) is not None]
            images = self._images(self._served_images())
        paths = [self.root]
        if self.name == DEFAULT_RUNTIME:
            paths = [self.root / name for name in OWN_PATHS]
        return containers, sorted(images), [path for path in paths if path.exists()]

    def _images(self, references: set[str]) -> set[str]:
        """Return the images on this host of the repositories of `references`, without those of other runtimes."""
        others = {
            image
            for name in {DEFAULT_RUNTIME, *self._names_below_root()} - {self.name}
            for image in self._sibling(name)._served_images()
        }
        repositories = {reference.partition("@")[0] for reference in references}
        return {image for repository in repositories for image in self.engine.images_of(repository)} - others

    def _served_images(self) -> set[str]:
        state = self.state()
        return {state[key]["image"] for key in ("active", "previous") if state.get(key)}

    def names(self) -> list[str]:
        """Return the names of all runtimes of this host."""
        has_default = any((self.host_root / name).exists() for name in ("state.json", "releases"))
        return [*([DEFAULT_RUNTIME] if has_default else []), *self._names_below_root()]

    def _names_below_root(self) -> list[str]:
        directory = self.host_root / "runtimes"
        return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []

    def _sibling(self, name: str) -> InstalledRuntime:
        return InstalledRuntime(self.engine, self.host_root, name)


def in_another_hand(lock: Path, step: str = "") -> FleetError:
    """Return the error for a host on which another transaction holds `lock`; `step` is what it does."""
    return FleetError(
        "Another controller changes this host's release right now",
        where=str(lock),
        seen=step,
        remedy="wait until its run has ended, then run again",
    )


def _is_description(kept: Any) -> bool:
    """Return whether what a file holds can be the description of a release."""
    return (
        isinstance(kept, dict)
        and all(isinstance(kept.get(key), str) for key in ("id", "image"))
        and isinstance(kept.get("models"), list)
        and all(isinstance(model, dict) and isinstance(model.get("digest"), str) for model in kept["models"])
    )
