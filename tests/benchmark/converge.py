# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a converge of hosts of which nothing changed costs the controller: `make bench-converge`.

One device of the lab is reached over SSH under many names, each by a connection of its own, and converged by
`edgeml.fleet.site`; another one, in the same run, by a plain playbook of builtin and community.docker modules that does
the same job (converge_plain.yml); and `edgeml.fleet.preflight` looks at the first one under its many names. The lab's
hosts run on this machine as well, so that seconds include their work; CPU is that of ansible-playbook and its children
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.edgeml.fleet.tests.lab.lab import Lab, pristine_lab
from ansible_collections.edgeml.fleet.tests.lab.topology import Topology

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "runtime" / "benchmarks"))
from serving_bench.environments import make_environment  # noqa: E402  (which has matplotlib)

RESULTS = ROOT / "build" / "bench"
INVENTORY = ROOT / "inventories" / "lab"
SIZES = (10, 50, 100)
REPEATS = 3
OURS, PLAIN = "berlin-amd64", "berlin-spare"
MEASURED = ("site", "plain", "preflight")
RECAP = re.compile(r"^\S+\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def playbook(*arguments: str | Path) -> dict[str, float]:
    """Run ansible-playbook; return seconds, seconds of CPU of it and its children, and tasks and changes per host."""
    command = [Path(sys.executable).with_name("ansible-playbook"), *arguments]
    started = time.perf_counter()
    # A file, since nobody reads while this waits.
    output = RESULTS / "converge" / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    text = output.read_text()
    recaps = [tuple(map(int, match.groups())) for match in RECAP.finditer(text)]
    if status != 0 or not recaps:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{text[-4000:]}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "tasks": sum(recap[0] for recap in recaps) / len(recaps),
        "changed": sum(recap[1] for recap in recaps),
    }


