# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the documentation as a static site: `python .ci/docs.py OUTPUT`. Nothing is fetched.

The guides are the Markdown files of this repository at their own paths, the reference is what antsibull-docs makes of
the plugins' documentation and of the roles' specifications. A link that leads nowhere ends the build.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
REPOSITORY = yaml.safe_load((ROOT / "galaxy.yml").read_text())["repository"]
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")

#: The order of the site's table of contents.
CONTENTS = {
    "Start": ["README", "models/README", "docs/inventory", "docs/placement", "docs/runtimes", "docs/support-matrix"],
    "Concepts": ["docs/architecture", "docs/publish", "docs/releases", "docs/rollout", "docs/faults"],
    "Guides": [
        "docs/plan", "docs/preflight", "docs/report", "docs/bundles", "docs/operations", "docs/awx", "docs/signatures",
        "docs/testing-your-role", "SECURITY",
    ],
    "Reference": ["reference/index", "runtime/README", "docs/decisions/README", "CHANGELOG", "CONTRIBUTING"],
}  # fmt: skip

CONFIGURATION = """
project = "edgeml.fleet"
extensions = ["myst_parser"]
root_doc = "index"
html_theme = "alabaster"
html_theme_options = {"description": "Machine learning models on edge devices", "page_width": "72rem"}
html_static_path = []
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "misc.highlighting_failure", "toc.not_included"]
exclude_patterns = ["reference/environment_variables.rst"]
"""


def write_guides(source: Path) -> None:
    """Copy the Markdown files, and what they show; links to other files of the repository lead to its web site."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name]
    for name in names:
        target = source / name
        if name.endswith((".svg", ".png")) and name.startswith("docs/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        elif name.endswith(".md") and not name.startswith("tests/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(LINK.sub(partial(_link, ROOT / name), (ROOT / name).read_text()))


def _link(page: Path, found: re.Match[str]) -> str:
    before, target, after = found.groups()
    path = (page.parent / target).resolve()
    if re.match(r"[a-z]+:", target) or not path.exists():
        return found[0]
    if (path / "README.md").is_file() and "tests" not in path.relative_to(ROOT).parts:
        target = f"{target.rstrip('/')}/README.md"
    elif path.suffix not in (".md", ".svg", ".png") or "tests" in path.relative_to(ROOT).parts:
        kind = "tree" if path.is_dir() else "blob"
        target = f"{REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}"
    return f"{before}{target}{after}"


def write_index(source: Path) -> None:
    parts = ["# edgeml.fleet", "", "Machine learning models on edge devices, with or without an uplink.", ""]
    for title, pages in CONTENTS.items():
        parts += ["```{toctree}", ":maxdepth: 1", f":caption: {title}", "", *pages, "```", ""]
    (source / "index.md").write_text("\n".join(parts))
    (source / "conf.py").write_text(CONFIGURATION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output.resolve()
    environment = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory)
        write_guides(source)
        write_index(source)
        (source / "reference").mkdir(mode=0o700)
        subprocess.run(
            [PROGRAMS / "antsibull-docs", "collection", "--use-current", "--squash-hierarchy", "--output-format",
             "simplified-rst", "--dest-dir", source / "reference", "edgeml.fleet"],
            env=environment, check=True,
        )  # fmt: skip
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "--fail-on-warning", "--keep-going"]
        done = subprocess.run([*command, source, output], env=environment, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
