# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When each line of docs/support-matrix.md was last green: `python tests/support/support_matrix.py build/tests.xml`.

A line names its tests. Its date is that of the last run whose record (JUnit's XML, as pytest writes it) says that each
of them ran and passed; nobody types it.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support-matrix.md"
NAMED = re.compile(r"`((?:\w+/)*test_\w+)\.py::(test_\w+)(\[[^\]]+\])?`")
UNKNOWN = "no record"
HEAD = "| Last green |"


@dataclass(frozen=True)
class Run:
    """A run of the tests: its day, and by file (without suffix), name and parameters of each whether it passed."""

    day: str
    passed: dict[tuple[str, str, str], bool]

    def is_green(self, file: str, name: str, parameters: str) -> bool:
        """Return whether a test ran and passed; without parameters: with all that it ran with."""
        found = [
            passed
            for (path, one, its_parameters), passed in self.passed.items()
            if f"/{path}".endswith(f"/{file}") and one == name and parameters in ("", its_parameters)
        ]
        return bool(found) and all(found)


def read_run(record: Path) -> Run:
    """Read what pytest has written with `--junitxml`."""
    suite = next(ET.parse(record).getroot().iter("testsuite"))  # noqa: S314 - pytest wrote it
    passed: dict[tuple[str, str, str], bool] = {}
    for case in suite.iter("testcase"):
        module = re.match(r"(?:\w+\.)*?test_\w+", case.attrib["classname"])
        file = module[0].replace(".", "/") if module else ""
        name, bracket, rest = case.attrib["name"].partition("[")
        bad = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        test = (file, name, bracket + rest)
        passed[test] = passed.get(test, True) and not bad
    return Run(suite.attrib["timestamp"].partition("T")[0], passed)


def lines(text: str) -> Iterator[str]:
    """Yield the lines of the page's tables that have a column of days, without their heads."""
    table: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            yield from table[2:] if table[0].endswith(HEAD) else ()
            table = []


def named_tests(line: str) -> list[tuple[str, str, str]]:
    """Return the tests that a line names: the end of the file's path without suffix, name, parameters."""
    return [(file, name, parameters) for file, name, parameters in NAMED.findall(line)]


def day_of(line: str) -> str:
    """Return the last cell of a line."""
    return line.rstrip(" |").rpartition("|")[2].strip()


def renewed(text: str, run: Run) -> str:
    """Return the page with the day of a run in each line whose tests were all green in it."""
    for line in lines(text):
        tests = named_tests(line)
        if tests and all(run.is_green(*test) for test in tests):
            text = text.replace(line, f"{line.rstrip(' |').rpartition('|')[0]}| {run.day} |")
    return text


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), read_run(Path(sys.argv[1]))))
