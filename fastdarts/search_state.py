"""All that changes during a search: network, optimizers, data order, position, sums of the epoch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdarts.augment import Augment
from fastdarts.bilevel import Architect, Batch, Loss
from fastdarts.config import SearchConfig
from fastdarts.data import BatchStream, ImageData
from fastdarts.flat import FlatSGD
from fastdarts.network import SearchNetwork
from fastdarts.run import Metrics, RunState, cosine, outputs_for
from fastdarts.step import SearchStep

_PARTS = {
    "valid_loss": "the loss of the alpha step",
    "alpha_gradient_norm": "the alphas' gradient",
    "train_loss": "the loss of the weight step",
    "gradient_norm": "the weights' gradient",
    "train_accuracy": None,  # NaN without classes
}


class SearchState(RunState):
    """A search between two steps.

    Args:
        config: as given to `search`.
        weights_half, alphas_half: the images of the two steps, on the device.
        loss: loss(logits, targets) -> scalar.
        device: where all of it is.
    """

    kind = "search"
    program = "python -m fastdarts.search"

    network: SearchNetwork

    def __init__(
        self, config: SearchConfig, weights_half: ImageData, alphas_half: ImageData, loss: Loss, device: torch.device
    ) -> None:
        torch.manual_seed(config.seed)
        network = SearchNetwork(
            C=config.init_channels,
            num_classes=outputs_for(weights_half),
            layers=config.layers,
            in_channels=weights_half.images.shape[1],
            backend=config.backend,
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        augment = Augment(
            weights_half.mean,
            weights_half.std,
            crop_padding=config.crop_padding,
            flip=config.flip,
            cutout=config.cutout,
            generator_seed=config.seed,
            device=device,
        )
        streams = [
            BatchStream(half, config.batch_size, seed=2 * config.seed + index)
            for index, half in enumerate((weights_half, alphas_half))
        ]
        super().__init__(config, network, augment, streams, _PARTS)
        self.architect = Architect(
            network,
            lr=config.arch_lr,
            weight_decay=config.arch_weight_decay,
            w_momentum=config.momentum,
            w_weight_decay=config.weight_decay,
            loss=loss,
            amp_dtype=torch.bfloat16 if config.amp else None,
        )
        self.w_optimizer = FlatSGD(
            network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.search_step = SearchStep(
            network,
            self.architect,
            self.w_optimizer,
            order=config.order,
            grad_clip=config.grad_clip,
            cuda_graphs=config.cuda_graphs,
        )
        self.history: list[list[Tensor]] = [self.alphas()]

    def alphas(self) -> list[Tensor]:
        """[alphas_normal, alphas_reduce] as they are now, on the CPU."""
        return [alpha.detach().cpu().clone() for alpha in self.network.arch_parameters()]

    def learning_rate(self) -> float:
        """Of the weights, in this epoch."""
        return cosine(self.config.lr, self.config.lr_min, self.epoch, self.config.epochs)

    def train_batches(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The search step on (weights' batch, alphas' batch)."""
        for group in self.w_optimizer.param_groups:
            group["lr"] = self.learning_rate()
        train, valid = batches
        result = self.search_step.step(train, valid)
        return {
            "valid_loss": result.valid_loss,
            "alpha_gradient_norm": result.alpha_gradient_norm,
            "train_loss": result.train_loss,
            "gradient_norm": result.gradient_norm,
            "train_accuracy": result.correct / len(train[0]),
        }

    def test_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.architect.forward(batch)

    def validate(self, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Mean loss and accuracy of the alphas' half, see `measure`."""
        return self.measure(self.streams[1].data, between_batches)

    def next_epoch(self, metrics: Metrics) -> None:
        super().next_epoch(metrics)
        self.history.append(self.alphas())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "alphas": [alpha.detach() for alpha in self.network.arch_parameters()],
            "architect": self.architect.state_dict(),
            "w_optimizer": self.w_optimizer.state_dict(),
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            for alpha, value in zip(self.network.arch_parameters(), state["alphas"], strict=True):
                alpha.copy_(value)
        self.architect.load_state_dict(state["architect"])
        self.w_optimizer.load_state_dict(state["w_optimizer"])
        self.history = list(state["history"])
