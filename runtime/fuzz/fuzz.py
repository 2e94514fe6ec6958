# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Fuzz the parsers with atheris, guided by coverage, for a bounded time; write build/fuzz/fuzz.md and .json.

Every target gets the same share of the time. What breaks one is kept in build/fuzz/TARGET/findings;
once mended it goes to runtime/fuzz/corpus/TARGET, which the tests replay.
What is found does not depend on how fast the machine is or what else it does: connections live in a time of their own
(virtual_time.py), a parser may take so much processor time, and inputs that a peer does not answer are counted apart.
Exit code 1 when anything was found.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "fuzz"
MOST_FINDINGS = 10
INPUT_BYTES = 4096
#: Processor time that an input may take; instrumented and traced, the longest take some tenths of a second.
MOST_SECONDS = 20
# Of an input that takes no processor time and yet does not end.
STUCK_SECONDS = 900

sys.path[:0] = [str(HERE.parent / "src"), str(HERE), str(HERE.parent / "tests" / "support")]


def main() -> None:
    """Parse the command line; fuzz one target in this process, or all in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together (default: 10)")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time (default: 1)")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("libfuzzer", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lines:
        _replay()
    elif arguments.target:
        _fuzz(arguments.target, arguments.libfuzzer)
    else:
        sys.exit(_all(arguments.minutes, arguments.jobs))


def _fuzz(target: str, libfuzzer: list[str]) -> None:
    with atheris.instrument_imports(include=["edgeml_runtime"]):
        from signatures import Broken
        from targets import TARGETS
    function = TARGETS[target]

    def one_input(data: bytes) -> None:
        started = time.process_time()
        skipped = function(data)
        if skipped:
            print(f"skipped: {skipped}", flush=True)
        elif (taken := time.process_time() - started) > MOST_SECONDS:
            raise Broken(f"{len(data)} bytes took {taken:.1f} s of processor time")

    atheris.Setup([sys.argv[0], *libfuzzer], one_input)
    atheris.Fuzz()


def _all(minutes: float, jobs: int) -> int:
    from targets import TARGETS, seeds

    for target in TARGETS:
        corpus = BUILD / target / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for index, seed in enumerate(seeds(target)):
            (corpus / f"seed-{index}").write_bytes(seed)
    seconds = minutes * 60 * jobs / len(TARGETS)
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda target: _campaign(target, seconds), TARGETS))
    lines = subprocess.run([sys.executable, __file__, "--lines"], stdout=subprocess.PIPE, check=True, text=True).stdout
    _report(minutes, results, json.loads(lines.splitlines()[-1]))
    return 1 if any(result["findings"] for result in results) else 0


def _campaign(target: str, seconds: float) -> dict[str, object]:
    """Fuzz a target, again after each finding, until the time is over."""
    directory = BUILD / target
    (directory / "findings").mkdir(exist_ok=True)
    earlier = HERE / "corpus" / target
    end = time.monotonic() + seconds
    executions = edges = skipped = round_ = 0
    findings: list[dict[str, str]] = []
    while (left := int(end - time.monotonic())) > 0 and len(findings) < MOST_FINDINGS:
        round_ += 1
        log = directory / f"{round_}.log"
        with log.open("wb") as output:
            code = subprocess.run(
                [
                    *(sys.executable, __file__, "--target", target, "--"),
                    *(f"-max_total_time={left}", f"-max_len={INPUT_BYTES}", f"-timeout={STUCK_SECONDS}"),
                    *("-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={directory}/findings/"),
                    *(str(directory / "corpus"), *([str(earlier)] if earlier.is_dir() else [])),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        text = log.read_text(errors="replace")
        counts = [int(number) for number in re.findall(r"^#(\d+)\s", text, re.MULTILINE)]
        counts += [int(number) for number in re.findall(r"number_of_executed_units:\s*(\d+)", text)]
        executions += max(counts, default=0)
        skipped += len(re.findall(r"^skipped: ", text, re.MULTILINE))
        edges = max([edges, *(int(number) for number in re.findall(r" cov: (\d+)", text))])
        if code:
            artifact = re.search(r"Test unit written to (\S+)", text)
            reason = re.search(r"=== Uncaught Python exception: ===\n(.*)|ERROR: libFuzzer: (.*)", text)
            findings.append(
                {
                    "input": artifact.group(1) if artifact else "",
                    "reason": next(filter(None, reason.groups())) if reason else f"exit code {code}, see {log}",
                }
            )
            print(f"{target}: {findings[-1]['reason']}", flush=True)
    corpus = len(list((directory / "corpus").iterdir()))
    print(f"{target}: {executions} executions, {edges} edges, {skipped} skipped, {len(findings)} findings", flush=True)
    return {
        **{"target": target, "seconds": round(seconds), "executions": executions},
        **{"edges": edges, "corpus": corpus, "skipped": skipped, "findings": findings},
    }


def _replay() -> None:
    """Print the statement coverage that the collected inputs reach, by file of the parsers, as JSON."""
    import coverage
    from signatures import Broken

    source = HERE.parent / "src" / "edgeml_runtime"
    measured = coverage.Coverage(include=[f"{source}/*"], branch=True, data_file=None)
    measured.start()
    from targets import TARGETS

    for target, function in TARGETS.items():
        for directory in (BUILD / target / "corpus", HERE / "corpus" / target):
            for kept in sorted(directory.glob("*")):
                with suppress(Broken):  # a finding: it was told when it was found
                    function(kept.read_bytes())
    measured.stop()
    percentages = {}
    for file in PARSERS:
        _, statements, _, missing, _ = measured.analysis2(str(source / file))
        percentages[file] = {
            "percent": round(100 * (1 - len(missing) / max(1, len(statements))), 1),
            "missing_lines": missing,
        }
    print(json.dumps(percentages))


PARSERS = (
    "codecs/compression.py",
    "codecs/json_binary.py",
    "codecs/large_json.py",
    "codecs/protobuf.py",
    "codecs/request.py",
    "tensors.py",
    "transports/grpc/call.py",
    "transports/grpc/http2.py",
    "transports/http/connection.py",
    "transports/http/rest.py",
)


def _report(minutes: float, results: list[dict[str, object]], lines: dict[str, dict[str, object]]) -> None:
    total = sum(int(str(result["executions"])) for result in results)
    text = [
        "# Fuzzing the parsers",
        "",
        f"{minutes:g} minutes, {total:,} executions, coverage-guided (atheris).",
        "",
        "Skipped: a peer gave no answer, or another each time.",
        "",
        "| Target | Executions | Edges | Inputs kept | Skipped | Findings |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        findings = result["findings"]
        count = len(findings) if isinstance(findings, list) else 0
        counts = (result["edges"], result["corpus"], result["skipped"], count)
        text.append(f"| {result['target']} | {result['executions']:,} | {' | '.join(map(str, counts))} |")
    text += ["", "| File | Statements reached |", "|---|---|"]
    text += [f"| {file} | {reached['percent']} % |" for file, reached in lines.items()]
    for result in results:
        for finding in result["findings"] if isinstance(result["findings"], list) else ():
            text += ["", f"**{result['target']}**: {finding['reason']} (`{finding['input']}`)"]
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "fuzz.md").write_text("\n".join(text) + "\n")
    (BUILD / "fuzz.json").write_text(json.dumps({"minutes": minutes, "targets": results, "lines": lines}, indent=1))
    print("\n".join(text))


if __name__ == "__main__":
    main()
