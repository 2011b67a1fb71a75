"""Define the cases to measure: the parts of a search, from one mixed edge to a whole step, each in several variants."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.original import Batch, OriginalSearch, autocast
from fastdarts import DARTS_V2, Architect, EvalNetwork, MixedOp, SearchNetwork, methods, register_primitive
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.step import SearchStep
from fastdarts.bilevel.train_step import TrainStep
from fastdarts.data import BatchStream, ImageData
from fastdarts.data.augment import Augment
from fastdarts.mixed.mixed_op import Backend
from fastdarts.ops import operators
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.runs.search_config import SearchConfig
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of

Run = Callable[[], object]
Thing = TypeVar("Thing", bound=nn.Module | Tensor)

FUSED, FUSED_AMP = "fused", "fused --amp"
NCHW, CHANNELS_LAST, AUTOCAST, COMPILED = "plain NCHW", "plain channels_last", "plain autocast", "plain compiled"
PLAIN = (NCHW, CHANNELS_LAST, AUTOCAST)
"""The plain modules as the original code runs them (float32, NCHW), in channels_last, and also with bf16 autocast."""

BASELINE = NCHW
METHODS = ("darts", "gdas", "pc-darts")
"""Methods that gain speed, after the one they are compared with; all run fused."""


ALPHA_STEP, SEARCH_STEP = "alpha step, second order", "search step, second order"
AT_PAPERS_SIZE = ", C=16, 8 cells"
"""Suffix of the names of cases in the small suite that have the paper's size all the same."""
BETWEEN_PASSES, SAMPLING = "alpha step without its passes", "sampling and augmentation"
STEPS_TO_GRAPH = 5
"""Number of steps on a GPU, the eager ones and the captured one, after which steps replay a CUDA graph."""


@dataclass(frozen=True)
class Case:
    """Describe one thing to measure. `kind` is a key of BUILDERS; C, batch, size and layers are its geometry.

    Variants are ways to compute the same; for the kind "method_step" they are search methods.
    """

    name: str
    kind: str
    variants: tuple[str, ...] = (FUSED, FUSED_AMP, *PLAIN)
    C: int = 16
    batch: int = 64
    size: int = 32
    layers: int = 8
    stride: int = 1
    order: int = 2


def suite(full: bool) -> list[Case]:
    """Return all cases: of the paper's search (C=16, 8 cells, batch 64, 32x32), or of a small one that takes minutes.

    torch.compile also takes minutes, and a quarter of an hour for a network, so the small suite compiles only one edge.
    """
    compiled = (FUSED, FUSED_AMP, *PLAIN, COMPILED)
    variants = compiled if full else compiled[:-1]
    cases = [
        Case(
            f"mixed op, stride {stride}, C={C}, {size}x{size}",
            "mixed_op",
            compiled if stride == 1 and C == 16 else variants,
            C=C,
            batch=64 if full else 16,
            size=size,
            stride=stride,
        )
        for C, size in ((16, 32), (32, 16), (64, 8))
        for stride in (1, 2)
    ]
    batch = 64 if full else 8
    cases += [
        Case("mixed op with an own op, C=16, 32x32", "own_op", batch=64 if full else 16),
        Case("normal cell, C=16", "cell", variants, batch=batch, stride=1),
        Case("reduction cell, C=32", "cell", variants, C=32, batch=batch, stride=2),
    ]
    search = partial(Case, batch=batch) if full else partial(Case, C=8, layers=4, batch=batch)
    cases += [
        search("weight step", "weight_step", variants),
        search("alpha step, first order", "alpha_step", order=1),
        search(ALPHA_STEP, "alpha_step", order=2),
        search("search step, first order", "search_step", order=1),
        search(SEARCH_STEP, "search_step", order=2),
        search("weight step by method", "method_step", METHODS, batch=256 if full else 8),
    ]
    if not full:  # fast enough when fused, and needed for the shares at the end of the table
        cases += [
            Case(f"{ALPHA_STEP}{AT_PAPERS_SIZE}", "alpha_step", (FUSED,)),
            Case(f"{SEARCH_STEP}{AT_PAPERS_SIZE}", "search_step", (FUSED, FUSED_AMP)),
        ]
    evaluation = partial(Case, C=36, layers=20, batch=96) if full else partial(Case, C=8, layers=4, batch=batch)
    cases.append(evaluation("evaluation step", "evaluation_step", (FUSED, FUSED_AMP, *PLAIN)))
    # These depend on neither size nor number of images, so they always use the paper's supernet and batch.
    cases += [
        Case(BETWEEN_PASSES, "between_passes", (FUSED, NCHW)),
        Case("clip and SGD", "clip_sgd", (FUSED, NCHW)),
        Case(SAMPLING, "data", (FUSED,)),
    ]
    return cases


