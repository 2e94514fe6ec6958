# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a later run says of one that was cut off. The quickstart's tests kill a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._release.agent import Transaction

ERROR = FleetError("Port 8000 is already taken", where="127.0.0.1:8000", remedy="stop it").as_result()


@pytest.mark.parametrize(
    ("outcome", "words"),
    [({"result": {"release": {"id": "3b1f9c0d12ab34"}}}, "release 3b1f9c0d12ab is"), ({"error": ERROR}, "Port 8000")],
)
def test_what_nobody_has_heard_is_said_once(tmp_path: Path, outcome: dict[str, Any], words: str) -> None:
    transaction = Transaction(tmp_path, "runtime")
    assert transaction.what_became_of_it() == ""
    transaction.lock_file.parent.mkdir()
    transaction.untold_file.touch()
    assert transaction.what_became_of_it() == "", "it has not ended"
    transaction.result_file.write_text(json.dumps({**outcome, "key": "k"}))
    assert words in transaction.what_became_of_it()
    assert transaction.what_became_of_it() == ""


def test_what_was_heard_is_not_said_again(tmp_path: Path) -> None:
    transaction = Transaction(tmp_path, "runtime")
    transaction.lock_file.parent.mkdir()
    transaction.untold_file.touch()
    transaction.result_file.write_text(json.dumps({"result": {"release": {}}, "key": "k"}))
    assert transaction.wait("k") == {"release": {}}
    assert transaction.what_became_of_it() == ""
