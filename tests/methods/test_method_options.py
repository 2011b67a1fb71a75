"""Options that go with any method: delayed alphas, dropout of ops, pruning, the limit of skips; the method's own."""

import json

import pytest
import torch
from tiny_method import finish, finish_epoch, network_of, paper_method, tiny_state

from fastdarts.config.command_line import parse_cli
from fastdarts.methods.masks import GroupDropout, prune
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.runs.search_config import SearchConfig
from fastdarts.spaces.darts.derivation import skips
from fastdarts.spaces.group import Group

WITH_WEIGHTS = torch.tensor([name.startswith(("sep", "dil")) for name in PRIMITIVES])


def test_alphas_wait_for_their_share_of_the_epochs():
    state = tiny_state("darts", order=1, alpha_warmup=0.34)
    before = [alpha.clone() for alpha in state.network.alphas.values()]
    finish_epoch(state)
    assert all(torch.equal(a, b) for a, b in zip(before, state.network.alphas.values(), strict=True))
    assert not state.architect.optimizer.state
    state.train_step()
    assert not any(torch.equal(a, b) for a, b in zip(before, state.network.alphas.values(), strict=True))


def test_dropout_by_groups():
    """DropNAS' default: each op goes with 3e-5^(1/4) = 0.074; a bit less, as one of each group stays."""
    dropout = GroupDropout(3e-5, torch.Generator().manual_seed(0), competes=True)
    rows = 4000
    stays = dropout.survivors("normal", Group("normal cell", (PRIMITIVES,) * rows), None)
    assert pytest.approx(0.07401, abs=1e-5) == 3e-5**0.25
    assert stays[:, WITH_WEIGHTS].any(1).all()
    assert stays[:, ~WITH_WEIGHTS].any(1).all()
    share = float((~stays).double().mean())
    assert abs(share - 0.07401) <= 4 * (0.074 * 0.926 / (8 * rows)) ** 0.5 + 3e-5


def test_survivors_share_and_the_dropped_neither_gain_nor_lose():
    method = paper_method("single-level", op_dropout=0.1)
    network = network_of(method)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha.normal_()
    network.train()
    mixes = network.op_weights()
    for mix in mixes.values():
        torch.testing.assert_close(mix.weights.sum(1), torch.ones(14, dtype=torch.float64))
        assert [(row != 0).nonzero().flatten().tolist() for row in mix.weights] == list(mix.active)
    before = {group: alpha.detach().clone() for group, alpha in network.alphas.items()}
    method.dropout.before_alpha_step(network)
    with torch.no_grad():
        for group, alpha in network.alphas.items():
            alpha += torch.randn_like(alpha) * (mixes[group].weights != 0)
    method.dropout.after_alpha_step(network)
    for group, alpha in network.alphas.items():
        old, stays = before[group], mixes[group].weights != 0
        mass, old_mass = ((a.detach().softmax(-1) * stays).sum(1) for a in (alpha, old))
        torch.testing.assert_close(mass, old_mass, rtol=0, atol=1e-6)
        assert torch.equal(alpha[~stays], old[~stays])
    network.eval()
    assert network.op_weights()["normal"].active is None


def test_dropped_ops_stay_as_they_are():
    state = tiny_state("single-level", op_dropout=0.3, weight_decay=0.1)
    before = {name: p.clone() for name, p in state.network.named_parameters()}
    state.train_step()
    same = [name for name, p in state.network.named_parameters() if torch.equal(before[name], p)]
    assert 0 < len(same) < len(before)
    assert all("_ops" in name for name in same)


@pytest.mark.parametrize("name", ["single-level", "fairdarts", "daas"])
def test_dropped_ops_keep_their_alphas(name):
    """Adam alone would decay them, and move them by what it remembers."""
    state = tiny_state(name, op_dropout=0.3, alpha_warmup=0.0, arch_weight_decay=0.1)
    state.train_step()
    before = [alpha.detach().clone() for alpha in state.network.alphas.values()]
    survivors = []
    draw = state.method.dropout.survivors
    state.method.dropout.survivors = lambda *args: survivors.append(draw(*args)) or survivors[-1]
    asked = []
    after = state.method.dropout.after_alpha_step
    state.method.dropout.after_alpha_step = lambda network: asked.extend(survivors[-2:]) or after(network)
    state.train_step()
    for alpha, old, stays in zip(state.network.alphas.values(), before, asked, strict=True):
        assert 0 < int((~stays).sum()) < stays.numel()
        assert torch.equal(alpha[~stays], old[~stays])
        assert not torch.equal(alpha[stays], old[stays])


def test_dropout_moves_sigmoids_one_by_one():
    method = paper_method("fairdarts", op_dropout=0.1)
    network = network_of(method)
    network.train()
    active = network.op_weights()["normal"].active[0]
    method.dropout.before_alpha_step(network)
    with torch.no_grad():
        network.alphas_normal[0, active[0]] += 1
    method.dropout.after_alpha_step(network)
    assert network.alphas_normal[0].tolist() == [float(column == active[0]) for column in range(7)]


def test_dropout_bears_alphas_far_apart():
    method = paper_method("single-level", op_dropout=0.3)
    network = network_of(method).float()
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha[:, 4] = 100
    network.train()
    for _ in range(20):
        network.op_weights()
        method.dropout.before_alpha_step(network)
        with torch.no_grad():
            for alpha in network.alphas.values():
                alpha += 0.01 * torch.randn_like(alpha)
        method.dropout.after_alpha_step(network)
    assert all(alpha.isfinite().all() for alpha in network.alphas.values())


