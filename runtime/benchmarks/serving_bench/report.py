# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The report as Markdown, from results alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from serving_bench.options import ENCODINGS, OURS
from serving_bench.ratios import against_best, engine_figures, engine_median, load_figures, ratio, start_figures
from serving_bench.results import Results
from serving_bench.targets import Target, targets

TITLES = {
    "edgeml": "**edgeml-runtime**",
    "mlserver": "MLServer",
    "mlserver-no-pool": "MLServer, no worker pool",
    "kserve": "KServe",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "pytriton": "PyTriton",
    "echo": "*floor: C echo*",
    "echo-h2": "*floor: nghttpd*",
}
MODEL_TITLES = {
    "tiny": "tiny: perceptron 4-16-3",
    "tree": "tree: 100 boosted trees, 30 features",
    "vision": "vision: SqueezeNet, 3x224x224",
    "file_type": "file_type: magika's detector, 2048 bytes",
}
ABSENT = "-"
MEBIBYTE = 1024 * 1024
QUIET_PERCENT = 3.0
"""Of the machine's processor time, taken by others."""

METHOD = """\
## How it is measured

- All servers serve the same ONNX files with the same version of ONNX Runtime, one engine thread per run, defaults
  otherwise, quiet logs. Answers are compared with the engine's own before and after every measurement.
- All are up at the same time. Each question (model, encoding, number of clients) is put to one server right after the
  other, in another order each time; every round starts all servers anew.
- Load client: h2load, for HTTP/1.1 and for gRPC. Percentiles are computed from its log of every request; what is still
  unanswered when a run ends is not in it.
- One client: client and server share one core, so that the scheduler's placement does not decide; 8 and 32 clients:
  both cores are free for both. The client's own share is inside all figures; the floors show it.
- Figures are medians of the rounds; ratios are medians of the rounds' own ratios. Only ratios compare between machines.
- The best peer is the one with the best median in that very column. LitServe and BentoML do not speak the Open
  Inference Protocol: they get the same tensor at their own JSON endpoint.
- In-process: one process that calls the engine in a loop; "both cores": two of them at once.
- Memory is PSS of the whole process tree: idle after every model has answered once, then with 32 clients asking, the
  most that was seen. Cold start is from the start of the process until every model has given a right answer (JSON),
  files cached, bytecode compiled. Size is the virtual environment on disk, without pip.
- CPU is user and system time of the server's process tree.
"""


