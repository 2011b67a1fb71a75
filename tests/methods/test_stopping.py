"""DARTS+ and RobustDARTS: when a search ends, and with which cells; the largest eigenvalue of a Hessian."""

from types import SimpleNamespace

import pytest
import torch
from tiny_method import finish, finish_epoch, network_of, paper_method, tiny_state

from fastdarts.methods import find
from fastdarts.methods.lanczos import largest_eigenvalue
from fastdarts.methods.robustdarts import smoothed
from fastdarts.runs import checkpoint
from fastdarts.spaces.darts.genotype import Genotype

SKIP, MAX, SEP3, SEP5 = 3, 1, 4, 5


def watched(method, network, epochs):
    """The epochs at whose end the method wants to stop; `epochs` changes the alphas before each."""
    for epoch, change in enumerate(epochs):
        method.begin_epoch(epoch)
        with torch.no_grad():
            change(network)
        method.end_epoch(SimpleNamespace(network=network), {})
        if method.stopped is not None:
            return epoch
    return None


def set_ops(group, columns):
    """The strongest op of the two edges of node 2 and of one edge each of the later nodes."""

    def change(network):
        network.alphas[group].zero_()
        network.alphas[group][:, SEP3] = 1
        for edge, column in zip((0, 2, 5, 9), columns, strict=False):
            network.alphas[group][edge, column] = 2

    return change


@pytest.mark.parametrize(("cell", "stop"), [("normal", 2), ("reduce", None)])
def test_two_skips_in_the_normal_cell_stop(cell, stop):
    method = paper_method("darts-plus")
    network = network_of(method)
    first, second = set_ops(cell, [SEP3]), set_ops(cell, [SKIP])
    assert watched(method, network, [first, second, set_ops(cell, [SKIP] * 4)]) == stop
    assert (method.stopped == "the normal cell has 4 skip connections") == (stop == 2)
    assert method.genotype(network).nodes(cell)[0][0] == ("skip_connect", 0)


def test_the_previous_cells_if_wanted():
    method = paper_method("darts-plus", method_options={"take": "previous"})
    network = network_of(method)
    watched(method, network, [set_ops("normal", [SKIP]), set_ops("normal", [SKIP, SKIP])])
    result = method.result(SimpleNamespace(network=network))
    assert sum(op == "skip_connect" for op, _ in result.normal) == 1


def test_a_ranking_that_stands_for_ten_epochs_stops():
    method = paper_method("darts-plus", method_options={"rule": "ranking"})
    network = network_of(method)

    def keep(network):
        network.alphas_normal[:, MAX] += 1  # pools have no weights: their order does not count

    def swap(network):
        network.alphas_normal[3, SEP3], network.alphas_normal[3, SEP5] = (
            network.alphas_normal[3, SEP5].clone(),
            network.alphas_normal[3, SEP3].clone(),
        )

    assert watched(method, network, [keep] * 20) == 10
    again = paper_method("darts-plus", method_options={"rule": "ranking"})
    assert watched(again, network_of(again), [keep] * 4 + [swap] + [keep] * 20) == 14


@pytest.mark.parametrize(("rule", "stop"), [("ranking", 14 + 10), ("skips", 14)])
def test_alphas_that_wait_stop_nothing(rule, stop):
    method = paper_method("darts-plus", method_options={"rule": rule}, epochs=28, alpha_warmup=0.5)
    assert watched(method, network_of(method), [set_ops("normal", [SKIP] * 4)] * 28) == stop


@pytest.mark.parametrize("layers", [1, 2])
def test_alphas_without_a_cell_have_no_curvature(layers):
    """The first two cells are reduction cells then."""
    state = tiny_state("robustdarts", order=1, layers=layers)
    assert finish_epoch(state)["method"]["eigenvalue"] > 0


def test_the_mean_of_eigenvalues_is_centred():
    assert smoothed([1, 2, 3, 4, 5, 6]) == [2, 2.5, 3, 4, 4.5, 5]


@pytest.mark.parametrize("rise", [20, 18])
def test_a_rise_by_a_third_stops_with_the_cells_before_it(monkeypatch, rise):
    """Measurements 1, from `rise` on 2: epoch 18's mean is 1.3 times that of epoch 10, the first that may be taken."""
    method = paper_method("robustdarts")
    network = network_of(method)
    monkeypatch.setattr(type(method), "eigenvalue", lambda self, state: 2.0 if self.epoch >= rise else 1.0)
    seen = {}

    def change(network):
        network.alphas_normal.normal_()
        seen[method.epoch] = method.genotype(network)

    assert watched(method, network, [change] * 50) == 22
    assert method.result(SimpleNamespace(network=network)) == seen[10]
    assert "epoch 11" in method.stopped


