"""Teachers: classifiers whose feature maps a search network learns, torchvision's by name or modules of one's own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastdarts.config.importing import importing
from fastdarts.config.names import did_you_mean

_OWN: dict[str, Callable[[], nn.Module]] = {}


def register_teacher(name: str, make: Callable[[], nn.Module]) -> None:
    """Make a module known as a teacher.

    Args:
        name: the value of the option `teacher`; ValueError if it is taken.
        make: returns the module, the same each time for the same torch seed, since a resumed search calls it again.
    """
    if name in _OWN or name in _classifiers():
        raise ValueError(f"teacher {name!r} is known already")
    _OWN[name] = make


def check_teacher(name: str) -> None:
    """Raise a ValueError for an unknown name."""
    if name in _OWN or name in (known := _classifiers()):
        return
    hint = did_you_mean(name, [*known, *_OWN])
    raise ValueError(f"teacher must be a classifier of torchvision.models, or registered; got {name!r}{hint}")


def default_cuts(name: str) -> tuple[str, ...]:
    """Return the modules behind which a teacher is cut into six stages; empty for one that needs the user's choice."""
    return tuple(f"features.{at}" for at in range(2, 8)) if name.startswith("efficientnet_b") else ()


def make_teacher(name: str, weights: str | None, seed: int) -> nn.Module:
    """Build a teacher.

    Args:
        name: as `check_teacher` takes it.
        weights: file of its state dict, written by `torch.save`; None for random weights.
        seed: of the random weights; the global generator stays as it is.

    Raises: FileNotFoundError without the file; RuntimeError for weights of another network.
    """
    state: dict[str, Tensor] = {}
    if weights is not None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if name in _OWN:
            network = _OWN[name]()
        else:
            with importing("torchvision"):
                from torchvision import models  # here, because importing it takes a second
            classes = {"num_classes": len(list(state.values())[-1])} if state else {}  # rows of the classifier
            network = models.get_model(name, weights=None, **classes)
    if state:
        network.load_state_dict(state)
    return network


class Teacher:
    """Return the feature maps of a network, which stays as it is.

    Dropout and stochastic depth are off; batch norms normalise by the batch, as in the authors' code.

    Args:
        network: the network.
        cuts: names of the modules whose outputs are the maps, in the order in which they run.
        smallest: smaller images are enlarged to this side.

    Raises: ValueError for a name that the network has not, or a module that puts out no map.
    """

    def __init__(self, network: nn.Module, cuts: Sequence[str], smallest: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self._smallest = smallest
        self._maps: dict[int, Tensor] = {}
        modules = dict(network.named_modules())
        for at, cut in enumerate(cuts):
            if cut not in modules:
                hint = (
                    did_you_mean(cut, [*modules]) or f"; the outermost are {', '.join(dict(network.named_children()))}"
                )
                raise ValueError(f"cuts must name modules of the teacher; got {cut!r}{hint}")
            modules[cut].register_forward_hook(self._keeper(at))
        for module in modules.values():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.momentum = 0.0  # running statistics stay
        self._channels = next((m.in_channels for m in modules.values() if isinstance(m, nn.Conv2d)), 3)
        some = torch.zeros(2, self._channels, smallest, smallest, dtype=next(network.parameters()).dtype)
        with torch.no_grad():
            self.network(some)
        for at, cut in enumerate(cuts):
            shown = self._maps.get(at)
            if not isinstance(shown, Tensor) or shown.dim() != 4:
                came = f"a tensor {list(shown.shape)}" if isinstance(shown, Tensor) else type(shown).__name__
                raise ValueError(f"cuts must name modules that put out maps [N, C, H, W]; {cut!r} puts out {came}")
        self.widths = tuple(self._maps[at].shape[1] for at in range(len(cuts)))
        """Channels of the maps."""

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the maps [N, C_i, H_i, W_i] of images [N, C, H, W]; a single channel serves as all."""
        self.network.to(images.device)
        if images.shape[1] == 1:
            images = images.expand(-1, self._channels, -1, -1)
        if (side := min(images.shape[2:])) < self._smallest:
            sides = [round(length * self._smallest / side) for length in images.shape[2:]]
            images = interpolate(images, sides, mode="bilinear", antialias=True)
        self.network(images)
        maps = [self._maps[at] for at in range(len(self.widths))]
        self._maps.clear()
        return [shown if shown.dtype == torch.float64 else shown.float() for shown in maps]

    def _keeper(self, at: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[at] = output

        return keep


def _classifiers() -> list[str]:
    with importing("torchvision"):
        from torchvision import models  # here, because importing it takes a second
    return list(models.list_models(module=models))
