# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The release that serves while a candidate is measured against it."""

from __future__ import annotations

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.client import (
    Client,
    PreparedRequest,
    RawResponse,
)


class ServingError(FleetError):
    """A request that the release that serves has failed, which says nothing of the candidate."""


class Serving:
    """A client of the release that serves, whose errors cannot be taken for the candidate's."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def send(self, request: PreparedRequest) -> RawResponse:
        """Send a request and read the response; raise ServingError where that fails."""
        try:
            return self.client.send(request)
        except FleetError as error:
            raise ServingError(error.what, where=error.where, seen=error.seen, remedy=error.remedy) from error
