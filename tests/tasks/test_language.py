"""The language task: masks, loss terms, carried state, and the second order on it."""

import copy
import math
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.step import SearchStep
from fastdarts.ops.recurrent import unavailable
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork
from fastdarts.tasks.language import Dropouts, Language, Read, perplexity
from fastdarts.tasks.task import Batch

DROPOUTS = Dropouts(0.5, 0.25, 0.5, 0.2, 0.1)
VOCABULARY, WIDTH, COLUMNS = 13, 6, 4


def network(backend: Literal["reference", "fused"] = "reference") -> RecurrentSearchNetwork:
    return RecurrentSearchNetwork(VOCABULARY, WIDTH, backend).double()


def batch(seed: int, length: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(VOCABULARY, (length + 1, COLUMNS), generator=generator)
    hidden = torch.randn(COLUMNS, WIDTH, generator=generator, dtype=torch.float64)
    return words[:-1], words[1:], hidden, *DROPOUTS.draw(VOCABULARY, hidden, generator)


def test_masks_keep_the_mean_and_share_rows() -> None:
    masks = DROPOUTS.draw(4000, torch.empty(50, 60), torch.Generator().manual_seed(0))
    assert masks.rows.shape == (4000, 1)
    for mask, rate in zip(masks, (0.1, 0.2, 0.5, 0.25, 0.5), strict=True):
        values = mask.unique()
        torch.testing.assert_close(values, torch.tensor([0, 1 / (1 - rate)]), rtol=1e-6, atol=0)
        deviation = math.sqrt(rate / (1 - rate) / mask.numel())
        assert abs(float(mask.mean()) - 1) < 5 * deviation
    assert Dropouts(0, 0, 0, 0, 0).draw(9, torch.empty(2, 3), None).rows.numel() == 0


def test_the_regulariser_is_the_published_one() -> None:
    raw, dropped = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    total = Language(1e-3, 2.0).regulariser(Read(raw, dropped))
    torch.testing.assert_close(total, 2 * dropped.pow(2).mean() + 1e-3 * (raw[1:] - raw[:-1]).pow(2).mean())
    assert Language(1e-3, 0.0).regulariser(Read(raw[:1], dropped[:1])) is None  # a window of one word has no change
    assert perplexity(1.0) == math.e
    assert perplexity(1e4) == math.inf


def pass_loss(model: RecurrentSearchNetwork, window: Batch) -> Tensor:
    return Language(0.0, 0.0).forward(model, window, None)[0]


def by_hand(model: RecurrentSearchNetwork, train: Batch, valid: Batch, xi: float, clip: float, compat: bool) -> Tensor:
    """Return the published alpha gradient, computed with vectors of all weights and none of the library's step."""
    model = copy.deepcopy(model)
    (alpha,) = model.arch_parameters()
    weights = list(model.parameters())
    start = parameters_to_vector(weights).detach().clone()

    def gradient(window: Batch, wanted: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(pass_loss(model, window), wanted))

    def clipped(vector: Tensor) -> tuple[Tensor, Tensor]:
        ratio = clip / (vector.norm() + 1e-6)
        return vector * ratio.clamp(max=1), ratio if compat else ratio.clamp(max=1)

    g, factor = clipped(parameters_to_vector(gradient(train, weights)))
    embedding = model.encoder.weight.detach().clone()
    vector_to_parameters(start - xi * (g + 1e-3 * start), weights)
    if compat:
        model.encoder.weight.data.copy_(embedding)
    direct, *of_weights = gradient(valid, [alpha, *weights])
    v, _ = clipped(parameters_to_vector(of_weights))
    size = 0.01 / v.norm()
    ends = []
    for sign in (1, -1):
        vector_to_parameters(start + sign * size * v, weights)
        ends.append(gradient(train, [alpha])[0])
    return direct - xi * factor * (ends[0] - ends[1]) / (2 * size)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("clip", [0.25, 1e3])
def test_second_order_with_clipped_gradients(clip: float, compat: bool) -> None:
    model = network()
    train, valid = batch(0), batch(1, length=3)
    held = [model.encoder.weight] if compat else []
    optimizer = FlatSGD(model.parameters(), lr=2.0, momentum=0.0, weight_decay=1e-3)
    architect = Architect(
        model,
        w_momentum=0.0,
        w_weight_decay=1e-3,
        task=Language(0.0, 0.0),
        clip=VirtualClip(clip, compat, held),
    )
    expected = by_hand(model, train, valid, 2.0, clip, compat)
    before = parameters_to_vector(model.parameters()).clone()
    (found,) = architect.alpha_gradients(train, valid, 2.0, optimizer)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    assert torch.equal(parameters_to_vector(model.parameters()), before)


@pytest.mark.skipif(unavailable(torch.device("cpu"), torch.float64) is not None, reason="fastdarts._C is not built")
@pytest.mark.parametrize("order", [1, 2])
def test_alpha_gradients_of_the_kernels(order: int) -> None:
    """With the same masks they are those of the plain modules, of both orders. Of the second, rounding of two passes is
    amplified by 1 / epsilon, a few hundred."""
    found = []
    for backend in ("reference", "fused"):
        torch.manual_seed(3)
        model = network(backend)  # type: ignore[arg-type]
        optimizer = FlatSGD(model.parameters(), lr=2.0, momentum=0.0, weight_decay=1e-3)
        architect = Architect(
            model, w_momentum=0.0, w_weight_decay=1e-3, task=Language(0.0, 0.0), clip=VirtualClip(0.25)
        )
        (gradient,) = architect.alpha_gradients(batch(0), batch(1, length=3), 2.0, optimizer, order)
        found.append(gradient)
    plain, fused = found
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-10 * float(plain.abs().max()))


