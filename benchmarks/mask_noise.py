"""Measure how dropout masks that each pass draws anew disturb the second order: `python -m benchmarks.mask_noise`.

A small language model is trained on the default text in float64. Then the two terms of the alphas' gradient are
computed on some windows, the implicit term with one set of masks for both gradients of its difference, and with masks
of their own for each.
"""

import argparse
import sys

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.data.text import WindowStream, load_corpus
from fastdarts.data.text.windows import equal_lengths
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork
from fastdarts.tasks.language import Dropouts, Language
from fastdarts.tasks.task import Batch

DROPOUTS = Dropouts(0.75, 0.25, 0.75, 0.2, 0.0)  # the paper's, in the search
TASK = Language(1e-3, 0.0)
WIDTH, WINDOW, COLUMNS, RATE, R = 32, 12, 16, 20.0, 0.01


def masked(stream: WindowStream, vocabulary: int) -> Batch:
    """Return the next window with new masks."""
    batch = stream.next()
    return (*batch, *DROPOUTS.draw(vocabulary, batch[2], None))


def train(network: RecurrentSearchNetwork, stream: WindowStream, steps: int) -> None:
    """Take weight steps, as in a search."""
    optimizer = FlatSGD(network.parameters(), RATE, 0.0, 5e-7)
    for _ in range(steps):
        batch = masked(stream, network.vocabulary)
        loss, read = TASK.forward(network, batch, None)
        gradients = torch.autograd.grad(loss, optimizer.flat.weights)
        optimizer.step(gradient=optimizer.flat.gather(gradients), max_norm=0.25)
        TASK.advance(batch, read)


def terms(network: RecurrentSearchNetwork, batch: Batch, valid: Batch) -> tuple[Tensor, list[Tensor]]:
    """Return the direct term, and the implicit term with frozen masks and twice with redrawn ones, as vectors."""
    (alpha,), weights = network.arch_parameters(), list(network.parameters())
    start, clip = parameters_to_vector(weights).detach().clone(), VirtualClip(0.25)

    def gradient(window: Batch, wanted: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(TASK.forward(network, window, None)[0], wanted))

    of_weights = parameters_to_vector(gradient(batch, list(weights))).clone()
    factor = clip.clip(of_weights)
    vector_to_parameters(start - RATE * of_weights, weights)
    direct, *rest = gradient(valid, [alpha, *weights])
    v = parameters_to_vector(rest).clone()
    clip.clip(v)
    size = R / v.norm()

    def end(sign: int, window: Batch) -> Tensor:
        vector_to_parameters(start + sign * size * v, weights)
        return gradient(window, [alpha])[0]

    def redrawn() -> Batch:
        return (*batch[:3], *DROPOUTS.draw(network.vocabulary, batch[2], None))

    pairs = [(end(1, batch), end(-1, batch)), *((end(1, redrawn()), end(-1, redrawn())) for _ in range(2))]
    vector_to_parameters(start, weights)
    implicit = [(RATE * factor * (plus - minus) / (2 * size)).flatten() for plus, minus in pairs]
    return direct.flatten(), implicit


def main(argv: list[str] | None = None) -> int:
    """Print the norms of the terms and the cosines between them, means over windows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mask_noise", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=30, help="weight steps before (default: 30)")
    parser.add_argument("--windows", type=int, default=10, help="windows that are measured (default: 10)")
    given = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    corpus = load_corpus("pydoc")
    network = RecurrentSearchNetwork(len(corpus.vocabulary), WIDTH)
    streams = []
    for text in (corpus.train, corpus.valid):
        columns = text.columns(COLUMNS)
        streams.append(WindowStream(columns, equal_lengths(len(columns), WINDOW), WIDTH, torch.float64))
    train(network, streams[0], given.steps)
    rows = []
    for _ in range(given.windows):
        direct, (frozen, first, second) = terms(network, *(masked(stream, network.vocabulary) for stream in streams))
        cosines = [cosine_similarity(a, b, dim=0) for a, b in ((first, frozen), (first, second))]
        rows.append(torch.stack([direct.norm(), frozen.norm(), first.norm(), *cosines]))
    values = torch.stack(rows).mean(0).tolist()
    names = ("norm, direct term", "norm, implicit term, frozen masks", "norm, implicit term, redrawn masks")
    for name, value in zip(names, values, strict=False):
        print(f"{name:<40}{value:.3g}")
    print(f"{'cosine, redrawn and frozen':<40}{values[3]:+.2f}")
    print(f"{'cosine, redrawn and redrawn again':<40}{values[4]:+.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
