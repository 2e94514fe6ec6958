# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker Engine as a service: whether it is there, its configuration, and that it runs.

An engine that is there is taken as it is. Keys of its configuration that nobody here asked for stay; those that were
written before and are asked for no more are taken back. A configuration with which it does not come up is put back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.module_utils._errors import FleetError
from ansible_collections.edgeml.fleet.plugins.module_utils._host.command import RunCommand
from ansible_collections.edgeml.fleet.plugins.module_utils._host.distribution import distribution
from ansible_collections.edgeml.fleet.plugins.module_utils._host.engine import PROCESS_FILE
from ansible_collections.edgeml.fleet.plugins.module_utils._host.files import make_directory, replace_file

CONFIGURATION = "etc/docker/daemon.json"
WRITTEN = "var/lib/edgeml/engine.json"  # what was written here, to take it back
LOG = "var/log/docker.log"  # where there is no systemd
PROGRAMS = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "bin", "sbin", "opt/bin")
QUESTION_SECONDS = "20"  # an engine that hangs answers nothing
POLL_SECONDS = 0.5
STOP_SECONDS = 60


class EngineService:
    """The engine of the host below `root`; tests give another one."""

    def __init__(self, run: RunCommand, root: Path = Path("/")) -> None:
        self._run = run
        self._root = root

    def apply(self, configuration: Mapping[str, Any], seconds: float, check_mode: bool) -> dict[str, Any]:
        """Have an engine that is installed run with its configuration; return the module's result.

        Raises
        ------
        FleetError
            The command docker is another program's, the configuration is refused, or the engine does not come up.
        """
        found = distribution(self._root)
        result: dict[str, Any] = {"present": self.is_present(), "packages": list(found.engine_packages)}
        if not result["present"]:
            return {**result, "changed": False, "plan": {"action": "install"}}
        running = self.is_running()
        before = self._read(CONFIGURATION)
        written = self._asked_for(configuration)
        after = {**self._without_what_was_written(before), **written}
        action = "restart" if running and after != before else "none" if running else "start"
        enable = self._has_unit() and self._systemctl("is-enabled", "docker") != 0
        result.update(changed=action != "none" or enable, plan={"action": action})
        result["diff"] = {"before": before, "after": after}
        if check_mode:
            return result
        text = self._text(CONFIGURATION)
        if after != before:
            self._check(after)
            make_directory(self._root / "etc/docker")
            replace_file(self._root / CONFIGURATION, (json.dumps(after, indent=4) + "\n").encode(), 0o644)
        if enable:
            self._systemctl("enable", "docker")
        if action != "none":
            self._restart(seconds, None if after == before else text)
        if written or (self._root / WRITTEN).exists():
            make_directory(self._root / "var/lib/edgeml")
            replace_file(self._root / WRITTEN, json.dumps(written, sort_keys=True).encode(), 0o644)
        return result

    def is_present(self) -> bool:
        """Return whether there is an engine. Raises FleetError where ``docker`` is podman's."""
        code, words, _error = self._run(["timeout", QUESTION_SECONDS, "docker", "--version"])
        if "podman" in words.lower():
            raise FleetError(
                "The command docker is podman's",
                where="docker --version",
                seen=words.strip(),
                remedy="remove podman-docker and run again, or install a Docker Engine; nothing was replaced",
            )
        return code == 0 and (self._program("dockerd") is not None or self.is_running())

    def is_running(self) -> bool:
        """Return whether the engine answers."""
        return self._run(["timeout", QUESTION_SECONDS, "docker", "version"])[0] == 0

    def stop(self) -> None:
        """Stop the engine and wait for its end."""
        if self._has_unit():
            self._systemctl("stop", "docker.socket", "docker.service")
            return
        process = self._process()
        if process is None:
            return
        os.kill(process, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while self._process() == process and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def _asked_for(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out what this engine cannot take: the file must not repeat flags, nor a swarm restore live."""
        flags = self._flags()
        if "log-driver" in flags:
            flags |= {"log-opts"}  # they are for the driver that they came with
        asked = {
            key: value for key, value in configuration.items() if key not in flags and key.rstrip("s") not in flags
        }
        if "live-restore" in asked:
            question = ["timeout", QUESTION_SECONDS, "docker", "info", "--format", "{{.Swarm.LocalNodeState}}"]
            if self._run(question)[1].strip() not in ("", "inactive"):
                del asked["live-restore"]
        return asked

    def _without_what_was_written(self, before: Mapping[str, Any]) -> dict[str, Any]:
        written = self._read(WRITTEN)
        return {key: value for key, value in before.items() if not (key in written and written[key] == value)}

    def _check(self, configuration: Mapping[str, Any]) -> None:
        """Let the engine itself check a configuration, where it can (since 23.0)."""
        if "--validate" not in "".join(self._run(["dockerd", "--help"])[1:]):
            return
        make_directory(self._root / "etc/docker")
        trial = self._root / "etc/docker/.daemon.json.trial"
        replace_file(trial, json.dumps(configuration).encode(), 0o644)
        try:
            code, out, error = self._run(["dockerd", "--validate", f"--config-file={trial}"])
        finally:
            trial.unlink()
        if code != 0:
            raise FleetError(
                "The engine refuses its configuration",
                where=f"docker_engine_configuration, merged into /{CONFIGURATION}",
                seen=(out + error).strip()[-500:],
                remedy="correct docker_engine_configuration, or the file; nothing was changed",
            )

    def _restart(self, seconds: float, text_before: str | None) -> None:
        """Start the engine again. Where it does not come up, put the configuration back that was there before."""
        if self._start(seconds):
            return
        words = self._log()
        if text_before is None:
            raise FleetError(
                f"The engine does not answer within {seconds:g} s",
                where="docker version",
                seen=words,
                remedy="correct what its log names, or set docker_engine_start_timeout",
            )
        if text_before:
            replace_file(self._root / CONFIGURATION, text_before.encode(), 0o644)
        else:
            (self._root / CONFIGURATION).unlink()
        again = self._start(seconds)
        raise FleetError(
            "The engine does not come up with its new configuration, which was taken back",
            where=f"docker_engine_configuration, merged into /{CONFIGURATION}",
            seen=words,
            remedy="correct what its log names; the engine runs again as before"
            if again
            else "correct what its log names, and start the engine, which does not answer as before either",
        )

    def _start(self, seconds: float) -> bool:
        if self._has_unit():
            self._systemctl("reset-failed", "docker.service", "docker.socket")
            # Docker's own unit lets a start take for ever.
            if self._run(["timeout", f"{max(seconds, 1):g}", "systemctl", "restart", "docker"])[0] != 0:
                return False
            process = None
        else:
            self.stop()
            (self._root / LOG).parent.mkdir(parents=True, exist_ok=True)
            with (self._root / LOG).open("ab") as log:
                # In a session of its own, so that it outlives the connection.
                process = subprocess.Popen(
                    [str(self._program("dockerd") or "dockerd")],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                    env={**os.environ, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"},
                )  # fmt: skip
        end = time.monotonic() + seconds
        while not self.is_running():
            ended = process is not None and process.poll() is not None
            if ended or time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _log(self) -> str:
        if self._has_unit():
            lines = self._run(["journalctl", "--unit", "docker", "--lines", "8", "--no-pager", "--output", "cat"])[1]
        else:
            lines = "\n".join(self._text(LOG).splitlines()[-8:])
        return lines.strip()[-1500:] or "nothing in its log"

    def _program(self, name: str) -> Path | None:
        return next((path for path in (self._root / place / name for place in PROGRAMS) if path.exists()), None)

    def _has_unit(self) -> bool:
        booted = (self._root / "run/systemd/system").is_dir()
        return booted and self._systemctl("cat", "docker.service") == 0

    def _systemctl(self, *arguments: str) -> int:
        return self._run(["systemctl", *arguments])[0]

    def _process(self) -> int | None:
        """Return the process of the engine by its own record: engines inside containers run in /proc as well."""
        text = self._text(PROCESS_FILE).strip()
        is_engine = text.isdigit() and self._text(f"proc/{text}/comm").strip() == "dockerd"
        ended = "State:\tZ" in self._text(f"proc/{text}/status") if is_engine else True
        return None if ended else int(text)

    def _flags(self) -> set[str]:
        """Return the names of the flags with which the engine was started."""
        process = self._process()
        words = self._text(f"proc/{process}/cmdline").split("\0")[1:] if process else []
        return {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}

    def _text(self, name: str) -> str:
        try:
            return (self._root / name).read_text(errors="replace")
        except OSError:
            return ""

    def _read(self, name: str) -> dict[str, Any]:
        text = self._text(name)
        try:
            return dict(json.loads(text)) if text.strip() else {}
        except (ValueError, TypeError) as error:
            raise FleetError(
                "The engine's configuration cannot be read",
                where=f"/{name}",
                seen=str(error),
                remedy="correct the file; it has to hold one JSON object",
            ) from error
