# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Memory of large bodies, and the turns in which they are received."""

from typing import Any

import numpy as np
import pytest
from clock import Clock
from edgeml_runtime.transports import bodies
from edgeml_runtime.transports.bodies import Body, Buffers
from edgeml_runtime.transports.turns import TURN_SECONDS, WAIT_SECONDS, Turns

MIB = 1 << 20


def buffers(clock: Clock | None = None) -> Buffers:
    return Buffers(clock or Clock())  # type: ignore[arg-type]


def place(body: Body) -> int:
    return int(np.frombuffer(body.content(), np.uint8).ctypes.data)


@pytest.mark.parametrize("size", [1, 65_536, 300_000, 5 * MIB])
@pytest.mark.parametrize("aligned_at", [0, 1, 17, 4096])
def test_a_body_is_what_came(size: int, aligned_at: int) -> None:
    sent = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    given = buffers()
    for _ in range(2):  # in new memory, then in the same again
        body = given.body(size, 0, aligned_at)
        body.add(sent[:1000])
        while body.missing:
            room = body.room()
            assert len(room)
            count = min(len(room), 70_000)
            room[:count] = sent[body.received : body.received + count]
            room.release()
            body.took(count)
        assert body.content() == sent
        assert (place(body) + aligned_at) % 16 == 0


def test_who_announces_much_gets_memory_as_it_comes() -> None:
    body = buffers().body(64 * MIB, 100_000, 0)
    assert len(body.room()) < 300_000


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    given = buffers()
    first = given.body(MIB, 0, 0)
    first.add(bytes(MIB))
    where = place(first)
    second = given.body(MIB, 0, 0)  # the first one is still being received
    second.add(b"\1" * MIB)
    assert place(second) != where
    view = np.frombuffer(first.content(), np.float32)[10:]
    del first
    third = given.body(MIB, 0, 0)  # something computes with the first one
    third.add(b"\1" * MIB)
    assert not view.any()
    del view, second
    again = given.body(MIB, 0, 0)
    again.add(bytes(MIB))
    assert place(again) == where


def test_spare_memory_is_bounded_and_goes_when_nobody_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(bodies, "trim", lambda: trimmed.append(1))
    clock = Clock()
    given = buffers(clock)

    def spare() -> int:
        return sum(map(len, given._spare))

    alive = []
    for _ in range(20):
        alive.append(given.body(MIB, MIB, 0))
    assert MIB < spare() <= 8 * MIB
    alive.clear()
    for size in (100_000, 3 * MIB, 200_000, 2 * MIB, 60 * MIB):
        given.body(size, size, 0)
        assert spare() <= 8 * MIB
    clock.pass_by(100)
    assert (spare(), trimmed) == (0, [1])


class Taken:
    """Bodies that want turns."""

    def __init__(self, most_bytes: int) -> None:
        self.clock = Clock()
        self.turns = Turns(most_bytes, self.clock)  # type: ignore[arg-type]
        self.begun: list[str] = []

    def take(self, name: str, size: int) -> Any:
        return self.turns.take(size, lambda: self.begun.append(name))


def test_turns_come_in_order_as_others_end() -> None:
    taken = Taken(10)
    first, second = taken.take("first", 6), taken.take("second", 6)
    third = taken.take("third", 1)  # would fit, but did not come first
    assert taken.begun == ["first"]
    taken.turns.end(second)  # gone while it waited
    assert taken.begun == ["first", "third"]
    taken.take("fourth", 5)
    taken.turns.end(third)
    taken.turns.end(first)
    assert taken.begun == ["first", "third", "fourth"]


def test_one_larger_than_all_turns_comes_alone() -> None:
    taken = Taken(10)
    large = taken.take("large", 100)
    taken.take("small", 1)
    assert taken.begun == ["large"]
    taken.turns.end(large)
    assert taken.begun == ["large", "small"]


def test_a_slow_one_keeps_nobody_waiting() -> None:
    taken = Taken(10)
    slow = taken.take("slow", 10)
    taken.take("next", 10)
    taken.clock.pass_by(2 * TURN_SECONDS)
    assert taken.begun == ["slow", "next"]
    taken.turns.end(slow)  # its turn is over already: that frees nothing
    taken.take("last", 10)
    assert taken.begun == ["slow", "next"]


def test_nobody_waits_for_ever() -> None:
    taken = Taken(10)
    for index in range(1000):
        taken.take(str(index), 10)
    taken.clock.pass_by(WAIT_SECONDS + 2 * TURN_SECONDS)
    assert len(taken.begun) == 1000
