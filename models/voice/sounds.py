# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sounds of 16,000 samples a second, computed: vowels as a throat makes them, and what is no speech."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Sound = npt.NDArray[np.float64]

RATE = 16_000
LARGEST = 32767
"""Of a sample in 16 bits. Sounds are rounded to that, so that all machines compute the same ones."""

#: Frequency and bandwidth in Hz of each vowel's three formants.
VOWELS = {
    "a": ((700, 80), (1220, 90), (2600, 120)),
    "e": ((530, 70), (1840, 90), (2480, 120)),
    "i": ((300, 60), (2300, 100), (3000, 150)),
    "o": ((500, 70), (1000, 80), (2400, 120)),
    "u": ((320, 60), (800, 80), (2240, 120)),
}


def speech(vowels: str, pitch: float, seconds: float, loudness: float) -> Sound:
    """Return vowels one after another, `seconds` each, sung around `pitch` Hz, -1 to 1."""
    parts = [_vowel(VOWELS[name], pitch * (1 + 0.03 * (index % 3)), seconds) for index, name in enumerate(vowels)]
    return rounded(np.concatenate(parts) * loudness)


def _vowel(formants: tuple[tuple[int, int], ...], pitch: float, seconds: float) -> Sound:
    number = int(RATE * seconds)
    time = np.arange(number) / RATE
    turns = np.cumsum(pitch * (1 + 0.08 * np.sin(2 * np.pi * 3 * time))) / RATE
    # A pulse each time the vocal cords close, and breath.
    signal = np.diff(np.floor(turns), prepend=0.0) + np.random.default_rng(0).normal(0, 0.005, number)
    for frequency, bandwidth in formants:
        radius = np.exp(-np.pi * bandwidth / RATE)
        first, second = 2 * radius * np.cos(2 * np.pi * frequency / RATE), -radius * radius
        one = two = 0.0
        for index, value in enumerate(signal):  # resonates: each sample depends on the two before
            one, two = value + first * one + second * two, one
            signal[index] = one
    return np.asarray(signal / np.abs(signal).max() * np.sqrt(np.hanning(number)))


def others(seconds: float) -> dict[str, Sound]:
    """Return sounds that are no speech, by name."""
    time = np.arange(int(RATE * seconds)) / RATE
    random = np.random.default_rng(1)
    noise = random.normal(0, 1, len(time))
    return {
        name: rounded(sound)
        for name, sound in {
            "silence": np.zeros(len(time)),
            "hiss": 0.05 * noise,
            "fan": 0.1 * np.convolve(noise, np.ones(24) / 24, mode="same"),
            "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
            "mains": 0.2 * np.sign(np.sin(2 * np.pi * 50 * time)),
            "sweep": 0.2 * np.sin(2 * np.pi * (200 + 900 * time) * time),
            "knocks": noise * np.exp(-60 * (time % 0.5)) * 0.4,
        }.items()
    }


def rounded(sound: Sound) -> Sound:
    """Return a sound as 16 bits hold it."""
    return np.asarray(np.round(np.clip(sound, -1, 1) * LARGEST) / LARGEST)