def test_pruning_only_removes_and_keeps_one_op():
    cells = ("normal", "reduce")
    scores = dict.fromkeys(cells, torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.97, 0.01, 0.01, 0.01]]))
    names = ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")
    groups = dict.fromkeys(cells, Group("cell", (names,) * 2))
    kept = prune(None, scores, groups, 0.2)
    assert list(kept) == ["normal", "reduce"]
    assert kept["normal"].tolist() == [[True, False, True, False], [True, True, False, False]]
    again = prune(kept, dict.fromkeys(cells, torch.full((2, 4), 0.25)), groups, 0.2)
    assert torch.equal(again["normal"], kept["normal"])


@pytest.mark.parametrize("name", ["darts", "daas", "fairdarts", "gdas", "pc-darts"])
def test_pruned_ops_are_gone(name):
    limit = 0.9 if name == "fairdarts" else 0.2
    state = tiny_state(name, order=1, prune_below=limit, alpha_warmup=0.0)
    with torch.no_grad():
        for alpha in state.network.alphas.values():
            alpha.normal_()
    left = [finish_epoch(state)["method"].get("ops_left") for _ in range(2)]
    assert 28 <= left[1] <= left[0] <= 8 * 28
    assert left[1] < 7 * 28
    kept = state.method.kept["normal"]
    state.network.train()
    mix = state.network.op_weights()["normal"]
    columns = kept.shape[1]
    assert not mix.weights[:, :columns][~kept].any()
    for row, active in zip(kept.tolist(), mix.active, strict=True):
        assert all(row[column] for column in active if column < columns)
    gone = state.history[-1]["normal"].isinf().sum()
    assert gone == (~kept).sum()
    finish(state)
    assert not any(torch.isnan(alpha).any() for alpha in state.network.arch_parameters())


def test_at_most_so_many_skips():
    method = paper_method("darts", max_skips=1)
    network = network_of(method)
    with torch.no_grad():
        for alpha in network.alphas.values():
            alpha[:, PRIMITIVES.index("skip_connect")] = torch.linspace(1, 2, 14)
    genotype = method.genotype(network)
    assert skips(genotype.nodes("normal")) == 1
    assert skips(genotype.nodes("reduce")) == 8


@pytest.mark.parametrize("name", ["pc-darts", "daas"])
def test_the_skip_of_least_op_weight_goes_whatever_its_edge_weighs(name):
    method = paper_method(name, max_skips=7)
    network = network_of(method)
    skip, sep = PRIMITIVES.index("skip_connect"), PRIMITIVES.index("sep_conv_3x3")
    with torch.no_grad():
        alphas, betas = network.alphas_normal, network.extra_alphas["betas_normal"]
        alphas.zero_()
        alphas[:, skip], alphas[9, skip], alphas[:, sep] = 3, 2, 1
        betas.zero_()
        betas[-5:-3] = torch.tensor([5.0, 4.0])  # of edges 9 and 10, the first two into the last node
    nodes = method.genotype(network).nodes("normal")
    assert sorted(nodes[3]) == [("sep_conv_3x3", 0), ("skip_connect", 1)]
    assert sum(map(len, nodes[:3])) == skips(nodes[:3]) == 6


def test_a_pruned_op_never_takes_the_place_of_a_skip():
    method = paper_method("darts", max_skips=1, prune_below=0.1)
    network = network_of(method)
    skip, sep = PRIMITIVES.index("skip_connect"), PRIMITIVES.index("sep_conv_3x3")
    kept = torch.zeros(14, 8, dtype=torch.bool)
    kept[:, skip] = True
    method.kept = {"normal": kept, "reduce": torch.ones_like(kept)}
    assert skips(method.genotype(network).nodes("normal")) == 8
    kept[9:, sep] = True  # edges into the last node
    cell = method.genotype(network).nodes("normal")
    assert [skips([node]) for node in cell] == [2, 2, 2, 0]
    assert {op for op, _ in cell[3]} == {"sep_conv_3x3"}


def test_random_cells_have_at_most_so_many_skips():
    state = tiny_state("random", space="s2", max_skips=0)
    finish(state)
    for genotype in (state.method.genotype(state.network), state.method.result(state)):
        assert skips(genotype.nodes("normal")) == 0


def test_options_of_a_method_on_the_command_line(tmp_path, capsys):
    argv = ["--method", "gdas", "--method-options", "tau_max=5", "tau-min=0.5"]
    config = parse_cli(SearchConfig, argv)
    assert config == SearchConfig(method="gdas", method_options={"tau_max": 5, "tau_min": 0.5})
    assert config.order == 1
    config.save(tmp_path / "config.json")
    again = parse_cli(SearchConfig, ["--config", str(tmp_path / "config.json"), "--method-options", "tau_max=7"])
    assert again.method_options == {"tau_max": 7.0, "tau_min": 0.5, "others": "nothing"}
    twice = ["--method", "gdas", "--method-options", "tau_max=5", "--method-options", "tau-min=0.5"]
    assert parse_cli(SearchConfig, twice) == config
    assert json.loads((tmp_path / "config.json").read_text())["method_options"] == config.method_options
    with pytest.raises(SystemExit):
        parse_cli(SearchConfig, ["--method", "gdas", "--help"])
    assert "tau_max=10.0: temperature in the first epoch" in capsys.readouterr().out


def test_papers_settings_hold_for_the_papers_images_only():
    assert SearchConfig(dataset="cifar10", method="pc-darts").lr == 0.1
    assert SearchConfig(method="pc-darts").lr == SearchConfig().lr
    assert SearchConfig(dataset="cifar10", method="pc-darts", lr=0.2).lr == 0.2