def write_names(lab: Lab, count: int, group: str, host: str, variables: dict[str, Any]) -> Path:
    """Write an inventory source with `count` names of one host in `group`."""
    pki = lab.state / "state" / "pki"
    own = {
        "ansible_host": lab.topology.host(host).address,
        "ansible_user": "edge",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(lab.state / "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile='\"{lab.state / 'known_hosts'}\"' -o IdentitiesOnly=yes",
        "ansible_control_path": "%(directory)s/{{ inventory_hostname }}",
        "edgeml_tls_certificate_file": str(pki / f"{host}.crt"),
        "edgeml_tls_key_file": str(pki / f"{host}.key"),
        "edgeml_build_directory": str(ROOT / "build"),
        **variables,
    }
    names: dict[str, Any] = {f"{group}-{number:03}": {} for number in range(count)}
    path = RESULTS / "converge" / f"{group}.yml"
    path.write_text(yaml.safe_dump({group: {"hosts": names, "vars": own}}, width=1000))
    return path


def plain_variables(lab: Lab) -> dict[str, Any]:
    """Return what the plain playbook serves: the image, the model and the secrets that ours would."""
    state = lab.state / "state"
    lock = yaml.safe_load((state / "fleet.lock.yml").read_text())
    image = lock["images"]["runtime"]
    digest = lock["models"]["digits"]["1.0.0"]["variants"]["default"]["blob"]["digest"]
    model = {"name": "digits", "version": "1.0.0", "path": "/models/digits"}
    return {
        "registry": lock["registry"],
        "registry_address": lab.topology.host("berlin-mirror").address,
        "ca_file": str(state / "pki" / "ca.crt"),
        "certificate_file": str(state / "pki" / f"{PLAIN}.crt"),
        "key_file": str(state / "pki" / f"{PLAIN}.key"),
        "token": (state / "inference_token").read_text().strip(),
        "image": f"{lock['registry']}/{image['repository']}@{image['platforms']['amd64']['digest']}",
        "model": digest.partition(":")[2],
        "model_digest": digest,
        "configuration": {
            "listen": {"rest": ["0.0.0.0:8000"], "grpc": ["0.0.0.0:8001"], "metrics": ["0.0.0.0:8002"]},
            "tls": {"certificate": "/etc/plain/server.crt", "key": "/etc/plain/server.key"},
            "bearer_token_file": "/etc/plain/bearer_token",
            "models": [model],
        },
    }


def prepare(lab: Lab) -> None:
    """Bring up the lab's centre, mirror and two devices, each converged once in its way."""
    for name in ("certificates", "store", "publish", "site"):
        limit = [] if name == "publish" else ["--limit", f"central,berlin-mirror,{OURS}"]
        if name == "certificates":
            limit = []
        playbook("-i", INVENTORY, f"edgeml.fleet.{name}", *limit)
    lab.run(PLAIN, "sudo apt-get update -qq", check=True)
    source = write_names(lab, 1, "plain", PLAIN, plain_variables(lab))
    playbook("-i", source, Path(__file__).with_name("converge_plain.yml"))


def benchmark(lab: Lab, sizes: Sequence[int], repeats: int, plain_limit: int) -> list[dict[str, float]]:
    """Return the figures of each size, medians of runs in turns; the plain playbook runs up to `plain_limit` hosts."""
    results = []
    for size in sizes:
        devices = write_names(lab, size, "many", OURS, {"inference_runtime_server_name": OURS})
        # The placement of the lab is for its group of devices.
        devices.write_text(devices.read_text() + yaml.safe_dump({"devices": {"children": {"many": {}}}}))
        plain = write_names(lab, size, "plain", PLAIN, plain_variables(lab))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURED}
        for _ in range(repeats):
            for name in ("site", "preflight"):
                command = ("-i", devices, "-i", INVENTORY, f"edgeml.fleet.{name}", "--limit", "many")
                found[name].append(playbook(*command))
            if size <= plain_limit:
                found["plain"].append(playbook("-i", plain, Path(__file__).with_name("converge_plain.yml")))
        if changed := [run for runs in found.values() for run in runs if run["changed"]]:
            raise RuntimeError(f"runs that should change nothing did: {changed}")
        figures: dict[str, float] = {"hosts": size}
        for name, runs in found.items():
            if not runs:
                continue
            middle = sorted(runs, key=lambda run: run["cpu_seconds"])[len(runs) // 2]
            figures |= {
                f"{name}_seconds": middle["seconds"],
                f"{name}_cpu_ms": middle["cpu_seconds"] * 1000 / size,
                f"{name}_hosts_per_minute": size * 60 / middle["seconds"],
                f"{name}_tasks": middle["tasks"],
            }
        results.append(figures)
        print(json.dumps({key: round(value, 1) for key, value in figures.items()}), flush=True)
    return results


def as_markdown(results: Sequence[dict[str, float]]) -> str:
    """Return the figures as a table, with what a further host costs and what larger fleets would take."""
    keys = ("tasks", "cpu_ms", "hosts_per_minute", "seconds")
    head = ["hosts"] + [f"{name}: {key.replace('_', ' ')}" for key in keys for name in MEASURED]
    lines = ["# A converge that changes nothing", "", "| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for figures in results:
        cells = [f"{figures['hosts']:.0f}"]
        known = [figures.get(f"{name}_{key}") for key in keys for name in MEASURED]
        cells += ["" if figure is None else f"{figure:,.1f}" for figure in known]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for name in MEASURED:
        measured = [figures for figures in results if f"{name}_seconds" in figures]
        if len(measured) > 1:
            first, last = measured[0], measured[-1]
            more = last["hosts"] - first["hosts"]
            cpu, seconds = (
                (last[f"{name}_{key}"] * factor(last) - first[f"{name}_{key}"] * factor(first)) / more
                for key, factor in (("cpu_ms", lambda one: one["hosts"]), ("seconds", lambda one: 1.0))
            )
            lines.append(
                f"{name}: each further host costs {cpu:.0f} ms of controller CPU and {seconds * 1000:.0f} ms; at that "
                f"rate 1,000 hosts take {seconds * 1000 / 60:.1f} minutes and 10,000 take {seconds * 10_000 / 60:.0f}."
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all sizes and write build/bench/converge.md, .json and .svg."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of each size, of which the median counts")
    parser.add_argument(
        "--plain-limit",
        type=int,
        default=max(SIZES),
        help="most hosts for the plain playbook, which takes the lab's hosts minutes",
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of hosts")
    options = parser.parse_args()
    (RESULTS / "converge").mkdir(parents=True, exist_ok=True)
    with pristine_lab(Topology.named("fleet")) as lab:
        for host in (OURS, PLAIN):  # many connections at once are what is measured, not what sshd refuses
            lab.run(
                host, "echo MaxStartups 500 | sudo tee -a /etc/ssh/sshd_config && sudo systemctl reload ssh", check=True
            )
        prepare(lab)
        results = benchmark(lab, list(options.sizes), options.repeats, options.plain_limit)
    (RESULTS / "converge.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "converge.md").write_text(as_markdown(results))
    print(as_markdown(results))
    subprocess.run([make_environment("driver"), Path(__file__).with_name("converge_chart.py")], check=True)


if __name__ == "__main__":
    main()
