# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Clients of the Open Inference Protocol v2, for any server of it; what ``check`` and ``models`` ask with."""
