# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quickstart on this machine: what it prints is true, twice is once, and it leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import run_program
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import GUARD_SECONDS, Transaction
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, Model, Shadow
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import RefusedError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.guard import CRASHES, Guard
from ansible_collections.edgeml.fleet.plugins.module_utils._release.objectives import LEAST_REQUESTS
from ansible_collections.edgeml.fleet.plugins.module_utils._release.options import ARGUMENT_SPEC
from ansible_collections.edgeml.fleet.plugins.module_utils._release.transaction import Release

from .container_checks import EXCEPTIONS, failing
from .faulty_models import free_ports, make_model, release_of
from .plays import ROOT, play

pytestmark = pytest.mark.timeout(900)

MADE = [
    "/var/lib/edgeml/store",
    "/var/lib/edgeml/mirror",
    "/var/lib/edgeml/models",
    "/etc/edgeml/store",
    "/etc/edgeml/mirror",
    "/etc/edgeml/runtime",
]


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


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_container_passes_the_benchmark_but_what_is_documented(output: str, name: str) -> None:
    del output
    shown = subprocess.run(["docker", "container", "inspect", name], check=True, capture_output=True, text=True)
    (container,) = json.loads(shown.stdout)
    assert failing(container) == EXCEPTIONS[name]
    documented = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"| {check.split()[0]} " in documented for check in EXCEPTIONS[name])


def test_again_changes_nothing(output: str) -> None:
    del output
    recap = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", play("edgeml.fleet.quickstart"), re.MULTILINE)
    assert recap == ["0", "0"]


