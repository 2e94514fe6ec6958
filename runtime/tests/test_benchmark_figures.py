# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of runtime/benchmarks: a wrong sum there would look like a good figure."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from compare import comparison, joined
from edgeml_runtime.codecs import open_inference_grpc_pb2 as messages
from serving_bench import options
from serving_bench.cases import Case
from serving_bench.encodings import Encoding, protocol_answer, protocol_request
from serving_bench.h2load import command, durations, percentile, read_load
from serving_bench.ratios import against_best, ratio
from serving_bench.report import report
from serving_bench.results import EngineSample, Results, Sample, Start, read_results
from serving_bench.servers import SERVERS
from serving_bench.targets import targets

SUMMARY = """\
finished in 1.70s, 6362.00 req/s, 2.14MB/s
requests: 4 total, 4 started, 4 done, 3 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 3 2xx, 0 3xx, 1 4xx, 0 5xx
traffic: 3.21MB (3368679) total, 1.75MB (1837530) headers (space savings 0.00%), 1.53MB (1599) data
"""
LOG = ["1795530329876406\t200\t232\n", "1795530329876672\t200\t174\n", "1795530329876851\t400\t1\n", "1\t200\t157\n"]


@pytest.fixture
def case() -> Case:
    """Three floats in, two out."""
    values = np.array([[0.1, -2.5, 3e-8]], np.float32)
    return Case("m", Path("m.onnx"), "x", values, "y", np.array([[0.25, 0.75]], np.float32))


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1), (50, 50), (50.5, 51), (95, 95), (99, 99), (99.1, 100), (100, 100)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_percentile_of_few_values() -> None:
    assert percentile([7], 50) == percentile([7], 99) == 7
    assert percentile([1, 2], 50) == 1
    assert percentile([1, 2, 3], 50) == 2
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_log_counts_answers_alone() -> None:
    assert durations(LOG) == [157, 174, 232]


def test_load_from_summary_and_log() -> None:
    load = read_load(SUMMARY, LOG)
    assert (load.requests, load.failed, load.per_second) == (3, 1, 6362.0)
    assert (load.p50_us, load.p95_us, load.p99_us) == (174, 232, 232)
    assert load.answer_bytes == 533


@pytest.mark.parametrize("summary", ["", SUMMARY.replace("3 succeeded", "0 succeeded")])
def test_load_without_answers_is_an_error(summary: str) -> None:
    with pytest.raises(ValueError, match=r"h2load said|no request"):
        read_load(summary, LOG)


def test_h2load_is_bounded_and_pinned(case: Case) -> None:
    request = protocol_request(case, Encoding.JSON)
    words = command("http://127.0.0.1:1", request, Path("b"), Path("l"), grpc=False, clients=1, seconds=0.6, core=1)
    assert words[:4] == ["taskset", "--cpu-list", "1", "h2load"]
    assert {"--h1", "--duration=600ms", "--clients=1", "--data=b", "--header=content-type: application/json"} < set(
        words
    )
    assert words[-1] == "http://127.0.0.1:1/v2/models/m/infer"
    free = command("http://127.0.0.1:1", request, Path("b"), Path("l"), grpc=True, clients=8, seconds=1, core=None)
    assert free[0] == "h2load"
    assert "--h1" not in free


def test_json_request_keeps_every_float(case: Case) -> None:
    (tensor,) = json.loads(protocol_request(case, Encoding.JSON).body)["inputs"]
    assert tensor["data"] == [0.1, -2.5, 3e-8]
    assert np.array_equal(np.array(tensor["data"], np.float32), case.input.ravel())


def test_binary_request_is_json_then_bytes(case: Case) -> None:
    request = protocol_request(case, Encoding.BINARY)
    length = int(dict(request.headers)["inference-header-content-length"])
    assert json.loads(request.body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 12}
    assert request.body[length:] == case.input.tobytes()


@pytest.mark.parametrize("encoding", [Encoding.GRPC_RAW, Encoding.GRPC_TYPED])
def test_grpc_request_has_its_frame(case: Case, encoding: Encoding) -> None:
    request = protocol_request(case, encoding)
    compressed, length = struct.unpack(">BI", request.body[:5])
    assert (compressed, length) == (0, len(request.body) - 5)
    message = messages.ModelInferRequest.FromString(request.body[5:])
    if encoding is Encoding.GRPC_RAW:
        assert message.raw_input_contents[0] == case.input.tobytes()
    else:
        assert list(message.inputs[0].contents.fp32_contents) == case.input.ravel().tolist()


def test_wrong_answers_are_seen(case: Case) -> None:
    answer = json.dumps({"outputs": [{"name": "y", "parameters": None, "data": [0.25, 0.75]}]}).encode()
    assert case.is_answered_by(protocol_answer(case, Encoding.JSON, {}, answer))
    assert not case.is_answered_by(protocol_answer(case, Encoding.JSON, {}, answer.replace(b"0.75", b"0.74")))
    assert not case.is_answered_by(np.array([0.25], np.float32))
    with pytest.raises(ValueError, match="no output"):
        protocol_answer(case, Encoding.JSON, {}, b'{"outputs": []}')


def test_binary_answers_are_found_behind_others(case: Case) -> None:
    header = {
        "outputs": [
            {"name": "label", "parameters": {"binary_data_size": 8}},
            {"name": "y", "parameters": {"binary_data_size": 8}},
        ]
    }
    text = json.dumps(header).encode()
    body = text + bytes(8) + case.output.tobytes()
    headers = {"inference-header-content-length": str(len(text))}
    assert case.is_answered_by(protocol_answer(case, Encoding.BINARY, headers, body))


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # The medians alone, 2 and 4, would say 0.5.
    assert ratio({0: 1, 1: 2, 2: 9}, {0: 4, 1: 20, 2: 3}) == 0.25
    assert ratio({0: 1}, {1: 1}) is None


