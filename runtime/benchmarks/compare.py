# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Compare this tree's figures with an earlier commit's: the benchmark on both, one after the other, round by round.

``python runtime/benchmarks/compare.py COMMIT [options of the benchmark]``. The commit is checked out below build/; what
both trees have alike (peers, models) is made once. Prints the ratios to the best peer and to the engine alone for both.
"""

import dataclasses
import filecmp
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving_bench.options import OURS, Options, read_options
from serving_bench.places import RESULTS, ROOT, WORK
from serving_bench.ratios import against_best, engine_figures, load_figures, ratio
from serving_bench.report import table
from serving_bench.results import Results, read_results

BASE = ROOT / "build" / "bench-base"
#: How much worse a ratio may become.
BOUND = 0.03


def main() -> None:
    """Measure both trees, then print the table."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit("which commit is the base? As in: make bench-compare BASE=v1.0.0")
    commit, arguments = sys.argv[1], sys.argv[2:]
    options = read_options(arguments)
    subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(BASE)], capture_output=True)
    subprocess.run(["git", "-C", str(ROOT), "worktree", "prune"], check=True)
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(BASE), commit], check=True)
    found: dict[Path, list[Results]] = {BASE: [], ROOT: []}
    for number in range(options.rounds):
        for tree in (ROOT, BASE) if number % 2 == 0 else (BASE, ROOT):
            if tree is BASE and not number:
                _share(options)  # what this tree's first round has made
            print(f"round {number + 1} of {options.rounds}: {commit if tree is BASE else 'this tree'}", flush=True)
            script = tree / "runtime" / "benchmarks" / "run.py"
            subprocess.run([sys.executable, str(script), *arguments, "--rounds", "1"], check=True, stdout=sys.stderr)
            found[tree].append(read_results(tree / RESULTS.relative_to(ROOT) / "runtime.json"))
    print(comparison(joined(found[BASE]), joined(found[ROOT]), options))


def _share(options: Options) -> None:
    """Let the base use environments and models that would become the same."""
    here, there = WORK, BASE / WORK.relative_to(ROOT)
    (there / "environments").mkdir(parents=True, exist_ok=True)
    files = {"driver": "runtime/benchmarks/requirements/driver.txt", "models": "requirements/models.txt"}
    for name in {server.removesuffix("-no-pool") for server in options.servers}:
        files[name] = f"runtime/benchmarks/requirements/{name}.txt"
    for name, file in files.items():
        made = here / "environments" / name
        if (ROOT / file).exists() and made.exists() and _is_same(file):
            (there / "environments" / name).symlink_to(made)
    if (here / "models").exists() and _is_same("runtime/benchmarks/build_models.py"):
        (there / "models").symlink_to(here / "models")


def _is_same(file: str) -> bool:
    return (BASE / file).exists() and filecmp.cmp(ROOT / file, BASE / file, shallow=False)


def joined(runs: Sequence[Results]) -> Results:
    """The rounds of several runs as those of one."""
    whole = dataclasses.replace(runs[0], samples=[], starts=[], engine=[])
    for number, run in enumerate(runs):
        whole.samples += [dataclasses.replace(each, round=number) for each in run.samples]
        whole.starts += [dataclasses.replace(each, round=number) for each in run.starts]
        whole.engine += [dataclasses.replace(each, round=number) for each in run.engine]
    return whole


def comparison(base: Results, now: Results, options: Options) -> str:
    """A table of the ratios in both trees; what became worse by more than the bound is marked."""
    rows = []
    worse = 0
    for model in options.models:
        for encoding in options.encodings:
            for what, clients in (("p50", min(options.clients)), ("per second", max(options.clients))):
                for against in ("best peer", "engine alone"):
                    before, after = (_ratio(each, model, encoding, what, clients, against) for each in (base, now))
                    if before is None or after is None:
                        continue
                    change = after / before - 1 if what == "p50" else before / after - 1
                    worse += change > BOUND
                    mark = "**worse**" if change > BOUND else ""
                    name = f"{model}, {encoding}: {what} of {clients}, to the {against}"
                    rows.append([name, f"{before:.3f}", f"{after:.3f}", f"{100 * change:+.1f} %", mark])
    head = ["Ratio", "Base", "This tree", "Slower by", ""]
    return f"{table(head, rows)}\n{worse} of {len(rows)} ratios are worse by more than {100 * BOUND:.0f} %."


def _ratio(results: Results, model: str, encoding: str, what: str, clients: int, against: str) -> float | None:
    measure, engine = ("p50_us", "p50_us") if what == "p50" else ("per_second", "two_per_second")
    figures = load_figures(results, measure, model, encoding, clients)
    if against == "engine alone":
        return ratio(figures.get(OURS, {}), engine_figures(results, engine, model, encoding))
    found = against_best(figures, lowest=what == "p50")
    return found.ratio if found else None


if __name__ == "__main__":
    main()
