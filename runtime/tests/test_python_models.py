# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Models of Python code, in the server's process and in processes of their own."""

import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeml_runtime.config import ModelConfig
from edgeml_runtime.engine import isolated_model
from edgeml_runtime.engine.isolated_channel import Channel, ChannelError
from edgeml_runtime.engine.loading import load_model
from edgeml_runtime.engine.model import Cancellation, Model
from edgeml_runtime.errors import Failure, RequestError, StartError
from edgeml_runtime.serving import EngineOptions
from edgeml_runtime.tensors import Array, TensorSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import ModelDirectory
from python_models import RESULT, VALUES, python_model, values_request
from serving import features_request

DOUBLE = """
    def infer(inputs):
        return {"result": inputs["values"] * 2}
"""


def load(root: Path, code: str, options: dict[str, Any] | None = None, **description: Any) -> Model:
    """Load a Python model as the engine does; ``description``: see python_model."""
    directory = python_model(root, "model", code, **description).path
    config = ModelConfig("model", "1.0.0", "", directory, options or {}, "test")
    return load_model(config, EngineOptions(), None)[2]


def result_of(model: Model, *values: float) -> list[float]:
    array = model.run({"values": np.array(values, np.float32)}, ["result"])[0]
    assert array.dtype == np.float32
    return array.tolist()  # type: ignore[no-any-return]


@pytest.fixture(params=[False, True], ids=["in_process", "isolated"])
def isolated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_served(start_server: Any, tmp_path: Path, isolated: bool) -> None:
    model = python_model(tmp_path, "double", DOUBLE, isolated=isolated)
    server = start_server([model])
    server.wait_ready()
    metadata = server.rest("GET", "/v2/models/double").json
    assert (metadata["platform"], metadata["inputs"], metadata["outputs"]) == ("python", [VALUES], [RESULT])
    assert server.infer("double", values_request(1, 2.5)).json["outputs"][0]["data"] == [2, 5]


@pytest.mark.parametrize(
    "code",
    [
        "def infer(inputs):\n    return {'result': inputs['values'] * 2}",
        """
        factor = 0

        def load(context):
            global factor
            factor = context.parameters["factor"]

        def infer(inputs):
            return {"result": inputs["values"] * factor}
        """,
        """
        class Scale:
            def __init__(self, factor):
                self.factor = factor

            def infer(self, inputs):
                return {"result": inputs["values"] * self.factor}

        def load(context):
            return Scale(context.parameters["factor"])
        """,
        """
        from .helper import scale

        def load(context):
            global factor
            assert (context.directory / "helper.py").exists()
            factor = context.parameters["factor"] if (context.name, context.version) == ("model", "1.0.0") else 0

        def infer(inputs):
            return {"result": scale(inputs["values"], factor)}
        """,
    ],
    ids=["function", "module_state", "object", "package"],
)
def test_ways_to_write_it(tmp_path: Path, code: str, isolated: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "helper.py").write_text("def scale(values, factor):\n    return values * factor\n")
    model = load(tmp_path, code, isolated=isolated, parameters={"factor": 2})
    assert result_of(model, 1, 2) == [2, 4]
    model.close()


def test_options_of_the_configuration_win(tmp_path: Path, isolated: bool) -> None:
    code = """
        def load(context):
            global factor
            factor = context.parameters["factor"]

        def infer(inputs):
            return {"result": inputs["values"] * factor}
    """
    model = load(tmp_path, code, {"parameters": {"factor": 3}, "isolated": isolated}, parameters={"factor": 2})
    assert result_of(model, 1) == [3]
    model.close()


