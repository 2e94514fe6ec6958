# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the gRPC calls of one listener share: its methods, its buffers, and what bounds all calls together."""

import asyncio
from collections.abc import Mapping

from edgeml_runtime.config import Limits
from edgeml_runtime.transports.bodies import Buffers
from edgeml_runtime.transports.elsewhere import Elsewhere
from edgeml_runtime.transports.grpc.service import Answer, Conversation


class Calls:
    """The calls of one listener: its methods, by path, and what bounds them all together."""

    def __init__(self, limits: Limits, draining: "asyncio.Future[None]") -> None:
        self.limits = limits
        #: Done when the listener stops: streams then end.
        self.draining = draining
        self.loop = asyncio.get_running_loop()
        self.answers: dict[bytes, tuple[str, Answer]] = {}
        self.conversations: dict[bytes, tuple[str, Conversation]] = {}
        self.under_way = 0
        self.buffers = Buffers(self.loop)
        self.elsewhere = Elsewhere()
        #: Bytes of request messages that are being received or not yet answered, with their prefixes.
        self.buffered = 0

    def add(self, service: str, answers: Mapping[str, Answer], conversations: Mapping[str, Conversation]) -> None:
        """Add the methods of a service."""
        for name, answer in answers.items():
            self.answers[f"/{service}/{name}".encode()] = (name, answer)
        for name, conversation in conversations.items():
            self.conversations[f"/{service}/{name}".encode()] = (name, conversation)
