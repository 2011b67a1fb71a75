"""DNA: what stages learn, how their paths are scored and combined, teachers."""

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_method import OPTIONS, finish, tiny_state
from tiny_search import tiny_config, tiny_images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastdarts.bilevel.statistics import average_statistics
from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.methods import dna, teachers, traversal
from fastdarts.methods.dna import relative_distance, relative_error
from fastdarts.methods.scored import best_within
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.search_state import SearchState
from fastdarts.search import search
from fastdarts.spaces.cost_model import CostModel


class Small(nn.Module):
    """A teacher of two maps, of colour images, with random numbers and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.Dropout(0.5))
        self.second = nn.Conv2d(5, 7, 3, padding=1)
        self.fc = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.second(self.first(x)).mean((2, 3)))
        return logits


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return options of a search with a small teacher for six stages."""
    monkeypatch.setattr(teachers, "_OWN", {"small": Small})
    return OPTIONS["dna"] | {"teacher": "small", "cuts": "first.0, first.1, first.2, first, second, second"}


def state_with(**fields: Any) -> SearchState:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    return tiny_state("dna", **fields)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(6) % 2


@pytest.mark.parametrize("error", [relative_error, relative_distance])
def test_errors_do_not_change_with_a_common_scale(error: Any) -> None:
    found, wanted = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(error(7 * found, 7 * wanted), error(found, wanted), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        relative_error(wanted.mean().expand_as(wanted), wanted), torch.ones_like(wanted[0, 0, 0, 0])
    )


def test_each_stage_learns_from_the_teachers_maps_alone() -> None:
    """A step's gradients are those of separate passes: stage i from map i - 1 to map i, the classifier from labels."""
    state = state_with(layers=2)
    method, network = state.method, state.network
    x, targets = batch()
    maps = method.teacher.maps(x)
    generator = copy.deepcopy(method.generator)
    found = method.weight_gradients(state.search_step, (x, targets))
    mix = network.mixes_of(network.random(generator))["layers"]
    start, begun, expected = 0, network.begin(x), {}
    for stage, layers in enumerate(network.stages()):
        y = begun
        for layer in layers:
            y = layer(y, mix.weights[start], mix.active[start])
            start += 1
        wanted = nn.functional.adaptive_avg_pool2d(maps[stage], y.shape[2:])
        loss = (y - wanted).square().mean() / wanted.var(correction=0)
        weights = [*nn.ModuleList(layers).parameters(), *(network.parameters() if stage == 0 else ())]
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if gradient is not None:
                expected[id(weight)] = gradient
        begun = wanted
    logits = network.classifier(network.head(begun).mean((2, 3)))
    own = [*network.head.parameters(), *network.classifier.parameters()]
    loss = cross_entropy(logits, targets)
    expected |= dict(zip(map(id, own), torch.autograd.grad(loss, own), strict=True))
    torch.testing.assert_close(found.loss, loss)
    for weight, gradient in zip(state.architect.flat.weights, found.gradients, strict=True):
        assert (gradient is None) == (id(weight) not in expected)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[id(weight)], rtol=1e-9, atol=1e-12)


def test_a_stage_learns_its_map(own: dict[str, Any]) -> None:
    """On one batch again and again, one path: the errors of all stages fall below a third."""
    state = state_with(primitives=("k3 e3",), method_options=own | {"smallest": 8})
    for group in state.w_optimizer.param_groups:
        group["lr"] = 0.02
    errors = []
    for _ in range(60):
        state.search_step.step(batch(), batch())
        errors.append(state.method._errors)
    assert (errors[-1] < errors[0] / 3).all()


