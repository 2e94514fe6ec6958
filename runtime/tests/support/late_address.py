# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A server whose addresses come after it: ``python late_address.py DIRECTORY MODEL``.

Runs in a network namespace of its own. Prints as JSON what happened, step by step.
"""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from serving import UnixConnection, ask

ADDRESSES = ("192.0.2.7", "2001:db8::7")
PORT = 8000
SECONDS = 60


def main() -> None:
    """Start it, give it its addresses, and see that a second one does not get its ports."""
    directory, model = Path(sys.argv[1]), json.loads(sys.argv[2])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listen = {"rest": [f"192.0.2.7:{PORT}", f"[2001:db8::7]:{PORT}", f"unix:{directory}/rest.sock"]}
    configuration = directory / "runtime.json"
    configuration.write_text(
        json.dumps({"listen": {**listen, "grpc": []}, "models": [model], "unprotected_listeners": "allow"})
    )
    command = [sys.executable, "-m", "edgeml_runtime", "serve", "--config", str(configuration)]
    managed = [*command, "--candidate-file", str(directory / "candidate")]
    told: dict[str, object] = {"by hand": subprocess.run(command, capture_output=True, text=True).stderr}
    process = subprocess.Popen(managed)
    _wait(lambda: ask(UnixConnection(directory / "rest.sock"), "GET", "/v2/health/ready").status)
    told["before"] = [_ready(address) for address in ADDRESSES]
    for address in ADDRESSES:
        subprocess.run(["ip", "address", "add", address, "dev", "lo", *["nodad"] * (":" in address)], check=True)
    told["after"] = [_wait(partial(_ready, address)) for address in ADDRESSES]
    told["taken"] = subprocess.run(managed, capture_output=True, text=True).stderr
    process.terminate()
    told["exit"] = process.wait(60)
    print(json.dumps(told))


def _ready(address: str) -> int:
    connection = http.client.HTTPConnection(address, PORT, timeout=60)
    try:
        return ask(connection, "GET", "/v2/health/ready").status
    except OSError:
        return 0


def _wait(question: Callable[[], int]) -> int:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if question() == 200:
                return 200
        except OSError:
            pass
    return 0


if __name__ == "__main__":
    main()
