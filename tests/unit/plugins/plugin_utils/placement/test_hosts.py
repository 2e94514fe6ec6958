# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a host."""

from __future__ import annotations

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import oci_architecture


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [("x86_64", "amd64"), ("amd64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")],
)
def test_architecture_names(machine: str, architecture: str) -> None:
    assert oci_architecture(machine) == architecture


def test_unknown_architecture() -> None:
    with pytest.raises(FleetError, match="riscv64"):
        oci_architecture("riscv64")
