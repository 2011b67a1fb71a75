"""The line that names the kernels in use."""

import pytest
import torch

from fastdarts.ops import extension, operators
from fastdarts.runs import kernels
from fastdarts.runs.kernels import describe_kernels, kernels_used

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("it cannot be loaded", "it cannot be loaded"),
        (
            "fastdarts._C is not built in this installation",
            "fastdarts._C is not built in this installation; to build it, in the checkout: "
            "pip install --no-build-isolation --force-reinstall --no-deps .",
        ),
    ],
)
def test_without_the_extension_it_says_why_and_what_to_do(monkeypatch, reason, told):
    monkeypatch.setattr(extension, "UNAVAILABLE", reason)
    assert kernels_used(CPU, "auto") == f"plain PyTorch modules, many times slower: {told}, on cpu"
    assert kernels.instruction_set() is None


def test_with_the_extension_the_instruction_set(monkeypatch):
    monkeypatch.setattr(extension, "UNAVAILABLE", None)
    monkeypatch.setattr(kernels, "instruction_set", lambda: "avx2")
    assert describe_kernels(CPU) == "fused C++, avx2"


def test_a_wrong_instruction_set_is_told_not_raised(monkeypatch):
    class Extension:
        def instruction_set(self):
            raise ValueError("FASTDARTS_CPU must be amx, avx512, avx2 or portable; got sse\nat line 3")

    monkeypatch.setattr(extension, "UNAVAILABLE", None)
    monkeypatch.setattr(kernels.importlib, "import_module", lambda name: Extension())
    assert kernels.instruction_set() == "FASTDARTS_CPU must be amx, avx512, avx2 or portable; got sse"


@pytest.mark.parametrize(
    ("built", "words"), [(True, "CUDA"), (False, "plain PyTorch (fastdarts._C was built without CUDA)")]
)
def test_on_a_gpu(monkeypatch, built, words):
    monkeypatch.setattr(operators, "TRITON", True)
    monkeypatch.setattr(kernels, "has_cuda_part", lambda: built)
    monkeypatch.setattr(kernels.metadata, "version", lambda name: "3.8.0")
    assert kernels_used(CUDA, "fused") == f"fused Triton 3.8.0; alpha steps: {words}, on cuda"


def test_the_plain_modules_on_request():
    assert kernels_used(CPU, "reference") == "plain PyTorch modules on cpu, as backend 'reference' asks"
