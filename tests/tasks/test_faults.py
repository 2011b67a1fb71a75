"""Faults of maps and weights: their probabilities, their gradients, and networks that run under them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.train_step import TrainStep
from fastdarts.spaces.darts.discrete import EvalNetwork
from fastdarts.spaces.darts.genotype import DARTS_V2
from fastdarts.spaces.darts.supernet import SearchNetwork
from fastdarts.spaces.registry import find
from fastdarts.tasks.classification import Classification
from fastdarts.tasks.faults import KINDS, Faults, flip_bits, hit_probability, stuck
from fastdarts.tasks.faulty import FaultyClassification


def test_probabilities_of_hits_are_exact() -> None:
    assert hit_probability(1e-4, 9) == pytest.approx(8.9964e-4, abs=5e-9)
    assert hit_probability(1e-4, 144) == pytest.approx(0.014298, abs=5e-7)
    assert hit_probability(1e-12, 10) == pytest.approx(1e-11, rel=1e-9)
    assert [hit_probability(rate, 3) for rate in (0.0, 1.0)] == [0.0, 1.0]


def test_flipped_bits() -> None:
    """Changes are +-2^b steps, all equally likely, and stay in the range of the map."""
    x = torch.zeros(200_000)
    x[0] = 3.0  # the range is +-4, a step 1/32
    out = flip_bits(x, 0.25)[1:]
    hit = out != 0
    assert float(hit.float().mean()) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2e5) ** 0.5)
    values, counts = out[hit].abs().unique(return_counts=True)
    assert values.tolist() == [2.0**b / 32 for b in range(7)] + [3.0]  # the highest bit is clamped from 4
    share = counts / counts.sum()
    assert torch.allclose(share, torch.full((8,), 1 / 8), atol=5 * (1 / 8 * 7 / 8 / 5e4) ** 0.5)
    assert float((out[hit] > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(flip_bits(x, 0.0), x)
    assert torch.equal(flip_bits(torch.zeros(5), 1.0), torch.zeros(5))
    y = torch.randn(1000, requires_grad=True)
    out = flip_bits(y, 0.5)
    out.sum().backward()
    largest = y.detach().abs().max()
    clamped = (out.detach().abs() == largest) & (y.detach().abs() != largest)
    assert clamped.any()
    others = y.detach().abs() != largest
    assert y.grad is not None
    assert torch.equal((y.grad == 0)[others], clamped[others])


def test_stuck_weights() -> None:
    w = torch.randn(400_000, requires_grad=True)
    out = stuck(w, 0.08)
    out.sum().backward()
    plain, changed = w.detach(), (out != w).detach()
    largest = plain.abs().max()
    rate = 0.08
    on = rate * 0.163
    expected = 1 - (1 - rate) * (1 - on)  # the cell with the value is stuck, or the other one is stuck on
    deviation = (expected / 4e5) ** 0.5
    assert float(changed.float().mean()) == pytest.approx(expected, abs=5 * deviation)
    assert expected == pytest.approx(0.093, abs=0.002)
    off = (out == 0).detach()
    assert float(off.float().mean()) == pytest.approx(0.067, abs=0.002)
    stuck_on = changed & ~off
    assert float(stuck_on.float().mean()) == pytest.approx(0.026, abs=0.002)
    full = out.detach().abs() == largest
    assert float(full.sum() / stuck_on.sum()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(w.grad == 0, changed)
    assert torch.equal(stuck(w, 0.0), w)


def test_noise_and_lost_values() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.ones_(conv[0].weight)
    x = torch.randn(1, 1, 300, 300)
    largest = x.abs().max()
    noise = (Faults("gaussian", 0.1).run(conv, x) - x).detach()
    assert float(noise.std() / largest) == pytest.approx(0.1, rel=0.02)
    lost = Faults("saltpepper", 0.2).run(conv, x).detach()
    assert float((lost == 0).float().mean()) == pytest.approx(0.1, abs=0.006)
    assert float((lost == largest).float().mean()) == pytest.approx(0.1, abs=0.006)
    assert float((lost == x).float().mean()) == pytest.approx(0.8, abs=0.008)


@pytest.mark.parametrize("text", ["mibb", "mibb:", "bits:0.1", "adsaf:-1", "mibb:2", "gaussian:nan"])
def test_wrong_faults_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"faults must be KIND:RATE, mibb, adsaf, gaussian, saltpepper"):
        Faults.read(text)


def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    small: dict[str, Any] = {"C": 4, "num_classes": 3, "layers": 3, "in_channels": 1}
    nb201 = find("nasbench201")
    chain = find("mobilenet-small")
    return {
        "search": SearchNetwork(**small),
        "found": EvalNetwork(DARTS_V2, **small, auxiliary=False),
        "nasbench201": nb201.supernet(**{**small, "layers": 1}, **nb201.arguments()),
        "chain": chain.supernet(**{**small, "layers": 1, "C": 8}, **chain.arguments()),
    }


@pytest.mark.parametrize("name", list(networks()))
def test_networks_under_faults(name: str) -> None:
    """Without a rate logits have the same bits; with one they change, also between passes whose reading is cached."""
    network = networks()[name].eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        clean = network(x)
        for kind in KINDS:
            assert torch.equal(Faults(kind, 0.0).run(network, x), clean)
            assert not torch.allclose(Faults(kind, 0.3).run(network, x), clean)
            assert torch.equal(network(x), clean)  # and nothing of them stays


def test_the_kernels_compute_stuck_weights_as_the_modules_do() -> None:
    found = {}
    for backend in ("auto", "reference"):
        torch.manual_seed(1)
        network = SearchNetwork(C=4, num_classes=3, layers=3, in_channels=1, backend=backend).double()
        torch.manual_seed(2)
        out = Faults("adsaf", 0.2).run(network, torch.randn(2, 1, 8, 8, dtype=torch.float64))
        found[backend] = [out, *torch.autograd.grad(out.sum(), list(network.parameters()), allow_unused=True)]
    for ours, plain in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 3


@pytest.mark.parametrize("kind", ["mibb", "adsaf"])
def test_the_loss_mixes_passes_with_and_without_faults(kind: str) -> None:
    network = networks()["search"].train()
    faults = Faults(kind, 0.05)
    task = FaultyClassification(cross_entropy, faults, 0.25)
    with network.frozen_statistics(), torch.no_grad():
        torch.manual_seed(4)
        loss, outputs = task.forward(network, batch(), None)
        torch.manual_seed(4)
        faulty = cross_entropy(faults.run(network, batch()[0]), batch()[1])
        clean, plain = Classification(cross_entropy).forward(network, batch(), None)
        torch.testing.assert_close(loss, 0.75 * clean + 0.25 * faulty)
        assert torch.equal(outputs, plain)
        network.eval()
        assert torch.equal(task.forward(network, batch(), None)[1], network(batch()[0]))
        network.train()


def test_an_alpha_step_sees_the_faults_of_its_pass() -> None:
    """Order 1 caches how the kernels read the edges; a pass under faults must not use what a clean pass read."""
    gradients = {}
    for share in (0.0, 1.0):
        network = networks()["search"].train()
        task = FaultyClassification(cross_entropy, Faults("saltpepper", 0.5), share)
        architect = Architect(network, task=task)
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        gradients[share] = architect.alpha_gradients(batch(), batch(), 0.1, optimizer, order=1)
    network = networks()["search"].train()
    architect = Architect(network, task=FaultyClassification(cross_entropy, Faults("saltpepper", 0.5), 0.5))
    torch.manual_seed(5)
    half = architect.alpha_gradients(batch(), batch(), 0.1, torch.optim.SGD(network.parameters(), 0.1), order=1)
    for clean, faulty, mixed in zip(*gradients.values(), half, strict=True):
        torch.testing.assert_close(mixed, (clean + faulty) / 2, rtol=1e-4, atol=1e-6)


def test_fault_training_steps_on_both_passes() -> None:
    network = networks()["found"].train()
    weights = list(network.parameters())
    faults = Faults("adsaf", 0.1)
    torch.manual_seed(6)
    images, targets = batch()
    total = 0.3 * cross_entropy(network(images), targets) + 0.7 * cross_entropy(faults.run(network, images), targets)
    expected = torch.autograd.grad(total, weights)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    optimizer = FlatSGD(network.parameters(), lr=0.0, momentum=0.0, weight_decay=0.0)
    step = TrainStep(network, optimizer, cross_entropy, second=(0.7, partial(faults.run_beside, network)))
    torch.manual_seed(6)
    torch.testing.assert_close(step.step((images, targets)).gradient_norm, norm.double(), rtol=1e-5, atol=1e-7)
