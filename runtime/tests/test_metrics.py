# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What Prometheus sees."""

import re
from typing import Any

from hostile import VALID_BODY, connect, inference, statuses
from onnx_models import ModelDirectory
from serving import Server, features_message, features_request, steps_request

ROWS = [[1.0, 2.0, 3.0, 4.0]]


def scrape(server: Server) -> dict[str, float]:
    """Samples by name and labels."""
    answer = server.rest("GET", "/metrics", port=server.metrics_port)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = (line.rpartition(" ") for line in answer.body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_metrics(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    server = start_server([model_directories["perceptron"], model_directories["repeated_product"]])
    server.wait_ready()
    for _ in range(3):
        server.infer("perceptron", features_request(ROWS))
    server.infer("perceptron", b"{")
    server.infer("other", b"{}")
    server.grpc("ModelInfer", features_message(ROWS))
    server.grpc_error("ModelInfer", features_message([[1.0]]))
    server.infer("repeated_product", steps_request(200))

    samples = scrape(server)
    requests = {name: value for name, value in samples.items() if name.startswith("edgeml_inference_requests_total")}
    assert requests == {
        'edgeml_inference_requests_total{code="200",model="perceptron",protocol="rest"}': 3,
        'edgeml_inference_requests_total{code="400",model="perceptron",protocol="rest"}': 1,
        'edgeml_inference_requests_total{code="404",model="",protocol="rest"}': 1,
        'edgeml_inference_requests_total{code="OK",model="perceptron",protocol="grpc"}': 1,
        'edgeml_inference_requests_total{code="INVALID_ARGUMENT",model="perceptron",protocol="grpc"}': 1,
        'edgeml_inference_requests_total{code="200",model="repeated_product",protocol="rest"}': 1,
    }
    for model, count in (("perceptron", 4), ("repeated_product", 1)):
        seconds = {}
        for stage in ("queue", "compute", "total"):
            labels = f'{{model="{model}",stage="{stage}"}}'
            assert samples[f"edgeml_inference_duration_seconds_count{labels}"] == count
            seconds[stage] = samples[f"edgeml_inference_duration_seconds_sum{labels}"]
        assert 0 < seconds["compute"] < seconds["total"]
        assert seconds["queue"] + seconds["compute"] < seconds["total"]
    # Only what goes to an engine thread waits for one.
    assert samples['edgeml_inference_duration_seconds_sum{model="perceptron",stage="queue"}'] == 0
    assert samples['edgeml_inference_duration_seconds_sum{model="repeated_product",stage="queue"}'] > 0
    digest = model_directories["perceptron"].digest
    labels = f'digest="{digest}",model="perceptron",platform="onnxruntime_onnx",provider="CPU",version="1.0.0"'
    assert samples[f"edgeml_model_info{{{labels}}}"] == 1
    assert samples["process_resident_memory_bytes"] > 0


def test_buckets_are_in_seconds_and_rise(server: Server) -> None:
    server.infer("perceptron", features_request(ROWS))
    pattern = re.compile(r'edgeml_inference_duration_seconds_bucket{le="(.+)",model="perceptron",stage="total"}')
    buckets = [(match[1], value) for name, value in scrape(server).items() if (match := pattern.fullmatch(name))]
    bounds = [float(bound) for bound, _ in buckets]
    counts = [count for _, count in buckets]
    assert bounds[0] == 1e-5
    assert bounds[-1] == float("inf")
    assert bounds == sorted(bounds)
    assert counts == sorted(counts)
    assert counts[-1] >= 1


def test_other_paths_and_methods(server: Server) -> None:
    assert server.rest("GET", "/", port=server.metrics_port).status == 404
    assert server.rest("POST", "/metrics", b"", port=server.metrics_port).status == 405
    assert server.rest("GET", "/metrics").status == 404


def test_a_request_that_is_refused_before_its_body_counts_once(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    request = inference(b" " * 100_000, model="other")  # of a large one it is worth to know early
    with connect(server.rest_port) as connection:
        for _ in range(3):
            connection.sendall(request[:-50])
            assert statuses(connection.recv(65536)) == [404]
            connection.sendall(request[-50:])
        connection.sendall(inference(VALID_BODY))
        assert statuses(connection.recv(65536)) == [200]
    samples = scrape(server)
    assert samples['edgeml_inference_requests_total{code="404",model="",protocol="rest"}'] == 3
