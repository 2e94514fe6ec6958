# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m edgeml_runtime``."""

from edgeml_runtime.start import main

if __name__ == "__main__":
    main()