def test_a_step_moves_both_hidden_states_on_and_computes_the_training_loss_once_more() -> None:
    model = network()
    optimizer = FlatSGD(model.parameters(), lr=0.5, momentum=0.0)
    task = Language(0.1, 0.0)
    architect = Architect(model, w_momentum=0.0, task=task, clip=VirtualClip(0.25))
    step = SearchStep(model, architect, optimizer, order=2, grad_clip=0.25)
    train, valid = batch(0), batch(1)
    states = train[2].clone(), valid[2].clone()
    result = step.step(train, valid)
    assert not torch.equal(train[2], states[0])
    assert not torch.equal(valid[2], states[1])
    assert torch.isfinite(result.train_loss)
    assert torch.isnan(result.correct)
    with torch.no_grad():  # the state behind the window, with the weights before the step and the new alphas
        before = copy.deepcopy(model)
        before.load_state_dict(model.state_dict())
    architect.alpha_gradients(train, valid, 0.5, optimizer)
    kept = train[2].clone(), valid[2].clone()
    architect.alpha_gradients(train, valid, 0.5, optimizer)
    assert torch.equal(train[2], kept[0])
    assert torch.equal(valid[2], kept[1])


def test_only_the_weight_step_is_regularised() -> None:
    """With all other gradients equal, the slowness term changes the weights and not the alphas' gradient."""
    results = []
    for slowness in (0.0, 5.0):
        torch.manual_seed(0)
        model = network()
        optimizer = FlatSGD(model.parameters(), lr=0.5, momentum=0.0)
        architect = Architect(model, w_momentum=0.0, task=Language(slowness, 0.0), clip=VirtualClip(0.25))
        result = SearchStep(model, architect, optimizer, order=2, grad_clip=0.25).step(batch(0), batch(1))
        results.append((float(result.alpha_gradient_norm), float(result.train_loss), float(result.gradient_norm)))
    assert results[0][:2] == results[1][:2]
    assert results[0][2] != results[1][2]


def test_frozen_masks_and_redrawn_ones() -> None:
    """Passes over one batch agree bit for bit with its masks, and differ where each draws its own."""
    model, window = network(), batch(0)
    frozen, redrawn = Language(0.0, 0.0), Language(0.0, 0.0, DROPOUTS)
    assert torch.equal(frozen.forward(model, window, None)[0], frozen.forward(model, window, None)[0])
    assert not torch.equal(redrawn.forward(model, window, None)[0], redrawn.forward(model, window, None)[0])
