# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The way of a request to an engine thread: a bounded queue, a deadline, cancellation."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter

from edgeml_runtime.engine.model import Cancellation
from edgeml_runtime.engine.sequences import State
from edgeml_runtime.errors import Failure, RequestError, bare
from edgeml_runtime.inference import InferenceRequest
from edgeml_runtime.serving import ServingOptions
from edgeml_runtime.tensors import Array, byte_size

#: What became of a request: its outputs, or why there are none.
Outcome = list[Array] | RequestError

logger = logging.getLogger(__name__)


class Job:
    """A request that waits for an engine thread or is on one (``run``).

    ``size``: bytes of its inputs. ``sequence``: the state that it continues. ``kind``: see batching.kind; None when
    nobody has asked yet.
    """

    __slots__ = ("answer", "arrived", "kind", "request", "run", "sequence", "size")

    def __init__(
        self, request: InferenceRequest, answer: "asyncio.Future[list[Array]]", sequence: State | None = None
    ) -> None:
        self.request = request
        self.answer = answer
        self.sequence = sequence
        self.size = sum(map(byte_size, request.inputs.values()))
        self.arrived = perf_counter()
        self.run: Run | None = None
        self.kind: tuple[object, ...] | None = None


class Run:
    """Jobs that one engine thread computes together; cancelled when nobody waits for any of them any more."""

    __slots__ = ("cancellation", "finished", "jobs", "started")

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.cancellation = Cancellation()
        self.started = self.finished = 0.0


#: Takes the jobs of the next run out of those that wait. When there are none, the seconds after
#: which to ask again; zero: when another job comes or a run ends.
Take = Callable[[deque[Job]], tuple[list[Job], float]]


def take_first(waiting: deque[Job]) -> tuple[list[Job], float]:
    """The first job whose sequence, if it has one, is not on a thread already."""
    for index, job in enumerate(waiting):
        if job.sequence is None or not job.sequence.running:
            del waiting[index]
            return [job], 0.0
    return [], 0.0


