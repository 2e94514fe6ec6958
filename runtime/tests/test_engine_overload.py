# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""More requests than can be computed, over REST: refused at once, while all that was accepted is answered."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engines import Configured, running_sum
from onnx_models import repeated_product
from serving import Server, steps_request

QUEUE = 3
#: Longer than the test lasts: it ends by its deadline.
ENDLESS = 2**40


def overloaded(start_server: Any, tmp_path: Path, seconds: float) -> Server:
    """A server whose one engine thread is busy and whose queue is full, until each deadline."""
    options = {"engine": {"parallel": 1}, "queue": QUEUE, "deadline_seconds": seconds}
    entry = repeated_product(tmp_path, warm_up_steps=200).config | {"options": options}
    server: Server = start_server([Configured(entry)])
    server.wait_ready()
    return server


def under_way(server: Server) -> int:
    metrics = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    (line,) = [line for line in metrics.splitlines() if line.startswith("edgeml_inference_under_way{")]
    return int(float(line.rpartition(" ")[2]))


def resident_kib(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_full_queue_sheds_load_and_nothing_else_suffers(start_server: Any, tmp_path: Path) -> None:
    server = overloaded(start_server, tmp_path, seconds=15)
    with ThreadPoolExecutor(QUEUE + 1) as clients:
        accepted = [clients.submit(server.infer, "repeated_product", steps_request(ENDLESS)) for _ in range(QUEUE + 1)]
        server.wait(lambda: under_way(server) == QUEUE + 1)
        large = json.dumps(steps_request(1) | {"id": "x" * 400_000})
        before = 0
        for number in range(120):
            refused = server.infer("repeated_product", large)
            assert refused.status == 429
            assert f"has {QUEUE + 1} requests under way (queue {QUEUE}, parallel 1)" in refused.json["error"]
            assert server.rest("GET", "/v2/health/live").status == 200
            assert server.rest("GET", "/v2/health/ready").status == 200
            if number == 30:
                before = resident_kib(server)
        # 90 bodies of 400 kB would be 36 MB.
        assert resident_kib(server) - before < 15_000
        assert not any(answer.done() for answer in accepted)
        answers = [answer.result() for answer in accepted]
    assert [answer.status for answer in answers] == [504] * (QUEUE + 1)
    server.wait(lambda: under_way(server) == 0)
    assert server.infer("repeated_product", steps_request(1)).json["outputs"][0]["data"] == [1.0]


def test_all_that_is_accepted_is_answered(start_server: Any, tmp_path: Path) -> None:
    server = overloaded(start_server, tmp_path, seconds=60)
    with ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda _: server.infer("repeated_product", steps_request(300)), range(400)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert all(answer.json["outputs"][0]["data"] == [1.0] for answer in answers if answer.status == 200)
    server.wait(lambda: under_way(server) == 0)
    metrics = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    for status in (200, 429):
        labels = f'code="{status}",model="repeated_product",protocol="rest"'
        assert f"edgeml_inference_requests_total{{{labels}}} {statuses.count(status)}.0" in metrics


def test_the_time_that_a_client_gives(start_server: Any, tmp_path: Path) -> None:
    server = overloaded(start_server, tmp_path, seconds=60)
    asked = steps_request(ENDLESS) | {"parameters": {"timeout": 50_000}}
    answer = server.infer("repeated_product", asked)
    assert (answer.status, answer.json["error"]) == (504, "model 'repeated_product' gave no answer within 0.05 s")
    server.wait(lambda: under_way(server) == 0)


def test_a_client_that_leaves_ends_its_run(start_server: Any, tmp_path: Path) -> None:
    server = overloaded(start_server, tmp_path, seconds=3000)
    connection = server.connect()
    connection.request("POST", "/v2/models/repeated_product/infer", json.dumps(steps_request(ENDLESS)))
    server.wait(lambda: under_way(server) == 1)
    connection.close()
    server.wait(lambda: under_way(server) == 0)


def test_a_sequence_over_rest(start_server: Any, tmp_path: Path) -> None:
    server = start_server([Configured(running_sum(tmp_path))])
    server.wait_ready()
    description = server.rest("GET", "/v2/models/running_sum").json
    assert [tensor["name"] for key in ("inputs", "outputs") for tensor in description[key]] == ["x", "y"]

    def ask(value: float, **parameters: Any) -> Any:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
        answer = server.infer("running_sum", {"inputs": [tensor], "parameters": parameters})
        return answer.json.get("outputs", [{"data": answer.status}])[0]["data"]

    assert ask(1.0, sequence_id=7, sequence_start=True) == [1.0, 1.0]
    assert ask(1.0, sequence_id="other", sequence_start=True) == [1.0, 1.0]
    assert ask(2.0, sequence_id=7) == [3.0, 3.0]
    assert ask(2.0, sequence_id=7, sequence_end=True) == [5.0, 5.0]
    assert ask(2.0, sequence_id=7) == 400
    assert ask(2.0) == 400
    assert ask(5.0, sequence_id="other") == [6.0, 6.0]
