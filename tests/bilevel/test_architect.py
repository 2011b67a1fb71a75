"""The alpha step: an analytic problem, exact double backward, a plain procedure on model copies; nothing changes."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from plain_bilevel import plain_alpha_gradients
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.spaces.darts.supernet import SearchNetwork

XI = 0.05


class Toy(nn.Module):
    """The paper's bilevel problem: L_valid = alpha w - 2 alpha + 1, L_train = w² - 2 alpha w + alpha²."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([-2.0], dtype=torch.float64))
        self.alpha = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    def arch_parameters(self) -> list[Tensor]:
        return [self.alpha]

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.stack([self.alpha * self.w - 2 * self.alpha + 1, (self.w - self.alpha) ** 2], dim=1)


def toy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[torch.arange(len(targets)), targets].mean()


TOY_VALID, TOY_TRAIN = ((torch.ones(1, 2, dtype=torch.float64), torch.tensor([k])) for k in (0, 1))


class Smooth(nn.Module):
    """A small mixed network without kinks: softplus for ReLU, average pooling, batch norm in train mode."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Softplus(), nn.Conv2d(4, 4, k, padding=k // 2, bias=False), nn.BatchNorm2d(4, affine=False)
            )
            for k in (1, 3, 5)
        )
        self.classifier = nn.Linear(4, classes)
        self.alphas = [torch.randn(3).requires_grad_() for _ in range(2)]

    def arch_parameters(self) -> list[Tensor]:
        return self.alphas

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for alpha in self.alphas:
            x = sum(a * branch(x) for a, branch in zip(alpha.softmax(0), self.branches, strict=True))
        return self.classifier(torch.tanh(x).mean((2, 3)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Smooth":
        super()._apply(fn, recurse)
        for alpha in self.alphas:
            alpha.data = fn(alpha.data)
        return self


def supernet() -> SearchNetwork:
    return SearchNetwork(C=2, num_classes=3, layers=3, steps=2, multiplier=2)


def batches(count: int, size: int = 8, classes: int = 3, n: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64),
            torch.randint(classes, (n,), generator=generator),
        )
        for _ in range(count)
    ]


def sgd(
    network: nn.Module,
    lr: float = XI,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    kind: type[torch.optim.SGD] = torch.optim.SGD,
) -> torch.optim.SGD:
    return kind(network.parameters(), lr, momentum=momentum, weight_decay=weight_decay)


def warm_up(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    """A few weight steps, so that there is momentum and running statistics have moved."""
    for x, y in batches(steps):
        optimizer.zero_grad()
        cross_entropy(network(x.to(next(network.parameters()).dtype)), y).backward()
        optimizer.step()
    for tensor in [*network.parameters(), *network.arch_parameters()]:
        tensor.grad = None


def assert_close(got: list[Tensor], want: list[Tensor], relative: float) -> None:
    got_all, want_all = (torch.cat([t.flatten() for t in side]) for side in (got, want))
    assert (got_all - want_all).norm() <= relative * want_all.norm()


@contextmanager
def unchanged(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Fails unless all that a network and its optimizer hold has the same bits after as before."""

    def everything() -> dict[str, Tensor]:
        held = {f"weight or buffer {k}": t for k, t in network.state_dict().items()}
        held |= {f"alpha {i}": t.detach() for i, t in enumerate(network.arch_parameters())}
        for i, p in enumerate(network.parameters()):
            held |= {f"state {i} {k}": v for k, v in optimizer.state.get(p, {}).items() if isinstance(v, Tensor)}
            assert p.requires_grad
        return {name: t.clone() for name, t in held.items()}

    before = everything()
    gradients = [p.grad for p in [*network.parameters(), *network.arch_parameters()]]
    yield
    after = everything()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    for p, gradient in zip([*network.parameters(), *network.arch_parameters()], gradients, strict=True):
        assert p.grad is gradient


