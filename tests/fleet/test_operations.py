# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docs/operations.md and docs/awx.md tell to do, done on real hosts, one of which is asked meanwhile.

The tests tell one story and run in their order.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.edgeml.fleet.tests.support.awx_job import imported_inventory, run_job, write_job

from .conftest import PATIENCE, Fleet, running_lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

DEVICE, OTHER = "operations-1", "operations-2"
STORE, NEW_STORE = "operations-store", "operations-new-store"
MIRROR, NEW_MIRROR = "operations-mirror", "operations-new-mirror"
SITE = ("--limit", "site_berlin")
DIGITS = [str(digit) for digit in range(10)]
CONTENT = "sudo ls /var/lib/edgeml/mirror/cas/sha256"


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A site whose second device has nothing yet. Its inventory is a copy to edit, beside the lab's keys."""
    with running_lab(request, "operations") as lab:
        inventory = lab.state / "inventory"
        shutil.copytree(Path(__file__).with_name("operations_lab"), inventory, dirs_exist_ok=True)
        fleet = Fleet(lab, (inventory,))
        fleet.publish().must_succeed()
        fleet.playbook("edgeml.fleet.site", "--limit", f"all:!{OTHER}").must_succeed()
        yield fleet


def edit(fleet: Fleet, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the file of the hosts; `change` gets the group of all hosts."""
    file = fleet.inventories[0] / "10-hosts.yml"
    hosts = yaml.safe_load(file.read_text())
    change(hosts["all"])
    file.write_text(yaml.safe_dump(hosts))


def set_for_all(fleet: Fleet, **variables: Any) -> None:
    edit(fleet, lambda all_hosts: all_hosts["vars"].update(variables))


def give_machine(fleet: Fleet, group: str, name: str, machine: str) -> None:
    """Cut the power of the machine that has had a name until now, and give the name to another."""
    fleet.lab.power_cut(name)
    host = {"ansible_host": fleet.address(machine)}
    edit(fleet, lambda all_hosts: all_hosts["children"][group]["hosts"].update({name: host}))


def presented(fleet: Fleet, machine: str, port: int) -> str:
    """Return the certificate that a server shows, if the authority of today has signed it."""
    authority = str(fleet.state / "pki" / "ca.crt")
    return ssl.get_server_certificate((fleet.address(machine), port), ca_certs=authority).strip()


def certificate(fleet: Fleet, host: str) -> str:
    return (fleet.state / "pki" / f"{host}.crt").read_text().strip()


def serves(fleet: Fleet, host: str) -> None:
    assert fleet.check(host, ["digits"], wait=PATIENCE) == {"https digits": DIGITS, "grpcs digits": DIGITS}


def test_a_job_of_awx_converges_a_device(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkout and credentials alone: the lock is in the repository, certificates are on a mounted volume."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED", "true")
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    repository, volume = tmp_path / "repository", tmp_path / "volume"
    inventory = shutil.copytree(fleet.inventories[0], repository / "inventories/production")
    shutil.copy(fleet.lock_file, repository / "inventories/production.lock.yml")
    shutil.copy(f"{fleet.lock_file}.sig", repository / "inventories/production.lock.yml.sig")
    shutil.copy(fleet.lab.state / "known_hosts", repository / "known_hosts")
    placement = inventory / "20-placement.yml"
    placement.write_text(placement.read_text().replace("lock_file: ../state/fleet.lock.yml\n", ""))
    variables = yaml.safe_load((inventory / "group_vars/all.yml").read_text())
    for name in ("lab_directory", "edgeml_build_directory", "edgeml_state_directory", "edgeml_lock_file"):
        del variables[name]
    for name in ("ansible_ssh_private_key_file", "inference_runtime_bearer_token"):
        del variables[name]
    known_hosts = "{{ edgeml_inventory_directory | dirname | dirname }}/known_hosts"
    variables |= {
        "ansible_ssh_common_args": f"-o UserKnownHostsFile='\"{known_hosts}\"'",
        "edgeml_trusted_keys": [(fleet.state / "signing.key.pub").read_text().strip()],
        "edgeml_pki_directory": str(volume),
    }
    (inventory / "group_vars/all.yml").write_text(yaml.safe_dump(variables))
    (repository / "playbooks").mkdir()
    play = [{"name": "Site", "ansible.builtin.import_playbook": "edgeml.fleet.site"}]
    (repository / "playbooks/site.yml").write_text(yaml.safe_dump(play))
    volume.mkdir()
    for host in (MIRROR, OTHER):
        for suffix in ("crt", "key"):
            shutil.copy(fleet.state / "pki" / f"{host}.{suffix}", volume)
    # As credentials are injected: a file and the variable with its path, other variables, the key of SSH.
    authority = tmp_path / "injected"
    authority.write_text((fleet.state / "pki/ca.crt").read_text())
    answers = {"edgeml_devices": OTHER, "edgeml_force": "false"}
    injected = {
        "edgeml_ca_certificate_file": str(authority),
        "edgeml_store_username": "edgeml",
        "edgeml_store_password": (fleet.state / "store_password").read_text().strip(),
        "inference_runtime_bearer_token": (fleet.state / "inference_token").read_text().strip(),
    }
    found = imported_inventory(inventory, tmp_path / "update")
    job = write_job(tmp_path / "job", repository, found, json.dumps(answers | injected), left_out=[DEVICE])
    key = (fleet.lab.state / "id_ed25519").read_text()
    before = fleet.release(DEVICE)
    assert not fleet.converged(OTHER)
    done = run_job(job, "site", ssh_key=key)
    text = done.stdout.read()
    assert done.status == "successful", text[-8000:]
    assert set(done.stats["changed"]) == {OTHER}, text[-8000:]
    serves(fleet, OTHER)
    assert fleet.release(DEVICE) == before
    assert not (repository / "build").exists()
    # The same host from elsewhere: nothing to do.
    assert fleet.playbook("edgeml.fleet.site", *SITE).must_succeed().changed == {DEVICE: 0, OTHER: 0, MIRROR: 0}


def test_the_store_comes_back_on_a_new_machine(fleet: Fleet, tmp_path: Path) -> None:
    backup = ("-e", f"edgeml_bundle={tmp_path}/backup")
    fleet.playbook("edgeml.fleet.bundle_export", *backup).must_succeed()
    lock, before = fleet.lock_file.read_bytes(), fleet.release(DEVICE)
    with fleet.asking(DEVICE, "digits") as answered:
        give_machine(fleet, "stores", STORE, NEW_STORE)
        new = fleet.address(NEW_STORE)
        set_for_all(fleet, edgeml_store_address=f"{new}:5000", edgeml_store_ip_address=new)
        fleet.playbook("edgeml.fleet.certificates", "edgeml.fleet.store").must_succeed()
        fleet.playbook("edgeml.fleet.store_restore", *backup).must_succeed()
        fleet.playbook("edgeml.fleet.publish").must_succeed()
        assert fleet.lock_file.read_bytes() == lock
        # What the mirror has lost it gets from there.
        content = fleet.lab.run(MIRROR, CONTENT, check=True).stdout
        fleet.lab.run(MIRROR, f"sudo rm /var/lib/edgeml/mirror/cas/sha256/{content.split()[0]}", check=True)
        fleet.playbook("edgeml.fleet.site", *SITE).must_succeed()
        assert fleet.lab.run(MIRROR, CONTENT, check=True).stdout == content
    assert min(answered.values()) > 0
    assert fleet.release(DEVICE) == before


def test_a_new_machine_becomes_the_mirror(fleet: Fleet) -> None:
    """It fills itself from the restored store; the devices find it at its address."""
    content, before = fleet.lab.run(MIRROR, CONTENT, check=True).stdout, fleet.release(DEVICE)
    with fleet.asking(DEVICE, "digits") as answered:
        give_machine(fleet, "mirrors", MIRROR, NEW_MIRROR)
        set_for_all(fleet, edgeml_mirror_ip_address=fleet.address(NEW_MIRROR))
        fleet.playbook("edgeml.fleet.certificates", "edgeml.fleet.site", *SITE).must_succeed()
        assert fleet.lab.run(NEW_MIRROR, CONTENT, check=True).stdout == content
    assert min(answered.values()) > 0
    assert fleet.release(DEVICE) == before
    # A device that has lost all that it had gets it from there.
    fleet.lab.run(OTHER, "sudo sh -c 'docker rm --force edgeml-runtime && rm -r /var/lib/edgeml/models/*'", check=True)
    fleet.playbook("edgeml.fleet.site", *SITE).must_succeed()
    serves(fleet, OTHER)


def test_hosts_get_new_certificates(fleet: Fleet) -> None:
    hosts = {DEVICE: (DEVICE, 8000), MIRROR: (NEW_MIRROR, 5443)}
    before = {host: certificate(fleet, host) for host in hosts}
    assert {host: presented(fleet, *where) for host, where in hosts.items()} == before
    with fleet.asking(DEVICE, "digits") as answered:
        for host in hosts:
            for suffix in ("crt", "key"):
                (fleet.state / "pki" / f"{host}.{suffix}").unlink()
        run = fleet.playbook("edgeml.fleet.certificates", "edgeml.fleet.site").must_succeed()
    assert min(answered.values()) > 0
    for host, where in hosts.items():
        assert presented(fleet, *where) == certificate(fleet, host) != before[host]
    # The certificate is made on the controller, in the name of its host.
    assert run.changed[OTHER] == 0


def test_another_authority_signs_all(fleet: Fleet) -> None:
    old, both = (fleet.state / "pki/ca.crt").read_text(), fleet.state / "both.crt"
    for name in ("ca.crt", "ca.key"):
        (fleet.state / "pki" / name).unlink()
    fleet.playbook("edgeml.fleet.certificates").must_succeed()
    # Clients trust both before a device changes.
    both.write_text(old + (fleet.state / "pki/ca.crt").read_text())
    fleet.authorities = both
    with fleet.asking(DEVICE, "digits") as answered:
        fleet.playbook("edgeml.fleet.store", "edgeml.fleet.site").must_succeed()
    assert min(answered.values()) > 0
    fleet.authorities = fleet.state / "pki/ca.crt"
    for host, machine, port in ((STORE, NEW_STORE, 5000), (MIRROR, NEW_MIRROR, 5443), (OTHER, OTHER, 8000)):
        assert presented(fleet, machine, port) == certificate(fleet, host)
    serves(fleet, DEVICE)
    assert set(fleet.playbook("edgeml.fleet.site").must_succeed().changed.values()) == {0}


def test_another_key_signs(fleet: Fleet) -> None:
    """With a time in which both are trusted."""
    signature, old = Path(f"{fleet.lock_file}.sig"), (fleet.state / "signing.key.pub").read_text()
    before, by_old = fleet.release(DEVICE), signature.read_text()
    key = str(fleet.state / "next.key")
    new = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key]
    subprocess.run(new, check=True)
    public = subprocess.run(["openssl", "pkey", "-in", key, "-pubout"], check=True, capture_output=True, text=True)
    with fleet.asking(DEVICE, "digits") as answered:
        set_for_all(fleet, edgeml_trusted_keys=[old, public.stdout])
        fleet.playbook("edgeml.fleet.site").must_succeed()
        set_for_all(fleet, edgeml_signing_key_file=key)
        fleet.playbook("edgeml.fleet.sign").must_succeed()
        assert signature.read_text().startswith(by_old) and len(signature.read_text().splitlines()) == 2
        fleet.playbook("edgeml.fleet.site").must_succeed()
        set_for_all(fleet, edgeml_trusted_keys=[public.stdout])
        fleet.playbook("edgeml.fleet.site").must_succeed()
    assert min(answered.values()) > 0
    assert fleet.release(DEVICE) == before
    assert set(fleet.playbook("edgeml.fleet.site").must_succeed().changed.values()) == {0}
    # The old key alone counts no more.
    by_both = signature.read_text()
    signature.write_text(by_old)
    refused = fleet.playbook("edgeml.fleet.site", "-e", "edgeml_force=true")  # unchanged hosts are not asked
    signature.write_text(by_both)
    assert refused.code != 0
    assert "The lock is signed with a key that is not trusted" in " ".join(refused.output.split())


def test_a_device_leaves(fleet: Fleet) -> None:
    with fleet.asking(DEVICE, "digits") as answered:
        fleet.playbook("edgeml.fleet.remove", "--limit", OTHER).must_succeed()
        edit(fleet, lambda all_hosts: all_hosts["children"]["devices"]["hosts"].pop(OTHER))
        run = fleet.playbook("edgeml.fleet.site").must_succeed()
    assert min(answered.values()) > 0
    assert run.changed == {DEVICE: 0, MIRROR: 0}
    assert not fleet.converged(OTHER)
    # The engine was there before and stays; /var/lib/edgeml is a disk of the lab.
    left = "docker ps --all --quiet; find /etc/edgeml /var/lib/edgeml -mindepth 1 ! -name lost+found"
    left += "; find /etc/systemd/system -name *edgeml*"
    assert fleet.lab.run(OTHER, f"sudo sh -c '{left}'").stdout == ""
    ledger = [json.loads(line) for line in (fleet.state / "fleet.ledger.jsonl").read_text().splitlines()]
    assert [line["host"] for line in ledger if line["outcome"] == "removed"] == [OTHER]
    assert OTHER not in fleet.plan()