def test_every_datatype_passes(tmp_path: Path, isolated: bool) -> None:
    tensors = {
        "BOOL": np.array([[True], [False]]),
        "UINT8": np.array([[1], [255]], np.uint8),
        "INT64": np.array([[-(2**63)], [2**63 - 1]], np.int64),
        "FP16": np.array([[0.5], [65504]], np.float16),
        "FP64": np.array([[1e300], [float("nan")]]),
        "BYTES": np.array([["é"], [""]], object),
        "UINT16": np.zeros((2, 0), np.uint16),
        "INT32": np.array(7, np.int32),
    }
    specs = tuple({"name": name, "datatype": name, "shape": [-1] * array.ndim} for name, array in tensors.items())
    model = load(tmp_path, "def infer(inputs):\n    return inputs", inputs=specs, outputs=specs, isolated=isolated)
    results = model.run(tensors, list(tensors))
    for (name, sent), received in zip(tensors.items(), results, strict=True):
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape), name
        assert received.tolist() == sent.tolist() or name == "FP64"
    assert model.run(tensors, ["BYTES", "BOOL"])[0].tolist() == [["é"], [""]]
    model.close()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1]", "model.py gave list, expected a dictionary of arrays by name"),
        ("{}", "model.py gave outputs [], declared are ['result']"),
        ("{'result': values, 'more': values}", "model.py gave outputs ['more', 'result'], declared are ['result']"),
        ("{'result': values.astype('f8')}", "output 'result' of float64, declared is FP32; give it .astype"),
        ("{'result': [[1, 2], [3]]}", "output 'result' that is no array: ValueError"),
        ("{'result': values.reshape(1, -1)}", "output 'result' of shape [1, 2], declared is [-1]"),
        ("{'result': values, 'text': [1]}", "output 'text' of int64, declared is BYTES; give it str elements"),
        ("{'result': values, 'text': numpy.array([b'a'], object)}", "output 'text' with an element of bytes"),
        ("{'result': values, 'text': ['\\ud800']}", "output 'text' with a str that is no Unicode text"),
        ("1 / 0", "the model's code failed with ZeroDivisionError; the server's log says more"),
        ("sys.exit(3)", "the model's code failed with SystemExit; the server's log says more"),
    ],
)  # fmt: skip
def test_wrong_outputs_are_the_models_fault(tmp_path: Path, value: str, message: str, isolated: bool) -> None:
    text = ({"name": "text", "datatype": "BYTES", "shape": [-1]},) if "'text'" in value else ()
    code = f"""
        import sys
        import numpy

        def infer(inputs):
            values = inputs["values"]
            return {value}
    """
    model = load(tmp_path, code, outputs=(RESULT, *text), isolated=isolated)
    for _ in range(2):
        with pytest.raises(RequestError) as caught:
            result_of(model, 1, 2)
        assert caught.value.failure is Failure.INTERNAL
        assert message in str(caught.value)
    model.close()


def test_lossless_casts(tmp_path: Path, isolated: bool) -> None:
    outputs = (
        {"name": "wide", "datatype": "FP64", "shape": [-1]},
        {"name": "text", "datatype": "BYTES", "shape": [2]},
        {"name": "transposed", "datatype": "INT32", "shape": [3, 2]},
    )
    code = """
        import numpy

        def infer(inputs):
            transposed = numpy.arange(6, dtype=">i2").reshape(2, 3).T
            return {"wide": inputs["values"], "text": ["a", "bc"], "transposed": transposed}
    """
    model = load(tmp_path, code, outputs=outputs, isolated=isolated)
    wide, text, transposed = model.run({"values": np.array([0.5], np.float32)}, [spec["name"] for spec in outputs])
    assert (wide.dtype, wide.tolist()) == (np.float64, [0.5])
    assert (text.dtype, text.tolist()) == (object, ["a", "bc"])
    assert (transposed.dtype, transposed.tolist()) == (np.int32, [[0, 3], [1, 4], [2, 5]])
    assert transposed.flags.c_contiguous
    model.close()


def test_inputs_are_read_only(tmp_path: Path, isolated: bool) -> None:
    code = """
        def infer(inputs):
            inputs["values"][0] = 1
            return {"result": inputs["values"]}
    """
    model = load(tmp_path, code, isolated=isolated)
    with pytest.raises(RequestError, match="read-only"):
        result_of(model, 5)
    model.close()


