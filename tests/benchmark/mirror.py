# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast many hosts get a blob at once: from a site's mirror, from nginx that serves plain files, and from Debian's
docker-registry: `make bench-mirror`.

All speak TLS over loopback, from a file that the kernel has in its memory: neither disk nor network is the limit. The
client, h2load, takes from the same processors; only the ratios say something about another machine.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked, with_libraries
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_port
from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (
    lay_out_mirror,
    running_mirror,
    running_store,
)
from ansible_collections.edgeml.fleet.tests.support.content import PACKAGES, Authority

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
MB = 1_000_000
BLOB_BYTES = 20 * MB
LIBRARIES = ("nghttp2-client", "libev4", "libc-ares2", "libjansson4")
REPOSITORY = "bench/blob"
#: The mirror may be so much slower than plain files.
ENOUGH = 0.95
PLAIN = """daemon off; pid {scratch}/nginx.pid; error_log stderr warn; worker_processes auto;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {scratch}/client; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
    access_log {scratch}/access.log; sendfile on; tcp_nopush on; keepalive_timeout 65;
    server {{
        listen 127.0.0.1:{port} ssl; root {tree};
        ssl_certificate {tls}/server.crt; ssl_certificate_key {tls}/server.key; ssl_protocols TLSv1.2 TLSv1.3;
    }}
}}
"""


@contextlib.contextmanager
def mirror(programs: Path, authority: Authority, directory: Path, blob: bytes) -> Iterator[list[str]]:
    """Yield the URL of the blob at nginx with the role's configuration."""
    port, digest = free_port(), sha256_digest(blob)
    tree = lay_out_mirror(authority, directory, port)
    content = tree / "cas" / "sha256"
    content.mkdir(parents=True)
    (content / digest.partition(":")[2]).write_bytes(blob)
    with running_mirror(programs, directory, port):
        yield [f"https://127.0.0.1:{port}/v2/{REPOSITORY}/blobs/{digest}"]


@contextlib.contextmanager
def plain_files(programs: Path, authority: Authority, directory: Path, blob: bytes) -> Iterator[list[str]]:
    """Yield the URL of the blob at nginx that does nothing but serve files."""
    port = free_port()
    tree = lay_out_mirror(authority, directory, port)
    (tree / "blob").write_bytes(blob)
    text = PLAIN.format(port=port, tree=tree, tls=directory / "tls", scratch=directory / "tmp")
    (directory / "nginx.conf").write_text(text)
    with running_mirror(programs, directory, port):
        yield [f"https://127.0.0.1:{port}/blob"]


@contextlib.contextmanager
def registry(programs: Path, authority: Authority, directory: Path, blob: bytes) -> Iterator[list[str]]:
    """Yield the URL of the blob at docker-registry, with the header of an account."""
    with running_store(programs, authority, directory) as store:
        store.registry().push_blob(REPOSITORY, blob, sha256_digest(blob))
        account = base64.b64encode(f"{store.username}:{store.password}".encode()).decode()
        url = f"https://{store.address}/v2/{REPOSITORY}/blobs/{sha256_digest(blob)}"
        yield [url, f"--header=authorization: Basic {account}"]


def load(asked: list[str], clients: int, requests: int) -> float:
    """Have so many clients get the blob at once, so many times in all; return MB a second."""
    programs = unpacked("h2load", LIBRARIES)
    command = [str(programs / "usr/bin/h2load"), "--h1", f"--clients={clients}", f"--requests={requests}", *asked]
    environment = with_libraries(programs)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    finished = re.search(r"finished in ([\d.]+)(ms|s),", done)
    status = re.search(r"status codes: (\d+) 2xx", done)
    if finished is None or status is None or int(status[1]) != requests:
        raise RuntimeError(f"{asked[0]} did not give all that was asked:\n{done}")
    seconds = float(finished[1]) / (1000 if finished[2] == "ms" else 1)
    return requests * BLOB_BYTES / MB / seconds


def measure(clients: int, requests: int, rounds: int) -> list[dict[str, Any]]:
    """Return the medians of rounds in turns for each server."""
    blob = os.urandom(BLOB_BYTES)
    servers = {"site mirror": mirror, "nginx, plain files": plain_files, "docker-registry": registry}
    seen: dict[str, list[float]] = {name: [] for name in servers}
    programs = unpacked("content-programs", PACKAGES)
    place = Path(tempfile.mkdtemp(prefix="bench-mirror-"))
    try:
        place.chmod(0o755)  # nginx runs as a user without rights
        authority = Authority.made(place)
        with contextlib.ExitStack() as stack:
            asked = {}
            for number, (name, server) in enumerate(servers.items()):
                directory = place / str(number)
                directory.mkdir()
                asked[name] = stack.enter_context(server(programs, authority, directory, blob))
            for turn in range(rounds):
                for name in list(servers)[turn % 3 :] + list(servers)[: turn % 3]:
                    seen[name].append(load(asked[name], clients, requests))
    finally:
        shutil.rmtree(place)
    return [
        {"server": name, "mb_per_second": statistics.median(found), "rounds": found} for name, found in seen.items()
    ]


def main() -> int:
    """Measure, write build/bench/mirror.md and .json, and hold the mirror against plain files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="hosts that ask at once (default: 200)")
    parser.add_argument("--requests", type=int, default=400, help=f"of {BLOB_BYTES // MB} MB each (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians count (default: 3)")
    options = parser.parse_args()
    rows = measure(options.clients, options.requests, options.rounds)
    best = next(row["mb_per_second"] for row in rows if row["server"].startswith("nginx"))
    lines = [f"| {options.clients} clients at once | MB/s | of plain files |", "|---|---:|---:|"]
    lines += [f"| {row['server']} | {row['mb_per_second']:,.0f} | {row['mb_per_second'] / best:.0%} |" for row in rows]
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "mirror.md").write_text(text)
    (RESULTS / "mirror.json").write_text(json.dumps(rows, indent=1))
    print(text)
    reached = rows[0]["mb_per_second"] >= ENOUGH * best
    print("The target is reached." if reached else f"The mirror serves less than {ENOUGH:.0%} of plain files.")
    return not reached


if __name__ == "__main__":
    sys.exit(main())
