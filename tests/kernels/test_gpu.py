"""The compiled Triton kernels on a real GPU: the equalities of test_kernels.py, AMP, determinism, CUDA graphs."""

import pytest
import torch
from kernel_cases import assert_no_worse, fused, make_case, plain

from fastdarts import SearchNetwork
from fastdarts.ops import running

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("C", [3, 16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_cell(dtype: torch.dtype, C: int, stride: int) -> None:
    if stride == 2 and C % 2:
        pytest.skip("a factorised reduction makes two halves")
    case = make_case(inputs=2, nodes=2, stride=stride, C=C, size=(4, 17, 16)).to(dtype)
    ours = {name: t.cpu() for name, t in fused(case.on(torch.device("cuda"))).items()}
    assert_no_worse(ours, plain(case, dtype), plain(case, torch.float64), torch.finfo(dtype).eps)


def test_same_bits_every_time() -> None:
    case = make_case(inputs=2, nodes=2, C=16, size=(8, 32, 32)).to(torch.bfloat16).on(torch.device("cuda"))
    first, second = fused(case), fused(case)
    for name, t in first.items():
        assert torch.equal(second[name], t), name


def test_running_statistics() -> None:
    channels, values = [16, 70, 5], [2, 65536, 7]
    means, variances = [torch.randn(C) for C in channels], [torch.rand(C) + 0.5 for C in channels]
    counters, stats = [torch.tensor(3), torch.tensor(2**40)], torch.rand(2 * sum(channels))
    true = [[t.double() for t in tensors] for tensors in (means, variances)]
    running._update_running(*true, [], stats.double(), values, 0.1)
    ours = [[t.cuda() for t in tensors] for tensors in (means, variances, counters)]
    running.update_running(*ours, stats.cuda(), values, 0.1)
    assert [int(counter) for counter in ours[2]] == [4, 2**40 + 1]
    for mine, exact in zip([*ours[0], *ours[1]], [*true[0], *true[1]], strict=True):
        # Three roundings of sums and one of storage; nothing exceeds 8.
        torch.testing.assert_close(mine.double().cpu(), exact, rtol=0, atol=4 * 8 * torch.finfo(torch.float32).eps)


def _networks() -> tuple[SearchNetwork, SearchNetwork, torch.Tensor]:
    kinds = {"C": 8, "num_classes": 10, "layers": 3}
    network = SearchNetwork(**kinds, backend="auto").cuda()
    reference = SearchNetwork(**kinds, backend="reference").cuda()
    reference.load_state_dict(network.state_dict())
    for ours, theirs in zip(network.arch_parameters(), reference.arch_parameters(), strict=True):
        theirs.data.copy_(ours.data)
    return network, reference, torch.randn(8, 3, 32, 32, device="cuda")


def test_mixed_precision_is_no_worse_than_the_plain_modules() -> None:
    network, reference, x = _networks()
    true = reference.double()(x.double()).detach()
    reference.float()
    outputs = []
    for net in (network, reference):
        with torch.autocast("cuda", torch.bfloat16):
            outputs.append({"logits": net(x).detach().double()})
    assert_no_worse(*outputs, {"logits": true}, torch.finfo(torch.bfloat16).eps)


def test_a_captured_step_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # of the stem, which is not ours
    network, _, x = _networks()
    inputs = [*network.arch_parameters(), *network.parameters()]

    def step() -> list[torch.Tensor]:
        loss = network(x).square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), network.frozen_statistics():
        eager = step()  # compiles, and puts the plans' tables on the device
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
        graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(captured, eager, strict=True):
        assert torch.equal(ours, theirs)
