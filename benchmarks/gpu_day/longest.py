"""Run the launches whose keys are given once each, for ncu: python -m benchmarks.gpu_day.longest DAY KEY..."""

import json
import sys

import torch

from benchmarks.gpu_day.day import Day
from benchmarks.gpu_day.recording import distinct_launches
from benchmarks.gpu_day.steps import Steps, by_kernels


def main() -> None:
    day, *keys = sys.argv[1:]
    here = Day(**json.loads(day))
    steps = Steps(here, cuda_graphs=False)  # stays: launches know the addresses of its running statistics alone
    kinds, _ = distinct_launches(lambda: by_kernels(here, steps.weight))
    if torch.cuda.is_available():
        torch.cuda.profiler.start()
    for key in keys:
        kinds[key].run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