def test_simulating_goes_on(monkeypatch):
    method = paper_method("robustdarts", method_options={"early_stop": "simulate"})
    network = network_of(method)
    monkeypatch.setattr(type(method), "eigenvalue", lambda self, state: 2.0 if self.epoch >= 20 else 1.0)
    assert watched(method, network, [lambda network: None] * 30) is None
    assert method.metrics(network)["stop_epoch"] == 23


ADAPT = {"early_stop": "adapt", "every": 1, "first": 0}


def rising(monkeypatch):
    """Measurements 1, from epoch 7 on 2 as long as the regularisation is the first one: epoch 8 shows the rise, and
    epoch 2 is the one before it."""
    eigenvalue = lambda self, state: 2.0 if self.epoch >= 7 and self._level == self._first_level() else 1.0  # noqa: E731
    monkeypatch.setattr(find("robustdarts"), "eigenvalue", eigenvalue)


def adapting(**fields):
    return tiny_state("robustdarts", **({"method_options": ADAPT, "space": "s2", "order": 1, "epochs": 11} | fields))


def test_adapting_goes_back_before_the_rise_and_decays_more(monkeypatch):
    rising(monkeypatch)
    state = adapting()
    weights, decays, epochs = [], [], []
    while state.epoch < state.config.epochs:
        epochs.append(finish_epoch(state))
        weights.append({name: tensor.clone() for name, tensor in state.network.state_dict().items()})
        decays.append(state.w_optimizer.param_groups[0]["weight_decay"])
    assert [metrics["epoch"] for metrics in epochs] == [*range(9), *range(3, 11)]
    assert [metrics["epoch"] for metrics in state.metrics] == [*range(9), *range(3, 11)]
    assert all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[8].items())
    assert any(not torch.equal(tensor, weights[3][name]) for name, tensor in weights[9].items())
    assert decays[:9] == [3e-4] * 9
    assert decays[9:] == pytest.approx([3e-3] * 8)
    assert state.architect.w_weight_decay == decays[-1]
    assert [m["method"].get("back_to_epoch") for m in epochs] == [None] * 8 + [3] + [None] * 8
    assert len(state.history) == 12
    assert state.method.stopped is None
    assert state.method.result(state) == state.method.genotype(state.network)


def test_adapting_ends_at_the_strongest(monkeypatch):
    """Every measurement is 1.2 times the one before: a rise whenever there are enough of them."""
    monkeypatch.setattr(find("robustdarts"), "eigenvalue", lambda self, state: 1.2**self.epoch)
    state = adapting(space="s3", method_options=ADAPT | {"strongest": 0.02}, epochs=9)
    epochs = [metrics["epoch"] for metrics in finish(state)]
    # Seven measurements from the one that was gone back to, and none before it: 3e-4, 3e-3, 0.02 and on to the end.
    assert epochs == [*range(7), *range(1, 7), *range(1, 9)]
    assert state.method.weight_decay() == 0.02


@pytest.mark.parametrize("killed_after", [7, 9])
def test_adapting_resumes_bit_for_bit(monkeypatch, tmp_path, killed_after):
    """Killed before it goes back, when the state to go back to comes from the checkpoint; and after."""
    torch.use_deterministic_algorithms(True)
    rising(monkeypatch)
    whole, resumed = adapting(), adapting()
    for _ in range(killed_after):
        finish_epoch(whole)
    whole.read()
    checkpoint.save(tmp_path / "checkpoint.pt", whole.kind, whole.state_dict())
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt", resumed.kind))
    assert finish(resumed) == finish(whole)
    theirs = whole.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.network.state_dict().items())
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.network.alphas.values(), whole.network.alphas.values(), strict=True)
    )


def test_drop_path_grows_instead_and_cutout_with_the_epochs(monkeypatch):
    rising(monkeypatch)
    options = ADAPT | {"strengthen": "drop-path", "drop_path": 0.1, "growth": 3, "strongest": 0.5}
    state = adapting(method_options=options, cutout=4)
    shares = []
    while state.epoch < state.config.epochs:
        shares.append((state.augment.cutout_share, state.method.drop_path()))
        finish_epoch(state)
    ramp = [*range(9), *range(3, 11)]
    assert [share for share, _ in shares] == pytest.approx([epoch / 10 for epoch in ramp])
    rates = [0.1 * epoch / 10 for epoch in ramp[:9]] + [0.3 * epoch / 10 for epoch in ramp[9:]]
    assert [rate for _, rate in shares] == pytest.approx(rates)
    assert state.w_optimizer.param_groups[0]["weight_decay"] == 3e-4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"weight_decay": 0.0}, "weight_decay must be above 0 and below strongest = 0.03 to grow; got 0.0"),
        ({"weight_decay": 0.1}, "weight_decay must be above 0 and below strongest"),
        ({"method_options": ADAPT | {"strengthen": "drop-path"}}, "drop_path must be above 0"),
        (
            {"method_options": ADAPT | {"strengthen": "drop-path", "drop_path": 0.1, "strongest": 1.0}},
            "strongest must be below 1 for drop_path",
        ),
    ],
)
def test_what_cannot_grow_is_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        adapting(**fields)


