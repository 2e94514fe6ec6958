# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the server tests: the content tests' registry and mirror."""

from __future__ import annotations

from ansible_collections.edgeml.fleet.tests.integration.content.conftest import (  # noqa: F401
    authority,
    mirror,
    programs,
    store,
    web_server,
)
