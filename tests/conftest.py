# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's own way to import collections, before any test imports one: its plugins are found by name then."""

from ansible.plugins.loader import init_plugin_loader

init_plugin_loader()