def test_best_peer_is_the_one_with_the_best_median() -> None:
    figures = {
        "edgeml": {0: 10.0, 1: 10.0},
        "kserve": {0: 20.0, 1: 20.0},
        "bentoml": {0: 40.0, 1: 5.0},
        "echo": {0: 1.0, 1: 1.0},
    }
    lowest = against_best(figures, lowest=True)
    highest = against_best(figures, lowest=False)
    assert lowest is not None and (lowest.other, lowest.ratio) == ("kserve", 0.5)
    assert highest is not None and highest.other == "bentoml"
    assert against_best({"edgeml": {0: 1.0}}, lowest=True) is None
    assert against_best({"kserve": {0: 1.0}}, lowest=True) is None


def _sample(server: str, model: str, encoding: str, clients: int, p50: float, per_second: float) -> Sample:
    return Sample(0, server, model, encoding, clients, 100, 0, p50, p50, p50, per_second, 0.1)


@pytest.fixture
def results() -> Results:
    """One round in which ours takes 0.1 of the peer's time on REST and 0.6 on gRPC."""
    found = Results(
        about={
            **{"started": "", "commit": "", "cores": 2, "processor": "", "kernel": "", "python": "", "client": ""},
            **{"versions": {}, "rounds": 1, "seconds": 60, "run_seconds": 1},
        },
        servers=["edgeml", "kserve"],
        models=["tiny", "vision"],
        installed_bytes={"edgeml": 100, "kserve": 200},
        engine=[EngineSample(0, "vision", encoding, 1000, 1000, 1000, 100) for encoding in ("binary", "grpc-raw")],
    )
    for encoding, share in (("json", 0.1), ("binary", 0.1), ("grpc-raw", 0.6), ("grpc-typed", 0.6)):
        for clients in (1, 8, 32):
            found.samples.append(_sample("edgeml", "tiny", encoding, clients, 100 * share, 30))
            found.samples.append(_sample("kserve", "tiny", encoding, clients, 100, 10 if clients == 8 else 20))
            found.samples.append(_sample("edgeml", "vision", encoding, clients, 1200, 80 if clients == 8 else 70))
    found.starts += [Start(0, "edgeml", 0.3, 65, 66, 0.0), Start(0, "kserve", 0.5, 100, 100, 0.0)]
    return found


def test_targets(results: Results) -> None:
    found = {target.what: target for target in targets(results)}
    assert found["tiny, json, p50"].reached is True
    assert found["tiny, grpc-raw, p50"].reached is False
    assert found["tiny, grpc-raw, p50"].found == pytest.approx(0.6)
    assert found["vision, binary, p50"].reached is False
    assert found["vision, grpc-raw, p50"].reached is True
    throughput = found["tiny, json, throughput with 8 and 32 clients (the worse)"]
    assert (throughput.found, throughput.reached) == (1.5, False)
    ceiling = found["vision, binary, throughput with 8 and 32 clients (the worse)"]
    assert (ceiling.found, ceiling.reached) == (pytest.approx(0.7), False)
    assert found["tree, json, throughput with 8 and 32 clients (the worse)"].reached is None
    assert found["Memory, idle"].reached is True
    assert found["Memory, with 32 clients"].reached is False
    assert found["Cold start"].reached is False


def test_report_says_what_was_found(results: Results, tmp_path: Path) -> None:
    file = tmp_path / "runtime.json"
    results.write(file)
    text = report(read_results(file))
    assert "| tiny, grpc-raw, p50 | ≤ 0.5 | 0.600 | kserve | **missed** |" in text
    assert "| ours / best peer | 0.10 (kserve) | 0.10 (kserve) | 0.60 (kserve) | 0.60 (kserve) |" in text


def test_options_name_the_servers_there_are() -> None:
    assert tuple(server.name for server in SERVERS) == options.SERVERS
    assert tuple(Encoding) == options.ENCODINGS


def test_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    read = options.read_options(["--quick", "--servers", "kserve,edgeml", "--clients", "8,1"])
    assert (read.servers, read.clients, read.rounds) == (("edgeml", "kserve"), (1, 8), 1)
    with pytest.raises(SystemExit):
        options.read_options(["--servers", "triton"])
    assert "'triton' is none of edgeml" in capsys.readouterr().err


def test_trees_are_compared_by_their_ratios() -> None:
    """The machine of the second run is twice as slow; ours is 10 % slower beside its peer there."""

    def run(scale: float, ours: float) -> Results:
        found = Results(models=["tiny"])
        for server, factor in (("edgeml", ours), ("kserve", 5.0)):
            for clients in (1, 32):
                p50 = 100 * scale * factor
                rates = (p50, p50, p50, 1e6 / p50, 0.1)
                found.samples.append(Sample(0, server, "tiny", "json", clients, 10, 0, *rates))
        return found

    chosen = options.read_options(["--models", "tiny", "--encodings", "json"])
    text = comparison(joined([run(1, 1.0), run(1, 1.0)]), joined([run(2, 1.1), run(2, 1.1)]), chosen)
    assert "| tiny, json: p50 of 1, to the best peer | 0.200 | 0.220 | +10.0 % | **worse** |" in text
    assert "2 of 2 ratios are worse by more than 3 %." in text
    assert "0 of 2" in comparison(joined([run(1, 1.0)]), joined([run(2, 1.0)]), chosen)
