# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real inference server with two small models, and Ansible to run the modules against it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import trustme
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.connect import connect
from ansible_collections.edgeml.fleet.plugins.module_utils._inference.health import wait_until_ready
from ansible_collections.edgeml.fleet.runtime.tests.support.ports import free_ports
from onnx import TensorProto, helper

REPOSITORY = Path(__file__).parents[2]
TOKEN = "correct-horse-battery-staple"
SERVER_NAME = "device.example"


def save_model(
    directory: Path, name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any]
) -> None:
    """Write a model directory as the runtime expects it."""
    directory.mkdir(parents=True)
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    description = {"name": name, "version": "1.0.0", "platform": "onnxruntime_onnx", "file": "model.onnx"}
    (directory / "model.json").write_text(json.dumps(description))


def save_case(directory: Path, name: str, inputs: list[Any], outputs: list[Any], **more: Any) -> None:
    """Write a golden case; tensors are (name, datatype, values)."""
    directory.mkdir(exist_ok=True)
    case = {
        key: [
            {"name": tensor, "shape": [1, len(values)], "datatype": datatype, "data": values}
            for tensor, datatype, values in tensors
        ]
        for key, tensors in (("inputs", inputs), ("outputs", outputs))
    }
    (directory / f"{name}.json").write_text(json.dumps(case | more))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directories: `scores` weighs two numbers for three labels, `copy` returns tensors of several datatypes."""
    root = tmp_path_factory.mktemp("models")
    save_model(
        root / "scores",
        "scores",
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor("weights", TensorProto.FLOAT, [2, 3], [1, 0, 3, 0, 2, -1])],
    )
    (root / "scores" / "labels.txt").write_text("cat\ndog\nowl\n")
    golden = root / "scores" / "golden"
    save_case(
        golden, "dog", [("x", "FP32", [0.1, 3])], [("y", "FP32", [0.1, 6, -2.7])], label="dog", description="It barks"
    )
    save_case(golden, "owl", [("x", "FP32", [2, 0.5])], [("y", "FP32", [2, 1, 5.5])], label="owl")
    save_case(root / "wrong", "dog", [("x", "FP32", [0.1, 3])], [("y", "FP32", [0.1, 6.5, -2.7])])

    kinds = {
        "text": ("BYTES", TensorProto.STRING, ["Grüße", ""]),
        "count": ("INT64", TensorProto.INT64, [-(2**53) - 1, 7]),
        "flag": ("BOOL", TensorProto.BOOL, [True, False]),
        "half": ("FP16", TensorProto.FLOAT16, [0.5, -65504]),
        "wide": ("FP64", TensorProto.DOUBLE, [0.1, 1e300]),
        "byte": ("UINT8", TensorProto.UINT8, [0, 255]),
    }
    save_model(
        root / "copy",
        "copy",
        [helper.make_node("Identity", [name], [f"{name}_copy"]) for name in kinds],
        [helper.make_tensor_value_info(name, kind, ["batch", 2]) for name, (_, kind, _) in kinds.items()],
        [helper.make_tensor_value_info(f"{name}_copy", kind, ["batch", 2]) for name, (_, kind, _) in kinds.items()],
        [],
    )
    save_case(
        root / "copy" / "golden",
        "same",
        [(name, datatype, values) for name, (datatype, _, values) in kinds.items()],
        [(f"{name}_copy", datatype, values) for name, (datatype, _, values) in kinds.items()],
        tolerance={"absolute": 0, "relative": 0},
    )
    return root


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEM files: ca.crt, another ca (other.crt), server.crt/key for SERVER_NAME alone, client.crt/key."""
    root = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(root / "ca.crt"))
    trustme.CA().cert_pem.write_to_path(str(root / "other.crt"))
    for name, certificate in (
        ("server", authority.issue_cert(SERVER_NAME)),
        ("client", authority.issue_cert("client.example")),
    ):
        certificate.private_key_pem.write_to_path(str(root / f"{name}.key"))
        certificate.cert_chain_pems[0].write_to_path(str(root / f"{name}.crt"))
    return root


Start = Callable[..., dict[str, str]]


