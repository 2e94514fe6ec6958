# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quickstart on this machine: what it prints is true, twice is once, and it leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
MADE = [
    "/var/lib/edgeml/store",
    "/var/lib/edgeml/mirror",
    "/var/lib/edgeml/models",
    "/etc/edgeml/store",
    "/etc/edgeml/mirror",
    "/etc/edgeml/runtime",
]


def play(name: str, *arguments: str) -> str:
    command: list[str | Path] = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        ROOT / "inventories" / "quickstart",
        name,
        *arguments,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def output() -> Iterator[str]:
    yield play("edgeml.fleet.quickstart")
    # The engine is the lab's as well; the role's own test removes it nowhere, CI's clean-up does.
    play("edgeml.fleet.remove", "--skip-tags", "engine")
    assert [path for path in MADE if Path(path).exists()] == []
    names = subprocess.run(["docker", "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=True)
    assert not {"edgeml-runtime", "edgeml-mirror", "edgeml-store"} & set(names.stdout.split())
    assert "edgeml.internal" not in Path("/etc/hosts").read_text()


def test_both_models_recognise_real_inputs(output: str) -> None:
    assert re.search(r"digits +1\.0\.0 +10 of 10 real inputs recognised: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9", output)
    assert re.search(r"file_type +1\.0\.0 +9 of 9 real inputs recognised: .*python", output)
    for protocol in ("REST", "gRPC"):
        assert re.search(rf"digits +{protocol} +\d+\.\d{{3}} +\d+\.\d{{3}} +\d+\.\d{{3}}", output)


@pytest.mark.parametrize("program", ["curl", "python3"])
def test_lines_to_try_work_when_pasted(output: str, program: str) -> None:
    line = re.search(rf"^ +({program} .*)$", output, re.MULTILINE)
    assert line
    done = subprocess.run(["bash", "-c", line[1]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if program == "curl":
        outputs = {tensor["name"]: tensor["data"] for tensor in json.loads(done.stdout)["outputs"]}
        assert outputs["label"] == [0]
    else:
        assert "A handwritten 0" in done.stdout
        assert "'label'" in done.stdout


def test_again_changes_nothing(output: str) -> None:
    del output
    recap = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", play("edgeml.fleet.quickstart"), re.MULTILINE)
    assert recap == ["0", "0"]


class Clients:
    """Clients that never pause, each counting its answers: REST on kept and on new connections, gRPC."""

    def __init__(self) -> None:
        self.answered = Counter[str]()
        self.failed: list[str] = []
        self._over = threading.Event()
        case = json.loads(next(Path("/var/lib/edgeml/models").glob("*/golden/digit_0.json")).read_text())
        self._body = json.dumps({"inputs": case["inputs"]}).encode()
        (image,) = case["inputs"]
        self._image = Tensor.from_values(image["name"], image["datatype"], image["shape"], image["data"])
        kinds = (self._rest_kept, self._rest_new, self._grpc)
        self._threads = [threading.Thread(target=self._ask, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Wait until each kind of client has got that many more answers, or one has failed."""
        goal = {kind: self.answered[kind] + more for kind in ("REST kept", "REST new", "gRPC")}
        while not self.failed and any(self.answered[kind] < count for kind, count in goal.items()):
            self._over.wait(0.05)

    def _ask(self, kind: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                kind()
            except Exception as error:
                self.failed.append(f"{kind.__name__} after {dict(self.answered)}: {type(error).__name__}: {error}")

    def _rest_kept(self) -> None:
        """One connection, until the server says that it closes it."""
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        while not self._over.is_set() and self._rest(connection, "REST kept") != "close":
            self._over.wait(0.005)
        connection.close()

    def _rest_new(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        self._rest(connection, "REST new")
        connection.close()
        self._over.wait(0.005)

    def _rest(self, connection: http.client.HTTPConnection, kind: str) -> str:
        connection.request("POST", "/v2/models/digits/infer", self._body)
        response = connection.getresponse()
        body = response.read()
        label = {tensor["name"]: tensor["data"] for tensor in json.loads(body)["outputs"]}["label"]
        if (response.status, label) != (200, [0]):
            raise ValueError(f"{response.status} {body[:200]!r}")
        self.answered[kind] += 1
        return response.getheader("connection", "")

    def _grpc(self) -> None:
        with connect("grpc://127.0.0.1:8001", timeout=60) as client:
            while not self._over.is_set():
                labels = {tensor.name: tensor.values() for tensor in client.infer("digits", "", [self._image])}
                if [int(label) for label in labels["label"]] != [0]:
                    raise ValueError(f"another answer: {labels}")
                self.answered["gRPC"] += 1
                self._over.wait(0.005)


def test_release_changes_without_a_lost_request(output: str) -> None:
    """Three releases one after the other, under load; the second returns to the first one's configuration."""
    del output
    with Clients() as clients:
        clients.wait_for(100)
        for change in ({"inference_runtime_engine": {"threads": 2}}, {}, {"inference_runtime_log_level": "warning"}):
            before = container("edgeml-runtime")
            play("edgeml.fleet.site", "-e", json.dumps(change))
            assert container("edgeml-runtime") != before
            clients.wait_for(100)
    assert clients.failed == []
    assert sum(clients.answered.values()) > 1000


def container(name: str) -> str:
    shown = subprocess.run(
        ["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}} {{.State.Running}}", name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.endswith(" true\n")
    return shown.stdout
