"""Windows padded with steps of no share: loss, regulariser, gradients and the next state are those of the window."""

import pytest
import torch
from torch import Tensor

from fastdarts.spaces.recurrent.architecture import PUBLISHED
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.tasks.language import Dropouts, Language, padded
from fastdarts.tasks.task import Batch

VOCABULARY, WIDTH, COLUMNS = 13, 6, 4
TASK = Language(0.3, 0.7)


def window(length: int) -> Batch:
    words = torch.randint(VOCABULARY, (length + 1, COLUMNS))
    hidden = torch.randn(COLUMNS, WIDTH, dtype=torch.float64)
    masks = Dropouts(0.5, 0.25, 0.5, 0.2, 0.1).draw(VOCABULARY, hidden, None)
    return words[:-1], words[1:], hidden, *masks


def results(network: RecurrentNetwork, batch: Batch) -> list[Tensor]:
    """Return loss, regulariser, the gradients of their sum, and the next state."""
    loss, outputs = TASK.forward(network, batch, None)
    extra = TASK.regulariser(outputs)
    assert extra is not None
    gradients = torch.autograd.grad(loss + extra, list(network.parameters()))
    TASK.advance(batch, outputs)
    return [loss.detach(), extra.detach(), *gradients, batch[2]]


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("length", [1, 3, 5, 7, 11])
def test_a_padded_window_equals_the_window(length: int, backend: str) -> None:
    network = RecurrentNetwork(PUBLISHED["RNN_DARTS_V2"], VOCABULARY, WIDTH, backend).double()  # type: ignore[arg-type]
    batch = window(length)
    again = tuple(part.clone() for part in batch)
    longer = padded(again, 5)
    assert [len(part) for part in longer[:2]] == [-(-length // 5) * 5] * 2
    if length > 1:
        expected = results(network, batch)
    else:  # a window of one word has no change, so that slowness adds nothing
        loss, outputs = TASK.forward(network, batch, None)
        extra = 0.7 * outputs.dropped.pow(2).mean()
        gradients = torch.autograd.grad(loss + extra, list(network.parameters()))
        expected = [loss.detach(), extra.detach(), *gradients, outputs.raw[-1].detach()]
    for found, true in zip(results(network, longer), expected, strict=True):
        scale = max(float(true.abs().max()), 1e-3)
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12 * scale)
    assert torch.equal(longer[2], again[2])  # the carried state moved in place