def build(case: Case, variant: str, device: torch.device) -> Run:
    """Return a callable that runs one step of the case in this variant."""
    torch.manual_seed(0)
    return BUILDERS[case.kind](case, variant, device)


def flops(case: Case) -> int | None:
    """Return the useful FLOPs of a step, or None if arithmetic is not its main work.

    Each multiply-add of convolutions and linear layers counts as two FLOPs. A forward counts once, the gradients of
    inputs once more (which include those of the alphas) and the gradients of weights once more. So a weight step has
    the FLOPs of 3 forwards, a first-order alpha step of 2, and a second-order one of 3 + 3 + 2 + 2.
    """
    passes = {
        "mixed_op": 3,
        "own_op": 3,
        "cell": 3,
        "weight_step": 3,
        "evaluation_step": 3,
        "alpha_step": 2 if case.order == 1 else 10,
    }
    passes["search_step"] = passes["alpha_step"] + 3
    if case.kind not in passes:
        return None
    module = case.kind if case.kind in ("mixed_op", "own_op", "cell", "evaluation_step") else "weight_step"
    return passes[case.kind] * forward_flops(replace(case, name="", kind=module, order=2))


@cache
def forward_flops(case: Case) -> int:
    """Return the FLOPs of one forward of the case's module."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        forward_on_meta(case)
    return int(counter.get_total_flops())


def compulsory_bytes(case: Case) -> int | None:
    """Return the least float32 traffic of a forward and backward over the mixed edges; None for other kinds of cases.

    States and their gradients are moved once: inputs are read in forward and backward, and their gradients are written;
    outputs are written, and their gradients are read.
    """
    if case.kind not in ("mixed_op", "cell", "weight_step"):
        return None
    moved = 0

    def count(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        nonlocal moved
        states = [t for t in inputs if isinstance(t, Tensor) and t.dim() == 4]
        moved += 4 * (3 * sum(t.numel() for t in states) + 2 * output.numel())

    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: count(module, inputs, output) if isinstance(module, counted) else None
    )
    counted = MixedOp if case.kind == "mixed_op" else Cell
    with torch.device("meta"), torch.no_grad():
        forward_on_meta(case)
    handle.remove()
    return moved


def forward_on_meta(case: Case) -> None:
    """Run one forward of the case's module for its shapes only; call it with meta as the default device."""
    N, C, S = case.batch, case.C, case.size
    match case.kind:
        case "mixed_op":
            MixedOp(C, case.stride, backend="reference")(torch.empty(N, C, S, S), torch.empty(8))
        case "own_op":
            edge_with_own_op(case, "reference")(torch.empty(N, C, S, S), torch.empty(9))
        case "cell":
            state = torch.empty(N, 4 * C, S, S)
            new_cell(case, "reference")(state, state, torch.empty(14, 8))
        case "evaluation_step":
            EvalNetwork(DARTS_V2, C, layers=case.layers)(torch.empty(N, 3, S, S))
        case _:
            SearchNetwork(C, layers=case.layers, backend="reference")(torch.empty(N, 3, S, S))


def make_own_conv(C: int, stride: int, affine: bool) -> nn.Module:
    """Make the op of one's own that the benchmark has: a dense convolution, which has no kernel."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, stride, 1, bias=False), nn.BatchNorm2d(C, affine=affine))


def edge_with_own_op(case: Case, backend: Backend) -> MixedOp:
    register_primitive("benchmarked_conv", make_own_conv)
    return MixedOp(case.C, case.stride, (*PRIMITIVES, "benchmarked_conv"), backend)


def new_cell(case: Case, backend: Backend) -> Cell:
    return Cell(4, 4, 4 * case.C, 4 * case.C, case.C, case.stride == 2, False, backend=backend)


def has_kernels(device: torch.device) -> bool:
    """Return True if the fused variants run kernels on `device`; otherwise they run the plain modules."""
    return operators.unavailable(device, torch.float32) is None


def backend_of(variant: str) -> Backend:
    return "auto" if variant in (FUSED, FUSED_AMP) else "reference"


def amp(variant: str) -> bool:
    return variant in (FUSED_AMP, AUTOCAST)


def laid_out(thing: Thing, variant: str, device: torch.device) -> Thing:
    """Move a module or tensor to the device, in the variant's memory format."""
    layout = torch.contiguous_format if variant in (NCHW, COMPILED) else torch.channels_last
    return thing.to(device, memory_format=layout)  # type: ignore[call-overload,return-value]


def images(case: Case, variant: str, device: torch.device) -> Batch:
    x = torch.randn(case.batch, 3, case.size, case.size)
    return laid_out(x, variant, device), torch.randint(10, (case.batch,), device=device)


