# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module says beside its result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction
from ansible_collections.edgeml.fleet.plugins.modules import runtime_release


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_of_an_earlier_run_is_told_even_if_this_one_fails(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be asked for once."""

    def perform(*_arguments: Any, **_options: Any) -> dict[str, Any]:
        if fails:
            raise FleetError("Something else is wrong")
        return {"changed": False}

    warned: list[str] = []
    module = SimpleNamespace(
        params={"root": str(tmp_path), "name": "runtime", "state": "previous"},
        check_mode=False,
        get_bin_path=lambda _name, **_options: None,
        warn=warned.append,
    )
    monkeypatch.setattr(Transaction, "what_became_of_it", lambda self: "An earlier run was cut off")
    monkeypatch.setattr(Transaction, "is_running", lambda self: False)
    monkeypatch.setattr(runtime_release, "perform", perform)
    if fails:
        with pytest.raises(FleetError, match="Something else"):
            runtime_release.converge(cast(AnsibleModule, module))
    else:
        assert not runtime_release.converge(cast(AnsibleModule, module))["changed"]
    assert warned == ["An earlier run was cut off"]
