# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The queue and the engine threads of one model: bounds, deadlines, cancellation, and counts that stay right."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from edgeml_runtime.engine.scheduler import Outcome, Run, Scheduler
from edgeml_runtime.errors import Failure
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.serving import ServingOptions
from engines import failure_of, run


class Gate:
    """Computes nothing; each run stays on its thread until it may go on or is cancelled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.open = threading.Event()

    def compute(self, run: Run) -> Sequence[Outcome]:
        names = [job.request.id for job in run.jobs]
        self.started += names
        run.cancellation.bind(self.open.set)
        assert self.open.wait(60)
        if run.cancellation.cancelled:
            self.cancelled += names
        return [[np.array(name, dtype=object)] for name in names]


def request(name: str, timeout: float | None = None) -> InferenceRequest:
    return InferenceRequest(name, {}, [], timeout)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_full_queue_refuses_at_once_and_all_that_was_accepted_is_answered() -> None:
    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(queue=3), 2, gate.compute)
        accepted = [asyncio.create_task(scheduler.infer(request(str(number)))) for number in range(5)]
        await until(lambda: len(gate.started) == 2)
        for _ in range(3):
            error = await failure_of(scheduler.infer(request("one too many")))
            assert error.failure is Failure.TOO_MANY
            assert "has 5 requests under way (queue 3, parallel 2)" in str(error)
        assert scheduler.under_way == 5
        gate.open.set()
        assert [str(answer[0]) for answer in await asyncio.gather(*accepted)] == list("01234")
        assert scheduler.under_way == 0
        assert sorted(gate.started) == list("01234")

    run(test)


def test_large_inputs_fill_the_queue_sooner() -> None:
    def large(name: str, count: int, text: str = "") -> InferenceRequest:
        inputs = {"x": np.full(count, text, dtype=object) if text else np.zeros(count, np.uint8)}
        return InferenceRequest(name, inputs, [])

    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(queue=9, queue_mb=1), 1, gate.compute)
        # Alone, a request may be larger than the bound; beside it there is room for none that has inputs at all.
        alone = asyncio.create_task(scheduler.infer(large("alone", 2**21)))
        await until(lambda: gate.started == ["alone"])
        error = await failure_of(scheduler.infer(large("one too many", 1)))
        assert error.failure is Failure.TOO_MANY
        assert "has inputs of 2097152 bytes under way (queue_mb 1) and takes no 1 more" in str(error)
        gate.open.set()
        await alone
        gate.open.clear()
        half = asyncio.create_task(scheduler.infer(large("half", 2**19)))
        await until(lambda: gate.started == ["alone", "half"])
        text = asyncio.create_task(scheduler.infer(large("text", 2, "a" * 2**17)))
        await asyncio.sleep(0)
        assert (await failure_of(scheduler.infer(large("text", 1, "a" * 2**18)))).failure is Failure.TOO_MANY
        gate.open.set()
        assert [str(answer[0]) for answer in await asyncio.gather(half, text)] == ["half", "text"]

    run(test)


def test_a_deadline_in_the_queue_is_answered_at_once_and_frees_the_place() -> None:
    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(queue=2), 1, gate.compute)
        running, next_one = (asyncio.create_task(scheduler.infer(request(name))) for name in ("running", "next"))
        await until(lambda: gate.started == ["running"])
        error = await failure_of(scheduler.infer(request("late", timeout=0.01)))
        assert (error.failure, str(error)) == (Failure.DEADLINE, "model 'model' gave no answer within 0.01 s")
        assert scheduler.under_way == 2
        accepted = asyncio.create_task(scheduler.infer(request("in its place")))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(running, next_one, accepted)
        assert gate.started == ["running", "next", "in its place"]
        assert gate.cancelled == []

    run(test)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_deadline_that_is_over_before_it_begins(timeout: float) -> None:
    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(), 1, gate.compute)
        assert (await failure_of(scheduler.infer(request("late", timeout)))).failure is Failure.DEADLINE
        assert (scheduler.under_way, gate.started) == (0, [])

    run(test)


@pytest.mark.parametrize("by", ["deadline", "model's deadline", "client"])
def test_a_run_is_ended_when_nobody_waits_for_it(by: str) -> None:
    async def test() -> None:
        gate = Gate()
        options = ServingOptions(deadline_seconds=0.05 if by == "model's deadline" else 30)
        scheduler = Scheduler("model", options, 1, gate.compute)
        timeout = {"deadline": 0.05, "model's deadline": 10.0, "client": None}[by]
        answer = asyncio.create_task(scheduler.infer(request("given up", timeout)))
        await until(lambda: gate.started == ["given up"])
        if by == "client":
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer
        else:
            error = await failure_of(answer)
            assert (error.failure, str(error)) == (Failure.DEADLINE, "model 'model' gave no answer within 0.05 s")
        await until(lambda: scheduler.under_way == 0)
        assert gate.cancelled == ["given up"]
        assert str((await scheduler.infer(request("next")))[0]) == "next"

    run(test)


def test_clients_that_leave_the_queue_leave_nothing_behind() -> None:
    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(queue=100), 1, gate.compute)
        first = asyncio.create_task(scheduler.infer(request("first")))
        await until(lambda: gate.started == ["first"])
        leaving = [asyncio.create_task(scheduler.infer(request(f"leaving {number}"))) for number in range(50)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        # One may have been handed to the thread already, which then never starts it.
        assert scheduler.under_way <= 2
        gate.open.set()
        await first
        await until(lambda: scheduler.under_way == 0)
        assert gate.started == ["first"]

    run(test)


@pytest.mark.parametrize("waits", [True, False])
def test_a_client_that_leaves_at_its_deadline_is_counted_once(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(queue=3, deadline_seconds=86400), 1, gate.compute)
        others = [asyncio.create_task(scheduler.infer(request(str(number)))) for number in range(2 * waits)]
        await until(lambda: scheduler.under_way == len(others))
        late = asyncio.create_task(scheduler.infer(request("late", 3600)))
        await until(lambda: scheduler.under_way == len(others) + 1)
        # The deadline passes unseen, and the client leaves in the turn in which it is seen.
        loop, now = asyncio.get_running_loop(), asyncio.get_running_loop().time
        monkeypatch.setattr(loop, "time", lambda: now() + 3601)
        loop.call_later(0.0, late.cancel)
        with pytest.raises(asyncio.CancelledError):
            await late
        gate.open.set()
        await asyncio.gather(*others)
        await until(lambda: scheduler.under_way == 0)

    run(test)


@pytest.mark.parametrize("error", [ValueError("secret"), StopIteration(), SystemExit(3), KeyboardInterrupt()])
def test_whatever_a_model_raises_the_client_gets_an_answer_and_the_thread_lives(error: BaseException) -> None:
    async def test() -> None:
        def compute(run: Run) -> Sequence[Outcome]:
            if run.jobs[0].request.id == "bad":
                raise error
            return [[np.zeros(1)]]

        scheduler = Scheduler("model", ServingOptions(), 1, compute)
        failed = await failure_of(scheduler.infer(request("bad")))
        assert (failed.failure, str(failed)) == (Failure.INTERNAL, "model 'model' failed; the server's log says why")
        assert len(await scheduler.infer(request("good"))) == 1
        assert scheduler.under_way == 0

    run(test)


def test_close_waits_for_what_is_under_way_and_refuses_the_rest() -> None:
    async def test() -> None:
        gate = Gate()
        scheduler = Scheduler("model", ServingOptions(), 1, gate.compute)
        answers = [asyncio.create_task(scheduler.infer(request(str(number)))) for number in range(3)]
        await until(lambda: gate.started == ["0"])
        closing = asyncio.create_task(scheduler.close())
        await asyncio.sleep(0)
        assert (await failure_of(scheduler.infer(request("new")))).failure is Failure.UNAVAILABLE
        assert not closing.done()
        gate.open.set()
        await asyncio.gather(*answers)
        await closing

    run(test)


def test_nothing_is_computed_on_the_event_loop_and_at_most_so_many_at_once() -> None:
    async def test() -> None:
        loop_thread = threading.get_ident()
        running: set[int] = set()
        most: list[int] = []

        def compute(run: Run) -> Sequence[Outcome]:
            thread = threading.get_ident()
            assert thread != loop_thread
            running.add(thread)
            most.append(len(running))
            threading.Event().wait(0.002)
            running.discard(thread)
            return [[]]

        scheduler = Scheduler("model", ServingOptions(), 3, compute)
        await asyncio.gather(*(scheduler.infer(request(str(number))) for number in range(60)))
        assert max(most) == 3

    run(test)


def test_inputs_go_with_their_answer() -> None:
    """Not only at the next garbage collection: until then, they would be most of the server's memory."""

    async def test() -> None:
        gate = Gate()
        gate.open.set()
        scheduler = Scheduler("model", ServingOptions(), 1, gate.compute)
        tensor = np.zeros(10)
        goes = weakref.ref(tensor)
        asked = InferenceRequest("1", {"x": tensor}, [])
        del tensor
        await scheduler.infer(asked)
        del asked
        await asyncio.sleep(0)
        assert goes() is None
        await scheduler.close()

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()
