"""DARTS: differentiable architecture search (Liu, Simonyan and Yang, ICLR 2019, arXiv:1806.09055)."""

from fastdarts.methods.method import Method


class Darts(Method):
    """Softmax of alpha over each edge's ops, bilevel steps of order 2 (or 1), the two strongest edges of each node."""