def mixed_op(case: Case, variant: str, device: torch.device) -> Run:
    module: nn.Module = laid_out(MixedOp(case.C, case.stride, backend=backend_of(variant)), variant, device)
    states = [laid_out(torch.randn(case.batch, case.C, case.size, case.size), variant, device)]
    return forward_backward(module, states, torch.randn(8, device=device).softmax(0), variant)


def own_op(case: Case, variant: str, device: torch.device) -> Run:
    """Return forward and backward of an edge whose ninth op is a user's own, which runs beside the kernels."""
    module: nn.Module = laid_out(edge_with_own_op(case, backend_of(variant)), variant, device)
    states = [laid_out(torch.randn(case.batch, case.C, case.size, case.size), variant, device)]
    return forward_backward(module, states, torch.randn(9, device=device).softmax(0), variant)


def cell(case: Case, variant: str, device: torch.device) -> Run:
    module = laid_out(new_cell(case, backend_of(variant)), variant, device)
    shape = (case.batch, 4 * case.C, case.size, case.size)
    states = [laid_out(torch.randn(shape), variant, device) for _ in range(2)]
    weights = torch.randn(len(edges_of(4)), 8, device=device).softmax(1)
    return forward_backward(module, states, weights, variant)


def forward_backward(module: nn.Module, states: Sequence[Tensor], weights: Tensor, variant: str) -> Run:
    """Return a callable that runs forward, and backward to the states, the op weights and the module's weights."""
    wanted = [*(t.requires_grad_() for t in (*states, weights)), *module.parameters()]
    if variant == COMPILED:
        module.compile()

    def run() -> None:
        with autocast(weights.device, amp(variant)):
            out = module(*states, weights)
        torch.autograd.grad(out.float().square().mean(), wanted)

    return run


class FusedSearch:
    """Run the parts of `fastdarts.SearchStep` separately, with the same methods as `OriginalSearch`."""

    def __init__(self, network: SearchNetwork, lr: float = 0.025, amp: bool = False) -> None:
        self.lr, self.network = lr, network
        self.architect = Architect(network, amp_dtype=torch.bfloat16 if amp else None)
        self.sgd = FlatSGD(network.parameters(), lr, weight_decay=3e-4)
        self.steps = {order: SearchStep(network, self.architect, self.sgd, order=order) for order in (1, 2)}

    def search_step(self, train: Batch, valid: Batch, order: int) -> None:
        self.steps[order].step(train, valid)

    def weight_step(self, train: Batch) -> None:
        loss, _ = self.architect.forward(train)
        gradients = torch.autograd.grad(loss, self.architect.flat.weights, allow_unused=True)
        self.sgd.step(gradient=self.architect.flat.gather(gradients), max_norm=5.0)

    def alpha_step(self, train: Batch, valid: Batch, order: int) -> None:
        self.architect.step(train, valid, self.lr, self.sgd, order)


def search(case: Case, variant: str, device: torch.device) -> FusedSearch | OriginalSearch:
    network = laid_out(SearchNetwork(case.C, layers=case.layers, backend=backend_of(variant)), variant, device)
    if variant in (FUSED, FUSED_AMP):
        return FusedSearch(network, amp=amp(variant))
    if variant == COMPILED:
        network.compile()
    return OriginalSearch(network, amp=amp(variant))


def weight_step(case: Case, variant: str, device: torch.device) -> Run:
    return partial(search(case, variant, device).weight_step, images(case, variant, device))


def method_step(case: Case, variant: str, device: torch.device) -> Run:
    config = SearchConfig(dataset="cifar10", method=variant, init_channels=case.C, layers=case.layers, order=1)
    method = methods.find(variant)(config)
    network = SearchNetwork(case.C, **method.network_arguments())
    method.attach(network)
    return partial(FusedSearch(laid_out(network, FUSED, device)).weight_step, images(case, FUSED, device))


def alpha_step(case: Case, variant: str, device: torch.device) -> Run:
    train, valid = (images(case, variant, device) for _ in range(2))
    return partial(search(case, variant, device).alpha_step, train, valid, case.order)


def search_step(case: Case, variant: str, device: torch.device) -> Run:
    train, valid = (images(case, variant, device) for _ in range(2))
    run = partial(search(case, variant, device).search_step, train, valid, case.order)
    for _ in range(STEPS_TO_GRAPH if device.type == "cuda" and variant in (FUSED, FUSED_AMP) else 0):
        run()
    return run


def found_network(case: Case, variant: str) -> EvalNetwork:
    """Build the paper's network for CIFAR-10, or for images of 64 pixels and more that for ImageNet."""
    large = case.size >= 64
    return EvalNetwork(
        DARTS_V2,
        case.C,
        num_classes=1000 if large else 10,
        layers=case.layers,
        drop_path_prob=0.0 if large else 0.2,
        stem="imagenet" if large else "cifar",
        backend=backend_of(variant),
    )


