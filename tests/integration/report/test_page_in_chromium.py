# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the report in headless Chromium, with 5 and with 2,000 hosts: what is seen, on which screens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.tests.support.browser import Page
from ansible_collections.edgeml.fleet.tests.support.reported_fleet import NOW, device, large, ledger, small

from .conftest import write

#: The contrast of a text against what is behind it, as WCAG 2 counts it; 4.5 is what it asks for.
CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((one) => one / 255).map((one) =>
      one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(script, style, svg, svg *)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""
#: What is wider than the window, where one would have to scroll to the side.
TOO_WIDE = """
[...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1
  && !one.closest(".defs, thead")).map((one) => one.tagName + " " + one.textContent.slice(0, 40))
"""
VISIBLE = "[...document.querySelectorAll('.hosts tbody tr')].filter((one) => one.checkVisibility())"


def opened(page: Page, path: Path, width: int, **options: Any) -> float:
    page.messages.clear()
    page.requests.clear()
    seconds = page.open(path.as_uri(), width, **options)
    assert page.messages == []
    assert page.requests == [path.as_uri()]
    return seconds


def text_of(page: Page, selector: str) -> list[str]:
    found = page.evaluate(f"[...document.querySelectorAll({selector!r})].map((one) => one.innerText)")
    return [str(one) for one in found]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("five")
    write(directory, small(), ledger(), NOW)
    return directory / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_page_of_five_hosts_fits_and_is_legible(page: Page, five: Path, width: int, dark: bool) -> None:
    opened(page, five, width, dark=dark)
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_page_of_five_hosts_says_it_all(page: Page, five: Path) -> None:
    opened(page, five, 1280)
    (verdict,) = text_of(page, ".verdict")
    assert verdict == "1 of 5 hosts is what the inventory says"
    assert len(text_of(page, ".card")) == 8
    rows = [row.split("\t") for row in text_of(page, ".hosts tbody tr")]
    assert [(row[0].split()[0], row[1]) for row in rows] == [
        ("berlin-camera-2", "Failed"),
        ("berlin-gateway-1", "Drifted"),
        ("berlin-camera-1", "Current"),
        ("lyon-camera-1", "Unreachable"),
        ("lyon-camera-2", "Pending"),
    ]
    assert rows[2][2:4] == ["digits 1.1.0 int8, file_type 1.0.0", "2026-11-20 04:30"]
    assert "digits 7 of 5 ms" in rows[2][4]
    # A bar that passes the line of the objective, and one that does not.
    bars = page.evaluate("[...document.querySelectorAll('.b use')].map((one) => one.getAttribute('href'))")
    assert "#b28" in bars and "#b6" in bars


def test_page_can_be_filtered(page: Page, five: Path) -> None:
    opened(page, five, 1280)
    page.evaluate("q.value = 'lyon pending'; q.dispatchEvent(new Event('input'))")
    assert page.evaluate(f"{VISIBLE}.map((one) => one.cells[0].firstChild.data.trim())") == ["lyon-camera-2"]
    assert page.evaluate("found.textContent") == "1 found"
    page.evaluate("q.value = ''; q.dispatchEvent(new Event('input'))")
    assert page.evaluate(f"{VISIBLE}.length") == 5


def test_page_reads_without_its_script(page: Page, five: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(re.sub("<script>.*</script>", "", five.read_text(), flags=re.DOTALL))
    opened(page, path, 360)
    assert page.evaluate(f"{VISIBLE}.length") == 5
    assert page.evaluate("document.querySelector('.filter').checkVisibility()") is False


def test_page_can_be_printed(page: Page, five: Path) -> None:
    opened(page, five, 794, dark=True, paper=True)
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('.filter').getClientRects().length") == 0
    assert page.evaluate(CONTRAST) == []
    assert page.call("Page.printToPDF", preferCSSPageSize=True)["data"]


def test_hostile_text_does_nothing(page: Page, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=document.title='!'><script>document.title='!'</script>" + "W" * 300
    hosts = {hostile: device(hostile, "failed", reason=hostile), "b": device("berlin", "drifted", reason=hostile)}
    write(tmp_path, hosts, (), NOW)
    opened(page, tmp_path / "report.html", 360)
    assert page.evaluate("document.title") == "Fleet example"
    assert page.evaluate("document.images.length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert hostile in page.evaluate("document.body.textContent")


def test_policy_of_the_page_stops_what_was_not_escaped(page: Page, tmp_path: Path) -> None:
    """The second line of defence, should an escape ever be missing."""
    write(tmp_path, small(), (), NOW)
    path = tmp_path / "report.html"
    bad = "<script>document.title='!'</script><img src=http://127.0.0.1:9/ onerror=\"document.title='!'\">"
    path.write_text(path.read_text().replace("<main>", f"<main>{bad}"))
    page.open(path.as_uri(), 800)
    assert page.evaluate("document.title") == "Fleet example"


def test_page_of_two_thousand_hosts_stays_usable(page: Page, tmp_path: Path) -> None:
    hosts = large()
    report = write(tmp_path, hosts, ledger(), NOW)
    path = tmp_path / "report.html"
    assert path.stat().st_size < 2_000_000
    for width in (1280, 360):
        opened(page, path, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.querySelectorAll('.hosts tbody tr').length") == 2000
        # Problems first, healthy hosts folded: all of it is a few screens long.
        assert page.evaluate(f"{VISIBLE}.length") == 0
        assert page.evaluate("document.documentElement.scrollHeight") < 15_000
    (verdict,) = text_of(page, ".verdict")
    assert verdict == f"{report['totals']['hosts']['current']:,} of 2,000 hosts are what the inventory says"
    listed = page.evaluate("document.querySelector('#attention').parentElement.textContent")
    assert [host["name"] for host in report["hosts"] if host["problems"] and host["name"] not in listed] == []
    page.evaluate("q.value = 'osaka-camera-007'; q.dispatchEvent(new Event('input'))")
    assert page.evaluate("found.textContent") == "1 found"
    assert page.evaluate("[...document.querySelectorAll('.site-hosts')].filter((one) => one.open).length") == 1
    assert page.messages == []
