"""Triton kernels of fastdarts for GPUs; installed as the subpackage ``fastdarts.kernels`` (see setup.py)."""
