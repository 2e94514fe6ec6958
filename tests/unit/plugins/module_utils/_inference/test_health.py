# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a server, and checks of its models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    Client,
    ModelMetadata,
    ServerMetadata,
    Status,
    UnreachableError,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import (
    ModelCheck,
    ModelHealth,
    check_model,
    wait_until_ready,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.tensor import Tensor

YES, NO = Status(True, "yes"), Status(False, "loading models")


class StartingClient:
    """Stands for a server whose health changes with each question."""

    endpoint = "http://127.0.0.1:22000"

    def __init__(self, *live: Status | FleetError, ready: Status = YES) -> None:
        self.answers = list(live)
        self.last = ready

    def live(self) -> Status:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, FleetError):
            raise answer
        return answer

    def ready(self) -> Status:
        return self.last


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves only while one sleeps."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_waits_while_a_server_starts(clock: list[float]) -> None:
    client = StartingClient(UnreachableError("down"), UnreachableError("down"), NO, YES)
    wait_until_ready(cast(Client, client), 10)
    assert 0 < clock[0] < 10


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (StartingClient(UnreachableError("down")), "down"),
        (StartingClient(NO), "not live .* Seen: loading models"),
        (StartingClient(YES, ready=NO), "not ready .* Seen: loading models"),
    ],
)
def test_gives_up_in_time(clock: list[float], client: StartingClient, message: str) -> None:
    with pytest.raises(FleetError, match=message):
        wait_until_ready(cast(Client, client), 10)
    assert 9 < clock[0] <= 10


def test_asks_once_without_a_time_to_wait(clock: list[float]) -> None:
    with pytest.raises(UnreachableError):
        wait_until_ready(cast(Client, StartingClient(UnreachableError("down"), YES)))
    assert clock[0] == 0


def test_does_not_wait_for_what_time_does_not_mend(clock: list[float]) -> None:
    with pytest.raises(FleetError, match="refused the credentials"):
        wait_until_ready(cast(Client, StartingClient(FleetError("refused the credentials"), YES)), 10)
    assert clock[0] == 0


class DoublingClient:
    """Stands for a server with one model that doubles x; records whether tensors came in binary form."""

    endpoint = "grpc://127.0.0.1:22000"

    def __init__(self, ready: Status = YES) -> None:
        self.status = ready
        self.binary: list[bool] = []

    def model_ready(self, name: str, version: str) -> Status:
        return self.status

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        return ModelMetadata(name, ("1.0.0",), "onnxruntime_onnx", (), (), "OpenVINO")

    def infer(self, name: str, version: str, inputs: Any, outputs: Any, *, binary: bool) -> list[Tensor]:
        self.binary.append(binary)
        return [Tensor.from_values("y", "FP32", inputs[0].shape, [2 * value for value in inputs[0].values()])]


SERVER = ServerMetadata("server", "1", ("binary_tensor_data",))


def write_case(directory: Path, name: str, x: list[float], y: list[float], **more: Any) -> None:
    directory.mkdir(exist_ok=True)
    document = {
        "inputs": [{"name": "x", "shape": [len(x)], "datatype": "FP32", "data": x}],
        "outputs": [{"name": "y", "shape": [len(y)], "datatype": "FP32", "data": y}],
    }
    (directory / f"{name}.json").write_text(json.dumps(document | more))


def check(client: DoublingClient, server: ServerMetadata = SERVER, **options: str) -> ModelHealth:
    return check_model(cast(Client, client), ModelCheck("double", **options), server)


def test_healthy_model(tmp_path: Path) -> None:
    write_case(tmp_path / "golden", "one", [1.0, 3.0], [2.0, 6.0], label="b", description="Two numbers")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    health = check(DoublingClient(), golden=str(tmp_path / "golden"))
    assert health.failures == ()
    assert health.as_result() == {
        "name": "double",
        "version": "1.0.0",
        "ready": True,
        "provider": "OpenVINO",
        "golden": [
            {
                "case": "one",
                "description": "Two numbers",
                "passed": True,
                "label": "b",
                "difference": "",
                "max_absolute_error": 0.0,
            }
        ],
    }


def test_every_case_is_checked_and_every_failure_named(tmp_path: Path) -> None:
    write_case(tmp_path, "a", [1.0], [3.0])
    write_case(tmp_path, "b", [1.0], [2.0])
    write_case(tmp_path, "c", [1.0], [4.0])
    health = check(DoublingClient(), golden=str(tmp_path), version="1.0.0")
    assert [result.passed for result in health.golden] == [False, True, False]
    assert [failure.what for failure in health.failures] == [
        "The model 'double' version 1.0.0 answered golden case 'a' otherwise than expected",
        "The model 'double' version 1.0.0 answered golden case 'c' otherwise than expected",
    ]
    assert "is 2, expected 3 within" in health.failures[0].seen


@pytest.mark.parametrize(("extensions", "binary"), [(("binary_tensor_data",), True), ((), False)])
def test_binary_tensors_only_where_the_server_knows_them(
    tmp_path: Path, extensions: tuple[str, ...], binary: bool
) -> None:
    write_case(tmp_path, "a", [1.0], [2.0])
    client = DoublingClient()
    check(client, ServerMetadata("server", "1", extensions), golden=str(tmp_path))
    assert client.binary == [binary]


def test_model_that_is_not_ready_is_not_asked(tmp_path: Path) -> None:
    write_case(tmp_path, "a", [1.0], [2.0])
    client = DoublingClient(ready=NO)
    health = check(client, golden=str(tmp_path))
    assert not health.ready
    assert "model 'double' is not ready at grpc://127.0.0.1:22000. Seen: loading models" in str(health.failures[0])
    assert client.binary == []


def test_label_without_labels_is_a_failure(tmp_path: Path) -> None:
    write_case(tmp_path / "golden", "one", [1.0], [2.0], label="b")
    failures = check(DoublingClient(), golden=str(tmp_path / "golden")).failures
    assert [failure.what for failure in failures] == ["The labels cannot be read"]
