# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Bytes to tensors and back, with validation. Knows nothing of connections."""
