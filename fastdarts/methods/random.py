"""Random search with weight sharing (Li and Talwalkar, UAI 2019, arXiv:1902.07638).

Every batch trains a random architecture inside the search network; alphas are not trained. At the end random
architectures are ranked by their accuracy with the shared weights. With `--epochs 1 --method-options cells=1` the
result is a purely random architecture. The paper scores 1000 cells and more.
"""

from fastdarts.methods.one_shot import OneShot


class Random(OneShot):
    """Sample architectures uniformly: two predecessors of each node, any op (also `none`) on both edges."""
