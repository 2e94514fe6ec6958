# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image of a static busybox, for containers that serve a few files and start in no time."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.edgeml.fleet.runtime.tests.support.debian_packages import unpacked


def import_busybox(image: str, programs: Sequence[str], command: Sequence[str], work: Path) -> None:
    """Give the engine the image `image` with these programs of busybox, which runs `command`; `work` is scratch."""
    busybox = next(
        path for path in unpacked("busybox", ["busybox-static"]).glob("**/bin/busybox") if not path.is_symlink()
    )
    archive = work / "busybox.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in programs:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    change = f"CMD {json.dumps(list(command))}"
    subprocess.run(["docker", "import", "--change", change, archive, image], check=True, stdout=subprocess.DEVNULL)
