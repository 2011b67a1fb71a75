"""Hold all that changes while a discrete network is trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.sync_norm import synchronise
from fastdarts.bilevel.train_step import TrainStep
from fastdarts.data import BatchStream, ImageSet
from fastdarts.data.augment import Augment
from fastdarts.data.augment_imagenet import ImageNetAugment
from fastdarts.data.modern import Transform, auto_augment, in_turn, mixing
from fastdarts.data.share import like, weight_of
from fastdarts.methods.schedules import cosine
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.images import outputs_for
from fastdarts.runs.local_state import own_random_numbers
from fastdarts.runs.state import RunState
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.registry import space_of
from fastdarts.tasks.classification import Loss
from fastdarts.tasks.faults import Faults
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
        transform: the user's own, applied to each batch of training images before all other augmentation.
    """

    kind = "evaluation"
    program = "python -m fastdarts.evaluate"
    network: DiscreteNetwork

    def __init__(
        self,
        genotype: Any,
        config: EvalConfig,
        train: ImageSet,
        loss: Loss | None,
        device: torch.device,
        ranks: Ranks = ALONE,
        transform: Transform | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.options: dict[str, Any] = {
            "C": config.init_channels,
            "num_classes": outputs_for(train),
            "layers": config.layers,
            "auxiliary": config.auxiliary,
            "in_channels": train.shape[0],
            "stem": config.stem,
        }
        """Arguments of `Space.discrete` that describe the network."""
        backend = {} if config.backend == "auto" else {"backend": config.backend}
        network = space_of(genotype).discrete(genotype, drop_path_prob=config.drop_path, **backend, **self.options)
        if config.sync_batch_norm:
            synchronise(network, ranks)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        augment = _augment(config, train, device)
        augment.before = in_turn(transform, auto_augment(config.auto_augment))
        # the auxiliary head's last batch norm sees one pixel per image, so a rank's batch of one has no variance
        single = 0 < len(train) % config.batch_size < 2 * ranks.size
        stream = BatchStream(
            train, config.batch_size, seed=config.seed, drop_last=single, rank=ranks.rank, ranks=ranks.size
        )
        super().__init__(config, network, augment, [stream], _PARTS, ranks)
        ranks.spread(network.parameters())
        own_random_numbers(ranks, config.seed)
        self.genotype = genotype
        self.device = device
        self.loss: Loss = loss or cross_entropy
        weights = _class_weights(train).to(device) if config.class_weights else None
        train_loss: Loss = loss or partial(cross_entropy, weight=weights, label_smoothing=config.label_smoothing)
        self._mix = mixing(config.mixup, config.cutmix, self.options["num_classes"]) if loss is None else None
        self.average: AveragedModel | None = None
        if config.ema_epochs:  # before FlatSGD makes the weights parts of one vector
            decay = 1 - 1 / max(config.ema_epochs * self.steps_per_epoch, 1)
            average = get_ema_multi_avg_fn(decay)
            self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True).eval()
        self.optimizer = FlatSGD(
            network.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self._faults: Faults | None = None
        second = None
        if config.faults is not None and config.fault_weight:
            second = config.fault_weight, partial(Faults.read(config.faults).run_beside, network)
        self._step = TrainStep(
            network,
            self.optimizer,
            train_loss,
            auxiliary_weight=config.auxiliary_weight,
            grad_clip=config.grad_clip,
            amp_dtype=torch.bfloat16 if config.amp else None,
            cuda_graphs=config.cuda_graphs and second is None,
            ranks=ranks,
            second=second,
        )

    def learning_rate(self) -> float:
        """Return the learning rate of this epoch."""
        config, warm = self.config, self.config.warmup_epochs
        if self.epoch < warm:
            return float(config.lr * (self.epoch + 1) / (warm + 1))
        if config.schedule == "cosine":
            return cosine(config.lr, 0.0, self.epoch - warm, config.epochs - warm)
        return float(config.lr * config.lr_decay ** (self.epoch - warm))

    def drop_path(self) -> float:
        """Return the drop-path probability of this epoch, which grows linearly from 0."""
        return float(self.config.drop_path * self.epoch / self.config.epochs)

    def train_batches(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (batch,) = batches
        mixed = batch if self._mix is None else self._mixed(batch)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.network.drop_path_prob = self.drop_path()
        result = self._step.step(mixed)
        if self.average is not None:
            self.average.update_parameters(self.network)
        share = weight_of(batch)
        accuracy = result.correct / len(batch[0]) * share
        return {"train_loss": result.loss * share, "gradient_norm": result.gradient_norm, "train_accuracy": accuracy}

    def _mixed(self, batch: Batch) -> Batch:
        """Return the batch with its images and targets mixed in pairs (mixup or CutMix)."""
        assert self._mix is not None
        return like(batch, self._mix(batch[0], batch[1]))

    def buffers(self) -> dict[str, Tensor]:
        average = {} if self.average is None else dict(self.average.module.named_buffers(prefix="average"))
        return super().buffers() | average

    def equal_on_ranks(self) -> dict[str, Any]:
        average = {} if self.average is None else {"the average of the weights": list(self.average.parameters())}
        return super().equal_on_ranks() | {"the optimizer": self.optimizer.state_dict()["state"]} | average

    @property
    def measured(self) -> DiscreteNetwork:
        """Return the network that is measured and kept: the weights' average if there is one."""
        return self.network if self.average is None else cast(DiscreteNetwork, self.average.module)

    @contextmanager
    def under(self, faults: Faults) -> Iterator[None]:
        """Inside, the network is measured under faults."""
        self._faults = faults
        try:
            yield
        finally:
            self._faults = None

    def test_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, targets = batch
        with self._autocast(images.device):
            network = self.measured
            logits = network(images) if self._faults is None else self._faults.run(network, images)
        return self.loss(logits.float(), targets), logits.float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.amp)

    def state_dict(self) -> dict[str, Any]:
        average = None if self.average is None else self.average.module.state_dict()
        return super().state_dict() | {
            "genotype": self.genotype.to_json(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
            "averaged": 0 if self.average is None else int(self.average.n_averaged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the training that `state` holds. Raises: ValueError if it trained another genotype."""
        if state["genotype"] != self.genotype.to_json():
            raise ValueError("resume: another genotype was trained there; pass that one, or none to read it from `out`")
        if self.average is not None:  # first: then each rank gets its own running statistics
            self.average.module.load_state_dict(state["average"])
            self.average.n_averaged.fill_(state["averaged"])
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


def _class_weights(train: ImageSet) -> Tensor:
    """Return the inverse of each class's number of images, scaled to a mean of 1 over the images: [classes]."""
    if not train.classes or train.targets.is_floating_point() or train.targets.dim() != 1:
        raise ValueError("class_weights needs targets that are class indices")
    counts = torch.bincount(train.targets.cpu(), minlength=len(train.classes)).clamp_min(1)
    return len(train) / (len(train.classes) * counts.float())


def _augment(config: EvalConfig, train: ImageSet, device: torch.device) -> Augment | ImageNetAugment:
    if config.augment == "imagenet":
        return ImageNetAugment(train.mean, train.std, train.shape[1:], config.flip, config.seed, device)
    return Augment(train.mean, train.std, config.crop_padding, config.flip, config.cutout, config.seed, device)
