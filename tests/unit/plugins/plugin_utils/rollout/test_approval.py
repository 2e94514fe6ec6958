# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import datetime
import ipaddress
import itertools
import os
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout import approval as approval_module
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.approval import Answer, ask
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ODD = {
    "/status": b"hello\r\n\r\n",
    "/cut": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nye",
    "/long": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\nyes",
    "/gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nyes",
    "/plain": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/7.1/2\r\n\r\n",
    "/local": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "/loop": b"HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n",
    "/moved": b"HTTP/1.1 301 Moved\r\nLocation: /7.1/2\r\n\r\n",
}


def nobody(question: str) -> str:
    raise AssertionError(f"asked: {question}")


def test_nobody_has_to_approve() -> None:
    assert ask("none", "7.1", 2, nobody).yes


@pytest.mark.parametrize(
    ("said", "expected"), [("yes", True), (" YES ", True), ("y", False), ("", False), ("no", False)]
)
def test_prompt(said: str, expected: bool) -> None:
    questions: list[str] = []
    answer = ask("prompt", "7.1", 2, lambda question: questions.append(question) or said)  # type: ignore[func-returns-value]
    assert answer.yes is expected
    assert questions == ["Rollout 7.1: begin wave 2? Type yes to go on: "]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("yes\n", True), ("Yes, said Ada\n", False), ("yes Ada\n", True), ("no\n", False), ("", False)],
)
def test_file(tmp_path: Path, text: str, expected: bool) -> None:
    file = tmp_path / "7.1-2"
    file.write_text(text)
    answer = ask({"file": f"{tmp_path}/{{rollout}}-{{wave}}"}, "7.1", 2, nobody)
    assert answer.yes is expected
    assert answer.where == str(file)


def test_missing_file_is_no_and_says_so(tmp_path: Path) -> None:
    answer = ask({"file": str(tmp_path / "approval")}, "7.1", 2, nobody)
    assert answer == Answer(False, str(tmp_path / "approval"), answer.seen)
    assert "No such file" in answer.seen


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_file_of_an_editor_that_marks_its_encoding(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "approval"
    file.write_text("yes\r\n", encoding=encoding)
    assert ask({"file": str(file)}, "7.1", 2, nobody) == Answer(True, str(file), "yes")


def test_what_nobody_would_see_in_an_answer_is_shown(tmp_path: Path) -> None:
    (tmp_path / "approval").write_text("\u200byes")
    assert ask({"file": str(tmp_path / "approval")}, "7.1", 2, nobody).seen == "\\u200byes"


def test_file_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "approval").write_text("yes")
    assert ask({"file": "~/approval"}, "7.1", 2, nobody).yes


def test_file_that_nobody_writes_to_is_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval_module, "_TIMEOUT", 0.2)
    os.mkfifo(tmp_path / "approval")
    assert ask({"file": str(tmp_path / "approval")}, "7.1", 2, nobody).seen == "no whole answer in 0.2 s"


def test_waits_for_a_yes_but_not_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "approval"
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now == 15:
            file.write_text("yes")

    approval = {"file": str(file), "wait_seconds": 12}
    assert not ask(approval, "7.1", 2, nobody, sleep, lambda: now).yes
    assert now == 12
    now = 0.0
    assert not ask({**approval, "wait_seconds": 60}, "7.1", 2, nobody, sleep, lambda: now, longest=7).yes
    assert now == 7
    now = 0.0
    assert ask({**approval, "wait_seconds": 60}, "7.1", 2, nobody, sleep, lambda: now).yes
    assert now == 15


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """An HTTPS server that approves wave 2 only; its address and the file of its certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if odd := ODD.get(self.path):
                self.wfile.write(odd)
                return
            if self.path == "/drip":
                with contextlib.suppress(OSError):
                    for sign in itertools.chain(b"HTTP/1.1 200 OK\r\nX: ", itertools.repeat(ord("x"))):
                        self.wfile.write(bytes([sign]))
                        time.sleep(0.02)
                return
            said = {"/7.1/2": b"yes\n", "/7.1/3": b"not yet\n"}.get(self.path)
            self.send_response(200 if said else 404)
            self.end_headers()
            self.wfile.write(said or b"yes\n")  # an error's page is no answer

        def log_message(self, *_: object) -> None:
            pass

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "approval")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    ca_file, key_file = tmp_path / "ca.crt", tmp_path / "server.key"
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{httpd.server_address[1]}", str(ca_file)
        httpd.shutdown()


def test_url(server: tuple[str, str]) -> None:
    address, ca_file = server
    approval = {"url": f"{address}/{{rollout}}/{{wave}}", "ca_file": ca_file}
    assert ask(approval, "7.1", 2, nobody).yes
    assert ask(approval, "7.1", 3, nobody) == Answer(False, f"{address}/7.1/3", "not yet")
    answer = ask(approval, "7.1", 4, nobody)
    assert not answer.yes
    assert "404" in answer.seen
    untrusted = ask({"url": approval["url"]}, "7.1", 2, nobody)
    assert not untrusted.yes
    assert "certificate" in untrusted.seen.lower()


def test_secrets_of_an_address_are_not_told(server: tuple[str, str]) -> None:
    """What is told goes into the log and the ledger."""
    address, ca_file = server
    secret = address.replace("https://", "https://user:pass%77ord@")
    answer = ask({"url": f"{secret}/7.1/3?token=hush", "ca_file": ca_file}, "7.1", 3, nobody)
    assert answer.where == f"{address}/7.1/3"
    answer = ask({"url": f"{secret}/a b?token=hush", "ca_file": ca_file}, "7.1", 3, nobody)
    assert "hush" not in str(answer)
    assert "pass" not in str(answer)


def test_url_that_nobody_answers_is_no() -> None:
    answer = ask({"url": "https://127.0.0.1:1/"}, "7.1", 2, nobody)
    assert not answer.yes
    assert "refused" in answer.seen.lower()


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/status", "hello"),
        ("/cut", "IncompleteRead"),
        ("/long", "got more than 65536 bytes"),
        ("/gzip", "gzip"),
        ("/plain", "it redirects to an address that does not begin with https://"),
        ("/local", "it redirects to an address that does not begin with https://"),
        ("/loop", "it redirects without end"),
    ],
)
def test_odd_answer_is_no(server: tuple[str, str], path: str, seen: str) -> None:
    answer = ask({"url": server[0] + path, "ca_file": server[1]}, "7.1", 2, nobody)
    assert not answer.yes
    assert seen in answer.seen


def test_redirect_to_https_is_followed(server: tuple[str, str]) -> None:
    assert ask({"url": f"{server[0]}/moved", "ca_file": server[1]}, "7.1", 2, nobody).yes


def test_answer_without_end_is_no(server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives a byte now and then, so that no read of it takes long."""
    monkeypatch.setattr(approval_module, "_TIMEOUT", 0.5)
    answer = ask({"url": f"{server[0]}/drip", "ca_file": server[1]}, "7.1", 2, nobody)
    assert answer.seen == "no whole answer in 0.5 s"
