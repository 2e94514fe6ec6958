# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where reports of the controller go, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.files import write_reports


def test_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    assert write_reports({path: "{}\n"}, "edgeml_plan_report") == [str(path)]
    assert path.read_text() == "{}\n"


def test_text_that_is_not_utf_8_is_written_escaped(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_reports({path: "no route to B\udcfcro"}, "edgeml_report")
    assert path.read_text() == "no route to B\\udcfcro"


def test_what_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FleetError, match=r"set edgeml_preflight_report to a path that can be written"):
        write_reports({tmp_path / "file" / "report.json": "{}"}, "edgeml_preflight_report")


def test_a_directory_in_place_of_the_file_is_named_as_it_was_given(tmp_path: Path) -> None:
    given = tmp_path / "reports"
    given.mkdir()
    with pytest.raises(FleetError) as caught:
        write_reports({given: "{}"}, "edgeml_preflight_report")
    assert (caught.value.where, caught.value.seen) == (str(given), "Is a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]
