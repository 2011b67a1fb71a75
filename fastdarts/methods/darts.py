"""DARTS: differentiable architecture search (Liu, Simonyan and Yang, ICLR 2019, arXiv:1806.09055)."""

from fastdarts.methods.method import Method


class Darts(Method):
    """Weight ops by softmax(alpha), take bilevel steps of order 2 (or 1), keep each node's two strongest edges."""

    role = "relaxation"