def test_paths_are_scored_as_one_by_one() -> None:
    """Against each path by itself: batch norms averaged over training inputs, then eval mode."""
    state = state_with(layers=2)
    layers = state.network.stages()[1]
    generator = torch.Generator().manual_seed(0)
    shape = (5, state.method.teacher.widths[0], 6, 6)
    seen, valid, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    wanted = [torch.randn(5, state.method.teacher.widths[1], 3, 3, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        sizes = layers[1](layers[0](valid, torch.ones(2), [0]), torch.ones(2), [0]).shape[2:]
        wanted = [dna.at_sides(one, sizes) for one in wanted]
        found = dna.path_errors(layers, [seen], [valid, other], wanted)
        expected = []
        for path in product(range(2), range(2)):
            copies = nn.ModuleList(copy.deepcopy(layers))

            def run(x: Tensor, copies: nn.ModuleList = copies, path: tuple[int, ...] = path) -> Tensor:
                for layer, column in zip(copies, path, strict=True):
                    x = layer(x, torch.ones(2), [column])
                return x

            average_statistics(copies, lambda part, run=run: run(part[0]), [(seen,)])
            copies.eval()
            errors = [relative_distance(run(x), target) for x, target in zip((valid, other), wanted, strict=True)]
            expected.append(float(sum(errors) / 2))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_combination_is_that_of_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stages = [torch.rand(count, 2, generator=generator, dtype=torch.float64).tolist() for count in (6, 9, 1, 8, 5)]
    stages[1][3] = stages[1][4]  # a tie
    combinations = [(sum(e for e, _ in paths), sum(c for _, c in paths)) for paths in product(*stages)]
    found = traversal.front(stages)
    for one in found:
        chosen = [stage[at] for stage, at in zip(stages, one.paths, strict=True)]
        assert (one.error, one.cost) == pytest.approx((sum(e for e, _ in chosen), sum(c for _, c in chosen)))
    for limit in torch.linspace(min(c for _, c in combinations) + 1e-9, 5, 20, dtype=torch.float64).tolist():
        best = min(error for error, cost in combinations if cost <= limit)
        assert min(one.error for one in found if one.cost <= limit) == pytest.approx(best, rel=1e-12)


def test_the_result_is_the_best_of_all_networks_within_the_cost() -> None:
    """All 64 networks of a chain of six layers with two blocks each, by the sum of their errors."""
    state = state_with(cost="flops", layers=1)
    assert state.costs is not None
    network = state.network
    errors = torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    found = dna.combined(network, errors, state.costs)
    names = [layer.primitives for layer in network.layers]
    known = []
    for path in product(range(2), repeat=6):
        architecture = network.architecture([row[column] for row, column in zip(names, path, strict=True)])
        error = sum(errors[stage][column] for stage, column in enumerate(path))
        known.append((error, state.costs.of(network, architecture), architecture))
    for limit in sorted(cost for _, cost, _ in known)[::7]:
        best = min((one for one in known if one[1] <= limit), key=lambda one: one[0])
        assert best_within(found, limit + 1e-9).architecture == best[2]
    for one in found:
        assert one.cost == pytest.approx(state.costs.of(network, one.architecture))


def test_a_found_network_is_within_the_cost_and_has_the_spaces_widths() -> None:
    state = tiny_state("dna", cost="flops", epochs=1, cost_target=0.1)
    buffers = {name: buffer.clone() for name, buffer in state.network.named_buffers()}
    found = state.method.result(state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in state.network.named_buffers())
    assert state.costs is not None
    assert state.costs.of(state.network, found) <= 0.1
    assert found.widths == ()
    assert [one.cost for one in state.method.compared] == sorted(one.cost or 0 for one in state.method.compared)


def test_a_search_that_stops_within_an_epoch_goes_on_bit_for_bit() -> None:
    torch.use_deterministic_algorithms(True)
    whole = tiny_state("dna")
    whole.train_step()
    whole.read()
    saved = copy.deepcopy(whole.state_dict())
    epochs, found = finish(whole), whole.method.result(whole)
    resumed = tiny_state("dna")
    resumed.load_state_dict(saved)
    assert finish(resumed) == epochs
    assert resumed.method.result(resumed) == found
    assert len(epochs[-1]["method"]["errors"]) == 6


def test_a_teacher_stays_as_it_is() -> None:
    network = Small()
    before = copy.deepcopy(network.state_dict())
    taught = teachers.Teacher(network, ["first", "second"], 8)
    x = torch.rand(4, 1, 4, 8)
    torch.manual_seed(0)
    once = taught.maps(x)
    assert [list(shown.shape) for shown in once] == [[4, 5, 4, 8], [4, 7, 4, 8]]  # enlarged to 8x16
    assert all(torch.equal(a, b) for a, b in zip(once, taught.maps(x), strict=True))
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "num_batches" not in name)
    torch.testing.assert_close(once[0].mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)  # norms of the batch
    assert taught.widths == (5, 7)


def test_own_teachers_weights_and_random_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "_OWN", {})
    teachers.register_teacher("small", Small)
    with pytest.raises(ValueError, match="teacher 'resnet18' is known already"):
        teachers.register_teacher("resnet18", Small)
    state = torch.get_rng_state()
    one, other = (teachers.make_teacher("small", None, 3).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], other[name]) for name in one)
    torch.save(one, tmp_path / "small.pt")
    read = teachers.make_teacher("small", str(tmp_path / "small.pt"), 4).state_dict()
    assert all(torch.equal(one[name], read[name]) for name in one)
    five = teachers.make_teacher("squeezenet1_1", None, 0)
    trained = type(five)(version="1_1", num_classes=5)
    torch.save(trained.state_dict(), tmp_path / "five.pt")
    read = teachers.make_teacher("squeezenet1_1", str(tmp_path / "five.pt"), 0).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in trained.state_dict().items())
    with pytest.raises(FileNotFoundError):
        teachers.make_teacher("small", str(tmp_path / "none.pt"), 0)


