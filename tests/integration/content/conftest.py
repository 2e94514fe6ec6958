# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the content tests: a real registry and a real nginx with the role's configuration."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import jinja2
import pytest
import yaml
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.support.content import (
    PACKAGES,
    REPOSITORY_ROOT,
    UNPRIVILEGED,
    Authority,
    Link,
    SiteMirror,
    Store,
    wait_for,
)


@pytest.fixture(scope="session")
def programs() -> Path:
    """Return a directory with Debian's registry and nginx, unpacked and not installed: no service is started."""
    return unpacked("content-programs", PACKAGES)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.made(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def running_store(programs: Path, authority: Authority, directory: Path) -> Iterator[Store]:
    """Run an empty registry."""
    port = free_port()
    found = Store(f"127.0.0.1:{port}", str(authority.ca_file), directory / "storage")
    secret = bcrypt.hashpw(found.password.encode(), bcrypt.gensalt(4)).decode()
    (directory / "htpasswd").write_text(f"{found.username}:{secret}\n")
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(found.storage)}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            "secret": "the same after a restart",
            "tls": {"certificate": str(authority.certificate), "key": str(authority.key)},
        },
        "auth": {"htpasswd": {"realm": "store", "path": str(directory / "htpasswd")}},
    }
    (directory / "config.yml").write_text(yaml.safe_dump(settings))
    with (directory / "log").open("wb") as log:
        command = [str(programs / "usr/bin/docker-registry"), "serve", str(directory / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(port, process)
        yield found
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def store(programs: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running_store(programs, authority, tmp_path_factory.mktemp("store")) as found:
        yield found


def lay_out_mirror(
    authority: Authority, directory: Path, port: int, *, listen: str = "127.0.0.1", clients: Path | None = None
) -> Path:
    """Write all that nginx needs for a mirror with the role's configuration, and return its empty tree.

    Only the paths of its container are replaced. With `clients`, an authority, it asks for a certificate.
    """
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
    source = (REPOSITORY_ROOT / "roles/site_mirror/templates/nginx.conf.j2").read_text()
    rendered = template.from_string(source).render(
        ansible_managed="test", site_mirror_port=port, site_mirror_clients="certificate" if clients else "any"
    )
    directory.chmod(0o755)
    scratch, tls, tree = directory / "tmp", directory / "tls", directory / "tree"
    for path in (scratch, tls, tree):
        path.mkdir()
    shutil.copy(authority.certificate, tls / "server.crt")
    shutil.copy(authority.key, tls / "server.key")
    if clients:
        shutil.copy(clients, tls / "clients.crt")
    for old, new in {
        "listen 0.0.0.0:": f"listen {listen}:",
        "/tmp/": f"{scratch}/",  # noqa: S108
        "/etc/edgeml/tls": str(tls),
        "/srv/mirror": str(tree),
    }.items():
        assert old in rendered
        rendered = rendered.replace(old, new)
    rendered = rendered.replace("/dev/stdout", f"{scratch}/access.log")
    (directory / "nginx.conf").write_text(rendered)
    if os.geteuid() == 0:  # as in its container: the tree must be readable by a user without rights
        for path in (scratch, tls, *tls.iterdir()):
            os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    return tree


@contextlib.contextmanager
def running_mirror(programs: Path, directory: Path, port: int) -> Iterator[None]:
    """Run nginx upon what `lay_out_mirror` has written."""
    command = [str(programs / "usr/sbin/nginx"), "-e", "stderr", "-c", str(directory / "nginx.conf")]
    if os.geteuid() == 0:
        user = str(UNPRIVILEGED)
        command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--", *command]
    process = subprocess.Popen(command)
    try:
        wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(240)


@pytest.fixture(scope="session")
def web_server(programs: Path, authority: Authority) -> Iterator[SiteMirror]:
    """Run nginx with the role's configuration."""
    port = free_port()
    directory = Path(tempfile.mkdtemp(prefix="mirror-"))
    try:
        tree = lay_out_mirror(authority, directory, port)
        with running_mirror(programs, directory, port):
            yield SiteMirror(tree, f"127.0.0.1:{port}", str(authority.ca_file))
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def mirror(web_server: SiteMirror) -> Iterator[SiteMirror]:
    """An empty tree that nginx delivers."""
    yield web_server
    for path in web_server.root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.fixture
def link(store: Store) -> Iterator[Callable[..., Link]]:
    """Return a function that makes a Link to the store."""
    links: list[Link] = []

    def make(**limits: Any) -> Link:
        links.append(Link(store.address, **limits))
        return links[-1]

    yield make
    for made in links:
        made.close()
