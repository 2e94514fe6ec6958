# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seconds and memory of parsing, placing and validating large inventories: `make bench-inventory`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "runtime" / "benchmarks"))
from serving_bench.environments import make_environment  # noqa: E402  (which has matplotlib)

RESULTS = ROOT / "build" / "bench"
MODELS = 50
SIZES = (100, 1_000, 10_000)
HOSTS_PER_SITE = 50
#: `--list` repeats the catalogue for each host, which takes about 1.2 MB of memory each.
LIST_LIMIT = 1_000


def write_inventory(directory: Path, hosts: int) -> None:
    """Write an inventory of `hosts` devices in sites of 50, each with 50 models.

    Both architectures and many amounts of memory occur, half of the models have variants, each site has its own
    overrides, and so has one host in a hundred.
    """
    sites: dict[str, Any] = {}
    for index in range(hosts):
        site = sites.setdefault(f"site_{index // HOSTS_PER_SITE:04}", {"hosts": {}})
        variables: dict[str, Any] = {
            "ansible_host": f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}",
            "edgeml_architecture": "arm64" if index % 3 else "amd64",
            "edgeml_memory_mb": 1024 + index % 4096,
        }
        if index % 100 == 0:
            variables["edgeml_model_overrides"] = {"model_07": {"slo": {"p95_ms": 10 + index % 97}}}
        site["hosts"][f"device-{index:05}"] = variables
    for number, site in enumerate(sites.values()):
        site["vars"] = {"edgeml_model_overrides": {"model_03": {"slo": {"p95_ms": 30 + number % 50}}}}
    lines: dict[str, Any] = {
        f"line_{line}": {"hosts": {f"device-{i:05}": {} for i in range(line, hosts, 10)}} for line in range(10)
    }
    inventory = {"all": {"children": {"devices": {"children": sites}, **lines}}}
    directory.mkdir(parents=True)
    # JSON is YAML; Ansible reads it faster, as it would an inventory script's answer.
    (directory / "10-hosts.json").write_text(json.dumps(inventory))
    (directory / "20-placement.yml").write_text(yaml.safe_dump(placement(), sort_keys=False))


def placement() -> dict[str, Any]:
    """Return the plugin's file: 50 models on every device, by rules for all and rules for parts of the fleet."""
    catalogue = []
    for number in range(MODELS):
        model: dict[str, Any] = {
            "name": f"model_{number:02}",
            "version": f"1.{number}.0",
            "platform": "onnxruntime_onnx",
            "source": f"models/model_{number:02}",
            "requires": {"memory_mb": 100 + number, "packages": ["libgomp1"]},
            "slo": {"p95_ms": 25, "protocol": "grpc"},
            "options": {"batching": {"max_size": 8}},
        }
        if number % 2:
            model["variants"] = [
                {"name": "int8", "file": "int8.onnx", "when": {"architecture": "arm64", "max_memory_mb": 2048}},
                {"name": "fp16", "file": "fp16.onnx", "when": {"min_memory_mb": 3000}},
                {"name": "fp32", "file": "fp32.onnx"},
            ]
        catalogue.append(model)
    names = [model["name"] for model in catalogue]
    rules: list[dict[str, Any]] = [{"models": names[:40], "hosts": "devices"}]
    for line in range(10):
        slo = {"p95_ms": 20 + line}
        rules.append({"models": names[40:], "hosts": f"devices:&line_{line}", "slo": slo})
    runtimes = [{"name": "runtime", "recipe": "image.yml"}]
    return {
        "plugin": "edgeml.fleet.placement", "runtimes": runtimes, "catalogue": catalogue, "placement": rules,
    }  # fmt: skip


def measure(directory: Path) -> dict[str, float]:
    """Parse the inventory in this process; return seconds of the hosts' source and of the plugin, and peak memory."""
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader, inventory_loader

    init_plugin_loader()
    loader = DataLoader()
    started = time.perf_counter()
    manager = InventoryManager(loader, sources=[str(directory / "10-hosts.json")])
    hosts_read = time.perf_counter()
    before = peak_mebibytes()
    plugin = inventory_loader.get("edgeml.fleet.placement")
    plugin.parse(manager._inventory, loader, str(directory / "20-placement.yml"))
    placed = time.perf_counter()
    manager.reconcile_inventory()
    done = time.perf_counter()
    devices = manager.get_hosts("devices")
    if not devices or {len(host.vars["edgeml_placed"]) for host in devices} != {MODELS}:
        raise RuntimeError("the benchmark's inventory did not give each device its models")
    return {
        "hosts_seconds": hosts_read - started,
        "plugin_seconds": placed - hosts_read,
        "reconcile_seconds": done - placed,
        "hosts_mebibytes": before,
        "plugin_mebibytes": peak_mebibytes(),
    }


def peak_mebibytes() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(command: list[str], output: Path) -> tuple[float, float]:
    """Run a command with its output in a file; return seconds and peak memory in MiB."""
    started = time.perf_counter()
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def benchmark(sizes: list[int], with_lists: bool, list_limit: int) -> list[dict[str, float]]:
    """Return the figures of each size; `--list` without `--export` is left out above `list_limit` hosts."""
    results = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary, "fleet")
            write_inventory(directory, size)
            output = Path(temporary, "output")
            run([sys.executable, __file__, "--measure", str(directory)], output)
            figures: dict[str, float] = {"hosts": size, **json.loads(output.read_text())}
            if with_lists:
                command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(directory)]
                for name, arguments in {"list": ["--list"], "export": ["--list", "--export"]}.items():
                    if name == "list" and size > list_limit:
                        continue
                    seconds, memory = run([*command, *arguments], output)
                    figures |= {
                        f"{name}_seconds": seconds, f"{name}_mebibytes": memory,
                        f"{name}_output_mebibytes": output.stat().st_size / 2**20,
                    }  # fmt: skip
        results.append(figures)
        print(json.dumps({key: round(value, 2) for key, value in figures.items()}), flush=True)
    return results


def as_markdown(results: list[dict[str, float]]) -> str:
    """Return the figures as a table."""
    head = {
        "hosts": "hosts", "hosts_seconds": "hosts' source, s", "plugin_seconds": "plugin, s",
        "reconcile_seconds": "Ansible's reconciliation, s", "plugin_mebibytes": "peak, MiB",
        "list_seconds": "--list, s", "list_mebibytes": "--list peak, MiB",
        "list_output_mebibytes": "--list output, MiB",
        "export_seconds": "--list --export, s", "export_mebibytes": "--export peak, MiB",
        "export_output_mebibytes": "--export output, MiB",
    }  # fmt: skip
    keys = [key for key in head if key in results[0]]
    lines = [f"# Inventories of {MODELS} models on each host", ""]
    lines += ["| " + " | ".join(head[key] for key in keys) + " |", "|" + "---:|" * len(keys)]
    for figures in results:
        cells = [f"{figures[key]:,.{0 if key == 'hosts' else 2}f}" if key in figures else "" for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all sizes and write build/bench/inventory.md, .json and .svg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of hosts")
    parser.add_argument("--no-list", action="store_true", help="measure the plugin alone, not ansible-inventory")
    parser.add_argument("--list-limit", type=int, default=LIST_LIMIT, help="most hosts for --list without --export")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    results = benchmark(list(options.sizes), not options.no_list, options.list_limit)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "inventory.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "inventory.md").write_text(as_markdown(results))
    print(as_markdown(results))
    subprocess.run([make_environment("driver"), Path(__file__).with_name("inventory_chart.py")], check=True)


if __name__ == "__main__":
    main()
