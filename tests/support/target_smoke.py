# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs with each Python that targets may have, without any library: imports every file given and uses the main ones."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

FLEET = "ansible_collections.edgeml.fleet.plugins."


def room(name: str) -> Any:
    return importlib.import_module(FLEET + "module_utils." + name)


def check_release() -> str:
    desired = room("_release.desired")
    model = desired.Model("digits", "1.0.0", "edgeml/digits", "sha256:" + "b" * 64, 10)
    release = desired.Desired("store:1/a@sha256:" + "a" * 64, 0, (model,), {"listen": {"rest": ["[::1]:8000"]}})
    described = room("_release.plan").describe(release, release.release_id())
    plan = room("_release.plan").make_plan("runtime", None, described, [], {}, [])
    assert plan["action"] == "start", plan
    assert room("_release.plan").make_diff(plan, None, described)["after"]["models"]["digits"]
    return str(release.release_id())


def check_host(directory: Path) -> None:
    commands: list[list[str]] = []

    def run_command(arguments: list[str]) -> tuple[int, str, str]:
        commands.append(arguments)
        return 0, "", ""

    settings = room("_host.kernel").KernelSettings(run_command, directory)
    assert settings.apply(["loop"], {}, {}, check_mode=False)["changed"]
    assert commands == [["modprobe", "loop"]]
    record = room("_host.record")
    item = {"kind": "file", "path": str(directory / "etc/modules-load.d/edgeml.conf")}
    record.record(directory / "records", "role", "digest", [item], None, run_command)
    assert record.compare(directory / "records", ["role"], run_command)["drift"] == {"role": []}
    Path(item["path"]).write_text("other")
    assert len(record.compare(directory / "records", ["role"], run_command)["drift"]["role"]) == 1
    assert room("_host.facts").host_facts()["memory_mb"] > 0
    wanted = room("_preflight.host").Wanted.from_options({"architecture": "amd64"})
    room("_preflight.examine").examine(room("_preflight.host").Host(lambda arguments: (127, "", "")), wanted)


def check_inference() -> None:
    tensor = room("_inference.tensor").Tensor.from_values("x", "FP32", (2,), [1.0, 2.0])
    assert tensor.values() == [1.0, 2.0]
    errors = room("_errors")
    for endpoint in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):  # nobody listens, and gRPC's library may be missing
        try:
            with room("_inference.connect").connect(endpoint, timeout=1) as client:
                client.server_metadata()
        except errors.FleetError as error:
            assert error.what
        else:
            raise AssertionError(endpoint)


def check_mirror(directory: Path) -> None:
    errors = room("_errors")
    store = room("_oci.registry").Registry("127.0.0.1:9", timeout=1, patient=False)
    lock = {"serial": 1, "images": {}, "models": {}}
    synchronize = room("_mirror.sync").synchronize
    assert synchronize(directory, store, lock, ["amd64"], 2, write=True).changed
    assert not synchronize(directory, store, lock, ["amd64"], 2, write=True).changed
    try:
        store.has_blob("edgeml/runtime", "sha256:" + "a" * 64)
    except errors.FleetError as error:
        assert error.as_result()["what"] == "The registry cannot be reached"
    else:
        raise AssertionError("nobody listens there")


#: Public keys without head and foot, and a signature of each over SIGNED.
SIGNED = b'{"serial":3}'
SIGNATURES = {
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEQZf393mPeLhqUdmf4kLNEbTR4uLDP82r9AaLO4XuzIyGnxOalit6+qXKQtZI9yTxliGsqRt6ygvj"
    "JsgchwzydA==": "30450220695d3e9f7ad7b46eb407be0046c9588ae58ceff510a6f9e4582fafe9a2381f990221008fb0629c08715da8e12"
    "59f0d3788a8e9858b9f5295d5a86b9a726f96916c179d",
    "MCowBQYDK2VwAyEAqizs84K2p628OxNM84WpbNm4/Hc9YZJb/Fw/t6Tg44E=": "3c414c8baf334eb664da78a05fd76ee1e3af1fcc00d48eea"
    "2c60e98e802a908ef5db2765233055e0f1a3f746ac03063af6955b25227cf9645a2c215cd540de06",
}


def check_signatures() -> None:
    for key, signature in SIGNATURES.items():
        pem = f"-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n"
        trusted = room("_signature.keys").TrustedKeys([pem])
        assert trusted.signer(SIGNED, bytes.fromhex(signature)) == trusted.names()[0]
        assert trusted.signer(SIGNED + b" ", bytes.fromhex(signature)) is None


for name in sys.argv[1:]:
    importlib.import_module(name)
with tempfile.TemporaryDirectory() as temporary:
    check_host(Path(temporary) / "host")
    check_mirror(Path(temporary) / "mirror")
check_inference()
check_signatures()
print(json.dumps({"version": list(sys.version_info[:2]), "release": check_release()}))
