# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who measures what, when, and what becomes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.plan import plan_measuring, variant_trials
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.reasons import told, variant_reasons
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.results import measured_rows, still_published
from ansible_collections.edgeml.fleet.plugins.plugin_utils.measuring.settings import LONGEST, Settings, read_settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.reports.variants import markdown, pictures, table
from ansible_collections.edgeml.fleet.tests.support.catalogue import DIGITS, RUNTIMES

MODEL = {**DIGITS, "variant": "best", "variants": [{"name": "int8"}, {"name": "fp32"}], "slo": {}}
KIND = "arm64 asimddp 4GiB"
WEDNESDAY = datetime(2026, 11, 25, 23, 0, tzinfo=UTC)


def digest(sign: str) -> str:
    return "sha256:" + sign * 64


def entry(sign: str) -> dict[str, Any]:
    blob = {"digest": digest(sign), "size": 1000}
    return {"repository": "edgeml/models/digits", "digest": digest("d"), "blob": blob, "golden_cases": 8}


LOCK: dict[str, Any] = {
    "serial": 1,
    "registry": "registry.example:5443",
    "images": {"runtime": {"repository": "edgeml/runtime", "platforms": {"arm64": {"digest": digest("1"), "size": 9}}}},
    "models": {"digits": {"1.0.0": {"variants": {"int8": entry("8"), "fp32": entry("f")}}}},
}


def host(name: str, memory: int = 3800, **more: Any) -> dict[str, Any]:
    return {
        "inventory_hostname": name,
        "group_names": ["devices"],
        "edgeml_catalogue": [MODEL],
        "edgeml_runtimes": RUNTIMES,
        "edgeml_models": [{"name": "digits"}],
        "ansible_facts": {"edgeml_host": {"architecture": "arm64", "memory_mb": memory, "cpu_features": ["asimddp"],
                                          "accelerator": ""}},
        **more,
    }  # fmt: skip


def plan(hosts: list[dict[str, Any]], rows: list[dict[str, Any]] | None = None, **settings: Any) -> Any:
    hostvars = {one["inventory_hostname"]: one for one in hosts}
    return plan_measuring(hostvars, list(hostvars), LOCK, rows or [], Settings(**settings))


def row(variant: str, sign: str, **changes: Any) -> dict[str, Any]:
    figures = {
        "model": "digits", "version": "1.0.0", "variant": variant, "kind": KIND, "digest": digest(sign), "bytes": 1000,
        "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "memory_mb": 50.0, "golden_passed": 8, "golden_cases": 8,
        "deviation": 0.01, "energy_j": None, "throughput": 900.0, "cold_start_s": 1.0,
    }  # fmt: skip
    return figures | changes


def test_one_host_of_each_kind_measures() -> None:
    found = plan([host("a"), host("b"), host("large", 7900)])
    wanted = {"name": "digits", "version": "1.0.0", "variants": ["int8", "fp32"]}
    assert found.hosts == {"a": [{**wanted, "kind": KIND}], "large": [{**wanted, "kind": "arm64 asimddp 8GiB"}]}


def test_a_host_that_cannot_be_reached_leaves_it_to_the_next() -> None:
    found = plan([host("a", edgeml_measure_learned={"unreachable": True}), host("b")])
    assert list(found.hosts) == ["b"] and found.notes == ["a cannot be reached"]


def test_what_the_table_has_of_this_content_is_not_measured_again() -> None:
    assert plan([host("a")], [row("int8", "8")]).hosts["a"][0]["variants"] == ["fp32"]
    assert plan([host("a")], [row("int8", "0")]).hosts["a"][0]["variants"] == ["int8", "fp32"], "other content"
    both = [row("int8", "8"), row("fp32", "f")]
    assert not plan([host("a")], both).hosts
    assert plan([host("a")], both, again=True).hosts["a"][0]["variants"] == ["int8", "fp32"]


def test_only_models_that_ask_for_the_best_or_are_named() -> None:
    first = host("a", edgeml_catalogue=[{key: value for key, value in MODEL.items() if key != "variant"}])
    first["edgeml_models"] = [{"name": "digits", "variant": "fp32"}]
    assert not plan([first]).hosts
    assert plan([host("a")], models=[]).hosts == {}
    assert plan([first], models=["digits"]).hosts["a"][0]["variants"] == ["int8", "fp32"]


def test_a_host_of_unknown_kind_measures_nothing() -> None:
    assert plan([host("a", ansible_facts={})]).notes == [
        "a measures nothing, since its architecture, memory_mb, cpu_features, accelerator cannot be learned"
    ]


def test_the_trials_are_the_release_with_one_variant_after_the_other() -> None:
    settings = {"listen_address": "127.0.0.1", "ports": {"rest": 8000, "grpc": 8001, "metrics": 8002},
                "memory_mb": 0, "base_memory_mb": 192, "has_broker": False}  # fmt: skip
    models = [{**MODEL, "runtime": "runtime", "protocols": ["rest"], "variant": "fp32"}]
    asked = plan([host("a")]).hosts["a"]
    (trial,) = variant_trials(models, asked, LOCK, RUNTIMES, "arm64", "a", settings)
    assert [(model["variant"], model["digest"]) for model in trial["models"]] == [
        ("int8", digest("8")),
        ("fp32", digest("f")),
    ]
    assert trial["image"] == f"registry.example:5443/edgeml/runtime@{digest('1')}"
    assert trial["limits"]["memory_mb"] == 492


