# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Messages of grpc.health.v1."""

from grpc_health.v1 import health_pb2 as messages  # type: ignore[import-untyped]

from edgeml_runtime.codecs.protobuf import parse_message


def parse_request(body: bytes | memoryview) -> str:
    """The service that a HealthCheckRequest asks about. Raises RequestError (invalid)."""
    return str(parse_message(messages.HealthCheckRequest, body).service)


def status(serving: bool) -> bytes:
    """A HealthCheckResponse: SERVING or NOT_SERVING."""
    response = messages.HealthCheckResponse
    value = response.SERVING if serving else response.NOT_SERVING
    return bytes(response(status=value).SerializeToString())


def unknown() -> bytes:
    """A HealthCheckResponse of a watched service that is not there: SERVICE_UNKNOWN."""
    response = messages.HealthCheckResponse
    return bytes(response(status=response.SERVICE_UNKNOWN).SerializeToString())
