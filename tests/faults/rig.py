# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the trials are made on: three releases in a mirror, a box that serves one of them, clients that never pause."""

from __future__ import annotations

import contextlib
import http.client
import json
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.plugins.module_utils._model.files import Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import ARGUMENT_SPEC
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_ports
from ansible_collections.edgeml.fleet.tests.faults.box import Box, own_network
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (
    lay_out_mirror,
    running_mirror,
    running_store,
)
from ansible_collections.edgeml.fleet.tests.support.content import (
    REPOSITORY_ROOT,
    Authority,
    publish_model,
    run_module,
    take_built_layers,
)

#: A release multiplies what it is asked by its number, so that an answer tells which one gave it. Three of them, since
#: a host keeps two: what a trial brings has always to be fetched.
FACTORS = (2, 3, 4)
MODEL = """\
import numpy as np


def infer(inputs):
    return {{"y": inputs["x"] * np.float32({factor})}}
"""
FAKETIME = f"usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1"
BALLAST_BYTES = 4_000_000
ARCHITECTURE = "amd64"


class Clients:
    """A client that asks over and over on kept connections, and counts what it gets by factor."""

    def __init__(self, port: int) -> None:
        self.answers: dict[int, int] = {}
        self.failed: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask_on(self) -> None:
        connection = None
        while not self._over.wait(0.005):
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                factor, closes = ask(connection)
                self.answers[factor] = self.answers.get(factor, 0) + 1
                if closes:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                connection = None


def ask(connection: http.client.HTTPConnection) -> tuple[int, bool]:
    """Return the factor that an answer shows, and whether the server closes the connection after it."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
    connection.request("POST", "/v2/models/multiply/infer", json.dumps(body))
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise ValueError(f"{response.status} {answer[:200]!r}")
    return int(json.loads(answer)["outputs"][0]["data"][0]), response.getheader("connection", "") == "close"


class Rig:
    """The mirror, the box and the options of each release, by its factor."""

    def __init__(self, box: Box, programs: Path, mirror: Path, port: int, options: dict[int, dict[str, Any]]) -> None:
        self.faketime = unpacked("faketime", ["libfaketime"]) / FAKETIME
        self.box = box
        self.options = options
        self.rest_port = int(options[FACTORS[0]]["configuration"]["listen"]["rest"][0].rpartition(":")[2])
        self._programs = programs
        self._mirror = mirror
        self._port = port
        self._running = contextlib.ExitStack()

    def start_mirror(self) -> None:
        """Have the mirror answer."""
        self._running.enter_context(running_mirror(self._programs, self._mirror, self._port))

    def stop_mirror(self) -> None:
        """Have nothing answer there."""
        self._running.close()

    def served(self, tries: int = 20) -> set[int]:
        """Return the factors that new connections are answered with; empty if nothing serves."""
        found = set()
        for _ in range(tries):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=30)) as connection:
                try:
                    found.add(ask(connection)[0])
                except (OSError, http.client.HTTPException, ValueError):
                    return set()
        return found

    def wait_until_served(self) -> bool:
        """Wait until something answers; return whether it does."""
        deadline = time.monotonic() + 240
        while not self.served(1):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@contextlib.contextmanager
def running_rig(programs: Path, authority: Authority) -> Iterator[Rig]:
    """Publish the releases, bring them to a mirror, and start a box that serves the first one."""
    directory = Path(tempfile.mkdtemp(prefix="edgeml-faults-", dir="/var/tmp"))
    directory.chmod(0o755)
    mirror_port, rest_port = free_ports(2)
    with contextlib.ExitStack() as made:
        made.callback(shutil.rmtree, directory)
        tree = lay_out_mirror(authority, _made(directory / "mirror"), mirror_port)
        lock = _published(programs, authority, directory, tree)
        box = Box(directory)
        address = f"127.0.0.1:{mirror_port}"
        options = {f: _options(box, address, str(authority.ca_file), lock, f, rest_port) for f in FACTORS}
        rig = Rig(box, programs, directory / "mirror", mirror_port, options)
        made.enter_context(own_network())
        made.callback(box.power_off)
        made.callback(rig.stop_mirror)
        box.build()
        box.power_on()
        rig.start_mirror()
        yield rig


def _published(programs: Path, authority: Authority, directory: Path, tree: Path) -> dict[str, Any]:
    """Return the lock of all releases, whose content is in the mirror's tree then."""
    cache = _made(directory / "cache")
    take_built_layers(cache)
    recipe = yaml.safe_load((REPOSITORY_ROOT / "runtime/image/image.yml").read_text())
    source = directory / "source"
    for path in (recipe["python"]["requirements"], *(entry["source"] for entry in recipe["files"])):
        _made((source / path).parent)
        copy = shutil.copytree if (REPOSITORY_ROOT / path).is_dir() else shutil.copy
        copy(REPOSITORY_ROOT / path, source / path)
    images, models = {}, {}
    with running_store(programs, authority, _made(directory / "store")) as store:
        for factor in FACTORS:
            (_made(source / f"ballast-{factor}") / "ballast").write_bytes(bytes([factor]) * BALLAST_BYTES)
            files = [*recipe["files"], {"source": f"ballast-{factor}", "target": "/opt/ballast"}]
            images[f"runtime{factor}"] = run_module(
                "oci_image",
                {
                    "recipe": {**recipe, "files": files},
                    "source_root": str(source),
                    "cache": str(cache),
                    "registry": store.options(),
                    "repository": f"edgeml/runtime{factor}",
                    "architectures": [ARCHITECTURE],
                },
                interpreter=sys.executable,
            )["image"]
            model_source = _model_source(directory / f"model-{factor}", factor)
            model = Model("multiply", f"{factor}.0.0", "python", model_source, "model.py")
            _sent, entry = publish_model(model, [ARCHITECTURE], store.registry(), "edgeml/models/multiply")
            models[f"{factor}.0.0"] = {"platform": "python", "variants": {"default": entry}}
        lock = {"serial": 1, "registry": store.address, "images": images, "models": {"multiply": models}}
        run_module(
            "mirror_sync",
            {
                "root": str(tree),
                "lock": lock,
                "store": store.options(),
                "architectures": [ARCHITECTURE],
                "signatures": {"mode": "ignored"},
            },
            interpreter=sys.executable,
        )
    return lock


