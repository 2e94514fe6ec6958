# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the signature tests: a real registry, a real nginx, Debian's cosign."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (  # noqa: F401
    authority,
    mirror,
    programs,
    store,
    web_server,
)
from ansible_collections.edgeml.fleet.tests.support.content import Store
from ansible_collections.edgeml.fleet.tests.support.cosign import SUITES, Cosign, cosign_program


@pytest.fixture(params=SUITES)
def cosign(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Cosign:  # noqa: F811
    home = tmp_path / "cosign"
    home.mkdir()
    found = Cosign(cosign_program(request.param), home, store.ca_file)
    found.log_in(store.address, store.username, store.password)
    return found
