# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build what a release consists of, from the commit that is checked out: `python .ci/release.py OUTPUT [--images]`.

The collection's archive, the runtime's wheel, its images for both architectures, release notes, and SHA256SUMS. What is
not committed is not in it, and two builds of one commit are equal to the byte. With EDGEML_RELEASE_KEY, an unencrypted
EC key in PEM, SHA256SUMS is signed as `cosign sign-blob` and `openssl dgst -sha256 -sign` do.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
ARCHITECTURES = ("amd64", "arm64")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command and return its output; end this program with what it said if it fails."""
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{command[0]} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout


def export_commit(tree: Path) -> None:
    """Write the committed files to `tree`, which becomes a repository of its own: changelog tools ask for one."""
    content = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tree, filter="data")


def release_notes(tree: Path, version: str, date: str, snapshot: bool) -> None:
    """Turn the fragments of `tree` into the changelog of `version`."""
    fragments = list((tree / "changelogs" / "fragments").glob("*.yml"))
    released = yaml.safe_load((tree / "changelogs" / "changelog.yaml").read_text())["releases"]
    if fragments and version in released and not snapshot:
        sys.exit(
            f"galaxy.yml: version is {version}, which the changelog has released, and {len(fragments)} fragments "
            "are new. Next: raise the version, or build a snapshot (make release SNAPSHOT=1)."
        )
    if fragments and version not in released:
        run("antsibull-changelog", "release", "--version", version, "--date", date, cwd=tree)


def build_collection(tree: Path, output: Path, seconds: int) -> None:
    """Build the archive; its times and order come from the commit and from the names alone."""
    with tempfile.TemporaryDirectory() as directory:
        run("ansible-galaxy", "collection", "build", "--output-path", directory, cwd=tree)
        built = next(Path(directory).glob("*.tar.gz"))
        with tarfile.open(built) as archive:
            members = [(member, archive.extractfile(member)) for member in archive.getmembers()]
            plain = io.BytesIO()
            with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as normal:
                for member, content in members:
                    member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
                    member.pax_headers = {}
                    normal.addfile(member, content)
        target = output / built.name
        with target.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
            compressed.write(plain.getvalue())


def build_wheel(tree: Path, output: Path, seconds: int) -> None:
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output)
    run(*command, cwd=tree / "runtime", SOURCE_DATE_EPOCH=str(seconds))


def build_images(tree: Path, output: Path, version: str) -> None:
    """Assemble the runtime's image for each architecture, as an archive for `docker load`."""
    recipe = yaml.safe_load((tree / "runtime" / "image" / "image.yml").read_text())
    for architecture in ARCHITECTURES:
        name = f"edgeml-runtime-{version}-{architecture}.tar"
        archive = {"path": str(output / name), "architecture": architecture, "name": f"edgeml/runtime:{version}"}
        cache = str(ROOT / "build" / "images")
        options = {"recipe": recipe, "source_root": str(tree), "cache": cache, "archive": archive}
        options["architectures"] = [architecture]
        arguments = ("--module-name", "edgeml.fleet.oci_image", "--args", json.dumps(options))
        run(
            "ansible", "localhost", "--inventory", "localhost,", "--connection", "local",
            "--extra-vars", f"ansible_python_interpreter={sys.executable}", *arguments, cwd=ROOT,
        )  # fmt: skip


def write_checksums(output: Path) -> None:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(output.iterdir())]
    (output / "SHA256SUMS").write_text("".join(lines))
    pem = os.environ.get("EDGEML_RELEASE_KEY", "")
    if pem:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            sys.exit("EDGEML_RELEASE_KEY is not an EC key. Next: make one, openssl ecparam -genkey -name prime256v1.")
        signature = key.sign("".join(lines).encode(), ec.ECDSA(hashes.SHA256()))
        (output / "SHA256SUMS.sig").write_text(base64.b64encode(signature).decode() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--images", action="store_true", help="also the runtime's images, for both architectures")
    parser.add_argument("--snapshot", action="store_true", help="build although the version was released before")
    options = parser.parse_args()
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    seconds, date = run("git", "log", "-1", "--format=%ct %cs", cwd=ROOT).split()
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        export_commit(tree)
        version = str(yaml.safe_load((tree / "galaxy.yml").read_text())["version"])
        release_notes(tree, version, date, options.snapshot)
        build_collection(tree, output, int(seconds))
        build_wheel(tree, output, int(seconds))
        if options.images:
            build_images(tree, output, version)
        shutil.copy(tree / "CHANGELOG.md", output)
    write_checksums(output)
    print((output / "SHA256SUMS").read_text(), end="")


if __name__ == "__main__":
    main()
