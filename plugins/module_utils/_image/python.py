# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Python in an image: wheels of any architecture from a hash-locked file, and bytecode made by the image's own Python.

The Python of the controller is neither of the image's version nor, always, of its architecture. Wheels are therefore
chosen by the tags of the image, and bytecode, which does not depend on the architecture, is compiled by the image's
Python for the controller's architecture, started through its own dynamic loader: without root, chroot or emulation.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.names import ARCHITECTURES
from ansible_collections.edgeml.fleet.plugins.module_utils._image.layer import PathPatterns, prune, resolve
from ansible_collections.edgeml.fleet.plugins.module_utils._image.recipe import PythonPackages

MACHINES = {architecture: machine for machine, architecture in ARCHITECTURES.items()}
LOADERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}
PROGRAM_DIRECTORIES = ("usr/local/bin", "usr/bin", "bin")
# glibc of the wheels: at most 2.28, which every supported base has.
GLIBC_MINORS = range(28, 16, -1)
TIMEOUT = 1800  # seconds
SHOWN_OUTPUT = 600  # characters

# Runs inside the image's Python. Names in the bytecode are the image's. One process and one order, so that equal
# sources give equal bytes; unchecked, because time stamps in an image say nothing about its sources. Links are left
# alone: here, absolute ones lead out of the image.
# What the compiler writes also depends on what else the process holds: a constant equal to a string that is interned
# already is written as another type. Copies of the constants leave that behind.
COMPILE = """
import marshal, os, py_compile, sys, types
root, *directories = sys.argv[1:]
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
os.umask(0o022)

def copied(value, filename):
    if isinstance(value, types.CodeType):
        constants = tuple(copied(item, filename) for item in value.co_consts)
        return value.replace(co_consts=constants, co_filename=filename)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    if isinstance(value, (tuple, frozenset)):
        return type(value)(copied(item, filename) for item in value)
    return value

for directory in directories:
    for here, names, files in os.walk(os.path.join(root, directory)):
        names.sort()
        for name in sorted(files):
            path = os.path.join(here, name)
            if name.endswith(".py") and not os.path.islink(path):
                shown = "/" + os.path.relpath(path, root)
                try:
                    written = py_compile.compile(path, dfile=shown, doraise=True, invalidation_mode=mode)
                except py_compile.PyCompileError as error:
                    sys.exit(f"{shown}: {error.exc_value}")
                with open(written, "r+b") as file:
                    header = file.read(16)
                    code = marshal.dumps(copied(marshal.load(file), sys.intern(shown)))
                    file.seek(0)
                    file.write(header + code)
                    file.truncate()
"""


def controller_architecture() -> str:
    """Return this machine's architecture as OCI names it; raise FleetError if images cannot be made on it."""
    machine = platform.machine()
    for architecture, name in MACHINES.items():
        if machine == name:
            return architecture
    raise FleetError(
        "Images with Python cannot be assembled on this machine",
        where="controller",
        seen=machine,
        remedy=f"use a controller of one of {', '.join(MACHINES.values())}",
    )


