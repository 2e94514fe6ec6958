# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers that the tests of module_utils use."""

from ansible_collections.edgeml.fleet.tests.unit.plugins.module_utils.conftest import ca, serve, short_pauses  # noqa: F401