def test_errors_of_the_code(start_server: Any, tmp_path: Path, isolated: bool) -> None:
    code = """
        def infer(inputs):
            if len(inputs["values"]) > 2:
                raise ValueError("at most two values")
            if len(inputs["values"]) == 2:
                raise KeyError("a secret detail")
            return {"result": inputs["values"]}
    """
    server = start_server([python_model(tmp_path, "picky", code, isolated=isolated)])
    server.wait_ready()
    answer = server.infer("picky", values_request(1, 2, 3))
    assert (answer.status, answer.json) == (400, {"error": "the model refuses its input: at most two values"})
    assert "Traceback" not in server.log
    answer = server.infer("picky", values_request(1, 2))
    assert (answer.status, answer.json) == (
        500,
        {"error": "the model's code failed with KeyError; the server's log says more"},
    )
    assert "KeyError: 'a secret detail'" in server.log
    assert 'model.py", line 6, in infer' in server.log
    assert server.infer("picky", values_request(1)).status == 200


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def load(context):\n    raise OSError('no such sensor')", "model.py: OSError: no such sensor"),
        ("def infer(inputs:", "model.py: SyntaxError"),
        ("import sys\nsys.exit(4)", "model.py: SystemExit: 4"),
        ("import helper", "No module named 'helper'; files beside it are imported by 'from . import helper'"),
        ("x = 1", "model.py: the module has no function infer(inputs)"),
        ("def load(context):\n    return 5", "model.py: int, returned by load, has no function infer(inputs)"),
    ],
)
def test_code_that_cannot_be_loaded(tmp_path: Path, code: str, message: str, isolated: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "helper.py").write_text("")
    with pytest.raises(StartError) as caught:
        load(tmp_path, code, isolated=isolated)
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path, isolated: bool) -> None:
    directory = python_model(tmp_path, "model", DOUBLE, isolated=isolated).path
    (directory / "model.py").unlink()
    with pytest.raises(StartError, match=r"model.py: FileNotFoundError"):
        load_model(ModelConfig("model", "1.0.0", "", directory, {}, "test"), EngineOptions(), None)


def test_versions_do_not_share_modules(tmp_path: Path) -> None:
    models = []
    for number in (1, 2):
        (tmp_path / str(number) / "model").mkdir(parents=True)
        (tmp_path / str(number) / "model" / "constants.py").write_text(f"FACTOR = {number}\n")
        code = "from . import constants\ndef infer(inputs):\n    return {'result': inputs['values'] * constants.FACTOR}"
        models.append(load(tmp_path / str(number), code))
    assert [result_of(model, 1) for model in models] == [[1], [2]]


def test_options_of_python_code_for_an_onnx_model(model_directories: dict[str, ModelDirectory]) -> None:
    path = model_directories["perceptron"].path
    for options in ({"isolated": True}, {"memory_mb": 100}, {"parameters": {"a": 1}}):
        config = ModelConfig("perceptron", "1.0.0", "", path, options, "runtime.json: models[0]")
        with pytest.raises(StartError, match=r"models\[0\]: isolated, memory_mb and parameters are of Python"):
            load_model(config, EngineOptions(), None)


# -- processes of their own ----------------------------------------------------------------------------------------

#: Does with its first value what it stands for, else gives the id of its process.
FRAGILE = """
    import ctypes, os, signal, sys, time

    hoard = []

    def infer(inputs):
        kind = int(inputs["values"][0]) if len(inputs["values"]) else 0
        if kind == 1:
            os._exit(3)
        if kind == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 3:
            ctypes.string_at(0)
        if kind == 4:
            time.sleep(3600)
        if kind == 5:
            hoard.append(bytearray(100 << 20))
        if kind == 6:
            os.write(int(sys.argv[1]), b"[" * 100_000)
        if kind == 7:
            os.close(int(sys.argv[1]))
            time.sleep(3600)
        if kind == 8:
            while True:
                pass
        return {"result": inputs["values"] * 0 + os.getpid()}
"""
NOTHING = 0.0


