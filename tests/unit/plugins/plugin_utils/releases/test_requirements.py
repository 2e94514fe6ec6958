# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What models require of the host itself."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.releases.requirements import required


def model(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, **settings}


def test_what_models_require_of_the_host() -> None:
    models = [
        model("one", requires={"packages": ["libgomp1"], "kernel_modules": ["v4l2loopback"], "sysctls": {"vm.a": 1}}),
        model("two", requires={"packages": ["alsa-utils", "libgomp1"], "sysctls": {"vm.a": "1", "vm.b": 2}}),
    ]
    assert required(models, "packages") == ["alsa-utils", "libgomp1"]
    assert required(models, "kernel_modules") == ["v4l2loopback"]
    assert required(models, "sysctls") == {"vm.a": "1", "vm.b": "2"}
    assert required([], "sysctls") == {}
    models[1]["requires"]["sysctls"]["vm.a"] = 3
    with pytest.raises(FleetError, match=r"kernel parameter vm.a .*one: 1, two: 3"):
        required(models, "sysctls")