def write_report(results: Results, file: Path) -> None:
    """Write the Markdown file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(report(results), encoding="utf-8")


def report(results: Results) -> str:
    """The whole report."""
    parts = ["# Inference servers side by side\n", _about(results), _targets(targets(results))]
    parts.append(_footprint(results))
    for model in results.models:
        parts.append(_model(results, model))
    if results.absences:
        parts.append("## Not measured\n")
        rows = [(each.server, each.model, each.encoding, _one_line(each.reason)) for each in results.absences]
        parts.append(table(["Server", "Model", "Encoding", "Why"], dict.fromkeys(rows)))
    parts.append(METHOD)
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def microseconds(value: float) -> str:
    """A duration that people can read; from 10,000 µs on in ms."""
    return f"{value / 1000:.1f} ms" if value >= 10_000 else f"{value:.0f} µs"


def _about(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['started']}, commit {about['commit']}, {about['cores']} cores of {about['processor']}, Linux "
        f"{about['kernel']}, Python {about['python']}. {about['rounds']} rounds in {about.get('seconds', 0) / 60:.0f} "
        f"minutes; runs of at least {about['run_seconds']} s. {about['client']}. {versions}.\n\n{_others(results)}"
    )


def _others(results: Results) -> str:
    if not results.others_percent:
        return ""
    usual, most = median(results.others_percent), max(results.others_percent)
    verdict = "" if usual < QUIET_PERCENT else " **The machine was not quiet: the figures are provisional.**"
    return f"Other processes took {usual:.1f} % of the machine (median; at most {most:.1f} %).{verdict}\n"


def _targets(found: Sequence[Target]) -> str:
    rows = []
    for target in found:
        bound = f"{'≥' if target.at_least else '≤'} {target.limit:g}"
        verdict = {True: "reached", False: "**missed**", None: "not measured"}[target.reached]
        value = ABSENT if target.found is None else f"{target.found:.3f}"
        rows.append([target.what, bound, value, target.against, verdict])
    reached = sum(target.reached is True for target in found)
    measured = sum(target.reached is not None for target in found)
    head = ["edgeml-runtime divided by ...", "Target", "Found", "... this", ""]
    return f"## Targets: {reached} of {measured} reached\n\n" + table(head, rows)


def _footprint(results: Results) -> str:
    measures: list[tuple[str, Callable[[float], str]]] = [
        ("cold_start_seconds", lambda value: f"{value:.2f} s"),
        ("idle_pss_bytes", lambda value: f"{value / MEBIBYTE:.0f} MiB"),
        ("loaded_pss_bytes", lambda value: f"{value / MEBIBYTE:.0f} MiB"),
        ("idle_cpu_percent", lambda value: f"{value:.1f} %"),
    ]
    figures = {name: start_figures(results, name) for name, _ in measures}
    rows = []
    for server in results.servers:
        if server not in results.installed_bytes:
            continue
        size = f"{results.installed_bytes[server] / MEBIBYTE:.0f} MiB"
        rows.append([TITLES[server], *(_median(figures[name].get(server), text) for name, text in measures), size])
    compared = [against_best(figures[name], lowest=True) for name, _ in measures[:3]]
    best = min((size for name, size in results.installed_bytes.items() if name != OURS), default=0)
    ours = results.installed_bytes.get(OURS)
    size = f"{ours / best:.2f}" if ours and best else ABSENT
    texts = [f"{each.ratio:.2f}" if each else ABSENT for each in compared]
    rows.append(["ours / best peer", *texts, "", size])
    head = ["All models loaded", "Cold start", "Memory idle", "Memory, 32 clients", "CPU idle", "Installed size"]
    return "## Footprint\n\n" + table(head, rows)


def _model(results: Results, model: str) -> str:
    p50, p99, two = (engine_median(results, name, model) for name in ("p50_us", "p99_us", "two_per_second"))
    parts = [f"## {MODEL_TITLES[model]}\n"]
    if p50 and p99 and two:
        parts.append(
            f"In-process: p50 {microseconds(p50)}, p99 {microseconds(p99)}; {two:,.0f} per second on both cores.\n"
        )
    parts.append("One client on one core, p50 / p95 / p99:\n")
    parts.append(_latency(results, model))
    parts.append("Requests per second with 8 / 32 clients:\n")
    parts.append(_grid(results, model, (8, 32), "per_second", lambda value: f"{value:,.0f}", lowest=False))
    parts.append("p99 with 8 / 32 clients:\n")
    parts.append(_grid(results, model, (8, 32), "p99_us", microseconds, lowest=True))
    parts.append("CPU seconds per 1,000 requests with 8 clients:\n")
    parts.append(_grid(results, model, (8,), "cpu_seconds_per_1000", lambda value: f"{value:.2f}", lowest=True))
    return "\n".join(parts)


def _latency(results: Results, model: str) -> str:
    rows = []
    for server in _shown(results, model):
        cells = []
        for encoding in ENCODINGS:
            each = [
                load_figures(results, measure, model, encoding, 1).get(server)
                for measure in ("p50_us", "p95_us", "p99_us")
            ]
            cells.append(" / ".join(_median(figures, microseconds) for figures in each) if each[0] else ABSENT)
        rows.append([TITLES[server], *cells])
    p50 = {encoding: load_figures(results, "p50_us", model, encoding, 1) for encoding in ENCODINGS}
    rows.append(_compared(p50, lowest=True))
    engine = {each: engine_figures(results, "p50_us", model, each) for each in ENCODINGS}
    rows.append(["ours / in-process", *(_number(ratio(p50[each].get(OURS, {}), engine[each])) for each in ENCODINGS)])
    return table(["", *ENCODINGS], rows)


def _grid(
    results: Results,
    model: str,
    clients: Sequence[int],
    measure: str,
    text: Callable[[float], str],
    *,
    lowest: bool,
) -> str:
    figures = {
        (encoding, count): load_figures(results, measure, model, encoding, count)
        for encoding in ENCODINGS
        for count in clients
    }
    rows = []
    for server in _shown(results, model):
        cells = []
        for encoding in ENCODINGS:
            each = [_median(figures[encoding, count].get(server), text) for count in clients]
            cells.append(ABSENT if set(each) == {ABSENT} else " / ".join(each))
        rows.append([TITLES[server], *cells])
    rows.append(["ours / best peer", *(_compared_cell(figures, encoding, clients, lowest) for encoding in ENCODINGS)])
    if measure == "per_second":
        ceiling = {encoding: engine_figures(results, "two_per_second", model, encoding) for encoding in ENCODINGS}
        cells = [
            " / ".join(_number(ratio(figures[encoding, count].get(OURS, {}), ceiling[encoding])) for count in clients)
            for encoding in ENCODINGS
        ]
        rows.append(["ours / in-process, both cores", *cells])
    return table(["", *ENCODINGS], rows)


def _compared_cell(
    figures: Mapping[tuple[str, int], Mapping[str, Mapping[int, float]]],
    encoding: str,
    clients: Sequence[int],
    lowest: bool,
) -> str:
    found = [against_best(figures[encoding, count], lowest=lowest) for count in clients]
    others = " / ".join(dict.fromkeys(each.other for each in found if each))
    return " / ".join(_number(each.ratio if each else None) for each in found) + (f" ({others})" if others else "")


def _compared(figures: Mapping[str, Mapping[str, Mapping[int, float]]], *, lowest: bool) -> list[str]:
    cells = []
    for encoding in ENCODINGS:
        found = against_best(figures[encoding], lowest=lowest)
        cells.append(f"{found.ratio:.2f} ({found.other})" if found else ABSENT)
    return ["ours / best peer", *cells]


def _shown(results: Results, model: str) -> list[str]:
    measured = {sample.server for sample in results.samples if sample.model == model}
    return [server for server in results.servers if server in measured]


def _median(figures: Mapping[int, float] | None, text: Callable[[float], str]) -> str:
    return text(median(figures.values())) if figures else ABSENT


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:200]