class Interpreter:
    """The Python of an image for the controller's architecture, in the unpacked root file system `root`.

    Raise FleetError if it is not there or does not start.
    """

    def __init__(self, root: Path, version: str) -> None:
        architecture = controller_architecture()
        loader = resolve(root, LOADERS[architecture])
        programs = [resolve(root, f"{directory}/python{version}") for directory in PROGRAM_DIRECTORIES]
        found = [program for program in programs if program.is_file()]
        if not found or not loader.is_file():
            raise FleetError(
                f"The base of the image has no Python {version} that runs on glibc",
                where=f"architecture {architecture}",
                seen=f"no python{version} in {', '.join(PROGRAM_DIRECTORIES)}" if not found else "no glibc loader",
                remedy=f"add python{version}-minimal and libpython{version}-stdlib to the packages, or use a base image"
                f" with Python {version} on glibc 2.28 or newer",
            )
        prefix = found[0].parent.parent
        triplet = f"{MACHINES[architecture]}-linux-gnu"
        libraries = [resolve(root, path) for path in (f"usr/lib/{triplet}", f"lib/{triplet}", "usr/lib", "lib")]
        #: What starts it, and the environment that it needs.
        self.command = [
            str(loader),
            "--library-path",
            ":".join(map(str, [prefix / "lib", *libraries])),
            str(found[0]),
            *("-s", "-P"),
        ]
        self.environment = {"PYTHONHOME": str(prefix), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        self.standard_library = (prefix / "lib" / f"python{version}").relative_to(root).as_posix()
        self.full_version = self._run("import platform; print(platform.python_version())").strip()

    def compile(self, root: Path, directories: Iterable[str]) -> None:
        """Write the bytecode of all modules in `directories`, relative to `root`, beside them."""
        self._run(COMPILE, str(root), *directories)

    def _run(self, program: str, *arguments: str) -> str:
        command = [*self.command, "-S", "-c", program, *arguments]
        try:
            run = subprocess.run(
                command, env=self.environment, check=False, capture_output=True, text=True, timeout=TIMEOUT
            )
            seen = run.stderr.strip()[-SHOWN_OUTPUT:]
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed(str(error)) from error
        if run.returncode:
            raise self._failed(seen or f"exit status {run.returncode}")
        return run.stdout

    def _failed(self, seen: str) -> FleetError:
        return FleetError(
            "The image's Python cannot compile its modules",
            where=self.command[-3],
            seen=seen,
            remedy="keep the cache on a file system that allows programs, and the packages that Python needs in the"
            " recipe; a module that is no Python can be removed by python.remove",
        )


@dataclass(frozen=True)
class LockedRequirement:
    """One distribution of a lock file that applies to the image."""

    name: str
    version: str
    hashes: tuple[str, ...]


def select_requirements(
    text: str, where: str, *, full_version: str, architecture: str, exclude: Iterable[str]
) -> list[LockedRequirement]:
    """Return those requirements of a lock file (pip's format, with hashes) that apply to the image, by name.

    Environment markers (PEP 508) are evaluated for CPython `full_version` on Linux of `architecture`: pip itself would
    evaluate them for the Python that runs it. Raise FleetError for a line that is not pinned by version and hash, a
    distribution that applies twice, and an excluded one that is not in the lock.
    """
    try:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.utils import canonicalize_name
    except ImportError as error:
        raise FleetError(
            "The Python library packaging is missing",
            where=sys.executable,
            remedy="run the module with the Python that runs Ansible: ansible_python_interpreter:"
            " '{{ ansible_playbook_python }}'",
        ) from error
    environment = {
        "implementation_name": "cpython",
        "implementation_version": full_version,
        "os_name": "posix",
        "platform_machine": MACHINES[architecture],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full_version,
        "python_version": ".".join(full_version.split(".")[:2]),
        "sys_platform": "linux",
        "extra": "",
    }
    unused = {canonicalize_name(name) for name in exclude}
    excluded = frozenset(unused)
    selected: dict[str, LockedRequirement] = {}
    for line in _logical_lines(text):
        specification, *hashes = re.split(r"\s+--hash=", line)
        try:
            requirement = Requirement(specification)
        except InvalidRequirement as error:
            raise _not_locked(where, line) from error
        pins = [item.version for item in requirement.specifier if item.operator == "==" and "*" not in item.version]
        if len(requirement.specifier) != 1 or not pins or not hashes:
            raise _not_locked(where, line)
        name = canonicalize_name(requirement.name)
        unused.discard(name)
        if name in excluded or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        if name in selected:
            raise FleetError(
                "A distribution applies twice",
                where=where,
                seen=f"{name} {selected[name].version} and {pins[0]}",
                remedy="lock the requirements again, so that the markers exclude each other",
            )
        selected[name] = LockedRequirement(name, pins[0], tuple(item.strip() for item in hashes))
    if unused:
        raise FleetError(
            "Excluded distributions are not in the lock",
            where=where,
            seen=", ".join(sorted(unused)),
            remedy="take them out of python.exclude",
        )
    return [selected[name] for name in sorted(selected)]


def additional_requirements(
    requirements: Iterable[LockedRequirement], below: Mapping[str, str], where: str
) -> list[LockedRequirement]:
    """Return those that the distributions `below` (name to version) lack; raise FleetError where versions differ."""
    requirements = list(requirements)
    other = [f"{item.name} {item.version}, not {below[item.name]}" for item in requirements
             if below.get(item.name, item.version) != item.version]  # fmt: skip
    if other:
        raise FleetError(
            "Locked requirements disagree with those of the runtime that they extend",
            where=where,
            seen=", ".join(other),
            remedy="lock them again with the runtime's own file as a constraint (pip-compile --constraint)",
        )
    return [item for item in requirements if item.name not in below]


def _logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\n", " ", text)
    lines = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line]


