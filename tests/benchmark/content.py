# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What moving content from the store costs: `make bench-content`.

mirror_sync beside skopeo and docker in the same run: an image of 100 MB and a model of 500 MB, from Debian's registry
over TLS on loopback, cold, with nothing to do, and with 1 % changed. Bytes are those that leave the registry's port,
headers and TLS included, counted by the kernel.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._canonical import canonical_json
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import (
    IMAGE_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    LAYER_TAR,
    LAYER_TAR_GZIP,
    descriptor,
    sha256_digest,
)
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked, with_libraries
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import running_store
from ansible_collections.edgeml.fleet.tests.support.content import PACKAGES, Authority, Store, start_synchronization

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
MB = 1_000_000
REPEATS = 3
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
SKOPEO = ("skopeo", "libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1")


@contextlib.contextmanager
def counter(port: int) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the bytes that left a port of loopback so far."""
    chain = f"edgeml-bench-{port}"
    rule = ["OUTPUT", "--out-interface", "lo", "--protocol", "tcp", "--sport", str(port), "--jump", chain]

    def iptables(*arguments: str) -> str:
        done = subprocess.run(["iptables", "--wait", *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    def sent() -> int:
        listed = iptables("--list", chain, "--numeric", "--verbose", "--exact")
        return int(listed.splitlines()[2].split()[1])

    iptables("--new-chain", chain)
    iptables("--append", chain, "--jump", "RETURN")
    iptables("--insert", *rule)
    try:
        yield sent
    finally:
        iptables("--delete", *rule)
        iptables("--flush", chain)
        iptables("--delete-chain", chain)


def layer(size: int, compressed: bool) -> bytes:
    """Return a layer with one file of random bytes."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("content")
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return gzip.compress(data.getvalue(), 1, mtime=0) if compressed else data.getvalue()


def publish(store: Store, repository: str, layers: list[bytes], compressed: bool) -> dict[str, Any]:
    """Push an image of this machine's architecture; return its entry of the lock."""
    registry = store.registry()
    plain = [gzip.decompress(one) if compressed else one for one in layers]
    diff_ids = ["sha256:" + hashlib.sha256(one).hexdigest() for one in plain]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = canonical_json({"architecture": ARCHITECTURE, "os": "linux", "config": {}, "rootfs": rootfs})
    media_type = LAYER_TAR_GZIP if compressed else LAYER_TAR
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": descriptor(IMAGE_CONFIG, config),
            "layers": [descriptor(media_type, one) for one in layers],
        }
    )
    for blob in (*layers, config):
        registry.push_blob(repository, blob, sha256_digest(blob))
    registry.push_manifest(repository, sha256_digest(manifest), manifest, IMAGE_MANIFEST)
    platform = {"architecture": ARCHITECTURE, "os": "linux"}
    index = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [descriptor(IMAGE_MANIFEST, manifest, platform=platform)],
        }
    )
    registry.push_manifest(repository, sha256_digest(index), index, IMAGE_INDEX)
    size = len(manifest) + len(config) + sum(map(len, layers))
    return {
        "repository": repository,
        "digest": sha256_digest(index),
        "platforms": {ARCHITECTURE: {"digest": sha256_digest(manifest), "size": size}},
    }


class Ours:
    name = "mirror_sync"

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.root = directory / "mirror"

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def move(self, entry: dict[str, Any], serial: int) -> None:
        options = {
            "root": str(self.root),
            "store": self.store.options(),
            "lock": {"serial": serial, "images": {"a": entry}, "models": {}},
            "architectures": [ARCHITECTURE],
        }
        output = start_synchronization(options, stdout=subprocess.PIPE).communicate()[0].decode()
        assert output.startswith("Summary("), output


class Skopeo:
    name = "skopeo copy"

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.target = directory / "skopeo"
        programs = unpacked("skopeo", SKOPEO)
        self.program = programs / "usr/bin/skopeo"
        self.environment = with_libraries(programs)
        self.policy = directory / "policy.json"
        self.policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))

    def clear(self) -> None:
        shutil.rmtree(self.target, ignore_errors=True)

    def move(self, entry: dict[str, Any], serial: int) -> None:
        source = f"docker://{self.store.address}/{entry['repository']}@{entry['digest']}"
        command = [str(self.program), "--policy", str(self.policy), "copy", "--quiet", "--all", "--preserve-digests",
                   "--src-tls-verify=false", f"--src-creds={self.store.username}:{self.store.password}",
                   source, f"oci:{self.target}:a"]  # fmt: skip
        subprocess.run(command, check=True, env=self.environment)