def status_of(pid: float) -> tuple[str, int]:
    """State (R, S, Z, ...) and parent of a process; X when there is none."""
    try:
        state, parent = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return state, int(parent)


def lives(pid: float) -> bool:
    return status_of(pid)[0] not in "XZ"


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("kind", "failure", "message"),
    [
        (1, Failure.INTERNAL, "the process of the model's code ended with code 3"),
        (2, Failure.INTERNAL, "the process of the model's code was ended by SIGKILL"),
        (3, Failure.INTERNAL, "the process of the model's code was ended by SIGSEGV"),
        (4, Failure.DEADLINE, "the model's code gave no answer within 1.5 s"),
        (6, Failure.INTERNAL, "the process of the model's code sent what is no message (ValueError)"),
        (7, Failure.INTERNAL, "the process of the model's code closed its channel"),
        (8, Failure.DEADLINE, "the model's code gave no answer within 1.5 s"),
    ],
    ids=["exit", "kill", "segmentation_fault", "sleep", "garbage", "closed_channel", "busy_loop"],
)
def test_a_process_that_fails_is_replaced(tmp_path: Path, kind: float, failure: Failure, message: str) -> None:
    model = load(tmp_path, FRAGILE, isolated=True, deadline_seconds=1.5 if failure is Failure.DEADLINE else 60)
    first = result_of(model, NOTHING)[0]
    with pytest.raises(RequestError) as caught:
        result_of(model, kind)
    assert (caught.value.failure, str(caught.value)) == (failure, message)
    assert not lives(first)
    second = result_of(model, NOTHING)[0]
    assert second != first
    model.close()
    assert not lives(second)


def test_a_process_that_ends_between_requests_is_replaced(tmp_path: Path) -> None:
    model = load(tmp_path, FRAGILE, isolated=True)
    first = result_of(model, NOTHING)[0]
    os.kill(int(first), signal.SIGKILL)
    wait_until(lambda: not lives(first))
    assert result_of(model, NOTHING)[0] != first
    model.close()


def test_a_leak_ends_at_the_limit(tmp_path: Path) -> None:
    model = load(tmp_path, FRAGILE, isolated=True, memory_mb=400)
    first = result_of(model, NOTHING)[0]
    with pytest.raises(RequestError, match="failed with MemoryError"):
        for _ in range(5):
            assert result_of(model, 5) == [first]
    second = result_of(model, 5)[0]
    assert second != first
    model.close()


def test_no_limit_without_the_option(tmp_path: Path) -> None:
    model = load(tmp_path, FRAGILE, isolated=True)
    first = result_of(model, NOTHING)
    assert [result_of(model, 5) for _ in range(5)] == [first] * 5
    model.close()


def test_one_crash_after_another_makes_it_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_model, "FIRST_PAUSE_SECONDS", 1.5)
    model = load(tmp_path, FRAGILE, isolated=True)
    for _ in range(2):
        with pytest.raises(RequestError, match="ended with code 3"):
            result_of(model, 1)
    with pytest.raises(RequestError, match="ended with code 3, failure 2 in a row; it is started again soon") as caught:
        result_of(model, NOTHING)
    assert caught.value.failure is Failure.UNAVAILABLE

    wait_until(lambda: works_again(model))
    model.close()


def works_again(model: Model) -> bool:
    try:
        return len(result_of(model, NOTHING)) == 1
    except RequestError as error:
        assert error.failure is Failure.UNAVAILABLE
        return False