@pytest.fixture(scope="session")
def start_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start the runtime with more configuration; return its addresses by protocol, before it is ready."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(**configuration: Any) -> dict[str, str]:
        root = tmp_path_factory.mktemp("server")
        rest, grpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        addresses = {"rest": rest, "grpc": grpc, "socket": f"{root}/rest.sock"}
        addresses["grpc_socket"] = f"{root}/grpc.sock"
        configuration |= {
            "listen": {
                "rest": [addresses["rest"], f"unix:{addresses['socket']}"],
                "grpc": [addresses["grpc"], f"unix:{addresses['grpc_socket']}"],
            },
            "models": [
                {
                    "name": name,
                    "version": "1.0.0",
                    "digest": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
                    "path": str(models / name),
                }
                for name in ("scores", "copy")
            ],
        }
        (root / "runtime.json").write_text(json.dumps(configuration))
        command = [sys.executable, "-m", "edgeml_runtime", "serve", "--config", str(root / "runtime.json")]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "runtime" / "src")}
        processes.append(subprocess.Popen(command, env=environment))
        return addresses

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


@pytest.fixture(scope="session")
def endpoints(
    start_server: Start, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Options for each way to reach a ready server: in clear, with TLS and a token, with TLS and a certificate."""
    token_file = tmp_path_factory.mktemp("secrets") / "bearer_token"
    token_file.write_text(TOKEN)
    tls = {"certificate": str(certificates / "server.crt"), "key": str(certificates / "server.key"), "client_ca": None}
    clear = start_server()
    token = start_server(tls=tls, bearer_token_file=str(token_file))
    mutual = start_server(tls=tls | {"client_ca": str(certificates / "ca.crt")})
    for addresses in (clear, token, mutual):
        with connect(f"http+unix://{addresses['socket']}") as client:
            wait_until_ready(client, 240)
    trust = {"ca_file": str(certificates / "ca.crt"), "server_name": SERVER_NAME}
    bearer = trust | {"bearer_token": TOKEN}
    identity = trust | {
        "client_certificate": str(certificates / "client.crt"),
        "client_key": str(certificates / "client.key"),
    }
    return {
        "http": {"endpoint": f"http://{clear['rest']}"},
        "http+unix": {"endpoint": f"http+unix://{clear['socket']}"},
        "grpc": {"endpoint": f"grpc://{clear['grpc']}"},
        "grpc+unix": {"endpoint": f"grpc+unix://{clear['grpc_socket']}"},
        "https, token": {"endpoint": f"https://{token['rest']}"} | bearer,
        "grpcs, token": {"endpoint": f"grpcs://{token['grpc']}"} | bearer,
        "https, certificate": {"endpoint": f"https://{mutual['rest']}"} | identity,
        "grpcs, certificate": {"endpoint": f"grpcs://{mutual['grpc']}"} | identity,
    }


RunModule = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def run_with_ansible() -> RunModule:
    """Run a module of this collection as Ansible does; return its result and, as `output`, all that was printed."""

    def run(module: str, options: dict[str, Any], *flags: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "ansible", "adhoc", "localhost", "-i", "localhost,", "-c", "local"]
        command += ["-e", f"ansible_python_interpreter={sys.executable}"]
        command += ["-m", f"edgeml.fleet.{module}", "-a", json.dumps(options), *flags]
        environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "json", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"}
        process = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        # With -vvv Ansible prints lines of its own before the document.
        document = process.stdout[process.stdout.index('{\n    "custom_stats"') :]
        result: dict[str, Any] = json.loads(document)["plays"][0]["tasks"][0]["hosts"]["localhost"]
        assert process.returncode == (2 if result.get("failed") else 0)
        return result | {"output": process.stdout + process.stderr}

    return run


@pytest.fixture(scope="session")
def run_module() -> RunModule:
    """Run a module in a process of its own without Ansible's controller, which is four times as fast; else the same."""

    def run(module: str, options: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-m", f"ansible_collections.edgeml.fleet.plugins.modules.{module}"]
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": options})
        process = subprocess.run(command, input=arguments, capture_output=True, text=True, check=False)
        result: dict[str, Any] = json.loads(process.stdout)
        assert process.returncode == (1 if result.get("failed") else 0)
        return result | {"output": process.stdout + process.stderr}

    return run
