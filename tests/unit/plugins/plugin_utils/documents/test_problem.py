# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How messages show what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import shown


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("12", "12 (number)"),
        ("1.5", "1.5 (number)"),
        ("no", "False (true or false)"),
        ("null", "None (nothing)"),
        ("[1, a]", "[1, 'a'] (list)"),
        ("{a: 1}", "{'a': 1} (mapping)"),
        ("2024-01-02", "2024-01-02 (date)"),
        ("2024-01-02 03:04:05", "2024-01-02 03:04:05 (date)"),
        ("text", "'text'"),
    ],
)
def test_a_value_is_shown_with_its_plain_type(tmp_path: Path, yaml: str, text: str) -> None:
    """Ansible reads files into classes of its own, which remember where a value was written."""
    file = tmp_path / "variables.yml"
    file.write_text(f"value: {yaml}\n")
    value: Any = DataLoader().load_from_file(str(file))["value"]
    assert shown(value) == text
