"""Estimate the time of launches from how much of a GPU each fills: programs, warps, waves, bytes in flight, gaps.

Bytes and instructions alone say how long a launch takes that fills the GPU. At batch 64 most do not: they have fewer
programs than there are multiprocessors, or so few warps that latencies show. All numbers here are assumptions, chosen
for an H100; none was measured.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Hold the work of a launch: programs of so many warps, bytes, issue slots of lanes, multiply-adds.

    A torch operator has 0 programs: it fills the GPU.
    """

    name: str
    programs: int
    warps: int
    bytes: int
    slots: float = 0
    products: int = 0


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
        under_way = threads * self.bytes_of_thread / (self.bandwidth * self.latency)
        return max(self.shortest, slots, work.bytes / (self.bandwidth * min(1, under_way)))


def total(works: list[Work], chip: Chip) -> float:
    """Return the seconds of launches one after the other, gaps included."""
    return sum(chip.seconds(work) + chip.gap for work in works)


def unfilled(works: list[Work], chip: Chip, most: int = 1) -> tuple[int, int]:
    """Count launches with windows or products: those with fewer than `most` programs a multiprocessor, and all."""
    large = [work for work in works if work.slots or work.products]
    return sum(work.programs < most * chip.multiprocessors for work in large), len(large)
