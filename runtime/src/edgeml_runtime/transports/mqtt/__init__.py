# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""MQTT 5: the connection to a broker and what is served over it."""