def _model_source(directory: Path, factor: int) -> Path:
    tensor = {"datatype": "FP32", "shape": [1]}
    case = {
        "inputs": [{"name": "x", **tensor, "data": [3.0]}],
        "outputs": [{"name": "y", **tensor, "data": [3.0 * factor]}],
    }
    serving = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    _made(directory / "golden")
    (directory / "model.py").write_text(MODEL.format(factor=factor))
    (directory / "serving.json").write_text(json.dumps(serving))
    (directory / "golden" / "three.json").write_text(json.dumps(case))
    return directory


def _options(box: Box, address: str, ca_file: str, lock: dict[str, Any], factor: int, rest_port: int) -> dict[str, Any]:
    """Return the options of runtime_release for one release, as Ansible hands them to the module."""
    image = lock["images"][f"runtime{factor}"]
    platform = image["platforms"][ARCHITECTURE]
    entry = lock["models"]["multiply"][f"{factor}.0.0"]["variants"]["default"]
    model = _defaults(ARGUMENT_SPEC["models"]["options"]) | {
        "name": "multiply",
        "version": f"{factor}.0.0",
        "repository": entry["repository"],
        "digest": entry["blob"]["digest"],
        "size": entry["blob"]["size"],
        "golden_cases": 1,
        "protocol": "rest",
    }
    private = {protocol: [f"unix:/run/edgeml/{protocol}.sock"] for protocol in ("rest", "grpc")}
    listen = {"rest": [f"127.0.0.1:{rest_port}", *private["rest"]], "grpc": private["grpc"], "metrics": []}
    defaults = _defaults(ARGUMENT_SPEC)
    return defaults | {
        "root": str(box.root),
        "image": f"{address}/{image['repository']}@{platform['digest']}",
        "image_size": platform["size"],
        "models": [model],
        "configuration": {"listen": listen, "log_level": "info"},
        "signatures": defaults["signatures"] | {"mode": "ignored"},
        "ca_file": ca_file,
    }


def _defaults(specification: dict[str, Any]) -> dict[str, Any]:
    """Return what Ansible makes of options that are not given."""
    return {
        name: _defaults(option["options"])
        if option.get("default") == {} and "options" in option
        else option.get("default")
        for name, option in specification.items()
    }


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
