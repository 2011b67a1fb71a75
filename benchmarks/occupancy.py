"""Estimate the time of launches from how much of a GPU each fills: programs, warps, waves, bytes in flight, gaps.

Bytes and instructions alone say how long a launch takes that fills the GPU. At batch 64 most do not: they have fewer
programs than there are multiprocessors, or so few warps that latencies show. All numbers here are assumptions, chosen
for an H100; none was measured.
"""

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Hold the work of a launch: programs of so many warps, bytes, issue slots of lanes, multiply-adds.

    A torch operator has 0 programs: it fills the GPU. A launch on a second stream waits for the `begun` launches before
    it on the first; -1 is the first stream. `together` tiles of a program are under way at once.
    """

    name: str
    programs: int
    warps: int
    bytes: int
    slots: float = 0
    products: int = 0
    begun: int = -1
    together: float = 1


@dataclass(frozen=True)
class Chip:
    """State what a multiprocessor can do.

    Args:
        multiprocessors, clock: their number, and Hz.
        bandwidth: bytes a second that a copy reaches.
        latency: seconds from a load to its data; with the bandwidth the bytes that must be under way.
        warps: that a multiprocessor holds at 128 registers a thread, which kernels are compiled for.
        bytes_of_thread: that a thread has under way: what a block of 4x4 outputs reads before it computes.
        slots_of_warp: share of a scheduler's slots that one warp fills, between its latencies.
        most_slots: share that any number of warps fills.
        shortest: seconds of the smallest launch.
        gap: seconds from one launch of a CUDA graph to the next.
    """

    name: str = "H100"
    multiprocessors: int = 132
    clock: float = 1.755e9
    bandwidth: float = 3.0e12
    latency: float = 0.7e-6
    warps: int = 16
    bytes_of_thread: int = 32
    slots_of_warp: float = 0.22
    most_slots: float = 0.85
    shortest: float = 2e-6
    gap: float = 1.3e-6

    def seconds(self, work: Work) -> float:
        """Return the time of a launch, without the gap after it.

        The longer of two: its bytes, at the bandwidth that its warps reach, and its slots, at the rate that a
        scheduler's warps reach, in as many waves as its programs need.
        """
        if not work.programs:
            return max(self.shortest, work.bytes / self.bandwidth)
        together = min(max(self.warps // work.warps, 1), math.ceil(work.programs / self.multiprocessors))
        waves = math.ceil(work.programs / (self.multiprocessors * together))
        rate = min(self.most_slots, self.slots_of_warp * together * work.warps / 4)
        slots = waves * together * work.slots / work.programs / 32 / (4 * rate * self.clock)
        threads = min(work.programs, self.multiprocessors * together) * 32 * work.warps
        under_way = threads * self.bytes_of_thread * work.together / (self.bandwidth * self.latency)
        return max(self.shortest, slots, work.bytes / (self.bandwidth * min(1, under_way)))

    def share(self, work: Work) -> float:
        """Return the part of the GPU that a launch uses while it runs: its time if it filled all, by its time."""
        slots = work.slots / 32 / (4 * self.multiprocessors * self.most_slots * self.clock)
        return max(slots, work.bytes / self.bandwidth) / self.seconds(work)


def total(works: list[Work], chip: Chip) -> float:
    """Return the seconds of launches one after the other, gaps included."""
    return sum(chip.seconds(work) + chip.gap for work in works)


def elapsed(works: list[Work], joins: list[int], chip: Chip) -> float:
    """Return the seconds of launches on two streams, gaps included.

    Two launches at once share the GPU: each keeps its pace while their shares add up to no more than 1; beyond that
    both slow down alike, even where one needs memory and the other slots.

    Args:
        works: in the order in which they were issued.
        joins: numbers of works before those at which the first stream waited for the second.
    """
    firsts = deque((i, work) for i, work in enumerate(works) if work.begun < 0)
    seconds = deque((i, work) for i, work in enumerate(works) if work.begun >= 0)
    waiting = deque(joins)
    now, running = 0.0, dict[int, Running]()
    while firsts or seconds or running:
        busy = running[1].index if 1 in running else seconds[0][0] if seconds else len(works)
        while waiting and waiting[0] <= busy:
            waiting.popleft()
        if 0 not in running and firsts and not (waiting and waiting[0] <= firsts[0][0]):
            running[0] = Running(*firsts.popleft(), chip)
        done = running[0].index if 0 in running else firsts[0][0] if firsts else len(works)
        if 1 not in running and seconds and seconds[0][1].begun <= done:
            running[1] = Running(*seconds.popleft(), chip)
        pace = 1 / max(1.0, sum(launch.share for launch in running.values()))
        step = min(launch.ends(pace) for launch in running.values())
        now += step
        for stream, launch in list(running.items()):
            if launch.advance(step, pace):
                del running[stream]
    return now


class Running:
    """A launch on its way: first the gap before it, in which it uses nothing, then its work."""

    def __init__(self, index: int, work: Work, chip: Chip) -> None:
        self.index = index
        self._gap, self._left, self._share = chip.gap, chip.seconds(work), chip.share(work)

    @property
    def share(self) -> float:
        return 0.0 if self._gap else self._share

    def ends(self, pace: float) -> float:
        """Return the seconds to the end of its gap or, at this pace, of its work."""
        return self._gap or self._left / pace

    def advance(self, step: float, pace: float) -> bool:
        """Let `step` seconds pass; return True once all is done."""
        if self._gap:
            self._gap = self._gap - step if self._gap - step > EPSILON else 0.0
            return False
        self._left -= step * pace
        return self._left <= EPSILON


EPSILON = 1e-12  # seconds


def unfilled(works: list[Work], chip: Chip, most: int = 1) -> tuple[int, int]:
    """Count launches with windows or products: those with fewer than `most` programs a multiprocessor, and all."""
    large = [work for work in works if work.slots or work.products]
    return sum(work.programs < most * chip.multiprocessors for work in large), len(large)