@pytest.mark.parametrize("hvp", ["finite-difference", "exact"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_toy_gradient_is_the_analytic_one_at_every_step(hvp: str, momentum: float) -> None:
    weight_decay, xi = 0.01, 0.3
    network = Toy()
    optimizer = sgd(network, 0.1, momentum, weight_decay)
    architect = Architect(network, w_momentum=momentum, w_weight_decay=weight_decay, hvp=hvp, loss=toy_loss)
    buffer = 0.0
    for _ in range(20):
        w, a = network.w.item(), network.alpha.item()
        virtual = w - xi * (momentum * buffer + 2 * (w - a) + weight_decay * w)
        # d/da L_valid(w', a) - xi d²L_train/da dw v, with v = a and the mixed derivative -2
        expected = (virtual - 2) + 2 * xi * a
        (gradient,) = architect.alpha_gradients(TOY_TRAIN, TOY_VALID, xi, optimizer)
        # The loss is quadratic, so the difference has no truncation error, only rounding of order eps / epsilon.
        assert gradient.item() == pytest.approx(expected, rel=1e-11, abs=1e-11)
        with torch.no_grad():
            network.alpha -= 0.05 * gradient
        optimizer.zero_grad()
        toy_loss(network(TOY_TRAIN[0]), TOY_TRAIN[1]).backward(inputs=[network.w])
        buffer = momentum * buffer + network.w.grad.item() + weight_decay * w
        optimizer.step()


@pytest.mark.parametrize(("order", "xi"), [(1, 0.3), (2, 0.0), (2, 0.05), (2, 0.5), (2, 0.7)])
def test_toy_search_ends_where_the_paper_says(order: int, xi: float) -> None:
    network = Toy()
    optimizer = sgd(network, 0.1, 0.0, 0.0)
    architect = Architect(network, w_momentum=0.0, w_weight_decay=0.0, loss=toy_loss)
    for _ in range(400):
        (gradient,) = architect.alpha_gradients(TOY_TRAIN, TOY_VALID, xi, optimizer, order)
        with torch.no_grad():
            network.alpha -= 0.1 * gradient
        optimizer.zero_grad()
        toy_loss(network(TOY_TRAIN[0]), TOY_TRAIN[1]).backward(inputs=[network.w])
        optimizer.step()
    limit = 2 / (1 + 2 * (xi if order == 2 else 0))
    # The slowest mode shrinks by about 0.9 a step.
    assert network.alpha.item() == pytest.approx(limit, abs=1e-9)
    assert network.w.item() == pytest.approx(limit, abs=1e-9)


@pytest.mark.parametrize("steps", [0, 2], ids=["no momentum yet", "momentum"])
@pytest.mark.parametrize("make", [Smooth, supernet])
@pytest.mark.parametrize("kind", [torch.optim.SGD, FlatSGD])
def test_second_order_equals_the_plain_procedure(
    kind: type[torch.optim.SGD], make: Callable[[], nn.Module], steps: int
) -> None:
    network = make().double()
    optimizer = sgd(network, kind=kind)
    warm_up(network, optimizer, steps)
    train, valid = batches(2)
    with unchanged(network, optimizer):
        got = Architect(network).alpha_gradients(train, valid, XI, optimizer)
    # Rounding of the two passes is amplified by 1 / epsilon, a few hundred; 1e-10 leaves 4e5 float64 units.
    held = [optimizer.state[w]["momentum_buffer"] for w in network.parameters()] if steps else None
    assert_close(got, plain_alpha_gradients(network, train, valid, XI, held), 1e-10)


def test_second_order_in_float32_errs_no_more_than_the_plain_procedure() -> None:
    exact = Smooth().double()
    optimizer = sgd(exact)
    warm_up(exact, optimizer)
    network = copy.deepcopy(exact).float()
    (x, y), (u, v) = batches(2)
    held = [optimizer.state[w]["momentum_buffer"] for w in exact.parameters()]
    want = torch.cat(plain_alpha_gradients(exact, (x, y), (u, v), XI, held))
    single = sgd(network)
    for w, buffer in zip(network.parameters(), held, strict=True):
        single.state[w]["momentum_buffer"] = buffer.float()
    train, valid = (x.float(), y), (u.float(), v)
    plain = torch.cat(plain_alpha_gradients(network, train, valid, XI, [buffer.float() for buffer in held]))
    got = torch.cat(Architect(network).alpha_gradients(train, valid, XI, single))
    assert (got - want).norm() <= 2 * (plain - want).norm()


def test_finite_difference_meets_the_exact_product_where_nothing_switches() -> None:
    network = Smooth().double()
    optimizer = sgd(network)
    warm_up(network, optimizer)
    train, valid = batches(2)
    exact = Architect(network, hvp="exact").alpha_gradients(train, valid, XI, optimizer)
    first = Architect(network).alpha_gradients(train, valid, 0.0, optimizer)
    errors = []
    for r in (1e-2, 1e-3):
        got = Architect(network, r=r).alpha_gradients(train, valid, XI, optimizer)
        errors.append(torch.cat([g - e for g, e in zip(got, exact, strict=True)]).norm().item())
    implicit = torch.cat([e - f for e, f in zip(exact, first, strict=True)]).norm().item()
    # A central difference errs by the square of its step: 100 times less for r / 10.
    assert errors[0] < 1e-2 * implicit
    assert errors[1] < 1.1e-2 * errors[0]


def test_first_order_is_the_gradient_at_the_present_weights() -> None:
    network = supernet().double()
    optimizer = sgd(network)
    warm_up(network, optimizer)
    train, valid = batches(2)
    twin = copy.deepcopy(network)
    expected = torch.autograd.grad(cross_entropy(twin(valid[0]), valid[1]), twin.arch_parameters())
    architect = Architect(network)
    with unchanged(network, optimizer):
        got = architect.alpha_gradients(train, valid, XI, optimizer, order=1)
    assert_close(got, list(expected), 1e-14)


def test_first_order_costs_one_pass_and_second_order_four() -> None:
    network = Smooth().double()
    calls: list[bool] = []
    network.register_forward_hook(lambda *_: calls.append(network.stem.weight.requires_grad))
    architect, optimizer = Architect(network), sgd(network)
    train, valid = batches(2)
    architect.alpha_gradients(train, valid, XI, optimizer, order=1)
    assert calls == [False]  # no weight gradients either
    calls.clear()
    architect.alpha_gradients(train, valid, XI, optimizer, order=2)
    assert calls == [True, True, False, False]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("hvp", ["finite-difference", "exact"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, FlatSGD])
def test_nothing_changes(kind: type[torch.optim.SGD], hvp: str, order: int) -> None:
    network = supernet()
    optimizer = sgd(network, kind=kind)
    warm_up(network, optimizer)
    for p in [*network.parameters(), *network.arch_parameters()]:
        p.grad = torch.ones_like(p)
    (x, y), (u, v) = batches(2)
    with unchanged(network, optimizer):
        Architect(network, hvp=hvp).alpha_gradients((x.float(), y), (u.float(), v), XI, optimizer, order)


def test_a_pass_that_fails_leaves_everything_as_it_was() -> None:
    network = Smooth().double()
    optimizer = sgd(network)
    warm_up(network, optimizer)
    passes = 0

    def fails_in_the_third_pass(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise MemoryError("no room")
        return cross_entropy(outputs, targets)

    train, valid = batches(2)
    architect = Architect(network, loss=fails_in_the_third_pass)
    with unchanged(network, optimizer), pytest.raises(MemoryError):
        architect.alpha_gradients(train, valid, XI, optimizer)


def test_many_steps_with_learning_rate_zero_leave_the_weights_alone() -> None:
    network = Smooth()
    optimizer = sgd(network)
    architect = Architect(network, lr=0.0)
    (x, y), (u, v) = batches(2, size=4)
    with unchanged(network, optimizer):
        for _ in range(300):
            architect.step((x.float(), y), (u.float(), v), XI, optimizer)


def test_step_is_adam_on_the_gradients() -> None:
    network = Smooth().double()
    optimizer = sgd(network)
    architect = Architect(network, lr=0.1)
    train, valid = batches(2)
    twins = [a.detach().clone().requires_grad_() for a in network.arch_parameters()]
    adam = torch.optim.Adam(twins, 0.1, (0.5, 0.999), weight_decay=1e-3)
    for _ in range(3):
        for twin, gradient in zip(twins, architect.alpha_gradients(train, valid, XI, optimizer), strict=True):
            twin.grad = gradient
        adam.step()
        architect.step(train, valid, XI, optimizer)
        assert_close([a.detach() for a in network.arch_parameters()], [t.detach() for t in twins], 1e-15)
        assert all(a.grad is None for a in network.arch_parameters())


def test_state_dict_continues_the_alpha_steps() -> None:
    train, valid = batches(2)
    network = Smooth().double()
    architect, optimizer = Architect(network), sgd(network)
    architect.step(train, valid, XI, optimizer)
    twin = copy.deepcopy(network)
    again = Architect(twin)
    again.load_state_dict(copy.deepcopy(architect.state_dict()))
    architect.step(train, valid, XI, optimizer)
    again.step(train, valid, XI, sgd(twin))
    for a, b in zip(network.arch_parameters(), twin.arch_parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_from_a_gpu_loads_on_the_cpu() -> None:
    network = SearchNetwork(C=2, num_classes=3, layers=3, steps=2, multiplier=2)
    architect = Architect(network)
    architect.apply([torch.ones_like(alpha) for alpha in network.arch_parameters()])
    state = architect.state_dict()
    state["param_groups"][0]["capturable"] = True
    architect.load_state_dict(state)
    architect.apply([torch.ones_like(alpha) for alpha in network.arch_parameters()])


def test_an_architect_can_be_pickled() -> None:
    network = SearchNetwork(C=2, num_classes=3, layers=3, steps=2, multiplier=2)
    again, architect = pickle.loads(pickle.dumps((network, Architect(network))))
    assert architect.network is again
    assert architect.penalty(torch.zeros(())) is None


@pytest.mark.parametrize("hvp", ["finite-difference", "exact"])
def test_a_direction_of_zero_makes_the_implicit_term_zero(hvp: str) -> None:
    network = Smooth().double()
    with torch.no_grad():
        network.classifier.weight.zero_()  # no gradient below, and constant outputs

    def only_train_depends_on_weights(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy(outputs, targets)
        return loss if len(targets) == 6 else loss * 0 + sum(a.square().sum() for a in network.alphas)

    (train,), (valid,) = batches(1), batches(1, n=5)
    got = Architect(network, hvp=hvp, loss=only_train_depends_on_weights).alpha_gradients(
        train, valid, XI, sgd(network)
    )
    assert_close(got, [2 * a.detach() for a in network.alphas], 1e-15)


def test_weights_that_no_pass_uses_count_as_gradient_zero() -> None:
    network = Smooth().double()
    train, valid = batches(2)
    expected = Architect(network).alpha_gradients(train, valid, XI, sgd(network))
    network.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    network.alphas.append(torch.ones(2, dtype=torch.float64, requires_grad=True))
    network.forward = lambda x, n=network, a=network.alphas[:2]: _forward_with(n, x, a)
    got = Architect(network).alpha_gradients(train, valid, XI, sgd(network))
    assert_close(got[:2], expected, 1e-12)
    assert torch.equal(got[2], torch.zeros(2, dtype=torch.float64))


def _forward_with(network: Smooth, x: Tensor, alphas: list[Tensor]) -> Tensor:
    x = network.stem(x)
    for alpha in alphas:
        x = sum(a * branch(x) for a, branch in zip(alpha.softmax(0), network.branches, strict=True))
    return network.classifier(torch.tanh(x).mean((2, 3)))


def test_amp_runs_the_network_in_the_low_precision_and_the_rest_in_full() -> None:
    network = Smooth()
    seen: list[torch.dtype] = []
    network.branches[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    optimizer = sgd(network)
    (x, y), (u, v) = batches(2)
    train, valid = (x.float(), y), (u.float(), v)
    with unchanged(network, optimizer):
        got = Architect(network, amp_dtype=torch.bfloat16).alpha_gradients(train, valid, XI, optimizer)
    assert torch.bfloat16 in seen
    assert all(g.dtype == torch.float32 for g in got)
    full = Architect(network).alpha_gradients(train, valid, XI, optimizer, order=1)
    low = Architect(network, amp_dtype=torch.bfloat16).alpha_gradients(train, valid, XI, optimizer, order=1)
    # bfloat16 has 8 bits; a handful of layers in a row.
    assert_close(low, full, 10 * 2**-8)


def test_xi_may_be_a_tensor() -> None:
    network = Smooth().double()
    optimizer = sgd(network)
    train, valid = batches(2)
    a = Architect(network).alpha_gradients(train, valid, XI, optimizer)
    b = Architect(network).alpha_gradients(train, valid, torch.tensor(XI, dtype=torch.float64), optimizer)
    assert_close(a, b, 1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"hvp": "exakt"}, "hvp must be"), ({"r": 0.0}, "r must be"), ({"r": float("nan")}, "r must be")],
)
def test_architect_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Architect(Smooth(), **arguments)


def test_architect_refuses_alphas_that_cannot_be_stepped() -> None:
    network = Smooth()
    network.alphas = []
    with pytest.raises(ValueError, match="is empty"):
        Architect(network)
    network.alphas = [torch.zeros(3)]
    with pytest.raises(ValueError, match="leaf tensor that requires gradients"):
        Architect(network)
    alpha = torch.zeros(3).requires_grad_()
    network.alphas = [alpha, alpha]
    with pytest.raises(ValueError, match="a second time"):
        Architect(network)


class Registered(Smooth):
    """Its alphas are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.alphas = nn.ParameterList(alpha.detach() for alpha in self.alphas)  # type: ignore[assignment]

    def arch_parameters(self) -> list[Tensor]:
        return list(self.alphas)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Registered":
        nn.Module._apply(self, fn, recurse)
        return self


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", [torch.optim.SGD, FlatSGD])
def test_alphas_may_be_parameters(kind: type[torch.optim.SGD], order: int) -> None:
    """The weights are then all other parameters; the alpha steps are those of a network with alphas beside them."""
    train, valid = batches(2)
    found = []
    for make in (Smooth, Registered):
        torch.manual_seed(3)
        network = make().double()
        architect = Architect(network)
        assert len(architect.flat.weights) == 6
        optimizer = kind(architect.flat.weights, XI, momentum=0.9, weight_decay=3e-4)
        for _ in range(2):
            architect.step(train, valid, XI, optimizer, order)
            optimizer.zero_grad()
            cross_entropy(network(train[0]), train[1]).backward()
            optimizer.step()
        found.append([tensor.detach() for tensor in (*network.arch_parameters(), *architect.flat.weights)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_optimizer_that_would_move_alphas_as_weights_is_named() -> None:
    network = Registered().double()
    train, valid = batches(2)
    with pytest.warns(UserWarning, match="holds alphas, too"):
        Architect(network).alpha_gradients(train, valid, XI, sgd(network))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 3}, "order must be 1 or 2; got 3"),
        ({"xi": -0.1}, "xi must be finite and not negative"),
        ({"xi": float("inf")}, "xi must be finite"),
        ({"xi": torch.ones(2)}, "one element"),
        ({"train": torch.zeros(2)}, r"train must be a pair \(inputs, targets\)"),
        ({"valid": (torch.zeros(2, 3, 8, 8), torch.zeros(3, dtype=torch.int64))}, "valid must hold as many targets"),
        ({"valid": (torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))}, "at least one"),
        ({"train": (torch.zeros(2, 3, 8, 8, device="meta"), torch.zeros(2, dtype=torch.int64))}, "inputs are on meta"),
        ({"w_optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)}, "does not hold 3 of .*'stem.weight'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_alpha_gradients_refuses(change: dict[str, object], message: str) -> None:
    network = Smooth().double()
    network.branches = nn.ModuleList()  # three weights are left; nothing runs before the refusal
    train, valid = batches(2)
    arguments = {"train": train, "valid": valid, "xi": XI, "w_optimizer": sgd(network)} | change
    with pytest.raises(ValueError, match=message):
        Architect(network).alpha_gradients(**arguments)


def test_alphas_replaced_since_are_refused() -> None:
    network = Smooth().double()
    architect = Architect(network)
    network.alphas = [a.detach().clone().requires_grad_() for a in network.alphas]
    with pytest.raises(ValueError, match="make a new one"):
        architect.alpha_gradients(*batches(2), XI, sgd(network))


class Gated(nn.Module):
    """Its alphas reach the loss by a function, whose gradient autograd may give as an expanded or transposed view."""

    def __init__(self, use: Callable[[Tensor], Tensor], alpha: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
        self.use, self.alpha = use, alpha.requires_grad_()

    def arch_parameters(self) -> list[Tensor]:
        return [self.alpha]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.use(self.alpha))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("use", "alpha"),
    [
        (lambda a: a.sum(1), torch.rand(5, 2, dtype=torch.float64)),
        (lambda a: a.t().softmax(0)[0], torch.rand(5, 2, dtype=torch.float64)),
        (lambda a: a.sum(1), torch.rand(2, 5, dtype=torch.float64).t()),
    ],
    ids=["expanded", "transposed", "alpha itself"],
)
def test_gradients_of_alphas_are_dense(use: Callable[[Tensor], Tensor], alpha: Tensor, order: int) -> None:
    network = Gated(use, alpha.clone(memory_format=torch.preserve_format))
    batch = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    (gradient,) = Architect(network).step(batch, batch, 0.1, torch.optim.SGD(network.parameters(), 0.1), order)
    assert gradient.is_contiguous()
    assert gradient.shape == alpha.shape
    assert gradient.isfinite().all()


def test_alphas_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arch_parameters\(\)\[0\] must be float32 or float64; got torch.bfloat16"):
        Architect(Gated(lambda a: a.sum(1), torch.rand(5, 2, dtype=torch.bfloat16)))


def test_buffers_of_other_modules_stay_as_they_are() -> None:
    network = SearchNetwork(C=2, num_classes=3, layers=3, steps=1, multiplier=1)
    network.classifier = nn.Sequential(nn.BatchNorm1d(network.classifier.in_features), network.classifier)
    before = copy.deepcopy(network.state_dict())
    batch = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
    Architect(network).alpha_gradients(batch, batch, 0.1, torch.optim.SGD(network.parameters(), 0.1))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
