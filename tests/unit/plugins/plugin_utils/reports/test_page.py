# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the report as a parser sees it; tests/integration/report opens it in a browser."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.fleet import collect
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.page import page
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import NOW, device, ledger, mirror, small

HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(1)>'{{ 7 * 7 }}&amp;</style></script>"""


class Elements(HTMLParser):
    """Collects elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def shown(hosts: dict[str, dict[str, Any]], lines: Any = (), fleet: str = "example") -> str:
    return page(collect(hosts, list(hosts), fleet, lines, NOW))


def test_page_needs_nothing_else() -> None:
    parsed = Elements(shown(small(), ledger()))
    references = [
        value
        for _, attributes in parsed.found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset", "poster")
    ]
    assert all(value == "data:," or (value or "").startswith("#") for value in references)
    tags = {tag for tag, _ in parsed.found}
    assert not tags & {"iframe", "object", "embed", "img", "form", "base"}
    assert "@import" not in "".join(parsed.text) and "url(" not in "".join(parsed.text)
    assert not [
        name for _, attributes in parsed.found for name in attributes if name.startswith("on") or name == "style"
    ]


def test_policy_allows_its_own_style_and_script_only() -> None:
    text = shown(small())
    policy = next(
        attributes["content"] or ""
        for tag, attributes in Elements(text).found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text() -> None:
    calm = Elements(shown({"a": device("s", "failed"), "b": device("s", "drifted"), "m": mirror("s", 6)}))
    hosts = {
        HOSTILE: device(HOSTILE, "failed", reason=HOSTILE, architecture=HOSTILE),
        "b" + HOSTILE: device(HOSTILE, "drifted", reason=HOSTILE),
        "m" + HOSTILE: mirror(HOSTILE, 6),
    }
    (told,) = hosts[HOSTILE]["edgeml_report_releases"]["runtimes"]
    told["since"] = HOSTILE
    for release in (told["active"], *told["history"]):
        for model in release["models"]:
            model |= {"name": HOSTILE, "version": HOSTILE, "variant": HOSTILE}
    told["history"][0] |= {"outcome": HOSTILE, "by": HOSTILE, "time": HOSTILE}
    text = shown(hosts, fleet=HOSTILE)
    parsed = Elements(text)
    assert parsed.count("script") == parsed.count("style") == 1
    assert parsed.count("img") == 0
    assert {tag for tag, _ in parsed.found} <= {tag for tag, _ in calm.found}
    assert not [name for _, attributes in parsed.found for name in attributes if name.startswith("on")]
    assert HOSTILE in "".join(parsed.text)
    assert "49" not in re.findall(r"'(\d+)&amp;", text)


def test_problems_come_first_with_reason_and_next_step() -> None:
    text = re.sub(r"<[^>]+>", "", shown(small(), ledger()))
    order = ["Failed", "Drifted", "Objective missed", "Mirror not current", "Certificate ends soon", "Unreachable",
             "Pending"]  # fmt: skip
    places = [re.search(rf"^ *{title} 1 host", text, re.M) for title in order]
    starts = [found.start() for found in places if found]
    assert len(starts) == len(order) and starts == sorted(starts)
    assert "No route to host" in text
    assert "ansible-playbook edgeml.fleet.site --limit berlin-gateway-1" in text
    assert "1 of 5 hosts is what the inventory says" in text


def test_calm_fleet_says_so() -> None:
    text = shown({"camera": device("berlin"), "berlin-mirror": mirror("berlin")})
    assert "All 1 hosts are what the inventory says" not in text
    assert "The one host is what the inventory says" in text
    assert "Nothing. All hosts are current" in text


def test_fleet_without_hosts_has_a_page() -> None:
    assert "No devices" in shown({})


def test_tables_and_plots_are_accessible() -> None:
    parsed = Elements(shown(small(), ledger()))
    attributes_of = {tag: [found for name, found in parsed.found if name == tag] for tag in ("th", "svg", "html")}
    assert all(found.get("scope") in ("row", "col") for found in attributes_of["th"])
    assert all(
        found.get("aria-hidden") == "true" or (found.get("role") == "img" and found.get("aria-label"))
        for found in attributes_of["svg"]
    )
    assert attributes_of["html"] == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in parsed.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_command_for_many_hosts_names_none() -> None:
    text = re.sub(r"<[^>]+>", "", shown({f"camera-{n}": device("berlin", "pending") for n in range(40)}))
    assert "ansible-playbook edgeml.fleet.site\n" in text
    assert "40 hosts at 1 site" in text


def test_one_measured_host_without_an_objective_has_a_plot() -> None:
    variables = device("berlin", models=("digits",))
    variables["edgeml_report_expected"]["runtimes"][0]["models"][0]["objective"] = {}
    text = shown({"camera": variables})
    assert text.count('<circle class="fine"') == 1
    assert "no objective" in text


def test_zero_latency_does_not_break_the_axis() -> None:
    assert "<circle" in shown({"camera": device("berlin", share=0.0)})
