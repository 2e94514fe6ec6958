# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store as mirrors see it: each has an account of its own, and none of them can write."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.registry import Registry
from ansible_collections.edgeml.fleet.plugins.plugin_utils.credentials import htpasswd
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.test_mirror_sync import lock_of, sync
from ansible_collections.edgeml.fleet.tests.support.content import (
    REPOSITORY_ROOT,
    Authority,
    SiteMirror,
    Store,
    publish_image,
    wait_for,
)

ACCOUNTS = {"berlin": "one", "paris": "two"}


@contextlib.contextmanager
def running(
    programs: Path, authority: Authority, store: Store, directory: Path, template: str, accounts: dict[str, str]
) -> Iterator[str]:
    """Run a registry of the role over the store's content, with the role's configuration; give its address."""
    port = free_port()
    text = (REPOSITORY_ROOT / "roles/model_store/templates" / template).read_text()
    text = re.sub(r"secret: \{\{.*\}\}", "secret: constant", text)
    for old, new in {
        "{{ ansible_managed }}": "test",
        "0.0.0.0:5000": f"127.0.0.1:{port}",
        "/var/lib/registry": str(store.storage),
        "/etc/edgeml/server.crt": str(authority.certificate),
        "/etc/edgeml/server.key": str(authority.key),
        "/etc/edgeml/htpasswd": str(directory / "htpasswd"),
    }.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "registry.yml").write_text(text)
    (directory / "htpasswd").write_text(htpasswd(accounts))
    with (directory / "log").open("wb") as log:
        command = [str(programs / "usr/bin/docker-registry"), "serve", str(directory / "registry.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(port, process)
        yield f"127.0.0.1:{port}"
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def pull(programs: Path, authority: Authority, store: Store, tmp_path: Path) -> Iterator[str]:
    with running(programs, authority, store, tmp_path, "registry_pull.yml.j2", ACCOUNTS) as address:
        yield address


def test_a_mirror_reads_with_its_own_account_and_writes_nothing(
    store: Store, mirror: SiteMirror, pull: str, tmp_path: Path
) -> None:
    image = publish_image(store, "edgeml/runtime")
    lock = lock_of(1, {"runtime": image.entry})

    def account(name: str, password: str) -> Registry:
        return Registry(pull, name, password, store.ca_file)

    berlin = Store(pull, store.ca_file, store.storage, "berlin", "one")
    assert sync(mirror, berlin, lock).generation == 1

    # What the publisher sends is there at once; nothing can be sent here, by a mirror or the publisher.
    data = b"anything"
    for name, password in ACCOUNTS.items():
        with pytest.raises(FleetError, match="HTTP 405"):
            account(name, password).push_blob("edgeml/runtime", data, sha256_digest(data))
        with pytest.raises(FleetError, match="HTTP 405"):
            account(name, password).push_manifest("edgeml/runtime", "latest", b"{}", "application/json")
    with pytest.raises(FleetError, match="refused the user name and password"):
        account(store.username, store.password).ping()
    with pytest.raises(FleetError, match="refused the user name and password"):
        store.registry().__class__(store.address, "berlin", "one", store.ca_file).ping()
    later = publish_image(store, "edgeml/runtime")
    assert account("paris", "two").has_manifest("edgeml/runtime", later.entry["digest"])

    # A new password of one mirror: the registry takes it without a restart, the other one notices nothing.
    rotated = htpasswd({**ACCOUNTS, "berlin": "new"}, (tmp_path / "htpasswd").read_text())
    (tmp_path / "htpasswd").write_text(rotated)
    account("paris", "two").ping()
    account("berlin", "new").ping()
    with pytest.raises(FleetError, match="refused the user name and password"):
        account("berlin", "one").ping()


def test_a_new_password_of_the_publisher_ends_no_transfer(
    programs: Path, authority: Authority, store: Store, tmp_path: Path
) -> None:
    """The store takes it without a restart: who pulls, or pushes, at that moment goes on."""
    layer = publish_image(store, "edgeml/runtime", layer_size=8_000_000).layers["amd64"]
    with running(programs, authority, store, tmp_path, "registry.yml.j2", {"edgeml": "old"}) as address:

        def account(password: str) -> Registry:
            return Registry(address, "edgeml", password, store.ca_file)

        with account("old").open_blob("edgeml/runtime", layer) as transfer:
            begun = transfer.read(100_000)
            (tmp_path / "new").write_text(htpasswd({"edgeml": "new"}, (tmp_path / "htpasswd").read_text()))
            (tmp_path / "new").replace(tmp_path / "htpasswd")
            account("new").ping()
            data = b"anything"
            assert account("new").push_blob("edgeml/runtime", data, sha256_digest(data))
            with pytest.raises(FleetError, match="refused the user name and password"):
                account("old").ping()
            assert sha256_digest(begun + transfer.read_all(1 << 30)) == layer