def test_own_teachers_in_a_search_of_another_chain(own: dict[str, Any]) -> None:
    fields = {"space": "proxyless", "primitives": ("k3 e3", "k5 e3"), "epochs": 1}
    state = tiny_state("dna", **fields, method_options=own)
    finish(state)
    assert state.method.result(state).space == "proxyless"
    for cut, message in (
        ("last", "of the teacher; got 'last'; the outermost are first, second"),
        ("fc", "that put out maps"),
    ):
        options = own | {"cuts": f"first.0, first.1, first.2, first, second, {cut}"}
        with pytest.raises(ValueError, match=f"cuts must name modules {message}"):
            tiny_state("dna", **fields, method_options=options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": "darts"}, "method 'dna' needs stages, which space 'darts' does not have"),
        ({"space": "proxyless"}, "method 'dna' needs stages, which space 'proxyless' does not have"),
        ({"method_options": {"teacher": "resnet"}}, "teacher must be a classifier of torchvision.models.*got 'resnet'"),
        ({"method_options": {"teacher": "resnet18"}}, "cuts must name 6 modules .* of space 'dna'; got none"),
        ({"method_options": {"cuts": "features.1,features.2"}}, "cuts must name 6 .*got features.1, features.2"),
        ({"order": 2}, "has no second order"),
    ],
)
def test_what_has_no_meaning_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**({"method": "dna", "space": "dna"} | fields))


def test_costs_must_add_up() -> None:
    state = tiny_state("dna")
    regressor = CostModel("ms", {}, [], 0.0, {})
    with pytest.raises(ValueError, match="'dna' adds up the costs of layers"):
        state.method.takes_costs(state.network, regressor)


def test_a_search_is_resumed_and_its_network_trained_and_exported(tmp_path: Path, own: dict[str, Any]) -> None:
    options = own | {"smallest": 8}
    fields = {"space": "dna", "method": "dna", "method_options": options, "deterministic": True}
    whole = search(tiny_config(tmp_path / "whole", **fields), tiny_images())
    search(tiny_config(tmp_path / "parts", **fields), tiny_images(), callbacks=[lambda metrics, network: True])
    again = search(tiny_config(tmp_path / "parts", resume=True, **fields), tiny_images())
    assert again.genotype == whole.genotype
    assert [one["method"] for one in again.metrics] == [one["method"] for one in whole.metrics]
    listed = [json.loads((tmp_path / run / "candidates.json").read_text()) for run in ("whole", "parts")]
    assert listed[0] == listed[1]
    assert (tmp_path / "parts" / "report.html").is_file()
    shape = {
        "dataset": "custom",
        "space": "dna",
        "epochs": 1,
        "batch_size": 16,
        "init_channels": 4,
        "crop_padding": 1,
        "cutout": 0,
    }
    config = EvalConfig(**shape, device="cpu", out=tmp_path / "train", export=tmp_path / "net")
    trained = evaluate(whole.genotype, config, tiny_images(), tiny_images())
    assert trained.parameters == sum(weight.numel() for weight in trained.network.parameters())
    assert (tmp_path / "net.onnx").is_file()
