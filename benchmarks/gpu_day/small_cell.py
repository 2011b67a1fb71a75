"""Run a small cell forward and backward on the GPU, or on a CPU in Triton's interpreter: for compute-sanitizer."""

import torch
from kernel_cases import EVERY, fused, make_case


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (2, 16, 16) if device.type == "cuda" else (1, 2, 2)
    ops = EVERY if device.type == "cuda" else ("skip_connect", "nor_conv_1x1")
    for stride in (1, 2):
        case = make_case(ops, inputs=2, nodes=1, stride=stride, C=16, size=size).to(torch.bfloat16)
        fused(case.on(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
