# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages on a host with dnf: dnf and rpm of Debian in a container, and a repository of rpms that was made there.

So dnf is real and the system is not Fedora: names and contents of its packages are ours, and nothing is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.edgeml.fleet.tests.lab.images import ensure_archive
from ansible_collections.edgeml.fleet.tests.lab.lab import BUILD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "edgeml-test-dnf"
IMAGE = "edgeml-test-dnf:local"
ROOT = Path(__file__).resolve().parents[3]
#: By name, what a package says of others.
PACKAGES = {
    "edgeml-probe": "Requires: edgeml-brought, edgeml-shared\nRecommends: edgeml-recommended",
    "edgeml-brought": "",
    "edgeml-shared": "",
    "edgeml-recommended": "",
    "edgeml-before": "",
    "edgeml-rival": "Conflicts: edgeml-before",
    # What Fedora's engine consists of.
    "moby-engine": "Requires: edgeml-shared",
    "docker-cli": "",
    "iptables": "",
    "ca-certificates": "",
}
SPEC = """Name: edgeml-rpms
Version: 1
Release: 1
Summary: Nothing but names
License: GPL-3.0-or-later
BuildArch: noarch
%description
Nothing but names.
""" + "".join(
    f"%package -n {name}\nSummary: {name}\n{more}\n%description -n {name}\n{name}\n%files -n {name}\n"
    for name, more in PACKAGES.items()
)
# A host of Fedora: its name, its place of the list of packages, a repository, and a package that was there before.
HOST = """set -e
rm /usr/bin/apt-get
echo 'ID=fedora\nPRETTY_NAME="Fedora Linux"' > /etc/os-release
mkdir -p /etc/rpm
echo '%_dbpath /var/lib/rpm' > /etc/rpm/macros.db
rpmbuild -bb --quiet --define '_rpmdir /srv/rpms' /srv/rpms.spec
createrepo_c --quiet /srv/rpms
mkdir -p /etc/yum.repos.d
printf '[local]\nname=local\nbaseurl=file:///srv/rpms\ngpgcheck=0\n' > /etc/yum.repos.d/local.repo
dnf --assumeyes --quiet install edgeml-before
"""


def docker(*arguments: str, text: str = "") -> str:
    done = subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plays() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """What each task of dnf.yml said, by the name of its play."""
    docker("import", str(ensure_archive("bookworm-dnf", BUILD)), IMAGE)
    docker("run", "--detach", "--init", "--network", "none", "--name", NAME, IMAGE, "sleep", "infinity")
    try:
        docker("exec", "-i", NAME, "tee", "/srv/rpms.spec", text=SPEC)
        docker("exec", NAME, "sh", "-c", HOST)
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        options = {"ansible_connection": "community.docker.docker", "ansible_python_interpreter": "/usr/bin/python3"}
        playbook = Path(__file__).with_name("dnf.yml")
        done = subprocess.run(
            [program, "-i", f"{NAME},", "-e", json.dumps(options), playbook],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        )  # fmt: skip
        said = json.loads(done.stdout)["plays"]
        yield {
            play["play"]["name"]: [{"task": task["task"]["name"], **task["hosts"][NAME]} for task in play["tasks"]]
            for play in said
        }
    finally:
        docker("rm", "--force", NAME)
        docker("image", "rm", IMAGE)


def changed(play: list[dict[str, Any]]) -> list[str]:
    return [answer["task"] for answer in play if answer["changed"]]


def installed(play: list[dict[str, Any]]) -> set[str]:
    """Return the packages of the repository that rpm knew at the end of a play."""
    return {line.rpartition("-1-1.noarch")[0] for line in play[-1]["stdout_lines"]}


BEFORE = {"edgeml-before"}
PROBE = {"edgeml-probe", "edgeml-brought", "edgeml-shared"}
ENGINE = {"moby-engine", "docker-cli"}


def test_preflight_knows_what_a_source_has(plays: dict[str, list[dict[str, Any]]]) -> None:
    findings = {finding["name"]: finding for finding in plays["Look"][-1]["findings"]}
    assert findings["package"]["value"] == "edgeml-nowhere: no package source has it"


def test_what_is_asked_for_comes_once_with_what_it_needs(plays: dict[str, list[dict[str, Any]]]) -> None:
    assert plays["Plan"][-1]["system_packages_plan"] == {"models": {"install": ["edgeml-probe"], "remove": []}}
    assert installed(plays["Install"]) == BEFORE | PROBE
    assert "Install packages" in " ".join(changed(plays["Install"]))
    assert changed(plays["Install again"]) == []
    assert installed(plays["Install again"]) == BEFORE | PROBE


def test_an_engine_comes_by_the_names_of_its_packages(plays: dict[str, list[dict[str, Any]]]) -> None:
    assert installed(plays["Bring an engine"]) == BEFORE | PROBE | ENGINE


def test_what_nobody_asks_for_any_more_goes(plays: dict[str, list[dict[str, Any]]]) -> None:
    """With what it brought along, but for what the engine needs, and what was there before."""
    assert installed(plays["Drop"]) == BEFORE | {"edgeml-shared"} | ENGINE
    assert not installed(plays["Remove the engine"]) & (ENGINE | {"edgeml-probe"})


def test_a_package_of_the_host_is_not_removed_for_another(plays: dict[str, list[dict[str, Any]]]) -> None:
    (failure,) = [answer for answer in plays["Install a rival"] if answer.get("failed")]
    assert "conflict" in failure["stderr"], failure
