# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``edgeml-runtime serve`` and ``edgeml-runtime bench``."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from edgeml_runtime import __version__
from edgeml_runtime.config import Config, load_config
from edgeml_runtime.errors import ConfigurationError, StartError

_EXIT_CODES = """\
exit codes:
  0  stopped on request, or done
  1  a model could not be loaded or a listener could not be opened
  2  the command line or the configuration file is wrong
"""


def main() -> NoReturn:
    """Run the command line and end the process."""
    arguments = _parser().parse_args()
    try:
        config = load_config(arguments.config)
        if arguments.command == "serve":
            _serve(config, arguments)
        else:
            _bench(config, arguments)
        code = 0
    except (ConfigurationError, StartError) as error:
        print(f"edgeml-runtime: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigurationError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: it would wait for engine threads that outlived the time for a stop.
    os._exit(code)


def _serve(config: Config, arguments: argparse.Namespace) -> None:
    import asyncio

    import uvloop

    from edgeml_runtime.server import serve

    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    # What uvicorn and asyncio tell of connections is of no interest below a warning.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, lambda: load_config(arguments.config), arguments.candidate))


def _bench(config: Config, arguments: argparse.Namespace) -> None:
    from edgeml_runtime.bench import measure

    served = [model.name for model in config.models]
    if arguments.model is not None and arguments.model not in served:
        raise ConfigurationError(
            str(arguments.config), "--model", repr(arguments.model), ", ".join(served), "name a configured model"
        )
    names = set(served) if arguments.model is None else {arguments.model}
    print(json.dumps({"models": measure(config, names, arguments.warmup, arguments.samples)}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeml-runtime",
        description="Serve ONNX models by the Open Inference Protocol v2, over REST and gRPC.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgeml-runtime {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve the configured models until SIGTERM or SIGINT",
        description="Serve the configured models until SIGTERM or SIGINT, then finish requests in flight "
        "(at most 10 seconds) and end.",
    )
    bench = commands.add_parser(
        "bench",
        help="measure models in this process, without a server",
        description="Run models in this process on their first golden input (zeros if there is none) and print "
        'percentiles as JSON: {"models": {NAME: {"p50_us", "p95_us", "p99_us", "samples"}}}. '
        "It is the floor that served latency is compared with.",
    )
    serve.add_argument(
        "--candidate",
        action="store_true",
        help="listen on unix sockets only, until SIGUSR1 or POST /activate on the admin socket",
    )
    for command in (serve, bench):
        command.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration file (JSON)")
    bench.add_argument("--model", metavar="NAME", help="measure this model only (default: all)")
    bench.add_argument("--samples", type=_positive, default=1000, metavar="N", help="measured runs (default: 1000)")
    bench.add_argument("--warmup", type=_not_negative, default=50, metavar="N", help="runs before (default: 50)")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _not_negative(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number
