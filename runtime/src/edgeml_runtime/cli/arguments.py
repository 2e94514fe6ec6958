# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The arguments of the command line, and its help."""

import argparse
from pathlib import Path

from edgeml_runtime import __version__

_WHOLE_END = """\
edgeml-runtime COMMAND --help tells more, with exit codes and examples.

examples:
  edgeml-runtime serve model.onnx
  edgeml-runtime check http://127.0.0.1:8000 grpc://127.0.0.1:8001
  edgeml-runtime models http://127.0.0.1:8000
"""

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

_CHECK = """\
Ask servers of the Open Inference Protocol v2, this one or any other, whether they
live and are ready, what they say of their models, whether the models answer their
golden cases right, and how long an answer takes. Print a table, or JSON.

A golden case is a JSON file with inputs, expected outputs and a tolerance; a model
directory has them in golden/. Without one, latency is measured with zeros. Latency
is what one client on one connection sees, from sending a request until all of its
answer is there. Requests carry tensors in binary where the server can take that.
"""

_URLS = """\
URLs:
  http://HOST[:PORT]  https://HOST[:PORT]  unix:/PATH         REST
  grpc://HOST:PORT    grpcs://HOST:PORT    grpc+unix:/PATH    gRPC
"""

_CHECK_END = f"""\
{_URLS}
exit codes:
  0  every check succeeded
  1  a check failed
  2  the command line is wrong
  3  a server could not be reached, or no longer answered

examples:
  edgeml-runtime check http://127.0.0.1:8000
  edgeml-runtime check http://127.0.0.1:8000 grpc://127.0.0.1:8001 \\
      --model digits --golden models/digits --p95-ms 25
  edgeml-runtime check grpcs://host:8001 --ca ca.pem --cert me.pem --key me.key --json
  edgeml-runtime check https://host:8000 --model a:1.0.0 --model b \\
      --golden a=golden/a --golden b=golden/b --token-file token
"""

_MODELS = """\
List the models of a server of the Open Inference Protocol v2: name, version, state,
platform, inputs and outputs, and why a model is not available; or load and list
what a configuration file names. -1 is a dimension of any size.
"""

_MODELS_END = f"""\
{_URLS}
exit codes:
  0  listed
  1  the server refused, or a configured model could not be loaded
  2  the command line or the configuration file is wrong
  3  the server could not be reached

examples:
  edgeml-runtime models http://127.0.0.1:8000
  edgeml-runtime models unix:/run/edgeml/rest.sock --model digits --json
  edgeml-runtime models --config runtime.json
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


def parser() -> argparse.ArgumentParser:
    """The whole command line; ``run`` is the name of the command."""
    whole = argparse.ArgumentParser(
        prog="edgeml-runtime",
        description="Serve models by the Open Inference Protocol v2, over REST, gRPC and MQTT.",
        epilog=_WHOLE_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"edgeml-runtime {__version__}")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str, end: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=end,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=name)
        return added

    serve = command("serve", "serve models until SIGTERM or SIGINT", _SERVE, _SERVE_END)
    check = command("check", "check servers of the protocol: golden cases, latency", _CHECK, _CHECK_END)
    models = command("models", "list the models of a server or of a configuration", _MODELS, _MODELS_END)
    bench = command("bench", "measure models in this process, without a server", _BENCH, _BENCH_END)
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
    serve.add_argument(
        "--candidate-file",
        type=Path,
        metavar="FILE",
        help="do so if this file exists at the start: whoever removes it decides how the next start goes",
    )
    check.add_argument("urls", nargs="+", metavar="URL", help="a server to check, see below")
    check.add_argument(
        "--golden",
        action="append",
        metavar="[MODEL=]DIR",
        help="golden cases of a model: DIR/golden/*.json or DIR/*.json; can be given several times",
    )
    check.add_argument(
        "--p95-ms", type=_positive_number, metavar="MS", help="what the 95th percentile of latency may be, milliseconds"
    )
    check.add_argument(
        "--samples", type=_positive, default=200, metavar="N", help="measured requests of a model (default: 200)"
    )
    check.add_argument("--warmup", type=_not_negative, default=20, metavar="N", help="requests before (default: 20)")
    check.add_argument(
        "--seconds",
        type=_positive_number,
        default=10.0,
        metavar="S",
        help="stop measuring a model after so many seconds, but not before 5 requests (default: 10)",
    )
    source = models.add_mutually_exclusive_group(required=True)
    source.add_argument("url", nargs="?", metavar="URL", help="a server, see below")
    source.add_argument("--config", type=Path, metavar="FILE", help="configuration file (JSON), instead of a server")
    for added in (check, models):
        added.add_argument(
            "--model",
            action="append",
            metavar="NAME[:VERSION]",
            help="this model; can be given several times (default: all of the server's repository index)",
        )
        added.add_argument(
            "--timeout",
            type=_positive_number,
            default=30.0,
            metavar="S",
            help="wait for an answer, seconds (default: 30)",
        )
        added.add_argument("--ca", type=Path, metavar="FILE", help="CA of the server, PEM (default: the system's)")
        added.add_argument("--cert", type=Path, metavar="FILE", help="client certificate, PEM, with --key")
        added.add_argument("--key", type=Path, metavar="FILE", help="its key, PEM")
        added.add_argument("--token-file", type=Path, metavar="FILE", help="file with a bearer token")
        added.add_argument("--json", action="store_true", help="print JSON instead of a table")
    bench.add_argument("--model", metavar="NAME", help="measure this model only (default: all)")
    bench.add_argument("--samples", type=_positive, default=1000, metavar="N", help="measured runs (default: 1000)")
    bench.add_argument("--warmup", type=_not_negative, default=50, metavar="N", help="runs before (default: 50)")
    return whole


def _positive(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"seen {text!r}; allowed: a whole number from {least}")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"seen {text!r}; allowed: a number above 0")
    return number
