# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured of variants on kinds of hosts: the table beside the lock, and the variant that it speaks for.

The table has one line of JSON for each model, version, variant and kind of host, sorted, so that two branches merge by
line. Figures are in milliseconds, requests a second, MiB, seconds, joules a request and bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ansible_collections.edgeml.fleet.plugins.plugin_utils.documents.problem import InventoryError, Problem
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.hosts import Host
from ansible_collections.edgeml.fleet.plugins.plugin_utils.placement.variants import choose_variant

Row = Mapping[str, Any]

#: Features of processors that decide how fast numbers are multiplied, as /proc/cpuinfo names them.
FEATURES = (
    "amx_int8", "asimddp", "asimdhp", "avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "bf16",
    "f16c", "fma", "i8mm", "sve", "sve2",
)  # fmt: skip


class _Figure(NamedTuple):
    """What can decide: its name in a row, how it is told, and which one wins."""

    key: str
    words: str
    wins: Literal["least", "highest"] = "least"


#: By what can go first.
OBJECTIVES = {
    "latency": _Figure("p95_ms", "p95 {:.3g} ms"),
    "memory": _Figure("memory_mb", "memory {:.1f} MiB"),
    "bytes": _Figure("bytes", "{:,} bytes"),
    "accuracy": _Figure("deviation", "deviation {:.3g}"),
}
#: Goes before deviation where all have it: the share of labelled examples that publish saw answered rightly.
LABELLED = _Figure("accuracy", "accuracy {:.4f}", "highest")
_LIMITS = ("p50_ms", "p95_ms", "p99_ms")
_KEY = ("model", "version", "variant", "kind")


@dataclass(frozen=True)
class Choice:
    """The variant of a host and why; `variant` is None if none fits, or while `missing` has to be known of the host."""

    variant: str | None
    reason: str
    missing: tuple[str, ...] = ()
    #: Whether figures have decided, or the inventory in so many words.
    decided: bool = True


