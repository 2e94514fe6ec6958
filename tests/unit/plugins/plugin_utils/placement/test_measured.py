# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variant measurements speak for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.catalogue import check_catalogue
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.measured import (
    Choice,
    as_text,
    choose_best,
    current,
    kind_of,
    read_table,
    with_accuracy,
)
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.resolver import resolve_host
from ansible_collections.edgeml.fleet.tests.support.catalogue import DIGITS, RUNTIMES

BOARD = Host("board", "arm64", 3792, frozenset({"fp", "asimddp", "fphp"}), "")
KIND = "arm64 asimddp 4GiB"
MODEL = {**DIGITS, "variant": "best", "variants": [{"name": "int8"}, {"name": "fp16"}, {"name": "fp32"}], "slo": {}}


def row(variant: str, **changes: Any) -> dict[str, Any]:
    figures = {
        "model": "digits", "version": "1.0.0", "variant": variant, "kind": KIND, "digest": f"sha256:{variant}",
        "bytes": 100, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "memory_mb": 50.0, "golden_passed": 8,
        "golden_cases": 8, "deviation": 0.0, "energy_j": None, "throughput": 900.0, "cold_start_s": 1.0,
    }  # fmt: skip
    return figures | changes


ROWS = [
    row("int8", p95_ms=1.5, bytes=30, memory_mb=44.0, deviation=0.02),
    row("fp16", p95_ms=2.5, bytes=60, memory_mb=40.0, deviation=0.001),
    row("fp32", p95_ms=2.0),
]


def best(rows: list[dict[str, Any]], host: Host = BOARD, *, final: bool = True, **slo: Any) -> Choice:
    return choose_best(MODEL, slo, host, rows, final=final)


@pytest.mark.parametrize(
    ("first", "variant", "reason"),
    [
        ("latency", "int8", f"p95 1.5 ms, the least of 3 measured on {KIND}"),
        ("memory", "fp16", f"memory 40.0 MiB, the least of 3 measured on {KIND}"),
        ("bytes", "int8", f"30 bytes, the least of 3 measured on {KIND}"),
        ("accuracy", "fp32", f"deviation 0, the least of 3 measured on {KIND}"),
    ],
)
def test_what_goes_first_decides(first: str, variant: str, reason: str) -> None:
    assert best(ROWS, first=first) == Choice(variant, reason)


def test_labelled_accuracy_goes_before_deviation_where_all_that_are_fit_have_it() -> None:
    rows = [{**one, "accuracy": value} for one, value in zip(ROWS, (0.9708, 0.9708, 0.95), strict=True)]
    told = f"accuracy 0.9708, the highest of 3 measured on {KIND}"
    assert best(rows, first="accuracy") == Choice("int8", told), "of equal ones that of the least p95"
    rows[0]["golden_passed"] = 7
    assert best(rows, first="accuracy").variant == "fp16"
    del rows[0]["accuracy"]
    assert best(rows, first="accuracy").variant == "fp16", "what is not fit need not have it"
    del rows[1]["accuracy"]
    assert best(rows, first="accuracy") == Choice("fp32", f"deviation 0, the least of 2 measured on {KIND}")
    assert best(rows, first="latency").variant == "fp32"


def test_latency_goes_first_unless_told_otherwise() -> None:
    assert best(ROWS) == best(ROWS, first="latency")


def test_equal_figures_fall_to_latency_and_then_to_the_order_of_the_catalogue() -> None:
    equal = [{**one, "memory_mb": 50.0} for one in ROWS]
    assert best(equal, first="memory").variant == "int8"
    assert best([{**one, "p95_ms": 2.0} for one in equal][::-1], first="memory").variant == "int8"


def test_what_was_not_measured_is_last() -> None:
    rows = [row("int8", deviation=None), row("fp32", deviation=0.5)]
    assert best(rows, first="accuracy").variant == "fp32"
    assert "without fp16" in best(rows, first="accuracy").reason


@pytest.mark.parametrize(
    ("changes", "slo", "why"),
    [
        ({"p99_ms": 9.0}, {"p99_ms": 5}, "p99 9 ms is above 5"),
        ({"p95_ms": 1.6}, {"p95_ms": 1.55, "p99_ms": None}, "p95 1.6 ms is above 1.55"),
        ({"golden_passed": 7}, {}, "answers 7 of 8 golden cases"),
        ({"failure": "killed for memory"}, {}, "does not serve (killed for memory)"),
    ],
)
def test_what_is_not_fit_is_never_chosen(changes: dict[str, Any], slo: dict[str, Any], why: str) -> None:
    chosen = best([{**ROWS[0], **changes}], **slo)
    assert chosen.variant == "fp32" and not chosen.decided
    assert f"none that was measured is fit: int8 {why}" in chosen.reason
    others = [{**ROWS[0], **changes}, {**ROWS[1], "p95_ms": 1.0, "p99_ms": 1.0}]
    assert best(others, **slo).variant == "fp16"