def test_report_tells_what_runs_and_what_drifted(output: str, tmp_path: Path) -> None:
    del output

    def told(*arguments: str) -> dict[str, Any]:
        play("edgeml.fleet.report", f"-eedgeml_report={tmp_path}", *arguments)
        return dict(json.loads((tmp_path / "report.json").read_text()))

    report = told()
    ((host,), (site,)) = report["hosts"], report["sites"]
    assert (host["state"], host["problems"]) == ("current", [])
    assert [(mirror["state"], mirror["serial"]) for mirror in site["mirrors"]] == [("current", report["serial"])]
    (runtime,) = host["runtimes"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", runtime["since"])
    models = {model["name"]: model for model in runtime["models"]}
    assert {name: model["objective"] for name, model in models.items()} == {
        "digits": {"p95_ms": 60000.0},
        "file_type": {"p95_ms": 60000.0},
    }
    assert all(0 < model["measured"]["p50_ms"] <= model["measured"]["p95_ms"] for model in models.values())
    assert {entry["name"] for entry in host["certificates"]} == {"authority"}
    assert [target["address"] for target in host["targets"]] == ["127.0.0.1:8002"]
    before = models["digits"]["measured"]
    subprocess.run(["docker", "stop", "edgeml-runtime"], check=True, capture_output=True)
    (host,) = told()["hosts"]
    assert host["state"] == "drifted"
    assert any("edgeml-runtime" in line for line in host["drift"])
    # The next step that it names is the one that helps.
    assert "edgeml.fleet.site" in host["problems"][0]["next"]
    play("edgeml.fleet.site")
    (host,) = told("-eedgeml_report_measure=true")["hosts"]
    assert host["state"] == "current"
    (after,) = [model["measured"] for model in host["runtimes"][0]["models"] if model["name"] == "digits"]
    assert after != before


def test_mirror_is_filled_from_a_bundle(output: str, tmp_path: Path) -> None:
    """The store is away, and the mirror has lost what it had."""
    del output
    bundle = f"-eedgeml_bundle={tmp_path}/bundle"
    play("edgeml.fleet.bundle_export", bundle)
    tree = Path("/var/lib/edgeml/mirror")
    before = {path.name for path in (tree / "cas/sha256").iterdir()}
    subprocess.run(["docker", "stop", "edgeml-store"], check=True, capture_output=True)
    try:
        for path in (tree / "cas/sha256").iterdir():
            path.unlink()
        (tree / "current").unlink()
        play("edgeml.fleet.mirror", bundle)
    finally:
        subprocess.run(["docker", "start", "edgeml-store"], check=True, capture_output=True)
    assert {path.name for path in (tree / "cas/sha256").iterdir()} == before
    assert (tree / "current").is_dir()


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


class Device:
    """A runtime of its own on this machine's engine, beside the quickstart's, with the quickstart's image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.engine = DockerEngine(run_program)
        self.release = Release(self.engine, root, name="tried")
        self.installed = self.release.installed
        self.image = json.loads(Path("/var/lib/edgeml/state.json").read_text())["active"]["image"]
        self.ports = free_ports(2)

    def model(self, fault: str = "none", expected: float = 6.0, **settings: Any) -> Model:
        return make_model(self.installed.root, fault, expected, **settings)

    def desired(self, model: Model, memory_mb: int = 0) -> Desired:
        return release_of(self.image, self.ports, model, memory_mb)

    def ask(self, value: float = 3.0) -> float:
        """Ask the release that serves, as a client does."""
        tensor = Tensor.from_values("x", "FP32", [1], [value])
        with connect(f"http://127.0.0.1:{self.ports[0]}", timeout=60) as client:
            return float(client.infer("double", "", [tensor])[0].values()[0])


@pytest.fixture
def device(output: str) -> Iterator[Device]:
    """A device that serves a release."""
    del output
    root = Path(tempfile.mkdtemp(prefix="edgeml-", dir="/var/tmp"))
    root.chmod(0o755)
    device = Device(root)
    assert device.release.converge(device.desired(device.model()), check_mode=False)["changed"]
    assert device.ask() == 6
    yield device
    image = {device.image} & set(device.engine.images_of(device.image.partition("@")[0]))
    for name in (device.installed.active, device.installed.candidate, device.installed.previous):
        device.engine.remove(name)
    shutil.rmtree(root)
    assert image, "the quickstart's image has been removed"


REFUSALS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "wrong answers": ({"expected": 7.0}, 0, "ready", r"output 'y' is 6\.0 at \[0\], expected 7\.0"),
    "too slow": ({"fault": "slow", "p95_ms": 1.0}, 0, "p95", "misses its latency objective"),
    "median too slow": ({"fault": "slow", "p50_ms": 1.0, "protocol": "rest"}, 0, "p50", "p50 .* ms measured"),
    "slower than before": ({"fault": "much slower", "max_regression": 3.0}, 0, "regression", "times as slow"),
    "eats memory": ({"fault": "greedy", "p95_ms": 60_000.0}, 300, "memory", "killed for needing more than its 300 MiB"),
    "crashes": ({"fault": "crashes", "p95_ms": 60_000.0}, 0, "errors", "ended with code 3"),
    "crashes under a burst": ({"fault": "crashes", "concurrency": 8}, 0, "errors", "ended with code 3"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_gate_refuses(device: Device, case: str) -> None:
    """What serves goes on, the reason is written down, and the same is not tried again."""
    settings, memory_mb, gate, reason = REFUSALS[case]
    before = container(device.installed.active)
    wanted = device.desired(device.model(**settings), memory_mb)
    with pytest.raises(RefusedError, match=reason) as caught:
        device.release.converge(wanted, check_mode=False)
    assert [row["gate"] for row in caught.value.gates if not row["passed"]] == [gate]
    assert container(device.installed.active) == before
    assert device.ask() == 6
    assert device.installed.left_over() == []
    (refused,) = device.installed.history.refused()
    assert re.search(reason, refused["reason"])
    assert refused["gates"] == caught.value.gates
    with pytest.raises(FleetError, match="is not tried again"):
        device.release.converge(wanted, check_mode=False)
    assert container(device.installed.active) == before


def test_live_requests_refuse_what_golden_cases_pass(device: Device) -> None:
    """A candidate that is wrong for what clients ask takes no traffic, one that is right does; no request is lost."""
    shadow = Shadow(share=0.5, seconds=60, requests=100, max_different=0.01)
    over = threading.Event()
    asked, failed = Counter[str](), list[str]()

    def ask(scheme: str, port: int) -> None:
        tensor = Tensor.from_values("x", "FP32", [1], [-3.0])
        while not over.is_set():
            try:
                with connect(f"{scheme}://127.0.0.1:{port}", timeout=60) as client:
                    for _ in range(20):
                        answer = client.infer("double", "", [tensor])[0].values()
                        asked[scheme] += 1
                        if answer != [-6.0]:
                            failed.append(f"{scheme}: {answer}")
                        over.wait(0.005)
            except FleetError as error:
                failed.append(f"{scheme}: {error}")

    threads = [threading.Thread(target=ask, args=way) for way in zip(("http", "grpc"), device.ports, strict=True)]
    for thread in threads:
        thread.start()
    try:
        before = container(device.installed.active)
        wrong = device.desired(device.model("wrong elsewhere", shadow=shadow))
        with pytest.raises(RefusedError, match=r"answers 100\.0% of live requests unlike the release") as caught:
            device.release.converge(wrong, check_mode=False)
        assert container(device.installed.active) == before
        right = device.desired(device.model("weary", shadow=replace(shadow, max_different=0.0)))
        result = device.release.converge(right, check_mode=False)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert min(asked["http"], asked["grpc"]) > 100
    assert [row["gate"] for row in caught.value.gates if not row["passed"]] == ["shadow"]
    assert "output 'y' by up to 2" in caught.value.gates[-2]["note"]
    (refused,) = device.installed.history.refused()
    assert refused["gates"] == caught.value.gates
    share, ratio = (row for row in result["gates"] if row["gate"] == "shadow")
    assert (share["measured"], share["passed"]) == (0, True)
    assert share["note"].startswith("100 of ")
    assert ratio["measured"] > 1
    assert device.installed.history.entries()[-1]["gates"] == result["gates"]


def test_release_goes_on_when_its_module_is_killed(device: Device) -> None:
    """Another process asks, dies, and the next one with the same wish gets the result; others are told to wait."""
    model = device.model(options={"parameters": {"load_seconds": 3}})
    wanted = device.desired(model)
    options = {name: option.get("default") for name, option in ARGUMENT_SPEC.items()}
    options |= {"root": str(device.root), "name": "tried", "image": device.image, "configuration": wanted.configuration}
    options |= {"models": [asdict(model)], "limits": asdict(wanted.limits)}
    options["signatures"] = {"mode": "ignored", "trusted_keys": [], "lock_signature": "", "signers_needed": 1,
                             "accept_older_lock": False}  # fmt: skip
    code = (
        "import json, sys; from pathlib import Path; "
        "from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction; "
        "Transaction(Path(sys.argv[1]), 'tried').run(json.loads(sys.argv[2]))"
    )
    transaction = Transaction(device.root, "tried")
    with subprocess.Popen([sys.executable, "-c", code, str(device.root), json.dumps(options)]) as asking:
        while not transaction.is_running():
            assert asking.poll() is None
            time.sleep(0.01)
        asking.send_signal(signal.SIGKILL)
    assert transaction.is_running()
    with pytest.raises(FleetError, match="Another controller"):
        transaction.run({**options, "image": "another"})
    result = transaction.run(options)
    assert result["changed"]
    assert device.installed.state()["active"]["id"] == result["release"]["id"] == wanted.release_id()
    assert device.ask() == 6


def test_guard_goes_back_from_a_crash_loop_once(device: Device) -> None:
    """The release passes its gates and crashes later, for what a client asks. What serves next stays."""
    good = device.installed.state()["active"]["id"]
    wanted = device.desired(device.model("poison"))
    device.release.converge(wanted, check_mode=False)
    guard = Guard(device.engine, device.root, "tried")
    assert guard.look() == ""
    for crashes in range(1, CRASHES + 1):
        with pytest.raises(FleetError):
            device.ask(-1)
        while not device.release.is_ready(wanted, wanted.release_id()) or restarts(device.installed.active) < crashes:
            time.sleep(0.05)
    assert "crashed 3 times" in guard.look()
    assert device.installed.state()["active"]["id"] == good
    assert device.ask() == 6
    assert device.installed.history.entries()[-2]["by"] == "guard"
    with pytest.raises(FleetError, match="rolled back here"):
        device.release.converge(wanted, check_mode=False)
    assert guard.look() == ""


def test_guard_goes_back_for_a_missed_objective(device: Device) -> None:
    """The release passes its gates and is too slow later, for what clients ask."""
    good = device.installed.state()["active"]["id"]
    device.release.watched["objective_minutes"] = 1.0
    wanted = device.desired(device.model("weary", p95_ms=100.0))
    device.release.converge(wanted, check_mode=False)
    guard = Guard(device.engine, device.root, "tried")
    told = [guard.look()]
    for _ in range(60 // GUARD_SECONDS):
        for _ in range(LEAST_REQUESTS):
            assert device.ask(-1) == -2
        told.append(guard.look())
    assert told[:-1] == [""] * (len(told) - 1)
    assert "it has missed an objective for 1 minutes: p95 of double is above 100 ms" in told[-1]
    assert device.installed.state()["active"]["id"] == good
    assert device.ask() == 6
    assert device.installed.history.entries()[-2]["by"] == "guard"
    assert guard.look() == ""


def restarts(name: str) -> int:
    shown = subprocess.run(
        ["docker", "inspect", "--format", "{{.RestartCount}}", name], capture_output=True, text=True, check=True
    )
    return int(shown.stdout)
