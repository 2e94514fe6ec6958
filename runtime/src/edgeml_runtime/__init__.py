# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The edgeml inference server: Open Inference Protocol v2 over REST and gRPC."""

__version__ = "0.1.0"

SERVER_NAME = "edgeml-runtime"
