# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""fetch_blob: nothing but the right bytes ever gets the final name."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.failures import ATTEMPTS, FIRST_PAUSE
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.names import sha256_digest
from ansible_collections.edgeml.fleet.plugins.module_utils._oci.store import fetch_blob
from ansible_collections.edgeml.fleet.tests.support.registry_server import Answer, Request, Server

Serve = Callable[[Callable[[Request], Answer]], Server]
BLOB = os.urandom(300_000)
DIGEST = sha256_digest(BLOB)


def deliver(request: Request) -> Answer:
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if not start:
        return Answer(200, BLOB)
    return Answer(206, BLOB[start:], {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"})


def fetch(server: Server, directory: Path) -> int:
    return fetch_blob(
        server.registry(), "edgeml/a", DIGEST, len(BLOB), directory / "cas" / "blob", directory / "staging" / "part"
    )


def partial_file(directory: Path, data: bytes) -> Path:
    path = directory / "staging" / "part"
    path.parent.mkdir()
    path.write_bytes(data)
    return path


def test_a_blob_is_fetched_once_and_readable_by_all(serve: Serve, tmp_path: Path) -> None:
    server = serve(deliver)
    old = os.umask(0o077)
    try:
        assert fetch(server, tmp_path) == len(BLOB)
    finally:
        os.umask(old)
    final = tmp_path / "cas" / "blob"
    assert final.read_bytes() == BLOB
    assert stat.S_IMODE(final.stat().st_mode) == 0o644
    assert stat.S_IMODE(final.parent.stat().st_mode) == 0o755
    assert list((tmp_path / "staging").iterdir()) == []
    assert fetch(server, tmp_path) == 0
    assert len(server.requests) == 1


def test_a_partial_file_is_continued(serve: Serve, tmp_path: Path) -> None:
    partial_file(tmp_path, BLOB[:123_456])
    server = serve(deliver)
    assert fetch(server, tmp_path) == len(BLOB) - 123_456
    assert server.requests[0].headers["Range"] == "bytes=123456-"
    assert (tmp_path / "cas" / "blob").read_bytes() == BLOB


def test_a_complete_partial_file_needs_no_registry(serve: Serve, tmp_path: Path) -> None:
    partial_file(tmp_path, BLOB)
    server = serve(deliver)
    assert fetch(server, tmp_path) == 0
    assert server.requests == []
    assert (tmp_path / "cas" / "blob").read_bytes() == BLOB


@pytest.mark.parametrize("data", [bytes(1000), bytes(len(BLOB)), BLOB + b"more"], ids=["short", "full", "longer"])
def test_a_damaged_partial_file_is_fetched_again(serve: Serve, tmp_path: Path, data: bytes) -> None:
    partial_file(tmp_path, data)
    fetch(serve(deliver), tmp_path)
    assert (tmp_path / "cas" / "blob").read_bytes() == BLOB


def test_a_server_that_knows_no_range(serve: Serve, tmp_path: Path) -> None:
    partial_file(tmp_path, BLOB[:1000])
    assert fetch(serve(lambda _: Answer(200, BLOB)), tmp_path) == len(BLOB)
    assert (tmp_path / "cas" / "blob").read_bytes() == BLOB


def test_a_broken_transfer_goes_on_where_it_broke(serve: Serve, tmp_path: Path) -> None:
    def breaking(request: Request) -> Answer:
        made = deliver(request)
        made.cut = 70_000
        return made

    server = serve(breaking)
    assert fetch(server, tmp_path) == len(BLOB)
    starts = [request.headers.get("Range") for request in server.requests]
    assert starts == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]


def test_a_transfer_without_progress_ends_and_keeps_what_it_has(serve: Serve, tmp_path: Path) -> None:
    partial_file(tmp_path, BLOB[:1000])

    def silent(request: Request) -> Answer:
        made = deliver(request)
        made.cut = 0
        return made

    with pytest.raises(FleetError, match="broke off"):
        fetch(serve(silent), tmp_path)
    assert (tmp_path / "staging" / "part").read_bytes() == BLOB[:1000]


def test_a_source_that_begins_anew_each_time_is_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server = serve(lambda _: Answer(200, BLOB, cut=180_000))
    with pytest.raises(FleetError, match="broke off"):
        fetch(server, tmp_path)
    assert len(server.requests) == 1 + ATTEMPTS
    assert pauses == [FIRST_PAUSE, 2 * FIRST_PAUSE]
    assert (tmp_path / "staging" / "part").read_bytes() == BLOB[:180_000]


def test_a_source_that_begins_anew_but_comes_further_is_not_given_up(serve: Serve, tmp_path: Path) -> None:
    cuts = iter(range(50_000, 400_000, 50_000))
    server = serve(lambda _: Answer(200, BLOB, cut=next(cuts)))
    fetch(server, tmp_path)
    assert (tmp_path / "cas" / "blob").read_bytes() == BLOB
    assert len(server.requests) == 6


def test_an_end_of_the_connection_alone_says_nothing_of_the_content(serve: Serve, tmp_path: Path) -> None:
    def without_length(request: Request) -> Answer:
        made = deliver(request)
        made.headers["Content-Length"] = "unknown"  # which is as good as none
        made.cut = 170_000
        return made

    server = serve(without_length)
    assert fetch(server, tmp_path) == len(BLOB)
    assert [request.headers.get("Range") for request in server.requests] == [None, "bytes=170000-"]


@pytest.mark.parametrize(
    ("delivered", "seen"),
    [
        (BLOB[:-1] + bytes([BLOB[-1] ^ 1]), "sha256:"),
        (BLOB[:-1], "299999 bytes instead of 300000"),
        (BLOB + b"more", "more than the 300000 bytes"),
    ],
    ids=["changed", "shorter", "longer"],
)
def test_wrong_content_never_gets_the_name(serve: Serve, tmp_path: Path, delivered: bytes, seen: str) -> None:
    server = serve(lambda _: Answer(200, delivered))
    with pytest.raises(FleetError) as caught:
        fetch(server, tmp_path)
    assert caught.value.where == f"{server.address}/edgeml/a@{DIGEST}"
    assert seen in caught.value.seen
    assert list((tmp_path / "cas").iterdir()) == list((tmp_path / "staging").iterdir()) == []


def test_a_blob_that_does_not_fit_is_not_begun(serve: Serve, tmp_path: Path) -> None:
    server = serve(deliver)
    with pytest.raises(FleetError, match=r"The disk is full.*bytes free, 1152921504606846976 bytes needed"):
        fetch_blob(server.registry(), "edgeml/a", DIGEST, 1 << 60, tmp_path / "blob", tmp_path / "part")
    assert server.requests == []


def test_a_place_that_cannot_be_written_is_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "staging").write_text("a file")
    with pytest.raises(FleetError, match="cannot be stored") as caught:
        fetch(serve(deliver), tmp_path)
    assert str(tmp_path / "staging" / "part") == caught.value.where


def test_directories_are_readable_by_all(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        make_directory(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o755
