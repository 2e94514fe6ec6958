# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``edgeml-runtime serve``, ``check``, ``models`` and ``bench``."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgeml_runtime.cli.arguments import parser
from edgeml_runtime.config import Config
from edgeml_runtime.config_file import load_config
from edgeml_runtime.document import Reader
from edgeml_runtime.errors import ConfigurationError, StartError

if TYPE_CHECKING:
    from edgeml_runtime.client.protocol import Access
    from edgeml_runtime.engine.engine import Engine


def main() -> NoReturn:
    """Run the command line and end the process."""
    arguments = parser().parse_args()
    try:
        code = COMMANDS[arguments.run](arguments)
    except (ConfigurationError, StartError) as error:
        print(f"edgeml-runtime: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigurationError) else 1
    except KeyboardInterrupt:
        code = 130  # as shells tell it
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: it would wait for engine threads that outlived the time for a stop.
    os._exit(code)


def _config(arguments: argparse.Namespace) -> Config:
    """The configuration that the command line means. Raises ConfigurationError."""
    options = [f"--{name}" for name in ("rest", "grpc", "metrics") if getattr(arguments, name, None)]
    if arguments.config:
        if options:
            raise ConfigurationError(
                "command line", options[0], "--config as well", "listeners of the file", "use the file's 'listen'"
            )
        return load_config(arguments.config)
    from edgeml_runtime.cli.paths import config_of_paths

    listeners = {name: getattr(arguments, name, None) or () for name in ("rest", "grpc", "metrics")}
    return config_of_paths(arguments.paths, listeners)


def _serve(arguments: argparse.Namespace) -> int:
    config = _config(arguments)

    import asyncio

    import uvloop

    from edgeml_runtime.memory import bound_memory, return_memory
    from edgeml_runtime.server import serve
    from edgeml_runtime.transports.listener import Claim

    bound_memory()
    return_memory()
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    # What asyncio tells of connections is of no interest below a warning.
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    def greet(engine: "Engine") -> None:
        from edgeml_runtime.cli.paths import welcome

        print(welcome(config, engine), flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        as_candidate = arguments.candidate or (
            arguments.candidate_file is not None and arguments.candidate_file.exists()
        )
        on_ready = greet if arguments.paths and not as_candidate else None
        # Where there may be a candidate, one that is none was activated before, on the same ports.
        claim = Claim.NEW if arguments.candidate_file is None else Claim.AGAIN
        runner.run(serve(config, lambda: _config(arguments), as_candidate, on_ready, claim))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    config = _config(arguments)

    from edgeml_runtime.cli.bench import measure

    served = list(dict.fromkeys(model.name for model in config.models))
    if arguments.model is not None and arguments.model not in served:
        raise ConfigurationError(
            "command line", "--model", repr(arguments.model), ", ".join(served), "name one of these models"
        )
    names = set(served) if arguments.model is None else {arguments.model}
    print(json.dumps({"models": measure(config, names, arguments.warmup, arguments.samples)}))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from edgeml_runtime.cli.check import Plan, as_text, check_server
    from edgeml_runtime.client.connect import parse_target

    plan = Plan(
        _named(arguments), _golden(arguments), arguments.p95_ms, arguments.samples, arguments.warmup, arguments.seconds
    )
    targets = [parse_target(url) for url in arguments.urls]
    access = _access(arguments)
    reports = []
    for target in targets:
        reports.append(check_server(target, access, plan))
        if not arguments.json:
            print(as_text(reports[-1]), flush=True)
    if arguments.json:
        document = {"ok": all(report.ok for report in reports), "servers": [report.as_json() for report in reports]}
        print(json.dumps(document, indent=2))
    if not all(report.reachable for report in reports):
        return 3
    return 0 if all(report.ok for report in reports) else 1


def _named(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Names and versions of --model."""
    return [(name, version) for name, _, version in (text.partition(":") for text in arguments.model or ())]


def _golden(arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """Files of golden cases by model. Raises ConfigurationError."""
    named = [name for name, _ in _named(arguments)]
    files: dict[str, list[Path]] = {}
    for text in arguments.golden or ():
        model, separator, directory = text.rpartition("=")
        if separator and named and model not in named:
            raise ConfigurationError("command line", "--golden", repr(model), ", ".join(named), "name a --model")
        if not separator and len(set(named)) > 1:
            raise ConfigurationError(
                "command line", "--golden", repr(text), "MODEL=DIR; DIR alone with one --model", "name the model"
            )
        found = sorted(Path(directory).glob("golden/*.json")) or sorted(Path(directory).glob("*.json"))
        if not found:
            allowed = "a directory with golden cases: golden/*.json or *.json"
            raise ConfigurationError("command line", "--golden", repr(directory), allowed, "correct the path")
        files.setdefault(model or (named[0] if named else _name_in(Path(directory))), []).extend(found)
    return files


def _name_in(directory: Path) -> str:
    """The model that a directory says it holds; empty when it does not say: the only one of the server."""
    try:
        name = json.loads((directory / "model.json").read_text(encoding="utf-8")).get("name")
    except (OSError, ValueError, AttributeError):
        return ""
    return name if isinstance(name, str) else ""


def _access(arguments: argparse.Namespace) -> "Access":
    """As whom to ask a server. Raises ConfigurationError."""
    from edgeml_runtime.client.protocol import Access

    reader = Reader("command line")
    if (arguments.cert is None) != (arguments.key is None):
        reader.fail("--cert, --key", "one of them", "both or none", "add the other one")
    files = {
        name: None if file is None else reader.readable(str(file), f"--{name}")
        for name, file in (("ca", arguments.ca), ("cert", arguments.cert), ("key", arguments.key))
    }
    token = None
    if arguments.token_file is not None:
        token = reader.readable(str(arguments.token_file), "--token-file").read_text(errors="replace").strip()
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            seen = f"{str(arguments.token_file)!r}, which holds something else"
            reader.fail("--token-file", seen, "a file with one token of printable ASCII characters")
    return Access(files["ca"], files["cert"], files["key"], token, arguments.timeout)


def _models(arguments: argparse.Namespace) -> int:
    from edgeml_runtime.cli.models import READY, as_text, configured_models, served_models
    from edgeml_runtime.client.connect import parse_target
    from edgeml_runtime.client.protocol import Refused, Unreachable

    try:
        if arguments.config:
            models = configured_models(load_config(arguments.config))
        else:
            models = served_models(parse_target(arguments.url), _access(arguments), _named(arguments))
    except Unreachable as error:
        print(f"edgeml-runtime: {arguments.url} cannot be reached: {error}", file=sys.stderr)
        return 3
    except Refused as error:
        remedy = "" if arguments.model else "; does the server have an index? Else name models with --model"
        print(f"edgeml-runtime: {arguments.url}: {error}{remedy}", file=sys.stderr)
        return 1
    document = {"models": [model.as_json() for model in models]}
    print(json.dumps(document, indent=2) if arguments.json else as_text(models))
    return 1 if arguments.config and any(model.state != READY for model in models) else 0


#: What each command does with its arguments; it gives the exit code.
COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "check": _check,
    "models": _models,
    "bench": _bench,
}
