# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the process starts: nothing that needs a newer processor is imported before this one was looked at."""

import sys
from typing import NoReturn

from edgeml_runtime.processor import missing_features


def main() -> NoReturn:
    """Run the command line, if the processor can; else say in one line why not, exit code 1."""
    if missing := missing_features():
        sys.exit(
            f"edgeml-runtime: this processor lacks {', '.join(missing)}; numpy and ONNX Runtime need x86-64-v2 "
            "(Intel from 2009, AMD from 2011 on; in a virtual machine choose the host's processor model)"
        )
    from edgeml_runtime.cli.command import main as run

    run()
