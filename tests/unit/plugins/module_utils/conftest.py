# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the unit tests of registry and content code."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from ansible_collections.edgeml.fleet.plugins.module_utils._oci import failures as _failures
from ansible_collections.edgeml.fleet.tests.support.registry_server import (
    Answer,
    Request,
    Server,
    start,
)

Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.crt"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "::1", "registry.edgeml.internal").configure_cert(context)
    return context, path


@pytest.fixture
def serve(ca: tuple[ssl.SSLContext, Path]) -> Iterator[Serve]:
    """Return a function that starts a server which answers each request by the function given."""
    stops: list[Callable[[], None]] = []

    def begin(answer: Callable[[Request], Answer], host: str = "127.0.0.1") -> Server:
        server, stop = start(ca[0], str(ca[1]), answer, host)
        stops.append(stop)
        return server

    yield begin
    for stop in stops:
        stop()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_failures, "FIRST_PAUSE", 0.01)
