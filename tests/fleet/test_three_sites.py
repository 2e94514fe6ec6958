# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One site of inventories/example in the lab. Its hosts have an engine and nothing else."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Fleet, Run, running_lab
from .variables_only import EXAMPLE, write_example_without_plugin

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

LAB = Path(__file__).with_name("three_sites_lab")
DEVICES = ("berlin-camera-1", "berlin-camera-2", "berlin-gateway-1")
BERLIN = ("--limit", "controllers:stores:site_berlin")
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a user adds to the command line, with the password that docs/inventory.md tells."""
    file = tmp_path_factory.mktemp("vault") / "password"
    file.write_text("correct horse battery staple\n")
    return ["--vault-password-file", str(file)]


@pytest.fixture(scope="module")
def berlin(request: pytest.FixtureRequest, vault: list[str]) -> Iterator[Fleet]:
    """The site Berlin of the example, published."""
    view: list[str | Path] = [
        Path(sys.executable).with_name("ansible-vault"),
        "view",
        *vault,
        EXAMPLE / "group_vars/all/vault.yml",
    ]
    secrets = yaml.safe_load(subprocess.run(view, capture_output=True, check=True).stdout)
    with running_lab(request, "three_sites") as lab:
        berlin = Fleet(lab, (EXAMPLE, LAB), vault, secrets["vault_inference_token"])
        if not berlin.lock_file.exists():
            run = berlin.publish(*BERLIN).must_succeed()
            assert not [secret for secret in secrets.values() if secret in run.output]
        yield berlin


@pytest.fixture(scope="module")
def in_use(berlin: Fleet) -> Fleet:
    """The same, converged."""
    if not all(map(berlin.converged, DEVICES)):
        berlin.playbook("edgeml.fleet.site", *BERLIN).must_succeed()
    return berlin


STATUS_WITHOUT_AND_WITH_CERTIFICATE = """
import ssl, urllib.error, urllib.request
place = "/etc/docker/certs.d/registry.edgeml.internal:5443/"
for pair in (), (place + "client.cert", place + "client.key"):
    context = ssl.create_default_context(cafile=place + "ca.crt")
    if pair:
        context.load_cert_chain(*pair)
    address = "https://registry.edgeml.internal:5443/v2/edgeml/none/manifests/sha256:" + "0" * 64
    try:
        urllib.request.urlopen(address, context=context)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_lock_holds_both_versions_and_both_variants(berlin: Fleet) -> None:
    lock = berlin.lock()
    assert {version: set(entry["variants"]) for version, entry in lock["models"]["digits"].items()} == {
        "1.0.0": {"default"},
        "1.1.0": {"int8", "fp32"},
    }
    int8, fp32 = (lock["models"]["digits"]["1.1.0"]["variants"][name]["blob"]["size"] for name in ("int8", "fp32"))
    assert int8 < fp32
    assert {"runtime", "vision", "mirror"} <= set(lock["images"])
    # Those that packages ship were made smaller by the recipes of the example, and lost no more than it allows.
    for name in ("text_direction", "voice"):
        made = lock["models"][name]["1.0.0"]["variants"]
        assert set(made) == {"int8", "fp32"} and made["int8"]["blob"]["size"] < made["fp32"]["blob"]["size"]
        assert 0.95 < made["int8"]["accuracy"] <= made["fp32"]["accuracy"] <= 1


def test_plan_tells_what_comes(berlin: Fleet, tmp_path: Path) -> None:
    run = berlin.playbook("edgeml.fleet.plan", *BERLIN, "-e", f"edgeml_plan_report={tmp_path}").must_succeed()
    for text in ("berlin-camera-1", "berlin-camera-2", "digits", "1.1.0", "int8", "fp32", "photo"):
        assert text in run.output, run.output[-6000:]


def test_site_answers_with_both_variants(in_use: Fleet) -> None:
    berlin = in_use
    files = {
        name: berlin.lab.run(name, "sudo sh -c 'ls /var/lib/edgeml/models/*/*.onnx'", check=True).stdout
        for name in ("berlin-camera-1", "berlin-camera-2")
    }
    assert all(text.count("model.onnx") == 1 and "int8" not in text for text in files.values()), files
    # Both precisions answer the same golden cases.
    for name in ("berlin-camera-1", "berlin-camera-2"):
        labels = berlin.answers(name, [("digits", "1.1.0")])
        assert labels == {"https digits": DIGITS, "grpcs digits": DIGITS}
    # The flavour with Pillow, at its own ports of the same host.
    berlin.answers("berlin-camera-1", [("photo", "1.0.0")], ports=(8010, 8011))
    berlin.answers("berlin-gateway-1", [("file_type", "1.0.0")])


def test_the_mirror_asks_who_its_devices_are(in_use: Fleet) -> None:
    command = f"sudo python3 -c {shlex.quote(STATUS_WITHOUT_AND_WITH_CERTIFICATE)}"
    assert in_use.lab.run("berlin-camera-1", command, check=True).stdout.split() == ["403", "404"]


def releases(fleet: Fleet) -> dict[str, str]:
    return {name: fleet.release(name) for name in DEVICES}


def test_requirements_are_met(in_use: Fleet) -> None:
    for host in ("berlin-camera-1", "berlin-camera-2"):
        assert in_use.lab.run(host, "cat /proc/sys/net/core/somaxconn", check=True).stdout.strip() == "1024"


def test_variables_alone_are_the_same_release(in_use: Fleet, vault: list[str], tmp_path: Path) -> None:
    before = releases(in_use)
    without_plugin = write_example_without_plugin(tmp_path / "inventories" / "example")
    # Paths of the lab begin at the example's own directory.
    directories = {"edgeml_build_directory": str(ROOT / "build"), "lab_directory": str(in_use.lab.state)}
    fleet = Fleet(in_use.lab, (without_plugin, LAB), vault, in_use.token)
    run = fleet.playbook("edgeml.fleet.site", "--limit", "site_berlin", "-e", json.dumps(directories)).must_succeed()
    assert nothing_changed(run), run.output[-6000:]
    assert releases(in_use) == before


def nothing_changed(run: Run) -> bool:
    return bool(run.changed) and set(run.changed.values()) == {0}


def test_plan_has_nothing_left(in_use: Fleet) -> None:
    run: Any = in_use.playbook("edgeml.fleet.site", "--check", *BERLIN).must_succeed()
    assert nothing_changed(run), run.output[-6000:]
