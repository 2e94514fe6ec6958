# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""REST over HTTP/1.1 connections."""

import re

from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.http.connection import Connection
from edgeml_runtime.transports.http.rest import RestApplication
from edgeml_runtime.transports.http.shared import Shared
from signatures import Broken
from wire import FakeEngine, Wire, config

# 500 is not among them: nothing that a client sends may make the server fail.
STATUSES = {100, 200, 400, 404, 405, 408, 413, 414, 415, 429, 431, 501, 505}
_DATE = re.compile(rb"date: [^\r]*\r\n")


class Rest:
    """A REST application, for as many connections as one likes."""

    def __init__(self) -> None:
        bodies.LARGE = 100  # so that bodies take both ways
        self._wire = Wire()
        settings = config()
        application = RestApplication(FakeEngine(), Metrics(), None, settings)  # type: ignore[arg-type]
        self._shared = Shared(application, settings.limits, self._wire.loop)

    def converse(self, parts: list[bytes], ends: bool) -> None:
        """Send these parts, then end this side or break off, and check what is answered.

        Said twice, since the server remembers heads: the second answer has to be the first one.
        """
        self._shared.heads.clear()
        written, again = (self._wire.converse(lambda: Connection(self._shared), parts, ends) for _ in range(2))
        if _DATE.sub(b"", written) != _DATE.sub(b"", again):
            raise Broken(f"first {written!r}, then {again!r}")
        if self._shared.connections or self._shared.shed:
            raise Broken("a connection was not forgotten")
        if self._shared.held:
            raise Broken(f"{self._shared.held} bytes are held for no request")
        statuses = {int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", written)}
        if not statuses <= STATUSES:
            raise Broken(f"answered {statuses}: {written[:500]!r}")
