# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig of the tests with faults, which takes a minute to make.

While it is there the process has a network of its own, so it must end with their file: what comes next in the same
process needs the machine's network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.tests.faults.rig import FACTORS, Rig, running_rig
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import authority, programs  # noqa: F401
from ansible_collections.edgeml.fleet.tests.support.content import REPOSITORY_ROOT, Authority

sys.path.insert(0, str(REPOSITORY_ROOT / "runtime" / "tests" / "support"))
from broker import mosquitto


@pytest.fixture(scope="module")
def rig(programs: Path, authority: Authority) -> Iterator[Rig]:  # noqa: F811 - fixtures of the content tests
    """A box that serves the first release."""
    mosquitto()  # there is no way out of the rig's network
    with running_rig(programs, authority) as found:
        out, error = found.box.converge(found.options[FACTORS[0]]).communicate(timeout=300)
        assert b'"changed": true' in out, out.decode() + error.decode()
        yield found
