# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults at every step of the release transaction, on a real engine and a disk that can lose its power.

Before them, a bit flips on the device's disk: the scrub finds it, heals it from the mirror, and no request is lost; and
an engine stops that takes a candidate along.

``make test-faults TRIALS=500 SEED=1`` makes many trials and writes a table; ``make test`` makes a few.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.faults.box import PATIENCE
from ansible_collections.edgeml.fleet.tests.faults.rig import FACTORS, Clients, Rig
from ansible_collections.edgeml.fleet.tests.faults.table import write_table
from ansible_collections.edgeml.fleet.tests.faults.trial import Fault, Result, carry_out, plan
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = int(os.environ.get("SEED") or 1)
TRIALS = int(os.environ.get("TRIALS") or 20)


def flip(path: Path) -> bytes:
    """Flip one bit in the middle of a file, as a bad disk does: neither size nor time changes. Return what it was."""
    before = path.read_bytes()
    status = path.stat()
    middle = len(before) // 2
    with path.open("r+b") as file:
        file.seek(middle)
        file.write(bytes([before[middle] ^ 4]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return before


def model_file(rig: Rig) -> Path:
    digest: str = rig.box.information()["active"]["models"][0]["digest"]
    return rig.box.root / "models" / digest.partition(":")[2] / "model.py"


def layer_file(rig: Rig) -> Path:
    """Return a file of the active image that the runtime does not need."""
    active = rig.box.information()["active"]["image"]
    shown = rig.box.run(["docker", "image", "inspect", "--format", "{{json .GraphDriver.Data}}", active])
    data = json.loads(shown.stdout)
    directories = [data["UpperDir"], *data.get("LowerDir", "").split(":")]
    files = [found for one in directories for found in Path(one).glob("opt/ballast/ballast")]
    return files[0]


def test_nothing_is_found_where_nothing_is_wrong(rig: Rig) -> None:
    assert rig.box.scrub() == ""
    told = rig.box.information()
    assert told["scrub"]["found"] == []
    assert told["drift"] == []


def test_a_flipped_bit_of_a_model_is_healed_under_load(rig: Rig) -> None:
    factor = rig.served()
    path = model_file(rig)
    right = flip(path)
    with Clients(rig.rest_port) as clients:
        told = rig.box.scrub()
    assert "the files of model multiply" in told
    assert "healed from the mirror" in told
    assert path.read_bytes() == right
    assert clients.failed == []
    assert set(clients.answers) == factor
    information = rig.box.information()
    assert information["drift"] == []
    assert information["scrub"]["found"]
    last = information["history"][-1]
    assert (last["outcome"], last["by"]) == ("active", "guard")
    assert "are not what their digest says" in last["reason"]
    assert rig.box.scrub() == ""


def test_a_flipped_bit_of_an_image_layer_is_healed_in_place(rig: Rig) -> None:
    path = layer_file(rig)
    right = flip(path)
    with Clients(rig.rest_port) as clients:
        told = rig.box.scrub()
    assert "1 layers of the image are not what their digests say" in told
    assert "healed from the mirror" in told
    assert path.read_bytes() == right
    assert clients.failed == []
    assert rig.box.scrub() == ""


def test_without_the_mirror_it_serves_on_and_says_so(rig: Rig) -> None:
    factor = rig.served()
    path = model_file(rig)
    right = flip(path)
    rig.stop_mirror()
    try:
        told = rig.box.scrub()
        assert "it is not healed" in told
        information = rig.box.information()
        assert any("are not what their digest says" in text for text in information["drift"])
        assert information["history"][-1]["outcome"] == "failed"
        assert rig.served() == factor
    finally:
        rig.start_mirror()
    # The next run of the playbook finds and heals it as well.
    out, error = rig.box.converge(rig.options[min(factor)]).communicate(timeout=300)
    assert b'"changed": true' in out, out.decode() + error.decode()
    assert path.read_bytes() == right
    assert rig.box.information()["drift"] == []


@pytest.fixture
def without_live_restore(rig: Rig) -> Iterator[Rig]:
    """The rig, whose engine takes its containers along when it stops, as one in a swarm has to."""
    rig.box.configure_engine({"live-restore": False})
    rig.box.restart_engine(signal.SIGTERM)
    assert rig.wait_until_served()
    yield rig
    rig.box.configure_engine({})
    rig.box.restart_engine(signal.SIGTERM)
    assert rig.wait_until_served()


def transaction_of(rig: Rig) -> int:
    """Return the process, as this machine counts them, that carries out the transaction; not one that it starts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if b"_release.agent import main" in line and bytes(rig.box.root) in line:
                found.append(int(path.parent.name))
    return min(found)


def test_a_candidate_that_its_engine_took_along_is_not_refused(without_live_restore: Rig) -> None:
    rig = without_live_restore
    (before,) = rig.served()
    after = FACTORS[(FACTORS.index(before) + 1) % len(FACTORS)]
    log = rig.box.root / "transactions" / "runtime.log"
    log.unlink(missing_ok=True)
    asking = rig.box.converge(rig.options[after])
    while not (log.exists() and "candidate:" in log.read_text()):
        assert asking.poll() is None
        time.sleep(0.005)
    # In small steps, so that no busy machine misses the moment. Then, as on a slow box: what it looks at next
    # is the engine that has come back.
    transaction = transaction_of(rig)
    os.kill(transaction, signal.SIGSTOP)
    while "edgeml-runtime.candidate" not in rig.box.containers():
        assert asking.poll() is None
        os.kill(transaction, signal.SIGCONT)
        time.sleep(0.02)
        os.kill(transaction, signal.SIGSTOP)
    rig.box.restart_engine(signal.SIGTERM)
    os.kill(transaction, signal.SIGCONT)
    told = json.loads(asking.communicate(timeout=PATIENCE)[0])
    assert told["failed"], told
    assert rig.wait_until_served()
    assert rig.served() == {before}
    assert rig.box.information()["history"][-1]["outcome"] == "failed", told
    out, error = rig.box.converge(rig.options[after]).communicate(timeout=PATIENCE)
    assert json.loads(out)["changed"], error.decode()
    assert rig.served() == {after}


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """What became of each trial."""
    return []


PLAN = plan(TRIALS, SEED)
NAMES = [f"{number} {fault.name}, {delay:.2f} s after {step} began" for number, (fault, step, delay) in enumerate(PLAN)]


@pytest.mark.parametrize(("fault", "step", "delay"), PLAN, ids=NAMES)
def test_release_survives(rig: Rig, results: list[Result], fault: Fault, step: str, delay: float) -> None:
    result = carry_out(rig, fault, step, delay)
    results.append(result)
    # After each one, so that a run that is cut short has its table too.
    write_table(REPOSITORY_ROOT / "build" / "faults" / "trials.md", results, SEED)
    story = f"{result.sent} requests, {result.lost} lost"
    print("\n".join([story, *result.wrong]), flush=True)
    assert not result.wrong, "\n".join([story, *result.wrong])
