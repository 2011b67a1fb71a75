"""Begin a training with the weights of another one: fine-tuning on other data."""

from pathlib import Path

from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.trained import load

_CLASSIFIERS = ("classifier.", "auxiliary_head.classifier.")


def begin_from(state: EvalState, run: Path) -> str:
    """Copy the weights of a finished evaluation into a training that has not begun; return what was done, in words.

    A classifier with another number of outputs stays new; so does an auxiliary head that the other run did not have.

    Args:
        state: the training.
        run: folder of the finished evaluation.

    Raises: FileNotFoundError or ValueError unless a finished evaluation of the same architecture is there.
    """
    before = load(run, "cpu")
    if before.architecture.to_json() != state.genotype.to_json():
        raise ValueError(f"init_from: {run} trained another genotype; leave genotype out to take that one")
    ours, theirs = state.network.state_dict(), before.network.state_dict()
    fitting = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    new = [name for name in ours if name not in fitting]
    wrong = [name for name in new if not name.startswith((*_CLASSIFIERS, "auxiliary_head."))]
    if wrong:
        shapes = [list(weights[wrong[0]].shape) if wrong[0] in weights else "missing" for weights in (theirs, ours)]
        raise ValueError(
            f"init_from: {wrong[0]} is {shapes[0]} in {run} and {shapes[1]} here; images need as many channels, and "
            "the network the same stem, init_channels and layers"
        )
    state.network.load_state_dict(fitting, strict=False)
    if state.average is not None:
        state.average.module.load_state_dict(state.network.state_dict())
    parts = sorted({name.rpartition(".")[0] for name in new if name.startswith(_CLASSIFIERS)})
    heads = f"; new for {state.options['num_classes']} classes: {', '.join(parts)}" if parts else ""
    return f"weights of {run}{heads}"
