# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each line of the support matrix names tests that exist, and has the day of the run in which they were green."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ansible_collections.edgeml.fleet.tests.support.support_matrix import (
    PAGE,
    UNKNOWN,
    day_of,
    lines,
    named_tests,
    read_run,
    renewed,
)

from .test_architecture import ROOT

RECORD = """<testsuites><testsuite timestamp="2031-05-06T07:08:09.1+00:00">
<testcase classname="tests.fleet.test_a" name="test_one"/>
<testcase classname="tests.fleet.test_a.TestAway" name="test_two[3.8]"/>
<testcase classname="tests.fleet.test_a.TestAway" name="test_two[3.9]"><failure message="no"/></testcase>
<testcase classname="tests.fleet.test_a" name="test_three"><skipped/></testcase>
</testsuite></testsuites>"""
TABLE = """| What | Tested by | Last green |
|---|---|---|
| a | lab: `fleet/test_a.py::test_one`, `test_a.py::test_two[3.8]` | no record |
| b | `test_a.py::test_two` | 2030-01-01 |
| c | `test_a.py::test_one`, `test_a.py::test_three` | no record |
| d | not tested | no record |

| Others | have no such days |
|---|---|
| e | `test_a.py::test_one` |
"""


def test_a_run_renews_the_lines_whose_tests_all_passed(tmp_path: Path) -> None:
    record = tmp_path / "tests.xml"
    record.write_text(RECORD)
    text = renewed(TABLE, read_run(record))
    assert [day_of(line) for line in lines(text)] == ["2031-05-06", "2030-01-01", UNKNOWN, UNKNOWN]
    assert text.replace("2031-05-06", UNKNOWN) == TABLE


def test_each_line_names_tests_that_exist() -> None:
    places = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "runtime/tests").rglob("test_*.py")]
    found = list(lines(PAGE.read_text()))
    assert len(found) > 30
    for line in found:
        assert named_tests(line) or "not tested" in line, line
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d|{UNKNOWN}", day_of(line)), line
        for file, name, _parameters in named_tests(line):
            (path,) = [place for place in places if str(place).endswith(f"/{file}.py")]
            tree = ast.parse(path.read_text())
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, line
