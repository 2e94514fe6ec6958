# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of a host."""

from __future__ import annotations

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.models import placed_models


def test_a_placed_model_that_is_missing_is_named() -> None:
    with pytest.raises(FleetError, match=r"edgeml_placed.*Seen: 'digits 1\.0\.0'"):
        placed_models(["digits 1.0.0"], {})
