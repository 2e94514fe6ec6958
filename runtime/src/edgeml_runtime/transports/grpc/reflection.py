# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Server reflection: tools such as grpcurl ask here for services and messages."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from edgeml_runtime.codecs.protobuf import parse_message
from edgeml_runtime.transports.grpc.health import HEALTH_SERVICE
from edgeml_runtime.transports.grpc.service import SERVICE, Answer, Call, Conversation, InferenceService

_DESCRIBED = "grpc.reflection.v1alpha.ServerReflection"

#: Both have the same messages under different names.
REFLECTION_SERVICES = (_DESCRIBED, "grpc.reflection.v1.ServerReflection")


class ReflectionService:
    """Describes all services. Requires a grant where the inference service does."""

    def __init__(self, inference: InferenceService) -> None:
        self._inference = inference

    def answers(self) -> Mapping[str, Answer]:
        """Methods with one request and one answer: none."""
        return {}

    def conversations(self) -> Mapping[str, Conversation]:
        """Methods with a stream of requests and a stream of answers, by name."""
        return {"ServerReflectionInfo": self._answer}

    async def _answer(self, call: Call) -> None:
        self._inference.authorise(call)
        from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped] # seldom asked

        async def requests() -> AsyncIterator[Any]:
            while (body := await call.read()) is not None:
                yield parse_message(reflection_pb2.ServerReflectionRequest, body)

        servicer = reflection.aio.ReflectionServicer((SERVICE, HEALTH_SERVICE, _DESCRIBED))
        async for answer in servicer.ServerReflectionInfo(requests(), None):
            await call.write(answer.SerializeToString())