class Scheduler:
    """Queue and engine threads of one model. Used on the event loop alone; only ``compute`` is called on a thread."""

    def __init__(
        self,
        name: str,
        options: ServingOptions,
        parallel: int,
        compute: Callable[[Run], Sequence[Outcome]],
        take: Take = take_first,
        observe: Callable[[InferenceRequest, float, float], None] = lambda request, queue, compute: None,
    ) -> None:
        """``compute`` gives an outcome for each job of a run; ``observe`` is told its seconds in queue and engine."""
        self.under_way = 0
        self._name = name
        self._parallel = parallel
        self._queue = options.queue
        self._most_bytes = options.queue_mb * 2**20
        self._bytes = 0  # of the inputs of all requests under way
        self._deadline_seconds = options.deadline_seconds
        self._compute = compute
        self._take = take
        self.observe = observe
        # A thread that ends a run finds the next one without waiting for the event loop. Batches
        # are better put together as late as possible.
        self._most_running = parallel + (take is take_first)
        self._running = 0
        self._waiting: deque[Job] = deque()
        self._ask_again: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix=name)
        self._closed = False
        self._idle = asyncio.Event()

    async def infer(self, request: InferenceRequest, sequence: State | None = None) -> list[Array]:
        """The requested outputs, in their order.

        Raises RequestError: too many when the queue is full, deadline when the time is over before
        the answer is there, unavailable when the scheduler is closed, and what the model raises.
        """
        if self._closed:
            raise RequestError(Failure.UNAVAILABLE, f"model '{self._name}' was just unloaded; send the request again")
        if self.under_way >= self._parallel + self._queue:
            raise RequestError(
                Failure.TOO_MANY,
                f"model '{self._name}' has {self.under_way} requests under way "
                f"(queue {self._queue}, parallel {self._parallel}) and takes no more; try again later",
            )
        timeout = self._deadline_seconds
        if request.timeout is not None:
            timeout = min(timeout, request.timeout)
        if timeout <= 0:
            raise self._late(timeout)
        loop = asyncio.get_running_loop()
        job = Job(request, loop.create_future(), sequence)
        if self._bytes and self._bytes + job.size > self._most_bytes:
            raise RequestError(
                Failure.TOO_MANY,
                f"model '{self._name}' has inputs of {self._bytes} bytes under way "
                f"(queue_mb {self._most_bytes >> 20}) and takes no {job.size} more; try again later",
            )
        timer = loop.call_later(timeout, self._expire, job, timeout)
        self.under_way += 1
        self._bytes += job.size
        self._waiting.append(job)
        self._dispatch()
        try:
            return await job.answer
        except asyncio.CancelledError:  # nobody waits for the answer any more
            if job.answer.cancelled():
                self._abandon(job)
            else:  # it came in the same turn; asked for here, or it would be reported as never read
                job.answer.exception()
            raise
        finally:
            timer.cancel()
            del job  # its answer may be an error whose traceback knows this frame

    async def close(self) -> None:
        """Take no new request, let those under way finish, then end the threads."""
        self._closed = True
        if self.under_way:
            await self._idle.wait()
        self._threads.shutdown(wait=False)

    # -- private ---------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._ask_again is not None:
            self._ask_again.cancel()
            self._ask_again = None
        while self._waiting and self._running < self._most_running:
            jobs, seconds = self._take(self._waiting)
            if not jobs:
                if seconds:
                    self._ask_again = asyncio.get_running_loop().call_later(seconds, self._dispatch)
                return
            run = Run(jobs)
            for job in jobs:
                job.run = run
                if job.sequence is not None:
                    job.sequence.running = True
            self._running += 1
            self._threads.submit(self._work, run, asyncio.get_running_loop())

    def _work(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        outcomes: Sequence[Outcome] = ()
        run.started = perf_counter()
        if not run.cancellation.cancelled:
            try:
                outcomes = self._compute(run)
            except BaseException:  # whatever it is, the clients wait for an answer
                logger.exception("model '%s' failed", self._name)
                failed = RequestError(Failure.INTERNAL, f"model '{self._name}' failed; the server's log says why")
                outcomes = [failed] * len(run.jobs)
        for outcome in outcomes:
            if isinstance(outcome, RequestError):
                bare(outcome)  # its traceback knows the run, and this frame, which knows it
        run.finished = perf_counter()
        with suppress(RuntimeError):  # the loop has ended, and with it the process
            loop.call_soon_threadsafe(self._finish, run, outcomes)

    def _finish(self, run: Run, outcomes: Sequence[Outcome]) -> None:
        self._running -= 1
        for job in run.jobs:
            if job.sequence is not None:
                job.sequence.running = False
        for job, outcome in zip(run.jobs, outcomes, strict=False):  # none of a run that was cancelled
            if job.answer.done():
                continue
            if isinstance(outcome, RequestError):
                job.answer.set_exception(outcome)
                continue
            if job.sequence is not None:
                outcome = job.sequence.advance(job.request, outcome)
            self.observe(job.request, run.started - job.arrived, run.finished - run.started)
            job.answer.set_result(outcome)
        self._leave(run.jobs)
        run.jobs = ()  # they know the run: their inputs would stay until the next garbage collection
        self._dispatch()

    def _expire(self, job: Job, timeout: float) -> None:
        if not job.answer.done():
            job.answer.set_exception(self._late(timeout))
            self._abandon(job)

    def _abandon(self, job: Job) -> None:
        """The answer is of no use any more: drop the job, or end the run if no other job needs it."""
        if job.run is None:
            self._waiting.remove(job)
            self._leave([job])
        elif all(other.answer.done() for other in job.run.jobs):
            job.run.cancellation.cancel()

    def _leave(self, jobs: Sequence[Job]) -> None:
        self.under_way -= len(jobs)
        self._bytes -= sum(job.size for job in jobs)
        if self._closed and not self.under_way:
            self._idle.set()

    def _late(self, timeout: float) -> RequestError:
        return RequestError(Failure.DEADLINE, f"model '{self._name}' gave no answer within {timeout:g} s")
