# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health of an inference server and of its models, down to the numbers that they answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    BINARY_EXTENSION,
    Client,
    ServerMetadata,
    UnreachableError,
    model_subject,
)
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.golden import (
    CaseResult,
    GoldenCase,
    check_case,
    load_cases,
    load_labels,
)

POLL_INTERVAL_SECONDS = 0.25


@dataclass(frozen=True)
class ModelCheck:
    """A model to check.

    Parameters
    ----------
    name, version : str
        An empty version leaves the choice to the server.
    golden : str or None
        Directory of golden cases.
    labels : str or None
        File of labels; without it labels.txt beside the golden directory, as in a model directory.
    """

    name: str
    version: str = ""
    golden: str | None = None
    labels: str | None = None


@dataclass(frozen=True)
class ModelHealth:
    """What was seen of a model; `version` is as asked for, else as the server said. Healthy is without `failures`."""

    name: str
    version: str
    ready: bool
    golden: tuple[CaseResult, ...]
    failures: tuple[FleetError, ...]
    provider: str = ""  # what computes it, where the server says so

    def as_result(self) -> dict[str, Any]:
        """Return the keys of a module's result."""
        return {
            "name": self.name,
            "version": self.version,
            "ready": self.ready,
            "provider": self.provider,
            "golden": [result.as_result() for result in self.golden],
        }


def wait_until_ready(client: Client, seconds: float = 0.0) -> None:
    """Return when the server says that it is live and ready.

    Parameters
    ----------
    client : Client
        Connection to the server.
    seconds : float
        How long to ask again. A request that is under way then is still waited for.

    Raises
    ------
    FleetError
        The server is not live and ready in time, or refused to say.
    """
    deadline = time.monotonic() + seconds
    while True:
        failure = _not_ready(client)
        if failure is None:
            return
        if time.monotonic() + POLL_INTERVAL_SECONDS > deadline:
            raise failure
        time.sleep(POLL_INTERVAL_SECONDS)


def check_model(client: Client, model: ModelCheck, server: ServerMetadata, first: int | None = None) -> ModelHealth:
    """Check that a model is ready, has metadata, and answers its golden cases; what fails is in the result.

    `first` is the number of golden cases that are asked, None for all.
    """
    subject = model_subject(model.name, model.version)
    version, ready, provider = model.version, False, ""
    results: list[CaseResult] = []
    failures: list[FleetError] = []
    try:
        cases = load_cases(model.golden) if model.golden else []
        labels = _labels(model, cases)
        status = client.model_ready(model.name, model.version)
        if not status:
            raise FleetError(
                f"The {subject} is not ready",
                where=client.endpoint,
                seen=status.seen,
                remedy="compare name and version with the server's configuration, and read the server's log",
            )
        ready = True
        metadata = client.model_metadata(model.name, model.version)
        version = version or ", ".join(metadata.versions)
        provider = metadata.provider
        binary = BINARY_EXTENSION in server.extensions
        for case in cases[:first]:
            result = check_case(client, model.name, model.version, case, labels, binary=binary)
            results.append(result)
            if not result.passed:
                failures.append(_wrong_answer(client.endpoint, subject, result))
    except FleetError as error:
        failures.append(error)
    return ModelHealth(model.name, version, ready, tuple(results), tuple(failures), provider)


def _wrong_answer(endpoint: str, subject: str, result: CaseResult) -> FleetError:
    return FleetError(
        f"The {subject} answered golden case '{result.case}' otherwise than expected",
        where=endpoint,
        seen=result.difference,
        remedy="serve the model version that the cases were recorded with, or record them again",
    )


def _not_ready(client: Client) -> FleetError | None:
    """Return why the server is not live and ready, if asking again may help; None if it is both."""
    try:
        for word, ask in (("live", client.live), ("ready", client.ready)):
            status = ask()
            if not status:
                return FleetError(
                    f"The inference server is not {word}",
                    where=client.endpoint,
                    seen=status.seen,
                    remedy="read the server's log, or set wait to give it time to load its models",
                )
    except UnreachableError as error:
        return error
    return None


def _labels(model: ModelCheck, cases: Sequence[GoldenCase]) -> list[str]:
    """Return the labels of a model; they must exist if a case expects one."""
    if model.labels:
        return load_labels(model.labels)
    if model.golden:
        beside = Path(model.golden).parent / "labels.txt"
        if beside.exists() or any(case.label is not None for case in cases):
            return load_labels(beside)
    return []