def test_code_that_cannot_be_loaded_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated_model, "FIRST_PAUSE_SECONDS", 1.5)
    model = load(tmp_path, FRAGILE, isolated=True)
    file = tmp_path / "model" / "model.py"
    file.rename(tmp_path / "away.py")
    with pytest.raises(RequestError, match="ended with code 3"):
        result_of(model, 1)
    with pytest.raises(RequestError, match="cannot be started again, failure 2 in a row") as caught:
        result_of(model, NOTHING)
    assert caught.value.failure is Failure.UNAVAILABLE
    (tmp_path / "away.py").rename(file)
    wait_until(lambda: works_again(model))
    model.close()


def test_a_client_that_goes_away_leaves_the_process_alone(tmp_path: Path) -> None:
    code = """
        import os, pathlib, time

        def infer(inputs):
            if len(inputs["values"]) == 2:
                pathlib.Path(f"{__file__}.begun").touch()
                while pathlib.Path(f"{__file__}.begun").exists():
                    time.sleep(0.01)
            return {"result": inputs["values"] * 0 + os.getpid()}
    """
    model = load(tmp_path, code, isolated=True)
    first = result_of(model, 0)
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(model.run, {"values": np.zeros(2, np.float32)}, ["result"], cancellation)
        wait_until((tmp_path / "model" / "model.py.begun").exists)
        cancellation.cancel()
        (tmp_path / "model" / "model.py.begun").unlink()
        assert run.result(60)[0].tolist() == first * 2
    assert result_of(model, 0) == first
    with pytest.raises(RequestError, match="ended before its run began"):
        model.run({"values": np.zeros(1, np.float32)}, ["result"], cancellation)
    model.close()


def test_parallel_runs_have_a_process_each(tmp_path: Path) -> None:
    code = """
        import os, pathlib, time

        def infer(inputs):
            if len(inputs["values"]) == 2:
                directory = pathlib.Path(__file__).parent
                (directory / f"begun-{os.getpid()}").touch()
                deadline = time.monotonic() + 240
                while len(list(directory.glob("begun-*"))) < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
            return {"result": inputs["values"] * 0 + os.getpid()}
    """
    model = load(tmp_path, code, {"engine": {"parallel": 2}}, isolated=True)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda _: result_of(model, 0, 0)[0], range(2)))
    assert len(set(results)) == 2
    model.close()
    assert not any(map(lives, results))


def test_what_a_process_inherits(tmp_path: Path) -> None:
    code = """
        import os, resource, signal

        def infer(inputs):
            numbers = [int(name) for name in os.listdir("/proc/self/fd")]
            paths = [f"/proc/self/fd/{number}" for number in numbers if number != 2]
            files = [os.readlink(path) for path in paths if os.path.exists(path)]
            sockets = [name for name in files if name.startswith("socket:")]
            others = {name for name in files if not name.startswith("socket:")}
            limits = [os.environ["OMP_NUM_THREADS"], str(resource.getrlimit(resource.RLIMIT_CORE)[0])]
            limits.append(open("/proc/self/oom_score_adj").read().strip())
            return {"text": [str(len(sockets)), *limits, *sorted(others)]}
    """
    output = {"name": "text", "datatype": "BYTES", "shape": [-1]}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        model = load(tmp_path, code, {"engine": {"threads": 3}}, isolated=True, outputs=(output,))
        text = model.run({"values": np.zeros(1, np.float32)}, ["text"])[0].tolist()
        model.close()
    assert text[:5] == ["2", "3", "0", "1000", "/dev/null"]


