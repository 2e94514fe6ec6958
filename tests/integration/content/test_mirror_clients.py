# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror that asks who its clients are: real nginx, real Docker Engine, our client, and a neighbour's mirror."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._mirror.sync import synchronize
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import RefusedError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.host import Content, RegistryAccess, Wanted
from ansible_collections.edgeml.fleet.plugins.module_utils._preflight.network import registry as preflight
from ansible_collections.edgeml.fleet.plugins.module_utils._release.content import mirror_of
from ansible_collections.edgeml.fleet.plugins.plugin_utils.certificates import PrivateAuthority, Validity
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import lay_out_mirror, running_mirror
from ansible_collections.edgeml.fleet.tests.integration.content.test_mirror_sync import (
    lock_of,
    model_of,
    publish_digits,
)
from ansible_collections.edgeml.fleet.tests.support.content import ARCHITECTURES, Authority, Store, run_module

VALIDITY = Validity("20200101000000Z", "20591231235959Z")
REPOSITORY = "edgeml/models/digits"


def pair(authority: PrivateAuthority, host: str) -> dict[str, str]:
    """Return what a host presents, made as the playbook edgeml.fleet.certificates makes it."""
    authority.certify(host, host, [f"DNS:{host}"], check_mode=False, client=True)
    read = authority.directory.joinpath
    return {"client_certificate": read(f"{host}.crt").read_text(), "client_key": read(f"{host}.key").read_text()}


@dataclass
class Guarded:
    """A mirror that holds a model and asks for a certificate, and three who may ask it."""

    address: str
    root: Path
    ca_file: Path
    lock: dict[str, Any]
    model: dict[str, Any]
    ours: dict[str, str]
    foreign: dict[str, str]

    def registry(self, presented: dict[str, str]) -> Registry:
        return Registry.from_options({"address": self.address, "ca_file": str(self.ca_file), **presented})

    @property
    def manifest(self) -> str:
        return str(self.model["platforms"]["amd64"]["digest"])

    @property
    def blob(self) -> str:
        return str(self.model["blob"]["digest"])


@pytest.fixture(scope="module")
def guarded(programs: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    # Docker verifies no certificate and presents none on loopback.
    bridge = docker.from_env().networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    scratch = tmp_path_factory.mktemp("guarded")
    ours = PrivateAuthority(scratch / "ours", "ours", VALIDITY)
    foreign = PrivateAuthority(scratch / "foreign", "foreign", VALIDITY)
    ours.certify("mirror", "mirror", [f"IP:{bridge}", "IP:127.0.0.1"], check_mode=False)
    served = Authority(ours.directory / "ca.crt", ours.directory / "mirror.crt", ours.directory / "mirror.key")
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="guarded-"))
    try:
        # Docker asks at the bridge's address; on loopback it is waited for.
        root = lay_out_mirror(served, directory, port, listen="0.0.0.0", clients=served.ca_file)  # noqa: S104
        model = publish_digits(store, scratch)
        lock = lock_of(1, {}, model_of(model))
        synchronize(root, store.registry(), lock, ARCHITECTURES, 2, write=True)
        suite = root / "packages" / "trixie"
        suite.mkdir(parents=True)
        (suite / "InRelease").write_text("signed")
        with running_mirror(programs, directory, port):
            yield Guarded(
                f"{bridge}:{port}", root, served.ca_file, lock, model, pair(ours, "camera-1"), pair(foreign, "camera-1")
            )
    finally:
        shutil.rmtree(directory)


def test_content_is_for_those_who_present_a_certificate(guarded: Guarded) -> None:
    known = guarded.registry(guarded.ours)
    known.ping()
    assert known.has_manifest(REPOSITORY, guarded.manifest)
    assert known.get_manifest(REPOSITORY, guarded.manifest)[0]
    with known.open_blob(REPOSITORY, guarded.blob, 10) as blob:
        assert blob.offset == 10
        assert len(blob.read_all(1 << 30)) == guarded.model["blob"]["size"] - 10
    assert not known.has_blob(REPOSITORY, "sha256:" + "0" * 64)
    assert known.find_referrers(REPOSITORY, guarded.manifest) is None

    stranger = guarded.registry({})
    stranger.ping()  # a registry answers here: what is wrong is said for what is asked of it
    for ask in (
        lambda: stranger.get_manifest(REPOSITORY, guarded.manifest),
        lambda: stranger.open_blob(REPOSITORY, guarded.blob),
        lambda: stranger.has_blob(REPOSITORY, guarded.blob),
        lambda: stranger.has_manifest(REPOSITORY, "anything"),
    ):
        with pytest.raises(RefusedError, match=r"HTTP 403.*edgeml_mirror_clients"):
            ask()


def test_a_certificate_of_another_authority_opens_nothing(guarded: Guarded) -> None:
    foreign = guarded.registry(guarded.foreign)
    for ask in (foreign.ping, lambda: foreign.get_manifest(REPOSITORY, guarded.manifest)):
        with pytest.raises(RefusedError, match="site_mirror_client_ca_certificate_file"):
            ask()


