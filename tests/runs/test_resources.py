"""The forecast before the first epoch, and the message when memory does not suffice."""

import subprocess
import sys

import pytest
import torch

from fastdarts.runs import resources

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def machine(monkeypatch):
    """A machine with 100 MiB left for a process that has 50 MiB and takes 2 MiB an image."""

    class Machine:
        used = peak = 50 * MIB
        batches = ()

        def step(self, images):
            self.batches += (images,)
            self.peak = max(self.peak, self.used + 2 * MIB * images)

        def reset(self, device):
            self.peak = self.used
            return self.used

    machine = Machine()
    monkeypatch.setattr(resources, "reset_peak", machine.reset)
    monkeypatch.setattr(resources, "peak_bytes", lambda device: machine.peak)
    monkeypatch.setattr(resources, "free_bytes", lambda device: 100 * MIB)
    return machine


def test_peak_and_largest_batch(machine):
    forecast = resources.forecast(machine.step, 40, CPU)
    assert forecast.peak_bytes == (50 + 2 * 40) * MIB
    assert forecast.largest_batch == 47  # 95 % of 100 MiB at 2 MiB an image
    assert machine.batches == (8, 40, 40)


def test_a_batch_too_large_for_a_cpu_is_not_tried(machine):
    with pytest.raises(
        MemoryError, match=r"out of memory on cpu with batch_size 48: the largest batch that fits is about 47"
    ):
        resources.forecast(machine.step, 48, CPU)
    assert machine.batches == (8,)


def test_the_device_says_no(machine):
    def step(images):
        machine.step(images)
        if images > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="with batch_size 40: the largest batch that fits is about 39"):
        resources.forecast(step, 40, CPU)


def test_other_errors_of_a_step_stay_what_they_are(machine):
    def step(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        resources.forecast(step, 4, CPU)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("memory format option is only supported by strided tensors"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_out_of_memory(error, memory):
    assert resources.is_out_of_memory(error) == memory


def test_the_process_is_measured():
    """64 MiB that are used and freed again show in the peak, and not in the next one; in a process with no past."""
    program = """
import torch
from fastdarts.runs import resources
before = resources.reset_peak(torch.device("cpu"))
torch.ones(16 << 20, dtype=torch.float32)
assert resources.peak_bytes(torch.device("cpu")) >= before + (60 << 20)
assert resources.free_bytes(torch.device("cpu")) > 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)
