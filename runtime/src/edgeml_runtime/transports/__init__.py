# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Bytes in, bytes out: listeners, paths, status codes, authorisation."""
