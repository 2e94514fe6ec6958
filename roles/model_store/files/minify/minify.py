# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a smaller variant of a model, judge it against the original, and write it as a model directory.

Nothing is written that loses more than it may; the program then says why, with a table, and ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import judge
from golden import MinifyError, loosened, read_cases
from recipes import Recipe, apply, external_files


def main() -> None:
    """Run the command line: `--options JSON --output DIR`."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # the libraries iterate over sets of names
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": sys.pycache_prefix or ""}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--options", required=True, type=json.loads, help="what publish planned, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="directory to write, which exists")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        print(minify(arguments.options, arguments.output))
    except MinifyError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def minify(options: dict[str, Any], output: Path) -> str:
    """Make and judge a variant. Return the table and, as the last line, the same as JSON. Raise MinifyError."""
    source, asked = Path(options["source"]), options["minify"]
    original = source / asked["from"]
    if not original.is_file():
        raise MinifyError(
            f"The model that variant {options['variant']} is made from is missing. Seen: no file {original}. What to "
            "do: correct `from`."
        )
    golden = Path(options["golden"] or source / "golden")
    cases = read_cases(golden)
    calibration = read_cases(Path(options["calibration"])) if options["calibration"] else cases
    limits = options["max_loss"]

    left_out = {asked["from"], *options["others"]}
    for name in list(left_out):
        path = source / name
        if path.suffix == ".onnx" and path.is_file():
            left_out |= {(Path(name).parent / other).as_posix() for other in external_files(path)}
    _copy(source, output, left_out)
    shutil.rmtree(output / "golden", ignore_errors=True)
    (output / "golden").mkdir()
    for case in cases:
        text = loosened(case, limits.get("max_deviation", 0.0))
        (output / "golden" / case.path.name).write_text(text, encoding="utf-8")

    made = output / "model.onnx"
    excluded = tuple(asked.get("exclude_operators", ())), tuple(asked.get("exclude_nodes", ()))
    apply(Recipe(asked["recipe"], *excluded), original, made, (case.inputs for case in calibration))

    evaluation = source / options["evaluation"] if options["evaluation"] else None
    own_cases = read_cases(output / "golden")
    before, after = (judge.answer(model, golden, evaluation) for model in (original, made))
    rows = [
        judge.judge(name, _size(model), before["golden"], own_cases, answers)
        for name, model, answers in ((asked["from"], original, before), (options["variant"], made, after))
    ]
    text = judge.table(rows)
    if reasons := judge.excess(*rows, limits):
        raise MinifyError(
            f"Variant {options['variant']} ({asked['recipe']}) of model {options['name']} {options['version']} loses "
            f"more than the model allows. Seen: {'; '.join(reasons)}.\n{text}\nWhat to do: exclude operators, choose "
            "another recipe, or raise max_loss in the catalogue."
        )
    return f"{text}\n{judge.as_json(rows)}"


def _copy(source: Path, output: Path, left_out: set[str]) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if "__pycache__" in name.parts or name.as_posix() in left_out or not path.is_file():
            continue
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output / name)


def _size(model: Path) -> int:
    return model.stat().st_size + sum((model.parent / name).stat().st_size for name in external_files(model))


if __name__ == "__main__":
    main()
