# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages of the Open Inference Protocol as Google's library makes them, to hold ours against."""

from __future__ import annotations

import functools
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._inference.grpc import MESSAGES
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def message_class(name: str) -> Any:
    """Return the class of a message of MESSAGES."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@functools.cache
def _pool() -> Any:
    """Return the descriptions of all messages, apart from the process-wide ones, which may know the same names."""
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package="inference", syntax="proto3")
    for message_name, fields in MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind) in fields.items():
            scalar = kind.rstrip("*")
            field = message.field.add(name=field_name, number=number)
            field.label = types.LABEL_REPEATED if kind.endswith("*") else types.LABEL_OPTIONAL
            if scalar in MESSAGES:
                field.type = types.TYPE_MESSAGE
                field.type_name = f".inference.{scalar}"
            else:
                field.type = types.Type.Value(f"TYPE_{scalar.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool
