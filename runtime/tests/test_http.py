# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 over raw sockets: framing, limits, slow and rude clients, and how a listener ends."""

import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from onnx_models import ModelDirectory
from serving import Server, features_request, steps_request

BODY = json.dumps(features_request([[1.0, 2.0, 3.0, 4.0]])).encode()
INFER = "/v2/models/perceptron/infer"
SLOW = "/v2/models/repeated_product/infer"


def request(path: str = INFER, body: bytes = BODY, method: str = "POST", **headers: str) -> bytes:
    """A request on the wire; ``headers`` with underscores for dashes, empty values leave a header out."""
    names = {"host": "test", "content_length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in names.items() if value]
    return "\r\n".join((f"{method} {path} HTTP/1.1", *lines, "", "")).encode() + body


GET_LIVE = request("/v2/health/live", b"", "GET", content_length="")


@contextmanager
def connect(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=240) as raw:
        yield raw


class Answers:
    """Reads answers off a socket; each has a content-length."""

    def __init__(self, raw: socket.socket) -> None:
        self._file = raw.makefile("rb")

    def next(self, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; (0, {}, b"") when the connection has ended."""
        line = self._file.readline()
        if not line:
            return 0, {}, b""
        headers = {}
        while (field := self._file.readline().strip()) != b"":
            name, _, value = field.decode().partition(": ")
            headers[name] = value
        return int(line.split()[1]), headers, self._file.read(int(headers.get("content-length", 0)) if body else 0)

    def statuses(self) -> list[int]:
        """Statuses until the connection ends."""
        return [status for status, _, _ in iter(self.next, (0, {}, b""))]


def ask(server: Server, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    with connect(server) as raw:
        raw.sendall(sent)
        return Answers(raw).next()


def error(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    assert answer[1]["content-type"] == "application/json"
    return answer[0], json.loads(answer[2])["error"]


def used_ticks(server: Server) -> int:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_computing(server: Server) -> None:
    before = used_ticks(server)
    while used_ticks(server) < before + 5:
        time.sleep(0.01)


# -- framing -----------------------------------------------------------------------------------------------------------


def test_same_answer_however_the_request_arrives(server: Server) -> None:
    """In one piece, byte by byte, in halves, and again on the same connection, when its head is known."""
    sent = request()
    with connect(server) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = Answers(raw)
        seen = []
        head = sent.index(b"\r\n\r\n") + 4
        for cuts in ([], [], [head], [head, head + 10], [10], range(1, len(sent)), [len(sent) - 1], []):
            start = 0
            for end in (*cuts, len(sent)):
                raw.sendall(sent[start:end])
                start = end
                if len(cuts) < 5:
                    time.sleep(0.02)
            seen.append(answers.next())
    assert {status for status, _, _ in seen} == {200}
    assert len({body for _, _, body in seen}) == 1


@pytest.mark.parametrize("copies", [2, 200])
def test_pipelined_requests_are_answered_in_order(server: Server, copies: int) -> None:
    bodies = [json.dumps(features_request([[1.0] * 4], id=str(number))).encode() for number in range(copies)]
    slow = request(SLOW, json.dumps(steps_request(300)).encode())
    refused = request("/v2/models/other/infer", BODY)
    with connect(server) as raw:
        answers = Answers(raw)
        for _ in range(2):  # heads are known the second time
            raw.sendall(slow + b"".join(map(request_of, bodies)) + refused + GET_LIVE)
            assert answers.next()[0] == 200
            assert [json.loads(answers.next()[2])["id"] for _ in bodies] == [str(number) for number in range(copies)]
            assert error(answers.next())[0] == 404
            assert answers.next()[2] == b'{"live":true}'


def request_of(body: bytes) -> bytes:
    return request(body=body)


def test_body_and_the_next_request_in_one_piece(server: Server) -> None:
    """What follows the last byte of a body that came in parts is the next request."""
    sent = request()
    with connect(server) as raw:
        answers = Answers(raw)
        raw.sendall(sent)
        assert answers.next()[0] == 200
        raw.sendall(sent[:-5])
        time.sleep(0.05)
        raw.sendall(sent[-5:] + GET_LIVE + sent[:40])
        assert answers.next()[0] == 200
        assert answers.next()[2] == b'{"live":true}'
        raw.sendall(sent[40:])
        assert answers.next()[0] == 200


def large_request(more: bytes = b"", size: int = 900_000) -> bytes:
    """A request whose body is large for nothing but spaces."""
    body = json.dumps(features_request([[1.0, 2.0, 3.0, 4.0]])).encode()
    body += b" " * (size - len(body))
    head = b"POST /v2/models/perceptron/infer HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (more, len(body))
    return head + body


@pytest.mark.parametrize("piece", [1000, 4096, 65_000, 300_000, 10_000_000])
@pytest.mark.parametrize("with_tls", [False, True], ids=["clear", "TLS"])
def test_large_bodies_one_after_the_other(start_server: Any, tmp_path: Path, piece: int, with_tls: bool) -> None:
    authority = Authority(tmp_path)
    server = start_server(**({"tls": authority.files} if with_tls else {}))
    server.wait_ready()
    small = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    sent = large_request() + large_request(b"X-Other: 1\r\n", 300_000) + small + large_request() + small
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as plain:
        connection = authority.context().wrap_socket(plain, server_hostname="127.0.0.1") if with_tls else plain
        for _ in range(2):  # the second time the heads are known
            for start in range(0, len(sent), piece):
                connection.sendall(sent[start : start + piece])
            received = b""
            while received.count(b"HTTP/1.1 200") < 5:
                part = connection.recv(65536)
                assert part, received
                received += part
            assert received.count(b'"data":[2]') == 3
            assert received.count(b'"live":true') == 2


def test_slow_large_bodies_keep_nobody_waiting(start_server: Any) -> None:
    server = start_server(limits={"receiving_bytes": 1_000_000, "receive_seconds": 8})
    server.wait_ready()
    whole = large_request()
    with ExitStack() as opened:
        slow = [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.rest_port), timeout=60))
            for _ in range(50)
        ]
        for connection in slow:
            connection.sendall(whole[:200_000])
        assert server.rest("GET", "/v2/health/live").status == 200
        assert server.infer("perceptron", features_request([[1.0, 2.0, 3.0, 4.0]])).status == 200
        assert server.infer("perceptron", whole.partition(b"\r\n\r\n")[2]).status == 200  # when its turn has come
        for connection in slow[:25]:  # who goes on gets an answer, and in time
            connection.sendall(whole[200_000:])
        for connection in slow[:25]:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        for connection in slow[25:]:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert server.infer("perceptron", whole.partition(b"\r\n\r\n")[2]).status == 200


@pytest.mark.parametrize("ends", ["half", "reset"])
def test_large_body_that_ends_too_early(server: Server, ends: str) -> None:
    for size in (100_000, 300_000, 899_999):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as connection:
            connection.sendall(large_request()[:size])
            if ends == "half":
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
            else:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert server.infer("perceptron", large_request().partition(b"\r\n\r\n")[2]).status == 200


def test_chunked_upload(server: Server) -> None:
    chunks = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:8], BODY[8:]))
    sent = request(body=b"", content_length="", transfer_encoding="chunked") + chunks + b"0\r\ntrailer: x\r\n\r\n"
    with connect(server) as raw:
        answers = Answers(raw)
        for _ in range(3):
            raw.sendall(sent)
            assert answers.next()[0] == 200
        raw.sendall(GET_LIVE)
        assert answers.next()[0] == 200


def test_expect_continue(server: Server) -> None:
    sent = request(expect="100-continue")
    head = sent[: -len(BODY)]
    with connect(server) as raw:
        answers = Answers(raw)
        for _ in range(2):
            raw.sendall(head)
            assert answers.next()[0] == 100
            raw.sendall(BODY)
            assert answers.next()[0] == 200
        raw.sendall(head.replace(b"perceptron", b"other"))
        assert answers.next()[0] in (100, 404)
    # Refused without asking for the body.
    assert error(ask(server, request("/v2", b"", expect="100-continue", content_length="9")))[0] == 405


def test_head_has_the_headers_and_no_body(server: Server) -> None:
    with connect(server) as raw:
        answers = Answers(raw)
        raw.sendall(GET_LIVE)
        _, got, body = answers.next()
        raw.sendall(GET_LIVE.replace(b"GET", b"HEAD") + GET_LIVE)
        status, headers, _ = answers.next(body=False)
        assert (status, headers["content-length"]) == (200, got["content-length"])
        assert answers.next()[2] == body


def test_every_answer_has_a_date(server: Server) -> None:
    _, headers, _ = ask(server, GET_LIVE)
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "no HTTP request"),
        (b"GET /v2 HTTP/9.9\r\nhost: x\r\n\r\n", "no HTTP request"),
        (b"FETCH /v2 HTTP/1.1\r\nhost: x\r\n\r\n", "no HTTP request"),
        (b"GET /v2 HTTP/1.1\r\n\r\n", "Host is missing"),
        (b"GET /v2 HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n", "no HTTP request"),
        (request(content_length="-5"), "no HTTP request"),
        (request(content_length="5, 5"), "no HTTP request"),
        (request(content_length="99999999999999999999999"), "no HTTP request"),
        (request(transfer_encoding="chunked"), "no HTTP request"),
        (request(content_length="", transfer_encoding="chunked") + b"zz\r\n", "no HTTP request"),
        (request().replace(b"\r\nhost", b"\r\ncontent-length: 4\r\nhost"), "no HTTP request"),
    ],
)
def test_no_http(server: Server, sent: bytes, message: str) -> None:
    with connect(server) as raw:
        raw.sendall(sent)
        answers = Answers(raw)
        answer = answers.next()
        assert (error(answer)[0], answer[1]["connection"]) == (400, "close")
        assert message in error(answer)[1]
        assert answers.next()[0] == 0


def test_what_follows_the_last_request_is_ignored(server: Server) -> None:
    with connect(server) as raw:
        raw.sendall(request(connection="close") + GET_LIVE + b"garbage")
        assert Answers(raw).statuses() == [200]


def test_http_1_0_closes(server: Server) -> None:
    with connect(server) as raw:
        raw.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        answers = Answers(raw)
        assert answers.next()[1]["connection"] == "close"
        assert answers.next()[0] == 0


def test_connection_goes_on_after_errors(server: Server) -> None:
    with connect(server) as raw:
        answers = Answers(raw)
        for path, body, status in (
            (INFER, b"{", 400),
            ("/v2/models/other/infer", BODY, 404),
            ("/v2/health/live", BODY, 405),
            (INFER, b" " * 300_000, 400),
            ("/v2/models/other/infer", b" " * 300_000, 404),
            (INFER, BODY, 200),
        ):
            raw.sendall(request(path, body))
            assert answers.next()[0] == status


# -- limits ------------------------------------------------------------------------------------------------------------


def test_header_limit(start_server: Any) -> None:
    server = start_server(limits={"header_bytes": 2000})
    server.wait_ready()
    assert ask(server, request(x="y" * 1500))[0] == 200
    for sent in (
        request(x="y" * 2000),
        request("/" + "y" * 2000),
        b"GET /v2 HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % number for number in range(5000)) + b"\r\n",
    ):
        expected = (414, "the URL") if sent.startswith(b"GET /y") or b" /y" in sent[:8] else (431, "the header")
        assert error(ask(server, sent)) == (expected[0], f"{expected[1]} is larger than 2000 bytes")
    # A header that never ends.
    with connect(server) as raw:
        raw.sendall(b"GET /v2 HTTP/1.1\r\nx: ")
        for _ in range(30):
            raw.sendall(b"y" * 100)
            time.sleep(0.005)
        assert Answers(raw).statuses() == [431]
    assert ask(server, GET_LIVE)[0] == 200


def test_connection_limit(start_server: Any) -> None:
    server = start_server(limits={"connections": 3})
    server.wait_ready()
    kept = [socket.create_connection(("127.0.0.1", server.rest_port), timeout=240) for _ in range(3)]
    for raw in kept:
        raw.sendall(GET_LIVE)
        assert Answers(raw).next()[0] == 200
    answer = ask(server, GET_LIVE)
    assert error(answer) == (503, "there are 3 connections, the most allowed")
    assert (answer[1]["retry-after"], answer[1]["connection"]) == ("1", "close")
    with connect(server) as silent:  # it is told as well
        assert Answers(silent).statuses() == [503]
    for raw in kept:
        raw.sendall(GET_LIVE)
        assert Answers(raw).next()[0] == 200
    kept.pop().close()
    server.wait(lambda: ask(server, GET_LIVE)[0] == 200)
    for raw in kept:
        raw.close()


def test_more_connections_than_the_soft_limit_of_files(start_server: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        server = start_server()  # inherits it
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    server.wait_ready()
    with ExitStack() as kept:
        for _ in range(200):
            raw = kept.enter_context(connect(server))
            raw.sendall(GET_LIVE)
            assert Answers(raw).next()[0] == 200


@pytest.mark.parametrize(
    ("first", "drip"), [(b"POST /", b"y"), (request()[:60], b"y"), (request()[:-20], b" "), (GET_LIVE + b"GET /", b"y")]
)
def test_slow_requests_time_out(start_server: Any, first: bytes, drip: bytes) -> None:
    server = start_server(limits={"receive_seconds": 0.5})
    server.wait_ready()
    with connect(server) as raw:
        raw.sendall(first)
        raw.settimeout(0.1)
        received = b""
        while b" 408 " not in received:
            try:
                part = raw.recv(65536)
            except TimeoutError:
                raw.sendall(drip)
            else:
                assert part, received
                received += part
        assert b"the request was not complete within 0.5 s" in received


def test_a_head_in_pieces_that_is_known_has_come_in_time(start_server: Any) -> None:
    """Java's client asks for an upgrade; without that the head is one that was seen before."""
    server = start_server(limits={"receive_seconds": 0.5})
    server.wait_ready()
    asked = request().replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 1)
    with connect(server) as raw:
        answers = Answers(raw)
        for _ in range(2):
            raw.sendall(asked[:60])
            time.sleep(0.1)
            raw.sendall(asked[60:])
            assert answers.next()[0] == 200
        raw.settimeout(0.8)
        with pytest.raises(TimeoutError):
            raw.recv(65536)


def test_idle_connections_are_closed(start_server: Any) -> None:
    server = start_server(limits={"idle_seconds": 0.3})
    server.wait_ready()
    with connect(server) as fresh, connect(server) as used:
        used.sendall(GET_LIVE)
        assert Answers(used).next()[0] == 200
        assert fresh.recv(1) == used.recv(1) == b""


def test_slow_reader_is_cut_off(start_server: Any) -> None:
    server = start_server(limits={"receive_seconds": 0.5})
    server.wait_ready()
    body = json.dumps(features_request([[1.0] * 4] * 200_000)).encode()
    with connect(server) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.sendall(request(body=body))
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        server.wait(lambda: len(list(descriptors.iterdir())) < before)
    assert ask(server, GET_LIVE)[0] == 200


# -- clients that leave ------------------------------------------------------------------------------------------------


def scrape(server: Server, sample: str) -> float:
    text = server.rest("GET", "/metrics", port=server.metrics_port).body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(sample))


def test_half_closed_connection_gets_its_answer(server: Server) -> None:
    for sent, expected in (
        (request(), [200]),
        (request() + GET_LIVE, [200, 200]),
        (6 * GET_LIVE, 6 * [200]),
        (3 * request() + GET_LIVE[:20], [200, 200, 200, 400]),
        (request(SLOW, json.dumps(steps_request(3000)).encode()), [200]),
        (request(content_length="500"), [400]),
        (b"GET /v2 HT", [400]),
    ):
        with connect(server) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            assert [status for status in Answers(raw).statuses() if status != 100] == expected


@pytest.mark.parametrize("rude", [True, False])
def test_run_ends_when_the_client_leaves(
    start_server: Any, model_directories: dict[str, ModelDirectory], rude: bool
) -> None:
    server = start_server([model_directories["repeated_product"]])
    server.wait_ready()
    with connect(server) as raw:
        raw.sendall(request(SLOW, json.dumps(steps_request(10**9)).encode()))
        wait_computing(server)
        assert scrape(server, "edgeml_inference_under_way{") == 1
        if rude:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    server.wait(lambda: scrape(server, "edgeml_inference_under_way{") == 0)
    assert scrape(server, 'edgeml_inference_requests_total{code="499",model="repeated_product"') == 1


# -- the end of a listener ---------------------------------------------------------------------------------------------


def test_drain_answers_what_comes_on_open_connections(start_server: Any) -> None:
    server = start_server()
    server.wait_ready()
    with connect(server) as idle, connect(server) as half, connect(server) as silent:
        for raw in (idle, half):
            raw.sendall(GET_LIVE)
            assert Answers(raw).next()[0] == 200
        half.sendall(request()[:-10])
        server.process.terminate()
        server.wait(lambda: "draining" in server.log)
        idle.sendall(request())
        half.sendall(request()[-10:])
        for raw in (idle, half):
            answers = Answers(raw)
            status, headers, _ = answers.next()
            assert (status, headers["connection"]) == (200, "close")
            assert answers.next()[0] == 0
        assert silent.recv(1) == b""
    assert server.process.wait(240) == 0


def test_drain_without_connections_is_quick(start_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait out the grace that idle connections have, here an hour."""
    code = (
        "from edgeml_runtime.start import main; from edgeml_runtime.transports.http import listen; "
        "listen.GRACE_SECONDS = 3600; main()"
    )
    monkeypatch.setattr(Server, "program", ("-c", code))
    server = start_server(drain_seconds=3600)
    server.wait_ready()
    server.process.terminate()
    assert server.process.wait(240) == 0


def test_drain_is_bounded(start_server: Any, model_directories: dict[str, ModelDirectory]) -> None:
    server = start_server([model_directories["repeated_product"]], drain_seconds=0.5)
    server.wait_ready()
    with connect(server) as computing, connect(server) as incomplete, ThreadPoolExecutor(1) as thread:
        computing.sendall(request(SLOW, json.dumps(steps_request(10**9)).encode()))
        incomplete.sendall(request()[:-10])
        wait_computing(server)
        server.process.terminate()
        answer = thread.submit(Answers(computing).next).result(240)
        assert error(answer) == (503, "the server stopped before the answer was computed")
        assert answer[1]["connection"] == "close"
        assert incomplete.recv(1) == b""
    assert server.process.wait(240) == 0
