# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``edgeml-runtime serve`` and ``edgeml-runtime bench``."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgeml_runtime import __version__
from edgeml_runtime.config import Config, load_config
from edgeml_runtime.errors import ConfigurationError, StartError

if TYPE_CHECKING:
    from edgeml_runtime.engine.engine import Engine

_SERVE = """\
Serve models until SIGTERM or SIGINT. Then finish what is under way, in at most
drain_seconds (10), and end.

What to serve is told by paths, or by a configuration file, which knows more:
TLS, tokens, limits, several versions. A PATH is a model directory (one with
model.json) or an .onnx file, which is served under its own name.
"""

_SERVE_END = """\
signals:
  SIGTERM, SIGINT  refuse new requests, finish those under way, end
  SIGHUP           read the configuration again: models, tokens, certificates;
                   what cannot be loaded leaves the old serving, and the log says why
  SIGUSR1          activate a candidate: open its TCP listeners

exit codes:
  0  stopped on request
  1  a model could not be loaded or a listener could not be opened
  2  the command line or the configuration file is wrong

examples:
  edgeml-runtime serve model.onnx
  edgeml-runtime serve models/digits models/file_type --rest 127.0.0.1:9000
  edgeml-runtime serve --config runtime.json
  edgeml-runtime serve --config runtime.json --candidate
"""

_BENCH = """\
Run models in this process, on their first golden case (zeros if there is none), and
print percentiles of the time of a run in microseconds, as JSON:
  {"models": {NAME: {"p50_us", "p95_us", "p99_us", "samples"}}}
This is the floor that served latency is compared with.
"""

_BENCH_END = """\
exit codes:
  0  measured
  1  a model could not be loaded
  2  the command line or the configuration file is wrong

examples:
  edgeml-runtime bench model.onnx
  edgeml-runtime bench --config runtime.json --model digits --samples 10000
"""


def main() -> NoReturn:
    """Run the command line and end the process."""
    arguments = _parser().parse_args()
    try:
        run: Callable[[argparse.Namespace], int] = arguments.run
        code = run(arguments)
    except (ConfigurationError, StartError) as error:
        print(f"edgeml-runtime: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigurationError) else 1
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
    from edgeml_runtime.model_paths import config_of_paths

    listeners = {name: getattr(arguments, name, None) or () for name in ("rest", "grpc", "metrics")}
    return config_of_paths(arguments.paths, listeners)


def _serve(arguments: argparse.Namespace) -> int:
    config = _config(arguments)

    import asyncio

    import uvloop

    from edgeml_runtime.server import serve

    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    # What uvicorn and asyncio tell of connections is of no interest below a warning.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    def greet(engine: "Engine") -> None:
        from edgeml_runtime.model_paths import welcome

        print(welcome(config, engine), flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        on_ready = greet if arguments.paths and not arguments.candidate else None
        runner.run(serve(config, lambda: _config(arguments), arguments.candidate, on_ready))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    config = _config(arguments)

    from edgeml_runtime.bench import measure

    served = [model.name for model in config.models]
    if arguments.model is not None and arguments.model not in served:
        raise ConfigurationError(
            "command line", "--model", repr(arguments.model), ", ".join(served), "name one of these models"
        )
    names = set(served) if arguments.model is None else {arguments.model}
    print(json.dumps({"models": measure(config, names, arguments.warmup, arguments.samples)}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeml-runtime",
        description="Serve models by the Open Inference Protocol v2, over REST, gRPC and MQTT.",
        epilog="edgeml-runtime COMMAND --help tells more, with examples and exit codes.",
    )
    parser.add_argument("--version", action="version", version=f"edgeml-runtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str, end: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=end,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "serve models until SIGTERM or SIGINT", _SERVE, _SERVE_END)
    bench = command("bench", _bench, "measure models in this process, without a server", _BENCH, _BENCH_END)
    for added in (serve, bench):
        source = added.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "paths", nargs="*", default=[], type=Path, metavar="PATH", help="a model directory or an .onnx file"
        )
        source.add_argument("--config", type=Path, metavar="FILE", help="configuration file (JSON), instead of paths")
    for protocol, port in (("rest", 8000), ("grpc", 8001), ("metrics", 8002)):
        serve.add_argument(
            f"--{protocol}",
            action="append",
            metavar="ADDRESS",
            help="where to listen: IP:PORT, [IPv6]:PORT, localhost:PORT or unix:/absolute/path; "
            f"can be given several times (default with PATH: 127.0.0.1:{port})",
        )
    serve.add_argument(
        "--candidate",
        action="store_true",
        help="listen on unix sockets only, until SIGUSR1 or POST /activate on the admin socket",
    )
    bench.add_argument("--model", metavar="NAME", help="measure this model only (default: all)")
    bench.add_argument("--samples", type=_positive, default=1000, metavar="N", help="measured runs (default: 1000)")
    bench.add_argument("--warmup", type=_not_negative, default=50, metavar="N", help="runs before (default: 50)")
    return parser


def _positive(text: str) -> int:
    """Whole numbers from 1; argparse tells the user of a ValueError."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _not_negative(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number
