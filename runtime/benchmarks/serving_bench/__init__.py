# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Measures inference servers side by side: the same models, the same requests, interleaved rounds."""