@pytest.mark.parametrize(
    "host",
    [
        replace(BOARD, memory_mb=1900),
        replace(BOARD, cpu_features=frozenset({"asimddp", "i8mm"})),
        replace(BOARD, accelerator="hailo"),
        replace(BOARD, architecture="amd64"),
    ],
)
def test_a_kind_that_nobody_measured_gets_the_last_variant_and_a_note(host: Host) -> None:
    chosen = best(ROWS, host)
    assert (chosen.variant, chosen.decided) == ("fp32", False)
    assert chosen.reason == f"the last one, since nobody has measured on a host of its kind, {kind_of(host)[0]}"


def test_other_versions_and_models_do_not_count() -> None:
    assert not best([{**ROWS[0], "version": "0.9.0"}, {**ROWS[0], "model": "sound"}]).decided


def test_a_host_of_unknown_kind_waits_and_gets_the_last_variant_in_the_end() -> None:
    host = replace(BOARD, memory_mb=None)
    assert best(ROWS, host, final=False) == Choice(None, "", ("memory_mb",))
    assert best(ROWS, host) == Choice("fp32", "the last one, since the host's kind is not known: memory_mb", (), False)


def test_when_goes_before_what_was_measured() -> None:
    model = {**MODEL, "variants": [{"name": "tiny", "when": {"max_memory_mb": 4096}}, *MODEL["variants"]]}
    assert choose_best(model, {}, BOARD, ROWS, final=True) == Choice("tiny", "the host fits its when")
    large = replace(BOARD, memory_mb=8000)
    assert choose_best(model, {}, large, [{**ROWS[1], "kind": "arm64 asimddp 8GiB"}], final=True).variant == "fp16"
    unknown = replace(BOARD, memory_mb=None)
    assert choose_best(model, {}, unknown, ROWS, final=True) == Choice(None, "", ("memory_mb",))


@pytest.mark.parametrize(
    ("memory", "text"), [(512, "512MiB"), (500, "512MiB"), (1024, "1GiB"), (3792, "4GiB"), (31000, "32GiB")]
)
def test_kinds_count_memory_in_powers_of_two(memory: int, text: str) -> None:
    host = Host("box", "amd64", memory, frozenset({"sse2", "fma", "avx2"}), "nvidia")
    assert kind_of(host) == (f"amd64 avx2+fma {text} nvidia", ())


def test_an_inventory_resolves_best_by_its_measurements() -> None:
    known = {"edgeml_architecture": "arm64", "edgeml_memory_mb": 3792, "edgeml_accelerator": "",
             "edgeml_cpu_features": ["asimddp"], "edgeml_measurements": ROWS}  # fmt: skip

    def variant(overrides: dict[str, Any], **more: Any) -> Any:
        items, problems = resolve_host("board", {**known, **more}, [MODEL], [{"name": "digits"}], overrides, RUNTIMES)
        assert not problems
        return items[0]["variant"]

    assert variant({}) == "int8"
    assert variant({"digits": {"slo": {"first": "memory"}}}) == "fp16"
    assert variant({"digits": {"variant": "fp32"}}) == "fp32", "who names a variant gets it"
    assert variant({}, edgeml_measurements=[]) == "fp32"


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ([{"name": "int8"}], "no variants to choose the best of"),
        ([{"name": "best"}, {"name": "fp32"}], "the name that stands for the best one"),
    ],
)
def test_what_a_catalogue_may_not_say(variants: list[dict[str, Any]], words: str) -> None:
    assert not check_catalogue([MODEL], None)
    (problem,) = check_catalogue([{**MODEL, "variants": variants}], None)
    assert words in problem.what


def test_the_table_is_sorted_and_each_variant_and_kind_has_one_row(tmp_path: Path) -> None:
    path = tmp_path / "fleet.measurements.jsonl"
    assert read_table(path) == []
    text = as_text([*ROWS[::-1], row("fp32", p95_ms=9.0)])
    path.write_text(text)
    assert [(one["variant"], one["p95_ms"]) for one in read_table(path)] == [
        ("fp16", 2.5),
        ("fp32", 9.0),
        ("int8", 1.5),
    ]
    assert as_text(read_table(path)) == text


@pytest.mark.parametrize("line", ["<<<<<<< HEAD", "[]", "{}", json.dumps(row("int8", p95_ms="fast"))])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "fleet.measurements.jsonl"
    path.write_text(as_text(ROWS) + line + "\n")
    with pytest.raises(InventoryError, match=r"fleet\.measurements\.jsonl:4"):
        read_table(path)


def test_what_was_measured_of_other_content_does_not_count() -> None:
    variants = {"int8": {"blob": {"digest": "sha256:int8"}}, "fp32": {"blob": {"digest": "sha256:new"}}}
    lock = {"models": {"digits": {"1.0.0": {"variants": variants}}}}
    assert current(ROWS, lock) == ROWS[:1]
    assert current(ROWS, {"models": {}}) == []


def test_rows_get_the_accuracy_of_their_own_content_from_the_lock() -> None:
    variants = {
        "int8": {"blob": {"digest": "sha256:int8"}, "accuracy": 0.97},
        "fp16": {"digest": "(known when it is built)"},
        "fp32": {"blob": {"digest": "sha256:new"}, "accuracy": 0.98},
    }
    lock = {"models": {"digits": {"1.0.0": {"variants": variants}}}}
    assert with_accuracy(ROWS, lock) == [{**ROWS[0], "accuracy": 0.97}, *ROWS[1:]]
