# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the signature tests: a real registry, a real nginx, Debian's cosign."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (  # noqa: F401
    authority,
    mirror,
    programs,
    running_store,
    store,
    web_server,
)
from ansible_collections.edgeml.fleet.tests.integration.signatures.content import Signed, publish, sign_all
from ansible_collections.edgeml.fleet.tests.support.content import Authority, SiteMirror, Store
from ansible_collections.edgeml.fleet.tests.support.cosign import SUITES, Cosign, cosign_program, make_key

NewStore = Callable[[], Store]


@pytest.fixture(params=SUITES)
def cosign(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Cosign:  # noqa: F811
    home = tmp_path / "cosign"
    home.mkdir()
    found = Cosign(cosign_program(request.param), home, store.ca_file)
    found.log_in(store.address, store.username, store.password)
    return found


@pytest.fixture
def signed(store: Store, mirror: SiteMirror, tmp_path: Path) -> Signed:  # noqa: F811
    key = make_key()
    lock = publish(store, tmp_path)
    sign_all(store, tmp_path, lock, key.private)
    return Signed(store, mirror, tmp_path, key, lock)


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    return tmp_path / "stick" / "bundle"


@pytest.fixture
def new_store(
    programs: Path,  # noqa: F811
    authority: Authority,  # noqa: F811
    tmp_path: Path,
) -> Iterator[NewStore]:
    """Start an empty registry at each call; all end with the test."""
    with contextlib.ExitStack() as running:

        def start() -> Store:
            directory = Path(tempfile.mkdtemp(prefix="store-", dir=tmp_path))
            return running.enter_context(running_store(programs, authority, directory))

        yield start
