# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 to the letter where requests begin and end; ``http_cases`` has the cases."""

import socket
from contextlib import suppress

import pytest
from hostile import connect, exchange, read_to_end, statuses
from http_cases import CASES, LAST, Case
from serving import Server


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.section} {case.what}")
def test_case(server: Server, case: Case) -> None:
    assert statuses(exchange(server.rest_port, case.sent + LAST)) == case.answers


def test_cases_byte_by_byte(server: Server) -> None:
    """However TCP cuts a request, its answer is the same."""
    for case in CASES:
        with connect(server.rest_port) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(OSError):  # refused already
                for byte in case.sent + LAST:
                    connection.sendall(bytes([byte]))
            assert statuses(read_to_end(connection)) == case.answers, case


def test_every_case_has_a_name_of_its_own() -> None:
    names = [(each.section, each.what) for each in CASES]
    assert len(set(names)) == len(names)
