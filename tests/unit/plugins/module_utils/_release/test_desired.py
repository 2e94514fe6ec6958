# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The id of a release: a host whose release has another id restarts its runtime, so it must never change by itself."""

from __future__ import annotations

import json
from dataclasses import replace

from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import (
    Desired,
    ForeignServer,
    Limits,
    Model,
    Shadow,
)

RUNTIME = Desired(
    image="registry.edgeml.internal:5443/edgeml/runtime@sha256:" + "a" * 64,
    image_size=31_457_280,
    models=(
        Model("digits", "1.0.0", "edgeml/models/digits", "sha256:" + "b" * 64, 61_440, p95_ms=5.0),
        Model(
            "größe", "2.1.0", "edgeml/models/size", "sha256:" + "c" * 64, 1, protocols=("rest",), options={"queue": 4}
        ),
    ),
    configuration={"listen": {"rest": ["[::1]:8000"], "grpc": ["127.0.0.1:8001"]}, "log_level": "info"},
    secrets_directory="/etc/edgeml/runtime",
    secrets={"tls.key": "d" * 64, "token": "e" * 64},
    limits=Limits(memory_mb=512, cpus=1.5),
    environment={"OMP_NUM_THREADS": "2"},
    devices=("/dev/null",),
)
SERVER = ForeignServer(("serve", "/mnt/models"), {"WORKERS": "0"}, 8080, 8081, None, "/mnt/models", "1000")


def test_the_id_of_a_release_of_the_runtime_never_changes() -> None:
    assert RUNTIME.release_id() == "972efcb7a58f931703e20e558d498873ae4a448ea1f868dcf03e80d6702d0952"


def test_the_id_of_a_release_of_another_server_never_changes() -> None:
    server = replace(RUNTIME, configuration={"listen": {"rest": ["127.0.0.1:8020"]}}, server=SERVER)
    assert server.release_id() == "22fbdd995c9b6d11b57ecb09a8af384210b739dbe387ae96450df1356639fad9"


def test_gpus_are_part_of_the_id_where_there_are_any() -> None:
    with_one = replace(RUNTIME, gpus=("0",))
    assert len({release.release_id() for release in (RUNTIME, with_one, replace(RUNTIME, gpus=("all",)))}) == 3
    assert Desired.from_record(json.loads(json.dumps(with_one.as_record()))) == with_one
    before = {key: value for key, value in RUNTIME.as_record().items() if key != "gpus"}
    assert Desired.from_record(json.loads(json.dumps(before))) == RUNTIME, "recorded before there were any"


def test_what_only_the_transaction_needs_is_not_part_of_the_id() -> None:
    slower = tuple(replace(model, size=7, golden_cases=3, p95_ms=50.0) for model in RUNTIME.models)
    assert replace(RUNTIME, image_size=0, models=slower).release_id() == RUNTIME.release_id()


def test_what_a_release_is_judged_by_is_part_of_the_attempt() -> None:
    """And an attempt without live requests is what it was before there were any."""
    shadow = Shadow(share=0.1, seconds=60, requests=200, max_different=0.01)
    judged = replace(RUNTIME, models=tuple(replace(model, shadow=shadow) for model in RUNTIME.models))
    assert judged.release_id() == RUNTIME.release_id()
    assert judged.attempt_id("one") != RUNTIME.attempt_id("one")
    assert Desired.from_record(json.loads(json.dumps(judged.as_record()))) == judged