def _not_locked(where: str, line: str) -> FleetError:
    return FleetError(
        "A requirement is not locked by version and hash",
        where=where,
        seen=line[:100],
        remedy="lock the file, for example with pip-compile --generate-hashes",
    )


def fetch_wheels(
    requirements: list[LockedRequirement], python: PythonPackages, architecture: str, directory: Path
) -> list[Path]:
    """Download the wheels of `requirements` for one architecture into `directory`; pip checks their hashes."""
    directory.mkdir()
    lock = directory / "requirements.txt"
    lines = [
        f"{item.name}=={item.version} {' '.join(f'--hash={hash_}' for hash_ in item.hashes)}\n" for item in requirements
    ]
    lock.write_text("".join(lines), encoding="utf-8")
    machine = MACHINES[architecture]
    tags = [*(f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS), f"manylinux2014_{machine}"]
    command = [
        *_pip(directory),
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        f"--python-version={python.version}",
        "--implementation=cp",
        *(f"--platform={tag}" for tag in tags),
        f"--dest={directory}",
        f"--requirement={lock}",
    ]
    run = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if "ERROR" in line] or run.stderr.splitlines()[-5:]
        raise FleetError(
            "The wheels could not be fetched",
            where=f"{python.requirements}, Python {python.version}, architecture {architecture}",
            seen=re.sub(r"//[^/@\s]+@", "//", " | ".join(errors))[-SHOWN_OUTPUT:],
            remedy="check this machine's access to its Python package index, and that each locked distribution has a"
            " wheel for this Python and architecture",
        )
    return sorted(directory.glob("*.whl"))


def _pip(directory: Path) -> list[str]:
    """Return the command of a pip: this Python's, or one made by ensurepip."""
    if not subprocess.run([sys.executable, "-m", "pip", "--version"], check=False, capture_output=True).returncode:
        return [sys.executable, "-m", "pip"]
    environment = directory / "pip"
    made = subprocess.run([sys.executable, "-m", "venv", str(environment)], check=False, capture_output=True, text=True)
    if made.returncode:
        raise FleetError(
            "There is no pip",
            where=sys.executable,
            seen=(made.stdout + made.stderr).strip()[-SHOWN_OUTPUT:],
            remedy="apt-get install python3-venv, or run the module with the Python of a virtual environment",
        )
    return [str(environment / "bin" / "python"), "-m", "pip"]


def unpack_wheels(wheels: Iterable[Path], target: Path, remove: PathPatterns) -> None:
    """Unpack wheels into one directory for PYTHONPATH (binary distribution format, "Installing a wheel").

    Libraries only: console scripts, headers and other data of ``*.data`` directories stay out.
    """
    target.mkdir(parents=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                name = _installed_name(PurePosixPath(entry.filename))
                if name is None:
                    continue
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file)
                if entry.external_attr >> 16 & 0o100:
                    path.chmod(0o755)
    prune(target, remove, PathPatterns([]))


def _installed_name(name: PurePosixPath) -> PurePosixPath | None:
    if name.is_absolute() or ".." in name.parts:
        raise FleetError("A wheel holds a path that leads out of it", where=str(name), remedy="use another version")
    if name.parts[0].endswith(".data"):
        return PurePosixPath(*name.parts[2:]) if name.parts[1:2] in (("purelib",), ("platlib",)) else None
    return name
