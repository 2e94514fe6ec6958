# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A library that the controller lacks."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("library", "program"),
    [
        ("bcrypt", "plugins.plugin_utils.credentials import htpasswd as call; call({'edgeml': 'one'})"),
        ("jsonschema", "plugins.plugin_utils.documents.schema import validate as call; call({}, 'lock')"),
    ],
)
def test_a_library_that_the_controller_lacks_is_named(library: str, program: str) -> None:
    program = f"import sys; sys.modules['{library}'] = None; from ansible_collections.edgeml.fleet.{program}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"The controller lacks the Python library {library} at {sys.executable}." in ended.stderr
    assert "What to do: install what meta/ee-requirements.txt of the collection names" in ended.stderr
