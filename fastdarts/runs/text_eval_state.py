"""Hold all that changes while the language model of a found cell is trained."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastdarts.bilevel.averaging import FlatASGD, stalls
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.task_step import TaskStep
from fastdarts.data.text import Corpus, Text, WindowStream
from fastdarts.data.text.windows import varying_lengths
from fastdarts.runs.eval_config import EvalConfig
from fastdarts.runs.text_run import MaskDraw, TextRun
from fastdarts.spaces.recurrent.architecture import RecurrentCell
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.spaces.recurrent.options import RecurrentEvaluationOptions
from fastdarts.tasks.language import Language, padded
from fastdarts.tasks.task import Batch

_PARTS: dict[str, str | None] = {"train_loss": "the loss", "gradient_norm": "the gradient"}
_MULTIPLE = 5  # of the lengths to which windows are padded for CUDA graphs
_ROLLBACKS = 10  # in a row without a new best epoch, after which the training has failed


class TextEvalState(TextRun):
    """Hold the training of a language model as it is between two steps: SGD, then averaged SGD (Liu et al., A.2.2).

    Args:
        genotype: the cell.
        config: config as given to `evaluate_text`.
        corpus: the texts, on `device`.
        device: device of network and texts.
    """

    kind = "evaluation"
    program = "python -m fastdarts.evaluate"
    graph_kinds = 11  # lengths from 5 to 55
    network: RecurrentNetwork
    losses: list[float]
    """Validation losses of the epochs that are not given up."""
    best: dict[str, Any] | None
    """Epoch, loss and weights of the best epoch so far; with averaging these weights are averages."""

    def __init__(self, genotype: RecurrentCell, config: EvalConfig, corpus: Corpus, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.options = options = RecurrentEvaluationOptions(**config.space_options)
        network = RecurrentNetwork(genotype, len(corpus.vocabulary), options.width).to(device)
        columns = corpus.train.columns(config.batch_size)
        stream = WindowStream(columns, varying_lengths(len(columns), options.window, config.seed), options.width)
        masks = MaskDraw(options.dropouts(), len(corpus.vocabulary), config.seed, device)
        super().__init__(config, network, masks, [stream], _PARTS)
        self.genotype = genotype
        self.columns_measured = options.valid_columns
        self.validation = corpus.valid
        self.task = Language(options.slowness, options.activation)
        self.weight_step = TaskStep(
            network,
            self._first_optimizer(),
            self.task,
            grad_clip=config.grad_clip,
            amp_dtype=self._amp_dtype(),
            cuda_graphs=config.cuda_graphs,
            kinds=self.graph_kinds,
        )
        self.losses = []
        self.best = None
        self._rollbacks = 0

    @property
    def optimizer(self) -> FlatSGD | FlatASGD:
        """Return the optimizer that is running."""
        return self.weight_step.optimizer

    @property
    def averaging(self) -> bool:
        """Return True if averaged SGD is running."""
        return isinstance(self.optimizer, FlatASGD)

    def learning_rate(self) -> float:
        """Return the learning rate of a window of the usual length, which does not change."""
        return float(self.config.lr)

    def train_batches(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (batch,) = batches
        self.optimizer.param_groups[0]["lr"] = self.learning_rate() * self.drawn_share()
        if self.weight_step.cuda_graphs and self.weight_step.on_gpu():
            batch = padded(batch, _MULTIPLE)
        return dict(zip(("train_loss", "gradient_norm"), self.weight_step.step(batch), strict=True))

    def test_batch(self, batch: Batch) -> tuple[Tensor, Any]:
        return self.task.forward(self.network, batch, self._amp_dtype())

    def validate(self, between_batches: Callable[[], object]) -> float:
        """Return the validation loss of the weights, or of their averages while averaging."""
        with self._averaged():
            return self.measure(self.validation, between_batches)[0]

    def judge(self, loss: float) -> None:
        """Keep the weights if the epoch is the best; begin to average where the loss stalls."""
        if self.best is None or loss < self.best["loss"]:
            with self._averaged():
                weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self.best = {"epoch": self.epoch, "loss": loss, "weights": weights}
            self._rollbacks = 0
        self.losses.append(loss)
        if not self.averaging and stalls(self.losses, self.options.patience):
            self.weight_step.optimizer = self._averaging_optimizer()

    def roll_back(self, error: FloatingPointError) -> None:
        """Go on behind the best epoch, with its weights; dropout masks go on, so that training takes another course.

        Raises: the error if there is no best epoch yet, or after ten returns without a better one.
        """
        if self.best is None or self._rollbacks == _ROLLBACKS:
            raise error
        self._rollbacks += 1
        self.load_best()
        if isinstance(self.optimizer, FlatASGD):
            self.weight_step.optimizer = self._averaging_optimizer()
        self.epoch = self.best["epoch"] + 1
        self.losses = self.losses[: self.epoch]
        self.start_epoch_anew()

    def load_best(self) -> None:
        """Load the weights of the best epoch."""
        assert self.best is not None  # an epoch has ended
        self.network.load_state_dict(self.best["weights"])

    def test(self, text: Text, between_batches: Callable[[], object]) -> float:
        """Return the mean loss on the test text."""
        return self.measure_columns(text, self.options.test_columns, between_batches)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "genotype": self.genotype.to_json(),
            "averaging": self.averaging,
            "optimizer": self.optimizer.state_dict(),
            "losses": list(self.losses),
            "best": self.best,
            "rollbacks": self._rollbacks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the training that `state` holds. Raises: ValueError if it trained another genotype."""
        if state["genotype"] != self.genotype.to_json():
            raise ValueError("resume: another genotype was trained there; pass that one, or none to read it from `out`")
        super().load_state_dict(state)
        if state["averaging"] != self.averaging:
            self.weight_step.optimizer = self._averaging_optimizer() if state["averaging"] else self._first_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.best, self._rollbacks = list(state["losses"]), state["best"], state["rollbacks"]

    def _first_optimizer(self) -> FlatSGD:
        config = self.config
        return FlatSGD(self.network.parameters(), config.lr, config.momentum, config.weight_decay)

    def _averaging_optimizer(self) -> FlatASGD:
        return FlatASGD(self.network.parameters(), self.config.lr, self.config.weight_decay)

    def _averaged(self) -> Any:
        return self.optimizer.averaged() if isinstance(self.optimizer, FlatASGD) else nullcontext()

    def _amp_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.config.amp else None
