# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab: real hosts to test a fleet on, on one machine. `python tests/lab/lab.py --help` lists the verbs."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.tests.lab import hosts, machine, network
from ansible_collections.edgeml.fleet.tests.lab.images import ensure_base_images, image_name
from ansible_collections.edgeml.fleet.tests.lab.machine import say
from ansible_collections.edgeml.fleet.tests.lab.topology import TOPOLOGIES, Topology
from docker import DockerClient
from docker.errors import DockerException, ImageNotFound, NotFound

BUILD = Path(__file__).resolve().parents[2] / "build" / "lab"


@dataclass(frozen=True)
class HostStatus:
    """One line of `status`. `state` is the engine's word (running, exited, …) or `absent`."""

    host: str
    debian: int
    address: str
    state: str
    cut: bool


class Lab:
    """The hosts of one topology. Every method raises FleetError when it cannot do what it says."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.state = BUILD / topology.name
        self.access = hosts.Access(self.state)
        self._client: DockerClient | None = None

    @property
    def client(self) -> DockerClient:
        """The machine's Docker Engine, connected on first use."""
        self._client = self._client or machine.connect_engine()
        return self._client

    def up(self) -> None:
        """Bring every host up, whatever there is already. A site that is cut stays cut."""
        started = time.monotonic()
        machine.prepare()
        bases = {host.base for host in self.topology.hosts.values()}
        ensure_base_images(self.client, self.topology.name, bases, BUILD)
        self.access.prepare(self.topology)
        for name in self.topology.networks:
            network.ensure_network(self.client, self.topology, name)
        for host in self.topology.hosts.values():
            if hosts.ensure_host(self.client, self.topology, host, self.access, self.state / "disks"):
                say(f"{host.name}: switched on")
        for host in self.topology.hosts.values():
            failed = hosts.wait_until_booted(self.access, host) - hosts.TOLERATED_UNITS
            if failed:
                raise FleetError(
                    "the host booted with failed units",
                    where=host.name,
                    seen=", ".join(sorted(failed)),
                    remedy=f"look at `docker exec {hosts.container_name(host)} journalctl -b`",
                )
            say(f"{host.name}: up at {host.address}, {host.guise or f'Debian {host.debian}'}")
        say(f"lab {self.topology.name}: up after {time.monotonic() - started:.0f} s")

    def down(self, *, purge: bool = False) -> None:
        """Remove everything that `up` made but the archives of the base images; with `purge` these too."""
        hosts.remove_all(self.client, self.topology.name, self.state / "disks")
        network.remove_rules(f"{network.LABEL}={self.topology.name}:")
        for found in self.client.networks.list(filters=network.labelled(self.topology.name)):
            found.remove()
        for base in {host.base for host in self.topology.hosts.values()}:
            try:
                self.client.images.remove(image_name(self.topology.name, base))
            except ImageNotFound:
                continue
        shutil.rmtree(self.state, ignore_errors=True)
        if purge:
            for file in (*BUILD.glob("*.tar"), *BUILD.glob("*.lock")):
                file.unlink()
            if BUILD.exists() and not any(BUILD.iterdir()):
                BUILD.rmdir()
        say(f"lab {self.topology.name}: down")

    def status(self) -> list[HostStatus]:
        """Return the state of every host."""
        cut = {site: network.is_cut(self.topology, site) for site in self.topology.sites}
        rows = []
        for host in self.topology.hosts.values():
            try:
                state = self.client.containers.get(hosts.container_name(host)).status
            except NotFound:
                state = "absent"
            rows.append(HostStatus(host.name, host.debian, host.address, state, cut.get(host.legs[0].network, False)))
        return rows

    def cut(self, site: str) -> None:
        """Cut a site off: its hosts reach one another and nothing else. The controller still reaches them."""
        self._check_site(site)
        network.cut(self.client, self.topology, site)
        say(f"{site}: cut off")

    def restore(self, site: str) -> None:
        """Connect a site that was cut off."""
        self._check_site(site)
        network.restore(self.client, self.topology, site)
        say(f"{site}: connected")

    def power_cut(self, host: str) -> None:
        """Take a host's power away: every process is gone at once, its disks keep what was written."""
        container = hosts.find(self.client, self.topology.host(host))
        if container.status == "running":
            container.kill(signal="KILL")
            container.wait()
        say(f"{host}: without power")

    def power_on(self, host: str) -> None:
        """Switch a host on and wait until it has booted."""
        entry = self.topology.host(host)
        hosts.start(hosts.find(self.client, entry), entry)
        hosts.wait_until_booted(self.access, entry)
        say(f"{host}: booted")

    def fill_disk(self, host: str) -> None:
        """Fill a host's file system at /var/lib/edgeml to its last block."""
        if not self.topology.host(host).disk_mb:
            raise FleetError(
                "the host has no disk of limited size",
                where=host,
                remedy=f"give it disk_mb in topologies/{self.topology.name}.yml",
            )
        # Whole megabytes take no time; dd takes the blocks that are left and ends with "no space left".
        free = f"$(df --output=avail --block-size=1M {hosts.DATA} | tail -n 1)"
        fill = f"fallocate --length {free}M {hosts.FILL}; cat /dev/zero >> {hosts.FILL} 2> /dev/null"
        self.run(host, f"sudo sh -c '{fill}; df --output=avail {hosts.DATA} | grep --quiet -w 0'", check=True)
        say(f"{host}: {hosts.DATA} is full")

    def free_disk(self, host: str) -> None:
        """Take away what `fill_disk` wrote."""
        self.run(host, f"sudo rm --force {hosts.FILL}", check=True)
        say(f"{host}: {hosts.DATA} has space again")

    def run(
        self, host: str, command: str, *, check: bool = False, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host over SSH, as the user edge, who may use sudo.

        Parameters
        ----------
        host : str
            A host of the topology.
        command : str
            A command line for the host's shell.
        check : bool
            Raise FleetError unless the command ends with code 0.
        timeout : float
            Seconds after which subprocess.TimeoutExpired is raised.
        """
        arguments = [*self.access.command(self.topology.host(host)), command]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise FleetError(
                "a command on a host failed",
                where=f"{host}: {command}",
                seen=(done.stderr or done.stdout).strip() or f"exit code {done.returncode}",
                remedy=f"run `lab.py ssh {host}` and look",
            )
        return done

    def _check_site(self, site: str) -> None:
        if site not in self.topology.sites:
            known = ", ".join(self.topology.sites) or "this lab has none"
            raise FleetError("no such site", where=f"lab {self.topology.name}", seen=site, remedy=f"sites: {known}")


@contextmanager
def pristine_lab(topology: Topology) -> Iterator[Lab]:
    """Make a lab from nothing and remove it at the end, whatever happens."""
    lab = Lab(topology)
    lab.down()
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


def main() -> int:
    """Run one verb. Returns the process's exit code."""
    options = _parser().parse_args()
    try:
        lab = Lab(Topology.named(options.topology))
        if options.verb == "ssh":
            host = lab.topology.host(options.host)
            hosts.find(lab.client, host)
            command = lab.access.command(host)
            return subprocess.run([*command, *options.command]).returncode
        options.action(lab, options)
    except FleetError as error:
        print(error, file=sys.stderr)
        return 1
    except DockerException as error:
        refused = FleetError("the Docker Engine refused", seen=str(error), remedy="run `lab.py down`, then try again")
        print(refused, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    known = sorted(file.stem for file in TOPOLOGIES.glob("*.yml"))
    common.add_argument("--topology", choices=known, default="fleet", help="which lab (default: fleet)")
    parser = argparse.ArgumentParser(
        prog="lab.py", description="Real hosts to test a fleet on: Debian servers with SSH and systemd, in containers."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(verb: str, text: str, action: Callable[[Lab, argparse.Namespace], None]) -> argparse.ArgumentParser:
        entry = verbs.add_parser(verb, help=text, description=text, parents=[common])
        entry.set_defaults(action=action)
        return entry

    add("prepare", "install what the lab needs on this machine", lambda *_: machine.prepare())
    add("up", "prepare this machine and bring all hosts up", lambda lab, _: lab.up())
    down = add("down", "remove all hosts and whatever belongs to them", lambda lab, o: lab.down(purge=o.purge))
    down.add_argument("--purge", action="store_true", help="also remove the archives of the base images")
    add("status", "list the hosts and their state", lambda lab, _: _print_status(lab))
    for verb, text, for_site in (
        ("cut", "cut a site off from everything outside its LAN", Lab.cut),
        ("restore", "connect a site again", Lab.restore),
    ):
        add(verb, text, _act(for_site, "site")).add_argument("site", metavar="SITE")
    for verb, text, for_host in (
        ("power-cut", "take a host's power away", Lab.power_cut),
        ("power-on", "switch a host on and wait until it has booted", Lab.power_on),
        ("fill-disk", f"fill the file system at {hosts.DATA} of a host", Lab.fill_disk),
        ("free-disk", "take away what fill-disk wrote", Lab.free_disk),
    ):
        add(verb, text, _act(for_host, "host")).add_argument("host", metavar="HOST")
    ssh = add("ssh", "log in to a host, or run a command there", lambda lab, _: None)
    ssh.add_argument("host", metavar="HOST")
    ssh.add_argument("command", nargs=argparse.REMAINDER, help="a command to run instead of a shell")
    return parser


def _act(method: Callable[[Lab, str], None], argument: str) -> Callable[[Lab, argparse.Namespace], None]:
    return lambda lab, options: method(lab, getattr(options, argument))


def _print_status(lab: Lab) -> None:
    print(f"{'HOST':<18}{'DEBIAN':<8}{'ADDRESS':<20}{'STATE':<10}NETWORK")
    for row in lab.status():
        link = "cut off" if row.cut else "connected"
        print(f"{row.host:<18}{row.debian:<8}{row.address:<20}{row.state:<10}{link}")


if __name__ == "__main__":
    sys.exit(main())