def evaluation_step(case: Case, variant: str, device: torch.device) -> Run:
    network = laid_out(found_network(case, variant), variant, device)
    x, y = images(case, variant, device)
    if variant in (FUSED, FUSED_AMP):
        sgd = FlatSGD(network.parameters(), 0.025, weight_decay=3e-4)
        dtype = torch.bfloat16 if amp(variant) else None
        step = TrainStep(network, sgd, cross_entropy, auxiliary_weight=0.4, grad_clip=5.0, amp_dtype=dtype)
        for _ in range(STEPS_TO_GRAPH if device.type == "cuda" else 0):
            step.step((x, y))
        return lambda: step.step((x, y))
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)

    def run() -> None:
        optimizer.zero_grad()
        with autocast(device, amp(variant)):
            logits, auxiliary = network(x)
        (cross_entropy(logits.float(), y) + 0.4 * cross_entropy(auxiliary.float(), y)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()

    return run


def inference(case: Case, variant: str, device: torch.device) -> Run:
    """Return a forward pass of a found network in eval mode."""
    network = laid_out(found_network(case, variant), variant, device).eval()
    x, _ = images(case, variant, device)

    def run() -> None:
        with torch.inference_mode(), autocast(device, amp(variant)):
            network(x)

    return run


def gradients_like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [1e-3 * torch.randn_like(t) for t in tensors]


def between_passes(case: Case, variant: str, device: torch.device) -> Run:
    """Return a second-order alpha step without the network's passes, which precomputed gradients replace."""
    network = SearchNetwork(case.C, layers=case.layers).to(device)
    batch = images(case, variant, device)
    if variant == FUSED:
        architect, optimizer = Architect(network), FlatSGD(network.parameters(), 0.025)
        ready = dict(
            zip(
                [*architect.alphas, *architect.flat.weights],
                gradients_like([*architect.alphas, *architect.flat.weights]),
                strict=True,
            )
        )

        def no_pass(batch: object, inputs: Sequence[Tensor]) -> list[Tensor]:
            return [ready[t] for t in inputs]

        architect._gradients = architect._validation_gradients = no_pass  # type: ignore[method-assign]
        return lambda: architect.alpha_gradients(batch, batch, 0.025, optimizer)

    weights, alphas = list(network.parameters()), network.arch_parameters()
    gradients, buffers, v = (gradients_like(weights) for _ in range(3))
    direct, plus, minus = (gradients_like(alphas) for _ in range(3))

    @torch.no_grad()
    def between() -> list[Tensor]:
        virtual = copy.deepcopy(network)
        for w, original, g, buffer in zip(virtual.parameters(), weights, gradients, buffers, strict=True):
            w.copy_(original - 0.025 * (0.9 * buffer + g + 3e-4 * original))
        epsilon = 0.01 / torch.cat([t.reshape(-1) for t in v]).norm().item()
        for step in (epsilon, -2 * epsilon, epsilon):
            for w, direction in zip(weights, v, strict=True):
                w.add_(direction, alpha=step)
        return [a - 0.025 * (p - m) / (2 * epsilon) for a, p, m in zip(direct, plus, minus, strict=True)]

    return between


def clip_sgd(case: Case, variant: str, device: torch.device) -> Run:
    """Return the weights' update, with clipping by the global norm, from gradients in the form autograd returns."""
    network = SearchNetwork(case.C, layers=case.layers).to(device)
    weights = list(network.parameters())
    gradients = gradients_like(weights)
    if variant == FUSED:
        flat_sgd = FlatSGD(weights, 0.025, weight_decay=3e-4)
        return lambda: flat_sgd.step(gradient=flat_sgd.flat.gather(gradients), max_norm=5.0)
    sgd = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4, foreach=True)
    for w, g in zip(weights, gradients, strict=True):
        w.grad = g

    def step() -> None:
        nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()

    return step


def data(case: Case, variant: str, device: torch.device) -> Run:
    """Return a callable that samples and augments the two batches of a search step on the device."""
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    pixels = torch.randint(256, (2048, 3, case.size, case.size), dtype=torch.uint8)
    dataset = ImageData(pixels, torch.randint(10, (2048,)), tuple("0123456789"), mean, std).to(device)
    batches = BatchStream(dataset, case.batch, seed=0)
    augment = Augment(mean, std, crop_padding=4, flip=True, cutout=0, generator_seed=0, device=device)
    return lambda: [augment(batches.next()[0]) for _ in range(2)]


BUILDERS: dict[str, Callable[[Case, str, torch.device], Run]] = {
    builder.__name__: builder
    for builder in (
        *(mixed_op, own_op, cell, weight_step, method_step, alpha_step, search_step, evaluation_step),
        *(inference, between_passes, clip_sgd, data),
    )
}
