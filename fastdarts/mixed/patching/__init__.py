"""Fused kernels for networks of other code: `patch` finds their mixed operations and lets the kernels compute them.

A patched module stays what it is: the same object with its modules, parameters, buffers, hooks and `state_dict`, of a
subclass of its class. Only its forward differs: kernels compute the weighted sums in it.
"""

from torch import nn

from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.mixed.patching.nearest import differences
from fastdarts.mixed.patching.patched import Layout, Patched, patch_module, unpatch_module
from fastdarts.mixed.patching.recognition import CONTAINERS, OWN, Op, leaves, paths_of, recognise
from fastdarts.mixed.patching.report import Calls, PatchReport
from fastdarts.mixed.patching.trial import Verdict, verdict

__all__ = ["Calls", "PatchReport", "patch", "unpatch"]


def patch(model: nn.Module, skip_zeros: bool = False, keep_layout: bool | None = None) -> PatchReport:
    """Let the kernels compute every mixed operation of a model, in place; `unpatch` undoes it.

    A mixed operation is a module that holds candidate ops (in a `ModuleList`, a `ModuleDict`, or by name) and whose
    forward adds up their outputs with weights. Ops are recognised by the layers they consist of, whatever classes and
    attributes are called. Each is tried on a copy with random numbers in float64, in train and eval mode, with
    gradients; so is the module's forward. What is nothing but the weighted sum of the ops is computed in one go. Of
    any other forward (that skips ops, sends only some channels through them, adds terms of its own) the lines run as
    they are, on outputs that are added up by the kernels when they are read. An op without a kernel keeps its module.

    Copies (`deepcopy`, pickles, replicas) are patched like their original; a network constructed anew is not.

    Args:
        model: any module.
        skip_zeros: do not compute an op whose weight is a constant 0 (no gradient, on a CPU). This changes results: its
            batch norms do not see the batch, and its parameters get no gradients where they would get zeros, so that
            optimizers leave them alone instead of decaying them.
        keep_layout: give sums the memory layout that the modules would (an NCHW input: NCHW) instead of the kernels'
            channels-last, which is faster. None: where the model draws random numbers by element, in dropouts or ops
            of its own, as those depend on it.

    Returns: what was replaced, what was left, and why; `PatchReport.calls()` tells later how the modules ran.
    """
    report = PatchReport()
    inside: set[nn.Module] = set()  # candidate ops and their layers
    served: dict[str, tuple[nn.Module, dict[str, Op], Verdict]] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, MixedOp | Patched | CONTAINERS) or module in inside or _chains(module):
            continue
        children = dict(paths_of(module))
        ops = _recognised(children)
        if not _is_mixed(ops):
            if len(children) > 1 and (apart := differences(children, ops)) is not None:
                report.nearest[name] = apart
            continue
        found = verdict(module, ops)
        if found.reason is not None:
            report.left[name] = found.reason
            continue
        inside.update(part for _, op in paths_of(module) for part in op.modules())
        served[name] = module, ops, found
    if keep_layout is None:
        keep_layout = any(isinstance(part, nn.modules.dropout._DropoutNd) for part in model.modules())
        keep_layout |= any(found.random for _, _, found in served.values())
    for name, (module, ops, found) in served.items():
        patch_module(module, Layout(ops, found.direct, skip_zeros, keep_layout, found.as_tensors))
        listed = any("." in path for path, op in ops.items() if op.primitive != OWN)
        report.replaced[name] = tuple(op.primitive for path, op in ops.items() if "." in path or not listed)
        report.modules[name] = module
        if found.untried is not None:
            report.untried[name] = found.untried
    return report


def unpatch(model: nn.Module) -> list[str]:
    """Give every patched module of a model its own forward back. Returns their names."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, Patched):
            names.append(name)
            unpatch_module(module)
    return names


def _recognised(children: dict[str, nn.Module]) -> dict[str, Op]:
    if len(children) < 2:
        return {}
    norms = (leaf for op in children.values() for leaf in leaves(op) if isinstance(leaf, nn.BatchNorm2d))
    C = next((norm.num_features for norm in norms), 0)
    return {path: recognise(op, C) for path, op in children.items()}


def _is_mixed(ops: dict[str, Op]) -> bool:
    """Return True if some of a module's children are ops that kernels compute.

    Modules that are held by name may be anything: two of them at least must be ops, and relu, 1x1 convolution and batch
    norm by name or more than once are no sign of a mixed operation, since cells preprocess their inputs with them.
    """
    known = {path: op for path, op in ops.items() if op.primitive != OWN}
    once = sum(op.primitive == "nor_conv_1x1" for op in known.values()) == 1
    if all(_is_common(op, alone=once and "." in path) for path, op in known.items()):
        return False
    return len(known) > 1 or any("." in path for path in known)


def _is_common(op: Op, alone: bool) -> bool:
    """Return True for layers that many modules hold which are no mixed operations.

    `alone` is True for the only 1x1 convolution in a list or a dictionary.
    """
    return (
        op.primitive == "none"
        or (op.primitive, op.stride) == ("skip_connect", 1)
        or (op.primitive == "nor_conv_1x1" and not alone)
    )


def _chains(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward
