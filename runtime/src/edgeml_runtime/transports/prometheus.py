# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The metrics listener: ``GET /metrics``."""

from edgeml_runtime.errors import RequestError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import Access
from edgeml_runtime.transports.http import Receive, Scope, Send, certificate_name, header, respond

_TEXT = (b"content-type", b"text/plain; charset=utf-8")


class MetricsApplication:
    """The ASGI application of the metrics listeners."""

    def __init__(self, metrics: Metrics, access: Access | None) -> None:
        self._metrics = metrics
        self._access = access

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] != "/metrics":
            await respond(send, 404, [_TEXT], b"metrics are at /metrics\n")
        elif scope["method"] != "GET":
            await respond(send, 405, [_TEXT, (b"allow", b"GET")], b"only GET is allowed\n")
        else:
            try:
                if self._access is not None:
                    self._access.grant(header(scope, b"authorization"), certificate_name(scope))
            except RequestError as error:
                headers = [_TEXT, (b"www-authenticate", b"Bearer")]
                await respond(send, 401, headers, f"{error}\n".encode())
                return
            exposition = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
            await respond(send, 200, [exposition], self._metrics.exposition())