class Docker:
    name = "docker pull"

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.environment = {**os.environ, "DOCKER_CONFIG": str(directory / "docker")}
        self.had: list[str] = []
        command = ["docker", "login", "--username", store.username, "--password-stdin", store.address]
        subprocess.run(command, input=store.password.encode(), check=True, env=self.environment, capture_output=True)

    def clear(self) -> None:
        if self.had:
            subprocess.run(["docker", "image", "rm", "--force", *self.had], check=True, capture_output=True)
            self.had = []

    def move(self, entry: dict[str, Any], serial: int) -> None:
        reference = f"{self.store.address}/{entry['repository']}@{entry['platforms'][ARCHITECTURE]['digest']}"
        subprocess.run(["docker", "pull", "--quiet", reference], check=True, env=self.environment, capture_output=True)
        self.had.append(reference)


def measure(store: Store, directory: Path, sent: Callable[[], int]) -> list[dict[str, Any]]:
    """Return one row for each content, case and tool."""
    image = [layer(11 * MB, True) for _ in range(9)] + [layer(MB, True)]
    model = [layer(500 * MB, False)]
    changed = {"image 100 MB": [*image[:-1], layer(MB, True)], "model 500 MB": [layer(500 * MB, False)]}
    first = {"image 100 MB": image, "model 500 MB": model}
    entries = {}
    for number, what in enumerate(first):
        compressed = what.startswith("image")
        entries[what] = [
            publish(store, f"bench/{number}", layers, compressed) for layers in (first[what], changed[what])
        ]
    missing = {
        what: {
            "cold": sum(map(len, first[what])),
            "nothing to do": 0,
            "1 % changed": sum(len(one) for one in changed[what] if one not in first[what]),
        }
        for what in first
    }
    del first, changed, image, model
    tools = (Ours(store, directory), Skopeo(store, directory), Docker(store, directory))
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for _ in range(REPEATS):
        for what, (old, new) in entries.items():
            for tool in tools:
                tool.clear()
                for serial, (case, entry) in enumerate((("cold", old), ("nothing to do", old), ("1 % changed", new))):
                    before, started = sent(), time.perf_counter()
                    tool.move(entry, 2 if serial == 2 else 1)
                    seconds = time.perf_counter() - started
                    row = rows.setdefault(
                        (what, case, tool.name),
                        {"content": what, "case": case, "tool": tool.name, "seconds": [], "bytes": [],
                         "missing": missing[what][case]},
                    )  # fmt: skip
                    row["seconds"].append(seconds)
                    row["bytes"].append(sent() - before)
                tool.clear()
    return [
        {**row, "seconds": statistics.median(row["seconds"]), "bytes": statistics.median(row["bytes"])}
        for row in rows.values()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures side by side, as Markdown."""
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    lines = ["| Content | Case | Missing bytes | " + " | ".join(f"{tool}: bytes, s" for tool in tools) + " |"]
    lines.append("|---|---|---|" + "---|" * len(tools))
    for what, case in dict.fromkeys((row["content"], row["case"]) for row in rows):
        found = {row["tool"]: row for row in rows if (row["content"], row["case"]) == (what, case)}
        cells = [f"{found[tool]['bytes']:,.0f}, {found[tool]['seconds']:.2f}" for tool in tools]
        lines.append(f"| {what} | {case} | {found[tools[0]]['missing']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, write build/bench/content.md and .json, and hold the figures against what must be reached."""
    with tempfile.TemporaryDirectory(prefix="bench-content-") as place:
        directory = Path(place)
        authority = Authority.made(directory)
        programs = unpacked("content-programs", PACKAGES)
        with (
            running_store(programs, authority, directory) as store,
            counter(int(store.address.rpartition(":")[2])) as sent,
        ):
            rows = measure(store, directory, sent)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    (RESULTS / "content.md").write_text(text)
    (RESULTS / "content.json").write_text(json.dumps(rows, indent=1))
    print(text)
    found = {(row["content"], row["case"], row["tool"]): row for row in rows}
    wrong = []
    for (what, case, tool), row in found.items():
        if tool != Ours.name:
            continue
        allowed = 1.02 * row["missing"] if row["missing"] > MB / 2 else 2048
        if row["bytes"] > allowed + (20_000 if row["missing"] else 0):
            wrong.append(f"{what}, {case}: {row['bytes']:,.0f} bytes instead of {row['missing']:,}")
        other = found[what, case, Skopeo.name]
        if case == "cold" and row["seconds"] > 1.2 * other["seconds"]:
            wrong.append(f"{what}, {case}: {row['seconds']:.2f} s, skopeo takes {other['seconds']:.2f} s")
    print("\n".join(wrong) or "All targets are reached.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
