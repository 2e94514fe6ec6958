# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a gate blames when it cannot be tried. The quickstart's tests and tests/faults try them on a real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import DockerEngine, EngineError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import SlowError, UnreachableError
from ansible_collections.edgeml.fleet.plugins.module_utils._release import gates
from ansible_collections.edgeml.fleet.plugins.module_utils._release.container import Container
from ansible_collections.edgeml.fleet.plugins.module_utils._release.desired import Desired, Model
from ansible_collections.edgeml.fleet.plugins.module_utils._release.gates import Gates, RefusedError, Row


class AwayForAMoment(DockerEngine):
    """An engine that does not answer the question of the first gate, and then says how its candidate is."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(lambda _command: (1, "", "Cannot connect to the Docker daemon. Is the docker daemon running?"))
        self.state = state

    def container(self, name: str) -> dict[str, Any] | None:
        return {"State": self.state}

    def processes(self, name: str) -> list[int]:
        self.information()
        return []

    def logs(self, name: str, lines: int = 20) -> str:
        return ""


def check(state: dict[str, Any], root: Path) -> None:
    engine = AwayForAMoment(state)
    container = Container(engine, root, Desired("image", 0, (), {}), "candidate", "active")
    Gates(container, "candidate", 1).check()


def test_a_candidate_is_not_refused_for_an_engine_that_was_away(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="Is the docker daemon running"):
        check({"Running": True}, tmp_path)


def test_one_that_has_ended_is(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="ended with code 1 while it was tried"):
        check({"Running": False, "ExitCode": 1}, tmp_path)


class NoticesLate(DockerEngine):
    """An engine that says twice that a candidate runs, before it notices that it has ended."""

    def __init__(self) -> None:
        super().__init__(lambda _command: (1, "", ""))
        self.states = [{"Running": True}, {"Running": True}]

    def container(self, name: str) -> dict[str, Any] | None:
        return {"State": self.states.pop() if self.states else {"Running": False, "ExitCode": 3}}

    def logs(self, name: str, lines: int = 20) -> str:
        return ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UnreachableError("No answer"), "ended with code 3"), (SlowError("Slow"), "fails under 8 clients at once")],
)
def test_a_candidate_that_ends_under_a_burst_is_said_to_have_ended(
    error: UnreachableError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model("double", "1.0.0", "edgeml/models/double", "sha256:" + "a" * 64, 1, golden_cases=1, concurrency=8)
    burst = type("Burst", (), {"errors": [error], "asked": 20, "protocol": "grpc"})
    monkeypatch.setattr(gates, "_Burst", lambda *_arguments: burst)
    monkeypatch.setattr(Gates, "_check_answers", lambda *_arguments: 0)
    container = Container(NoticesLate(), tmp_path, Desired("image", 0, (model,), {}), "candidate", "active")
    with pytest.raises(RefusedError, match=reason) as caught:
        Gates(container, "candidate", 1).check()
    assert (caught.value.gates[-1]["gate"], caught.value.gates[-1]["passed"]) == ("errors", False)


class Answers:
    """A client whose server answers so many requests, and then fails each."""

    def __init__(self, answers: int, error: FleetError) -> None:
        self.answers, self.error = answers, error

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_arguments: object) -> None:
        pass

    def send(self, _request: object) -> None:
        self.answers -= 1
        if self.answers < 0:
            raise self.error

    def decode(self, _response: object) -> None:
        pass


BUSY = [FleetError("The server is busy", seen="503 queue full"), SlowError("No answer in time", seen="timed out")]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers, Answers], list[Row]]:
    """Return what judges a candidate with `max_regression` by the clients of both releases."""
    model = Model("double", "1.0.0", "edgeml/models/double", "sha256:" + "a" * 64, 1, max_regression=1e6)
    engine = AwayForAMoment({"Running": True})
    monkeypatch.setattr(engine, "processes", lambda _name: [])
    monkeypatch.setattr(gates, "ENDING_SECONDS", 0)
    monkeypatch.setattr(gates, "endpoint_of", lambda *_arguments: "serving")
    monkeypatch.setattr(gates, "prepare_request", lambda *_arguments: b"")
    monkeypatch.setattr(Gates, "_check_answers", lambda *_arguments: 0)
    container = Container(engine, tmp_path, Desired("image", 0, (model,), {}), "candidate", "active")
    monkeypatch.setattr(container, "golden", lambda _model: None)

    def run(candidate: Answers, serving: Answers) -> list[Row]:
        monkeypatch.setattr(Gates, "_connect", lambda *_arguments: candidate)
        monkeypatch.setattr(gates, "connect", lambda *_arguments, **_options: serving)
        return Gates(container, "candidate", 1).check()

    return run


@pytest.mark.parametrize("error", BUSY)
@pytest.mark.parametrize("answers", [1, 20])
def test_a_failure_of_what_serves_is_not_the_candidates(
    compare: Callable[[Answers, Answers], list[Row]], error: FleetError, answers: int
) -> None:
    """While both are measured in turns the serving release has clients, and may be busy."""
    (row,) = (row for row in compare(Answers(9999, error), Answers(answers, error)) if row["gate"] == "regression")
    assert (row["measured"], row["passed"]) == (None, True)
    assert row["note"] == f"not compared: the release that serves failed ({error.what}. {error.seen})"


@pytest.mark.parametrize("error", BUSY)
def test_a_failure_of_the_candidate_is_its_own(
    compare: Callable[[Answers, Answers], list[Row]], error: FleetError
) -> None:
    with pytest.raises(RefusedError, match=error.what):
        compare(Answers(20, error), Answers(9999, error))


def test_two_that_answer_are_compared(compare: Callable[[Answers, Answers], list[Row]]) -> None:
    (row,) = (row for row in compare(Answers(9999, BUSY[0]), Answers(9999, BUSY[0])) if row["gate"] == "regression")
    assert row["measured"] > 0
    assert "note" not in row