def test_largest_eigenvalue_of_a_known_matrix():
    a = torch.randn(40, 40, dtype=torch.float64)
    matrix = a + a.T
    true = float(torch.linalg.eigvalsh(matrix)[-1])
    found = largest_eigenvalue(lambda v: matrix @ v, torch.randn(40, dtype=torch.float64), 40)
    assert found == pytest.approx(true, rel=1e-4)
    shifted = largest_eigenvalue(lambda v: matrix @ v + 1e-3 * v, torch.ones(40, dtype=torch.float64), 40, 0.0)
    exact = largest_eigenvalue(lambda v: matrix @ v, torch.ones(40, dtype=torch.float64), 40, 0.0)
    assert shifted - exact == pytest.approx(1e-3, abs=1e-9)
    twice = torch.eye(5, dtype=torch.float64)
    assert largest_eigenvalue(lambda v: twice @ v, torch.ones(5, dtype=torch.float64), 5) == pytest.approx(1)


def test_the_eigenvalue_of_a_search_is_that_of_the_dense_hessian():
    torch.set_default_dtype(torch.float64)
    options = {"images": 4, "iterations": 60}
    state = tiny_state("robustdarts", space="s2", method_options=options, arch_weight_decay=0.25)
    normalise = state.augment.normalise
    state.augment.normalise = lambda images: normalise(images).double()
    statistics = [buffer.clone() for buffer in state.network.buffers()]
    ours = state.method.eigenvalue(state)
    assert all(torch.equal(a, b) for a, b in zip(statistics, state.network.buffers(), strict=True))
    part = state.validation.subset(torch.arange(4))
    images = state.augment.normalise(part.images)
    alphas = list(state.network.alphas.values())

    def gradient():
        loss, _ = state.architect.forward((images, part.targets))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, alphas, create_graph=True)])

    g = gradient()
    rows = [torch.cat([r.flatten() for r in torch.autograd.grad(one, alphas, retain_graph=True)]) for one in g]
    hessian = torch.stack(rows)
    true = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]) + 0.25
    assert ours == pytest.approx(true, rel=1e-4)


def test_spaces():
    state = tiny_state("robustdarts", space="s1")
    network = state.network
    assert {group: tuple(a.shape) for group, a in network.alphas.items()} == {"normal": (14, 2), "reduce": (14, 2)}
    normal, reduce = (network.groups[name].ops for name in ("normal", "reduce"))
    assert normal[5] == ("max_pool_3x3", "skip_connect")
    assert reduce[6] == ("max_pool_3x3", "sep_conv_3x3")
    assert reduce[13] == ("skip_connect", "dil_conv_5x5")
    state.train_step()
    assert isinstance(state.method.genotype(network).validated(), Genotype)
    assert state.alphas()["normal"].isfinite().sum() == 28


def test_noise_does_not_see_its_input():
    state = tiny_state("darts", space="s4", order=1)
    noise = state.network.cells[0].edges()[0]._ops[0]
    x = torch.full((50, 4, 9, 9), 7.0, requires_grad=True)
    y = noise(x)
    n = y.numel()
    assert abs(float(y.mean())) <= 4 / n**0.5
    assert abs(float(y.var()) - 1) <= 4 * (2 / n) ** 0.5
    assert not y.requires_grad
    state.train_step()


def test_drop_path_drops_whole_samples():
    state = tiny_state("robustdarts", order=1, method_options={"drop_path": 0.6, "early_stop": "off"})
    state.method.begin_epoch(1)
    assert state.method.drop_path() == pytest.approx(0.3)
    cell = state.network.cells[0]
    cell.preprocess0 = cell.preprocess1 = torch.nn.Identity()
    cell.C_prev_prev = cell.C_prev = 4
    s0, s1 = torch.randn(2, 40, 4, 6, 6)
    weights = torch.zeros(14, 8)
    weights[0, SKIP] = 1  # node 2 is the first state, or 0
    state.network.train()
    mix = state.network.op_weights()["normal"]._replace(weights=weights)
    node = cell(s0, s1, *mix[:5])[:, :4]
    kept = (node != 0).flatten(1).any(1)
    assert 0 < kept.sum() < 40
    torch.testing.assert_close(node[kept], s0[kept] / 0.7)
    cell.eval()
    torch.testing.assert_close(cell(s0, s1, *mix[:5])[:, :4], s0)
    state.network.eval()
    assert state.network.op_weights()["normal"].drop_path is None
