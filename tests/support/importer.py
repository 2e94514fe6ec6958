# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Import the built archive as Galaxy does: `make lint-sanity` does so, and makes the importer's environment first.

The importer ends well whatever it warns of, so this fails if it warns of anything. It leaves ansible-lint out, which
`make lint-roles` runs with more rules, and with the other collections at hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ansible_collections.edgeml.fleet.tests.support.installed import ROOT, build

PROGRAMS = ROOT / "build" / "environments" / "importer" / "bin"
#: What the importer reads instead of a file under /etc.
SETTINGS = "[galaxy-importer]\nrun_ansible_lint = False\nrun_ansible_doc = True\ncheck_required_tags = True\n"
FINDING = re.compile(r"^(?:WARNING|ERROR|CRITICAL)|Traceback|Error", re.MULTILINE)


def main() -> int:
    """Return the exit status."""
    with tempfile.TemporaryDirectory(prefix="importer-") as directory:
        settings = Path(directory, "galaxy-importer.cfg")
        settings.write_text(SETTINGS)
        own = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        path = {"PATH": f"{PROGRAMS}{os.pathsep}{own['PATH']}", "HOME": directory}
        environment = {**own, **path, "GALAXY_IMPORTER_CONFIG": str(settings)}
        done = subprocess.run(
            [PROGRAMS / "python", "-m", "galaxy_importer.main", build(Path(directory))],
            cwd=directory, check=False, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    loaded = done.stdout.count("Loading module ")
    if done.returncode or FINDING.search(done.stdout) or loaded != len(list(ROOT.glob("plugins/modules/*.py"))):
        print(done.stdout)
        print(f"galaxy-importer: exit status {done.returncode}, {loaded} modules; fix what the lines above name")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
