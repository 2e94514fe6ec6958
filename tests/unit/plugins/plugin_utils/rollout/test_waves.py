# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random

import pytest
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.settings import Settings
from ansible_collections.edgeml.fleet.plugins.plugin_utils.rollout.waves import plan_waves

HOSTS = [f"h{number}" for number in range(40)]


def sizes(hosts: int, settings: Settings) -> list[int]:
    return [len(wave.hosts) for wave in plan_waves(HOSTS[:hosts], settings)]


@pytest.mark.parametrize(
    ("hosts", "settings", "expected"),
    [
        (0, Settings(), []),
        (1, Settings(), [1]),
        (2, Settings(), [1, 1]),
        (40, Settings(), [1, 3, 9, 27]),
        (10, Settings(growth=1), [1] * 10),
        (10, Settings(first=4, growth=1), [4, 4, 2]),
        (10, Settings(first="10%", growth=2), [1, 2, 4, 3]),
        (15, Settings(first="10%", growth=2), [2, 4, 8, 1]),  # a share is rounded up
        (10, Settings(first="100%"), [10]),
        (10, Settings(first=100), [10]),
        (10, Settings(first=1, growth=1.5), [1, 2, 2, 3, 2]),
    ],
)
def test_sizes(hosts: int, settings: Settings, expected: list[int]) -> None:
    assert sizes(hosts, settings) == expected


def test_canaries_go_first_and_count_not_towards_the_growth() -> None:
    waves = plan_waves(HOSTS[:10], Settings(growth=2), canaries={"h3", "h7", "elsewhere"})
    assert [(wave.number, wave.name, wave.hosts) for wave in waves] == [
        (1, "canary", ("h3", "h7")),
        (2, "", ("h0",)),
        (3, "", ("h1", "h2")),
        (4, "", ("h4", "h5", "h6", "h8")),
        (5, "", ("h9",)),
    ]


def test_a_site_never_has_more_hosts_in_a_wave_than_allowed() -> None:
    sites = {host: "berlin" if number < 6 else "" for number, host in enumerate(HOSTS[:10])}
    waves = plan_waves(HOSTS[:10], Settings(first=4, growth=1, per_site=1), sites=sites)
    assert [wave.hosts for wave in waves] == [
        ("h0", "h6", "h7", "h8"),  # hosts without a site are not limited
        ("h1", "h9"),
        ("h2",),
        ("h3",),
        ("h4",),
        ("h5",),
    ]


def test_canaries_of_one_site_are_spread_too() -> None:
    sites = dict.fromkeys(HOSTS, "berlin")
    waves = plan_waves(HOSTS[:5], Settings(per_site=2), canaries=HOSTS[:3], sites=sites)
    assert [(wave.number, wave.name, wave.hosts) for wave in waves] == [
        (1, "canary", ("h0", "h1")),
        (2, "canary", ("h2",)),
        (3, "", ("h3",)),
        (4, "", ("h4",)),
    ]


@pytest.mark.parametrize(
    ("done", "expected"),
    [(0, [1, 3, 9, 17]), (1, [3, 9, 18]), (4, [9, 21]), (13, [27, 3]), (2, [3, 9, 18]), (500, [30])],
)
def test_a_rollout_goes_on_with_the_size_that_it_had_reached(done: int, expected: list[int]) -> None:
    waves = plan_waves(HOSTS[:30], Settings(), done=done, finished=5)
    assert [len(wave.hosts) for wave in waves] == expected
    assert [wave.number for wave in waves] == list(range(6, 6 + len(expected)))


def test_every_host_is_in_one_wave_whatever_is_set() -> None:
    dice = random.Random(7)  # noqa: S311
    for _ in range(500):
        hosts = HOSTS[: dice.randint(0, 40)]
        sites = {host: dice.choice(["a", "b", "c", ""]) for host in hosts}
        firsts: list[int | str] = [1, 2, 7, "5%", "50%"]
        settings = Settings(first=dice.choice(firsts), growth=dice.choice([1, 1.2, 2, 10]), per_site=dice.randint(0, 3))
        canaries = set(dice.sample(hosts, dice.randint(0, len(hosts))))
        waves = plan_waves(hosts, settings, canaries, sites, dice.randint(0, 50))
        assert sorted(host for wave in waves for host in wave.hosts) == sorted(hosts)
        assert all(wave.hosts for wave in waves)
        names = [wave.name for wave in waves]
        assert names == sorted(names, key=lambda name: name != "canary")
        assert {host for wave in waves if wave.name for host in wave.hosts} == canaries
        for wave in waves:
            assert list(wave.hosts) == [host for host in hosts if host in wave.hosts]
            for site in "abc":
                assert not settings.per_site or sum(sites[host] == site for host in wave.hosts) <= settings.per_site


@pytest.mark.parametrize(
    ("max_failed", "hosts", "expected"),
    [(0, 9, 0), (2, 9, 2), (9, 9, 8), (5, 1, 0), ("10%", 9, 0), ("10%", 10, 1), ("100%", 10, 9), (3, 0, 0)],
)
def test_tolerated_failures_are_never_all_of_a_wave(max_failed: int | str, hosts: int, expected: int) -> None:
    assert Settings(max_failed=max_failed).tolerated(hosts) == expected


def test_a_large_site_has_many_waves() -> None:
    hosts = [f"h{number}" for number in range(700)]
    waves = plan_waves(hosts, Settings(per_site=1), sites=dict.fromkeys(hosts, "berlin"))
    assert [len(wave.hosts) for wave in waves] == [1] * 700
