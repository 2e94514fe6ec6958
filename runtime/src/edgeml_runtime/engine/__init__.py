# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models and their scheduling. Knows nothing of protocols."""
