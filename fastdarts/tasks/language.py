"""Language modelling: the next word of a text, with a hidden state that is carried from window to window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastdarts.tasks.task import Batch, autocast


class Masks(NamedTuple):
    """Hold the dropout masks of a window, scaled by 1 / (1 - p). All steps of the window share them."""

    rows: Tensor
    """[vocabulary, 1]: drops words of the embedding; [0] if it drops none."""
    embedded: Tensor
    """[B, d]: of the embedded words."""
    inputs: Tensor
    """[B, d]: of the cell's input."""
    hidden: Tensor
    """[B, d]: of every state inside the cell that enters a product."""
    outputs: Tensor
    """[B, d]: of the cell's output before the decoder."""


@dataclass(frozen=True)
class Dropouts:
    """Draw dropout masks with probabilities named as in the original code.

    Attributes:
        dropout: of the cell's output.
        dropouth: of the hidden states inside the cell.
        dropoutx: of the cell's input.
        dropouti: of the embedded words.
        dropoute: of whole words of the embedding.
    """

    dropout: float
    dropouth: float
    dropoutx: float
    dropouti: float
    dropoute: float

    def draw(self, vocabulary: int, like: Tensor, generator: torch.Generator | None) -> Masks:
        """Return new masks.

        Args:
            vocabulary: number of words.
            like: [B, d], on the device and in the dtype of the masks.
            generator: on that device; None for torch's global one.
        """
        rows = like.new_empty(vocabulary if self.dropoute else 0, 1)
        rates = (self.dropoute, self.dropouti, self.dropoutx, self.dropouth, self.dropout)
        shapes = (rows, like, like, like, like)
        masks = (_mask(rate, shape, generator) for rate, shape in zip(rates, shapes, strict=True))
        return Masks(*masks)


def _mask(rate: float, like: Tensor, generator: torch.Generator | None) -> Tensor:
    kept = torch.empty_like(like).uniform_(generator=generator) >= rate
    return kept.to(like.dtype).div_(1 - rate)


class LanguageNetwork(Protocol):
    """Declare what the task requires of a network."""

    vocabulary: int

    def __call__(self, words: Tensor, hidden: Tensor, masks: Masks | None) -> Tensor:
        """Return the hidden state after each word, [T, B, d], before dropout."""
        ...

    def nll(self, outputs: Tensor, targets: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the mean negative log-likelihood of `targets` [T, B], given outputs [T, B, d] after dropout.

        Steps count by `shares` [T], whose sum is 1, or equally.
        """
        ...


class Read(NamedTuple):
    """Hold the outputs [T, B, d] of a window, before and after dropout, and the shares [T] of its steps, if padded."""

    raw: Tensor
    dropped: Tensor
    shares: Tensor | None = None


def padded(batch: Batch, multiple: int) -> Batch:
    """Return a window with masks, and with as many more steps as make its length a multiple.

    The new steps have a share of zero, so that loss, gradients and the next state are those of the window.
    """
    words, targets, *rest = batch
    length = len(words)
    more = -length % multiple
    shares = pad(rest[0].new_full((length,), 1 / length), (0, more))
    return (*(pad(part, (0, 0, 0, more)) for part in (words, targets)), *rest, shares)


class Language:
    """Predict the next word. A batch is (words [T, B], targets [T, B], hidden state [B, d], masks ..., shares [T]).

    Masks may be left out, and the shares of the steps, too; only padded windows (`padded`) have these.

    Args:
        slowness: factor of mean((h_t - h_(t-1))^2) over the outputs before dropout, in the weight step's loss.
        activation: factor of mean(h_t^2) over the outputs after dropout, in the weight step's loss.
        redraw: None; or dropouts that every pass draws anew (as the original code does), in place of the batch's masks.
    """

    def __init__(self, slowness: float, activation: float, redraw: Dropouts | None = None) -> None:
        self.slowness = slowness
        self.activation = activation
        self.redraw = redraw

    def forward(self, network: nn.Module, batch: Batch, amp_dtype: torch.dtype | None) -> tuple[Tensor, Read]:
        words, targets, hidden, *given = batch
        model = cast(LanguageNetwork, network)
        masks = Masks(*given[: len(Masks._fields)]) if given else None
        shares = given[-1] if len(given) > len(Masks._fields) else None
        if masks is not None and self.redraw is not None:
            masks = self.redraw.draw(model.vocabulary, hidden, None)
        with autocast(words, amp_dtype):
            raw = model(words, hidden, masks)
            dropped = raw if masks is None else raw * masks.outputs
            loss = model.nll(dropped, targets, shares)
        return loss, Read(raw, dropped, shares)

    def regulariser(self, outputs: Read) -> Tensor | None:
        terms = []
        if self.activation:
            terms.append(self.activation * _mean(outputs.dropped.pow(2), outputs.shares))
        if self.slowness and len(outputs.raw) > 1:
            changes = (outputs.raw[1:] - outputs.raw[:-1]).pow(2)
            terms.append(self.slowness * _mean(changes, None if outputs.shares is None else outputs.shares[1:]))
        return torch.stack(terms).sum() if terms else None

    def advance(self, batch: Batch, outputs: Read) -> None:
        raw = outputs.raw.detach()
        if outputs.shares is None:
            batch[2].copy_(raw[-1])
        else:
            last = (outputs.shares > 0).sum(0, keepdim=True) - 1
            batch[2].copy_(raw.index_select(0, last)[0])

    def correct(self, outputs: Read, batch: Batch) -> Tensor:
        return outputs.raw.new_full((), math.nan)


def _mean(values: Tensor, shares: Tensor | None) -> Tensor:
    """Return the mean of values [T, B, d], in which steps count by shares [T] of any sum; 0 if all of these are 0."""
    if shares is None:
        return values.mean()
    least = torch.finfo(shares.dtype).tiny
    return (values.mean((1, 2)) * shares).sum() / shares.sum().clamp(min=least)


def perplexity(loss: float) -> float:
    """Return exp(loss), the perplexity of a mean loss in nats; infinity where a float does not reach."""
    return math.exp(loss) if loss < 709 else math.inf
