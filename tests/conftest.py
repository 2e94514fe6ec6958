# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own way to import collections, before any test imports one, and a closing table of where the time went.

Under `ansible-test units` collections can be imported already, and what targets run sees no other part of Ansible.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict

import pytest

if importlib.util.find_spec("ansible.plugins"):
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each group of tests (a folder), how many there were, their seconds and their share of all seconds."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, set[str]] = defaultdict(set)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                group = "/".join(report.nodeid.partition("::")[0].split("/")[:2])
                seconds[group] += report.duration
                tests[group].add(report.nodeid)
    total = sum(seconds.values())
    if total < 60:
        return
    terminalreporter.section("time by group of tests, the sum over all processes")
    for group in sorted(seconds, key=lambda name: -seconds[name]):
        share = seconds[group] / total
        terminalreporter.write_line(f"{group:24} {len(tests[group]):5} tests {seconds[group]:7.0f} s {share:6.1%}")
    terminalreporter.write_line(f"{'all':24} {sum(map(len, tests.values())):5} tests {total:7.0f} s")