@pytest.mark.parametrize(
    ("window", "seconds"),
    [
        (None, LONGEST),
        ({"from": "22:00", "to": "05:00"}, 6 * 3600),
        ({"days": ["wed"], "from": "22:00", "to": "05:00"}, 6 * 3600),
        ({"days": ["mon"], "from": "22:00", "to": "05:00"}, 0),
        ({"from": "01:00", "to": "05:00"}, 0),
    ],
)
def test_the_window_says_how_long(window: dict[str, Any] | None, seconds: float) -> None:
    assert Settings(window=window).seconds_left(WEDNESDAY) == seconds


def test_settings_that_make_no_sense_are_refused() -> None:
    assert read_settings(None) == Settings()
    with pytest.raises(InventoryError, match="did you mean window"):
        read_settings({"windows": {}})


def test_what_hosts_measured_becomes_rows() -> None:
    asked = plan([host("a"), host("large", 7900)]).hosts
    figures = {key: value for key, value in row("int8", "8").items() if key != "kind"}
    answers = {"measured": [figures], "left": ["digits 1.0.0 fp32"]}
    hostvars = {"a": {"inference_runtime_measured": {"results": [answers]}}, "large": {}}
    rows, notes = measured_rows(hostvars, asked, "2026-11-25T23:00:00Z")
    assert rows == [{**row("int8", "8"), "host": "a", "time": "2026-11-25T23:00:00Z"}]
    assert notes == ["a: no time was left for digits 1.0.0 fp32", "large: the host cannot be reached"]
    assert still_published([*rows, row("int8", "8", version="0.9.0")], LOCK) == rows


def test_the_plan_says_why() -> None:
    rows = [row("int8", "8"), row("fp32", "f", p95_ms=2.5)]
    hosts = [host("a", edgeml_measurements=rows), host("b", edgeml_measurements=rows), host("c", 500)]
    hosts[2]["edgeml_models"] = [{"name": "digits", "variant": "int8"}]
    lines = told(variant_reasons({one["inventory_hostname"]: one for one in hosts}, ["a", "b", "c"]))
    assert lines == [
        f"variant int8 of digits 1.0.0: a, b: p95 2 ms, the least of 2 measured on {KIND}",
        "variant int8 of digits 1.0.0: c: the inventory names it",
    ]


def test_table_markdown_and_picture_show_each_variant_and_kind(tmp_path: Path) -> None:
    rows = [row("int8", "8"), row("fp32", "f", deviation=0.0), row("int8", "8", kind="amd64 avx2 8GiB", p95_ms=0.4)]
    failed = row("fp16", "6", failure="killed | for memory <&>")
    assert len(table([*rows, failed])) == 5
    text = markdown([*rows, failed])
    assert "| digits 1.0.0 | int8 | amd64 avx2 8GiB | 1,000 | 1.000 | 0.400 |" in text
    assert "killed \\| for memory" in text and "](digits-1.0.0.svg)" in text
    ((path, picture),) = pictures(tmp_path, [*rows, failed]).items()
    assert path == tmp_path / "digits-1.0.0.svg"
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    marks = root.findall(f"{space}g/{space}circle")
    assert len(marks) == 3
    places = {(mark.get("cx"), mark.get("cy")) for mark in marks}
    assert len(places) == 3 and all(80 <= float(str(x)) <= 600 for x, _y in places)
    assert pictures(tmp_path, [failed]) == {}


def test_table_and_picture_show_the_accuracy_where_all_have_one(tmp_path: Path) -> None:
    rows = [row("int8", "8", accuracy=0.9583), row("fp32", "f", accuracy=0.9708), row("fp16", "6", accuracy=1.0)]
    assert "| 8/8 | 0.01 | 0.9583 |" in markdown(rows)
    assert "![digits 1.0.0: accuracy against p95" in markdown(rows)
    assert "![digits 1.0.0: deviation against p95" in markdown([*rows, row("more", "1")])
    (picture,) = pictures(tmp_path, rows).values()
    assert "accuracy on labelled examples" in picture and "accuracy 0.9583" in picture
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    upright = [text.text for text in root.iter(f"{space}text") if text.get("text-anchor") == "end"]
    assert upright == ["1", "0.9875", "0.975", "0.9625", "0.95"]
    heights = {str(mark[0].text).split()[0]: float(str(mark[1].get("cy"))) for mark in root.findall(f"{space}g")}
    assert heights["fp16"] < heights["fp32"] < heights["int8"], "the most accurate is at the top"
    (picture,) = pictures(tmp_path, [*rows, row("more", "1")]).values()
    assert "largest deviation" in picture and "accuracy not known" in picture
