# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a variant loses and gains against the model that it was made from."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from golden import Arrays, GoldenCase, MinifyError, read_cases, read_evaluation

ROWS_AT_ONCE = 64
LIKELY = 0.5


@dataclass(frozen=True)
class Judgement:
    """One row of the table. `accuracy` is None without an evaluation set."""

    model: str
    bytes: int
    memory_mb: float
    max_deviation: float
    mean_deviation: float
    golden: str
    accuracy: float | None


def judge(
    name: str, size: int, original: Sequence[Arrays], cases: Sequence[GoldenCase], answers: Mapping[str, Any]
) -> Judgement:
    """Compare the answers of a model with those of the original."""
    seen: list[Arrays] = answers["golden"]
    deviations = [
        np.abs(own[output].astype(np.float64) - other[output].astype(np.float64)).ravel()
        for own, other in zip(seen, original, strict=True)
        for output in other
        if other[output].dtype.kind == "f"
    ]
    joined = np.concatenate(deviations) if deviations else np.zeros(1)
    passed = sum(case.passes(answer) for case, answer in zip(cases, seen, strict=True))
    return Judgement(
        name,
        size,
        answers["memory_mb"],
        float(joined.max()),
        float(joined.mean()),
        f"{passed}/{len(cases)}",
        answers["accuracy"],
    )


def excess(original: Judgement, variant: Judgement, limits: Mapping[str, float]) -> list[str]:
    """Return in which ways a variant loses more than the model allows."""
    found = []
    # Not a number is never within a limit.
    for key in ("max_deviation", "mean_deviation"):
        limit, seen = limits.get(key), getattr(variant, key)
        if limit is not None and not seen <= limit:
            found.append(f"{key} {seen:.3g} is above {limit:g}")
    if variant.accuracy is not None and original.accuracy is not None:
        limit, seen = limits.get("accuracy", 0.01), original.accuracy - variant.accuracy
        if seen > limit + 1e-9:
            found.append(f"accuracy falls by {seen:.3g}, above {limit:g}")
    passed, _slash, number = variant.golden.partition("/")
    if passed != number:
        found.append(f"{int(number) - int(passed)} of {number} golden cases fail")
    return found


def table(rows: Sequence[Judgement]) -> str:
    """Return the judgements as a Markdown table."""
    lines = [
        "| variant | bytes | memory, MiB | largest deviation | mean deviation | golden cases | accuracy |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.4f}"
        lines.append(
            f"| {row.model} | {row.bytes:,} | {row.memory_mb:.1f} | {row.max_deviation:.3g} | {row.mean_deviation:.3g} "
            f"| {row.golden} | {accuracy} |"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Judgement]) -> str:
    """Return the judgements as one line."""
    return json.dumps([asdict(row) for row in rows])


def answer(model: Path, golden: Path, evaluation: Path | None) -> dict[str, Any]:
    """Return what a model answers and the memory that this takes, seen in a process of its own. Raise MinifyError."""
    command = [sys.executable, __file__, str(model), str(golden), *([str(evaluation)] if evaluation else [])]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        raise MinifyError(
            f"ONNX Runtime does not run the model {model.name}. Seen: {lines[-1][:500]}. What to do: choose another "
            "recipe, or exclude the operator that it names."
        )
    answers: dict[str, Any] = pickle.loads(done.stdout)  # noqa: S301 - our own process wrote it
    return answers


def _answer(model: str, golden: str, evaluation: str = "") -> dict[str, Any]:
    import onnxruntime

    cases = read_cases(Path(golden))
    labelled = read_evaluation(Path(evaluation)) if evaluation else None
    before = _peak_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    known = {item.name for item in session.get_inputs()}

    def run(inputs: Arrays) -> Arrays:
        given = {name: array for name, array in inputs.items() if name in known}
        return dict(zip(names, session.run(names, given), strict=True))

    answers = [run(case.inputs) for case in cases]
    memory = _peak_memory() - before
    accuracy = None
    if labelled is not None:
        inputs, labels = labelled
        right = 0
        for start in range(0, len(labels), ROWS_AT_ONCE):
            part = {name: array[start : start + ROWS_AT_ONCE] for name, array in inputs.items()}
            right += int(np.sum(_classes(run(part)) == labels[start : start + ROWS_AT_ONCE]))
        accuracy = right / len(labels)
    return {"golden": answers, "memory_mb": memory, "accuracy": accuracy}


def _peak_memory() -> float:
    """Return the largest resident memory of this process so far, in MiB. (getrusage counts what its parent had.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def _classes(outputs: Arrays) -> Any:
    """Return the class of each row: where the first output of floating numbers is largest, or half or more if it
    is one probability."""
    scores = next((output for output in outputs.values() if output.dtype.kind == "f" and output.ndim == 2), None)
    if scores is None:
        raise ValueError("accuracy needs an output of floating numbers [rows, classes]")
    return scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] >= LIKELY).astype(np.int64)


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(_answer(*sys.argv[1:])))
