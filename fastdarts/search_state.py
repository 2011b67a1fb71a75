"""All that changes during a search: network, optimizers, data order, position, sums of the epoch."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdarts import checkpoint
from fastdarts.augment import Augment
from fastdarts.bilevel import Architect, Batch, Loss
from fastdarts.config import SearchConfig
from fastdarts.data import BatchStream, ImageData
from fastdarts.network import SearchNetwork
from fastdarts.run import EpochSums
from fastdarts.step import SearchStep, count_correct

_PARTS = {
    "valid_loss": "the loss of the alpha step",
    "alpha_gradient_norm": "the alphas' gradient",
    "train_loss": "the loss of the weight step",
    "gradient_norm": "the weights' gradient",
    "train_accuracy": None,  # NaN without classes
}


class SearchState:
    """A search between two steps.

    Args:
        config: as given to `search`.
        weights_half, alphas_half: the images of the two steps, on the device.
        loss: loss(logits, targets) -> scalar.
        device: where all of it is.
    """

    kind = "search"
    program = "python -m fastdarts.search"

    def __init__(
        self, config: SearchConfig, weights_half: ImageData, alphas_half: ImageData, loss: Loss, device: torch.device
    ) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.network = SearchNetwork(
            C=config.init_channels,
            num_classes=outputs_for(weights_half),
            layers=config.layers,
            in_channels=weights_half.images.shape[1],
            backend=config.backend,
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.architect = Architect(
            self.network,
            lr=config.arch_lr,
            weight_decay=config.arch_weight_decay,
            w_momentum=config.momentum,
            w_weight_decay=config.weight_decay,
            loss=loss,
            amp_dtype=torch.bfloat16 if config.amp else None,
        )
        self.w_optimizer = torch.optim.SGD(
            self.network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.search_step = SearchStep(
            self.network, self.architect, self.w_optimizer, order=config.order, grad_clip=config.grad_clip
        )
        self.weights_stream = BatchStream(weights_half, config.batch_size, seed=2 * config.seed)
        self.alphas_stream = BatchStream(alphas_half, config.batch_size, seed=2 * config.seed + 1)
        self.augment = Augment(
            weights_half.mean,
            weights_half.std,
            crop_padding=config.crop_padding,
            flip=config.flip,
            cutout=config.cutout,
            generator_seed=config.seed,
            device=device,
        )
        self.steps_per_epoch = self.weights_stream.batches_per_epoch
        self.epoch = 0
        self.step = 0
        self.sums = EpochSums(_PARTS)
        self.seconds = 0.0
        self.metrics: list[dict[str, Any]] = []
        self.history: list[list[Tensor]] = [self.alphas()]

    @property
    def steps_done(self) -> int:
        """Of all epochs."""
        return self.epoch * self.steps_per_epoch + self.step

    def alphas(self) -> list[Tensor]:
        """[alphas_normal, alphas_reduce] as they are now, on the CPU."""
        return [alpha.detach().cpu().clone() for alpha in self.network.arch_parameters()]

    def learning_rate(self) -> float:
        """Cosine from lr in epoch 0 towards lr_min, which it would reach in the epoch after the last."""
        high, low = self.config.lr, self.config.lr_min
        return low + (high - low) / 2 * (1 + math.cos(math.pi * self.epoch / self.config.epochs))

    def train_step(self) -> None:
        """One step on the next batch of each half."""
        start = time.perf_counter()
        self.network.train()
        for group in self.w_optimizer.param_groups:
            group["lr"] = self.learning_rate()
        train, valid = self._augmented(self.weights_stream), self._augmented(self.alphas_stream)
        result = self.search_step.step(train, valid)
        images = len(train[0])
        self.sums.add(
            images,
            valid_loss=result.valid_loss,
            alpha_gradient_norm=result.alpha_gradient_norm,
            train_loss=result.train_loss,
            gradient_norm=result.gradient_norm,
            train_accuracy=result.correct / images,
        )
        self.step += 1
        self.seconds += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Averages of this epoch so far; waits for the device. Raises FloatingPointError (see EpochSums)."""
        start = time.perf_counter()
        self.sums.read(self.epoch, self.step)
        self.seconds += time.perf_counter() - start
        return {**self.sums.means(), "images_per_second": self.sums.images / max(self.seconds, 1e-9)}

    def validate(self, between_batches: Callable[[], None]) -> tuple[float, float]:
        """Mean loss and accuracy of the alphas' half with the running statistics; accuracy NaN without classes."""
        self.network.eval()
        half = self.alphas_stream.data
        loss = correct = torch.zeros((), device=half.images.device)
        for images, targets in zip(
            half.images.split(self.config.batch_size), half.targets.split(self.config.batch_size), strict=True
        ):
            between_batches()
            with torch.inference_mode():
                batch_loss, outputs = self.architect.forward((self.augment.normalise(images), targets))
                loss = loss + batch_loss * len(images)
                correct = correct + count_correct(outputs, targets)
        mean_loss = float(loss) / len(half)
        if not math.isfinite(mean_loss):
            raise FloatingPointError(f"the validation loss is {mean_loss} at the end of epoch {self.epoch + 1}")
        return mean_loss, float(correct) / len(half)

    def next_epoch(self, metrics: dict[str, Any]) -> None:
        self.metrics.append(metrics)
        self.history.append(self.alphas())
        self.epoch += 1
        self.step = 0
        self.seconds = 0.0
        self.sums = EpochSums(_PARTS)

    def trial_step(self, images: int) -> None:
        """A step on the first images of each half, which leaves everything as it was but for what waits in caches."""
        before = copy.deepcopy(self.state_dict())
        try:
            self.network.train()
            batches = [
                (self.augment.normalise(half.images[:images]), half.targets[:images])
                for half in (self.weights_stream.data, self.alphas_stream.data)
            ]
            self.search_step.step(batches[0], batches[1])
        finally:
            self.load_state_dict(before)

    def state_dict(self) -> dict[str, Any]:
        """Everything, as `torch.load(weights_only=True)` accepts it; tensors are the live ones."""
        return {
            "config": {
                name: value if value is None or isinstance(value, int | float | str | tuple) else str(value)
                for name, value in dataclasses.asdict(self.config).items()
            },
            "network": self.network.state_dict(),
            "alphas": [alpha.detach() for alpha in self.network.arch_parameters()],
            "architect": self.architect.state_dict(),
            "w_optimizer": self.w_optimizer.state_dict(),
            "streams": [self.weights_stream.state_dict(), self.alphas_stream.state_dict()],
            "augment": self.augment.state_dict(),
            "random": checkpoint.random_state(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums.state_dict(),
            "seconds": self.seconds,
            "metrics": self.metrics,
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.network.load_state_dict(state["network"])
        with torch.no_grad():
            for alpha, value in zip(self.network.arch_parameters(), state["alphas"], strict=True):
                alpha.copy_(value)
        self.architect.load_state_dict(state["architect"])
        self.w_optimizer.load_state_dict(state["w_optimizer"])
        for stream, part in zip((self.weights_stream, self.alphas_stream), state["streams"], strict=True):
            stream.load_state_dict(part)
        self.augment.load_state_dict(state["augment"])
        checkpoint.set_random_state(state["random"])
        self.epoch = state["epoch"]
        self.step = state["step"]
        self.sums.load_state_dict(state["sums"])
        self.seconds = state["seconds"]
        self.metrics = list(state["metrics"])
        self.history = list(state["history"])

    def _augmented(self, stream: BatchStream) -> Batch:
        images, targets = stream.next()
        return self.augment(images), targets


def outputs_for(data: ImageData) -> int:
    """How many outputs the network needs: one a class, or as many as a target has numbers."""
    return len(data.classes) or (data.targets.shape[1] if data.targets.dim() > 1 else 1)
