"""Hold all that changes while a discrete network is trained."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.sync_norm import synchronise
from fastdarts.bilevel.train_step import TrainStep
from fastdarts.data import BatchStream, ImageData
from fastdarts.data.augment import Augment
from fastdarts.data.augment_imagenet import ImageNetAugment
from fastdarts.data.share import weight_of
from fastdarts.methods.schedules import cosine
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.images import outputs_for
from fastdarts.runs.local_state import own_random_numbers
from fastdarts.runs.state import RunState
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.registry import space_of
from fastdarts.tasks.classification import Loss
from fastdarts.tasks.task import Batch

_PARTS: dict[str, str | None] = {
    "train_loss": "the loss",
    "gradient_norm": "the gradient",
    "train_accuracy": None,  # NaN without classes
}


class EvalState(RunState):
    """Hold the training of a discrete network as it is between two steps.

    Args:
        genotype: the architecture, of any space.
        config: config as given to `evaluate`.
        train: the training images, on `device`.
        loss: loss(logits, targets) -> scalar; None for cross entropy, in training with the config's label smoothing.
        device: device of network and images.
        ranks: the processes that run this training together.
    """

    kind = "evaluation"
    program = "python -m fastdarts.evaluate"
    network: DiscreteNetwork

    def __init__(
        self,
        genotype: Any,
        config: EvalConfig,
        train: ImageData,
        loss: Loss | None,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        torch.manual_seed(config.seed)
        network = space_of(genotype).discrete(
            genotype,
            C=config.init_channels,
            num_classes=outputs_for(train),
            layers=config.layers,
            auxiliary=config.auxiliary,
            drop_path_prob=config.drop_path,
            in_channels=train.images.shape[1],
            stem=config.stem,
            **({} if config.backend == "auto" else {"backend": config.backend}),
        )
        if config.sync_batch_norm:
            synchronise(network, ranks)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        augment = _augment(config, train, device)
        # the auxiliary head's last batch norm sees one pixel per image, so a rank's batch of one has no variance
        single = 0 < len(train) % config.batch_size < 2 * ranks.size
        stream = BatchStream(
            train, config.batch_size, seed=config.seed, drop_last=single, rank=ranks.rank, ranks=ranks.size
        )
        super().__init__(config, network, augment, [stream], _PARTS, ranks)
        ranks.spread(network.parameters())
        own_random_numbers(ranks, config.seed)
        self.genotype = genotype
        self.optimizer = FlatSGD(
            network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.loss: Loss = loss or cross_entropy
        self._step = TrainStep(
            network,
            self.optimizer,
            loss or partial(cross_entropy, label_smoothing=config.label_smoothing),
            auxiliary_weight=config.auxiliary_weight,
            grad_clip=config.grad_clip,
            amp_dtype=torch.bfloat16 if config.amp else None,
            cuda_graphs=config.cuda_graphs,
            ranks=ranks,
        )

    def learning_rate(self) -> float:
        """Return the learning rate of this epoch."""
        if self.config.schedule == "cosine":
            return cosine(self.config.lr, 0.0, self.epoch, self.config.epochs)
        return float(self.config.lr * self.config.lr_decay**self.epoch)

    def drop_path(self) -> float:
        """Return the drop-path probability of this epoch, which grows linearly from 0."""
        return float(self.config.drop_path * self.epoch / self.config.epochs)

    def train_batches(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (batch,) = batches
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.network.drop_path_prob = self.drop_path()
        result = self._step.step(batch)
        share = weight_of(batch)
        accuracy = result.correct / len(batch[0]) * share
        return {"train_loss": result.loss * share, "gradient_norm": result.gradient_norm, "train_accuracy": accuracy}

    def equal_on_ranks(self) -> dict[str, Any]:
        return super().equal_on_ranks() | {"the optimizer": self.optimizer.state_dict()["state"]}

    def test_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, targets = batch
        with self._autocast(images.device):
            logits = self.network(images)
        return self.loss(logits.float(), targets), logits.float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.amp)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"genotype": self.genotype.to_json(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the training that `state` holds. Raises: ValueError if it trained another genotype."""
        if state["genotype"] != self.genotype.to_json():
            raise ValueError("resume: another genotype was trained there; pass that one, or none to read it from `out`")
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


def _augment(config: EvalConfig, train: ImageData, device: torch.device) -> Augment | ImageNetAugment:
    if config.augment == "imagenet":
        size = train.images.shape[2:]
        return ImageNetAugment(train.mean, train.std, size, config.flip, config.seed, device)
    return Augment(train.mean, train.std, config.crop_padding, config.flip, config.cutout, config.seed, device)