def test_no_other_way_leads_to_content(guarded: Guarded) -> None:
    """However the path is written; Debian's packages are signed, and needed before a host can present anything."""
    context = ssl.create_default_context(cafile=str(guarded.ca_file))

    def answer(path: str) -> tuple[int, bytes]:
        host, _, port = guarded.address.rpartition(":")
        connection = http.client.HTTPSConnection(host, int(port), context=context)
        connection.request("GET", path)
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    assert answer("/packages/trixie/InRelease") == (200, b"signed")
    assert answer("/v2/") == (200, b"{}")
    manifest, blob = f"{REPOSITORY}/manifests/{guarded.manifest}", f"{REPOSITORY}/blobs/{guarded.blob}"
    ways = ("/v2/", "//v2/", "/v2//", "/v2/./", "/%76%32/", "/packages/../v2/", "/packages/%2e%2e/v2/")
    for path in (manifest, blob, f"{REPOSITORY}/tags/list", f"{REPOSITORY}/referrers/{guarded.manifest}"):
        assert [(way, answer(way + path)[0]) for way in ways] == [(way, 403) for way in ways]
    assert answer(f"/cas/sha256/{guarded.blob[7:]}")[0] == 403
    assert answer(f"/packages/../cas/sha256/{guarded.blob[7:]}")[0] == 403


def test_docker_presents_what_lies_beside_the_authority(guarded: Guarded) -> None:
    directory = Path("/etc/docker/certs.d") / guarded.address
    reference = f"{guarded.address}/{REPOSITORY}@{guarded.manifest}"

    def pull() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", "pull", "--platform", "linux/amd64", reference], capture_output=True, text=True, check=False
        )

    directory.mkdir(parents=True)
    try:
        shutil.copy(guarded.ca_file, directory / "ca.crt")
        without = pull()
        assert without.returncode != 0
        assert "edgeml_mirror_clients" in without.stderr, without.stderr
        for presented, works in ((guarded.foreign, False), (guarded.ours, True)):
            (directory / "client.cert").write_text(presented["client_certificate"])
            (directory / "client.key").write_text(presented["client_key"])
            done = pull()
            assert (done.returncode == 0) == works, done.stderr
            # Our own client does what the engine does.
            mirror = mirror_of(reference, str(directory / "ca.crt"))
            if works:
                assert mirror.has_blob(REPOSITORY, guarded.blob)
            else:
                with pytest.raises(RefusedError):
                    mirror.has_blob(REPOSITORY, guarded.blob)
    finally:
        shutil.rmtree(directory)
        subprocess.run(["docker", "image", "rm", reference], capture_output=True, check=False)


def test_a_mirror_presents_its_certificate_to_a_neighbour(guarded: Guarded, tmp_path: Path) -> None:
    neighbour = {"address": guarded.address, "ca_certificate": guarded.ca_file.read_text()}
    options = {
        "root": str(tmp_path / "mirror"),
        "store": {"address": f"127.0.0.1:{free_port()}", "ca_certificate": guarded.ca_file.read_text()},
        "lock": guarded.lock,
        "signatures": {"mode": "ignored"},
    }
    without = run_module("mirror_sync", {**options, "fallbacks": [neighbour]}, check=True, fails=True)
    assert "cannot be reached" in without["msg"]
    found = run_module("mirror_sync", {**options, "fallbacks": [{**neighbour, **guarded.ours}]})
    assert found["generation"] == 1
    assert guarded.ours["client_key"] not in str(found)
    incomplete = {**neighbour, "client_certificate": guarded.ours["client_certificate"]}
    refused = run_module("mirror_sync", {**options, "fallbacks": [incomplete]}, fails=True)
    assert "client_certificate, client_key" in refused["msg"]


def test_preflight_asks_with_what_the_host_will_present(guarded: Guarded) -> None:
    content = Content("model", "digits 1.0.0", REPOSITORY, guarded.blob, 1)

    def findings(presented: dict[str, str]) -> list[str]:
        access = RegistryAccess(guarded.address, ca_certificate=guarded.ca_file.read_text(), **presented)
        return [finding.remedy for finding in preflight(Wanted(content=[content], registry=access), [content])]

    assert findings(guarded.ours) == []
    (remedy,) = findings({})
    assert "edgeml_mirror_clients" in remedy
    (remedy,) = findings(guarded.foreign)
    assert "authority that the mirror trusts" in remedy
    mismatched = {**guarded.ours, "client_key": guarded.foreign["client_key"]}
    (remedy,) = findings(mismatched)
    assert "its own key" in remedy


def test_an_encrypted_key_is_refused_without_a_question(guarded: Guarded, tmp_path: Path) -> None:
    (tmp_path / "plain.key").write_text(guarded.ours["client_key"])
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:geheim", "-in", str(tmp_path / "plain.key")]
    locked = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with pytest.raises(FleetError, match="without passphrase"):
        guarded.registry({**guarded.ours, "client_key": locked})