def test_a_crash_leaves_other_models_alone(
    start_server: Any, tmp_path: Path, model_directories: dict[str, ModelDirectory]
) -> None:
    fragile = python_model(tmp_path, "fragile", FRAGILE, isolated=True, deadline_seconds=1.5)
    server = start_server([fragile, model_directories["perceptron"]])
    server.wait_ready()
    first = server.infer("fragile", values_request(NOTHING)).json["outputs"][0]["data"]
    for kind, status in ((2, 500), (4, 504)):
        with ThreadPoolExecutor(1) as threads:
            failing = threads.submit(server.infer, "fragile", values_request(kind))
            assert server.infer("perceptron", features_request([[1, 2, 3, 4]])).status == 200
            assert failing.result(60).status == status
        # A new process may need longer than the model's own deadline until it is there.
        answers = (server.infer("fragile", values_request(NOTHING)) for _ in range(100))
        second = next(answer for answer in answers if answer.status != 504)
        assert second.status == 200
        assert second.json["outputs"][0]["data"] != first
    assert "its process was ended by SIGKILL" in server.log
    assert server.rest("GET", "/v2/health/ready").status == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_the_server(start_server: Any, tmp_path: Path, number: signal.Signals) -> None:
    server = start_server(
        [python_model(tmp_path, "fragile", FRAGILE, isolated=True, engine={"parallel": 2})], drain_seconds=0.2
    )
    server.wait_ready()
    everyone = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    pids = [pid for pid in everyone if status_of(pid)[1] == server.process.pid]
    assert len(pids) == 2
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(server.infer, "fragile", values_request(8))
        wait_until(lambda: any(status_of(pid)[0] == "R" for pid in pids))
        server.process.send_signal(number)
        server.process.wait(240)
        wait_until(lambda: not any(map(lives, pids)))
        busy.exception(60)


# -- the channel ---------------------------------------------------------------------------------------------------

SPEC = TensorSpec("result", "FP32", (-1,))


def received(content: bytes) -> list[Array]:
    """What the server makes of bytes that a process sent before it closed its channel."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(content)
        theirs.close()
        return Channel(ours).receive([SPEC], time.monotonic() + 60)[1]


def message(header: object, raw: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(4, "little") + encoded + raw


def test_message() -> None:
    raw = np.float32([1, 2]).tobytes()
    assert received(message({"shapes": [[2]], "sizes": [8]}, raw))[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "closed its channel"),
        (b"\x00", "closed its channel"),
        (b"\xff\xff\xff\xff", "sent what is no message (ValueError)"),
        (message([]), "sent what is no message (TypeError)"),
        (message({"sizes": []}), "sent what is no message (KeyError)"),
        (message({"shapes": [], "sizes": [8]}, bytes(8)), "sent what is no message (ValueError)"),
        (message({"shapes": [[2]], "sizes": [2**40]}), "sent what is no message (ValueError)"),
        (message({"shapes": [[2]], "sizes": [-1]}), "sent what is no message (ValueError)"),
        (message({"shapes": [[2]], "sizes": [True]}, b"x"), "sent what is no message (ValueError)"),
        (message({"shapes": [[2]], "sizes": [8]}, bytes(7)), "closed its channel"),
        (message({"shapes": [[2]], "sizes": [8]}, bytes(9)), "sent what is no message (ValueError)"),
        (message({"shapes": [[2], [2]], "sizes": [8, 8]}, bytes(16)), "sent 2 tensors"),
        (message({"shapes": [[3]], "sizes": [8]}, bytes(8)), "sent a wrong tensor"),
        (message({"shapes": [[2**62, 4]], "sizes": [8]}, bytes(8)), "sent a wrong tensor"),
        (message({"shapes": ["x"], "sizes": [8]}, bytes(8)), "sent a wrong tensor"),
    ],
)
def test_what_is_no_message(content: bytes, seen: str) -> None:
    with pytest.raises(ChannelError, match=re.escape(seen)):
        received(content)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(["shapes", "sizes"]), some),
        max_leaves=8,
    ),
    st.binary(max_size=16),
    st.integers(0, 40),
)
@settings(max_examples=300, deadline=None)
def test_no_content_does_more_than_fail(header: object, raw: bytes, cut: int) -> None:
    whole = message(header, raw)
    for content in (whole, whole[cut:], whole[:-cut]):
        with suppress(ChannelError):
            assert len(received(content)) <= 1
