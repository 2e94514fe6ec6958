# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The metrics listener: ``GET /metrics``."""

from edgeml_runtime.errors import RequestError
from edgeml_runtime.metrics import Metrics
from edgeml_runtime.transports.credentials import Access
from edgeml_runtime.transports.http.messages import STATUS, Answer, Request

_TEXT = b"content-type: text/plain; charset=utf-8\r\n"
_EXPOSITION = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class MetricsApplication:
    """The application of the metrics listeners."""

    name = "metrics"

    def __init__(self, metrics: Metrics, access: Access | None) -> None:
        self._metrics = metrics
        self._access = access

    def admit(self, request: Request) -> Answer | None:
        """Refuse everything but an authorised GET of the one path."""
        if request.url.partition(b"?")[0] != b"/metrics":
            return 404, _TEXT, b"metrics are at /metrics\n"
        if request.method not in (b"GET", b"HEAD"):
            return 405, _TEXT + b"allow: GET, HEAD\r\n", b"only GET and HEAD are allowed\n"
        try:
            if self._access is not None:
                self._access.grant(request.headers.get(b"authorization"), request.certificate_name)
        except RequestError as error:
            return STATUS[error.failure], _TEXT + b"www-authenticate: Bearer\r\n", f"{error}\n".encode()
        return None

    async def answer(self, _request: Request) -> Answer:
        """All metrics."""
        return 200, _EXPOSITION, self._metrics.exposition()