def kind_of(host: Host) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a host, such as ``amd64 avx+avx2+f16c+fma 8GiB``, and what must be known of the host to tell.

    Memory counts in powers of two, upwards, since a part of it is the kernel's own.
    """
    known = {
        "architecture": host.architecture,
        "memory_mb": host.memory_mb,
        "cpu_features": host.cpu_features,
        "accelerator": host.accelerator,
    }
    missing = tuple(key for key, value in known.items() if value is None)
    if missing or host.memory_mb is None:
        return "", missing
    features = "+".join(name for name in FEATURES if name in (host.cpu_features or ())) or "plain"
    size = 1 << (host.memory_mb - 1).bit_length()
    memory = f"{size // 1024}GiB" if size >= 1024 else f"{size}MiB"
    return " ".join(filter(None, (str(host.architecture), features, memory, host.accelerator))), ()


def choose_best(
    model: Mapping[str, Any], slo: Mapping[str, Any], host: Host, rows: Iterable[Row], *, final: bool
) -> Choice:
    """Return the variant of a model with ``variant: best`` on a host.

    A variant whose ``when`` the host fits goes first. Of the others, which have no ``when``, those count that were
    measured on hosts of its kind, answered their golden cases there and kept to the objective; the least figure wins,
    by ``slo.first``, or the highest accuracy. Where none counts, it is the last of them. Unless `final`, a host of
    unknown kind has to wait.
    """
    variants = candidates(model)
    conditional = [variant for variant in model["variants"] if variant.get("when")]
    if conditional:
        fitting, missing = choose_variant({"variants": conditional}, host)
        if fitting is not None:
            return Choice(fitting, "the host fits its when")
        if missing:
            return Choice(None, "", tuple(missing))
    kind, unknown = kind_of(host)
    if unknown and not final:
        return Choice(None, "", unknown)
    last = variants[-1]
    if unknown:
        names = ", ".join(unknown)
        return Choice(last, f"the last one, since the host's kind is not known: {names}", decided=False)
    of_kind = {
        row["variant"]: row
        for row in rows
        if (row["model"], row["version"], row["kind"]) == (model["name"], model["version"], kind)
    }
    measured = [of_kind[name] for name in variants if name in of_kind]
    if not measured:
        return Choice(last, f"the last one, since nobody has measured on a host of its kind, {kind}", decided=False)
    fit = [row for row in measured if not why_not(row, slo)]
    if not fit:
        reasons = "; ".join(f"{row['variant']} {why_not(row, slo)}" for row in measured)
        return Choice(last, f"the last one, since none that was measured is fit: {reasons}", decided=False)
    figure = OBJECTIVES[slo.get("first") or "latency"]
    if figure is OBJECTIVES["accuracy"] and has_accuracy(fit):
        figure = LABELLED
    best = min(fit, key=lambda row: (_order(row, figure), row["p95_ms"], variants.index(row["variant"])))
    told = figure.words.format(best[figure.key]) if best[figure.key] is not None else "not measured"
    unmeasured = [name for name in variants if name not in of_kind]
    lacking = f", without {', '.join(unmeasured)}" if unmeasured else ""
    return Choice(best["variant"], f"{told}, the {figure.wins} of {len(fit)} measured on {kind}{lacking}")


def why_not(row: Row, slo: Mapping[str, Any]) -> str:
    """Return why a variant cannot be used where `row` was measured; empty if it can."""
    if row.get("failure"):
        return f"does not serve ({row['failure']})"
    if row["golden_passed"] < row["golden_cases"]:
        return f"answers {row['golden_passed']} of {row['golden_cases']} golden cases"
    over = [key for key in _LIMITS if slo.get(key) is not None and row[key] > slo[key]]
    return ", ".join(f"{key[:3]} {row[key]:.3g} ms is above {slo[key]:g}" for key in over)


def has_accuracy(rows: Iterable[Row]) -> bool:
    """Return whether publish found out how often each of these variants answers labelled examples rightly."""
    return all(row.get(LABELLED.key) is not None for row in rows)


def _order(row: Row, figure: _Figure) -> tuple[bool, float]:
    """Put what wins first, and what was not measured last."""
    value = row[figure.key]
    return value is None, (value or 0.0) * (-1 if figure.wins == "highest" else 1)


# -- the table ---------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the table, none if there is no file; raise InventoryError for lines that are none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError.of([_problem(path, None, str(error))]) from error
    rows: list[dict[str, Any]] = []
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            wrong = _what_is_wrong(row)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            problems.append(_problem(path, number, wrong))
        else:
            rows.append(row)
    if problems:
        raise InventoryError.of(problems)
    return rows


def _what_is_wrong(row: Any) -> str:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in (*_KEY, "digest")):
        return f"no text for each of {', '.join((*_KEY, 'digest'))}"
    if row.get("failure"):
        return ""
    numbers = {key: row.get(key) for key in (*_LIMITS, "memory_mb", "bytes", "golden_passed", "golden_cases")}
    optional = {key: row.get(key) for key in ("deviation", "energy_j", "throughput", "cold_start_s")}
    wrong = [key for key, value in numbers.items() if not _is_number(value)]
    wrong += [key for key, value in optional.items() if value is not None and not _is_number(value)]
    return f"no number for {', '.join(wrong)}" if wrong else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _problem(path: Path, line: int | None, seen: str) -> Problem:
    remedy = "restore the line, or remove it and run the playbook edgeml.fleet.measure again; nobody edits this file"
    return Problem("Not a row of measurements", (), seen, remedy, file=str(path), line=line)


def as_text(rows: Iterable[Row]) -> str:
    """Return the table's content: sorted, the later of two rows of one variant on one kind of host."""
    unique = {tuple(row[key] for key in _KEY): row for row in rows}
    return "".join(json.dumps(unique[key], sort_keys=True) + "\n" for key in sorted(unique))


def current(rows: Iterable[Row], lock: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of what the lock holds: those whose content, by its digest, is what was measured."""
    return [row for row in with_accuracy(rows, lock) if _locked(row, lock)]


def with_accuracy(rows: Iterable[Row], lock: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows, each with the accuracy of its content that the lock has: it is no figure of a device's."""
    found = []
    for row in rows:
        accuracy = _locked(row, lock).get(LABELLED.key)
        found.append(dict(row) if accuracy is None else {**row, LABELLED.key: accuracy})
    return found


def _locked(row: Row, lock: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the lock's entry of the variant that was measured; empty if it has other content, or none."""
    model: Mapping[str, Any] = lock["models"].get(row["model"], {}).get(row["version"], {})
    entry: Mapping[str, Any] = model.get("variants", {}).get(row["variant"], {})
    return entry if entry.get("blob", {}).get("digest") == row["digest"] else {}


def candidates(model: Mapping[str, Any]) -> list[str]:
    """Return the variants that measurements choose from."""
    return [variant["name"] for variant in model.get("variants", ()) if not variant.get("when")]
