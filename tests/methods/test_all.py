"""Every method: fused passes equal plain ones, a killed search goes on bit for bit."""

import math

import pytest
import torch
from tiny_method import finish, finish_epoch, tiny_state

from fastdarts import methods
from fastdarts.ops import operators
from fastdarts.runs import checkpoint
from fastdarts.spaces.registry import read_architecture

NEEDS_KERNELS = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float64) is not None,
    reason="needs fastdarts._C, which is not built",
)


@NEEDS_KERNELS
@pytest.mark.parametrize("name", methods.NAMES)
def test_steps_by_the_kernels_are_those_of_the_plain_modules(name):
    """In float64, from the same random numbers: losses, alphas, weights, running statistics."""
    torch.set_default_dtype(torch.float64)
    x, y = torch.randn(2, 6, 1, 6, 6), torch.randint(2, (2, 6))
    fused, plain = (tiny_state(name, alpha_warmup=0.0, backend=backend) for backend in ("fused", "reference"))
    if name == "p-darts":  # its last stage has dropout on skip connections
        for state in (fused, plain):
            torch.manual_seed(1)
            state.epoch = 2
            state._begin_epoch()
    for seed in range(2):
        results = []
        for state in (fused, plain):
            torch.manual_seed(seed)  # of faults, which come from the global generator
            results.append(state.search_step.step((x[0], y[0]), (x[1], y[1])))
        for field, ours, theirs in zip(results[0]._fields, *results, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True), field
    for ours, theirs in zip(fused.network.arch_parameters(), plain.network.arch_parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    theirs = plain.network.state_dict()
    for key, tensor in fused.network.state_dict().items():
        assert torch.allclose(tensor, theirs[key], rtol=1e-9, atol=1e-9), key


@pytest.mark.parametrize("name", methods.NAMES)
def test_a_killed_search_goes_on_bit_for_bit(tmp_path, name):
    """Killed in the second epoch. What a method adds to the metrics is JSON; what it finds can be read again."""
    torch.use_deterministic_algorithms(True)
    # P-DARTS takes ops away, OFA and DNA have spaces of their own, the others are as good with three ops.
    space = {} if name in ("p-darts", "ofa", "dna") else {"space": "s3"}
    whole = tiny_state(name, **space)
    epochs = [finish_epoch(whole)]
    if whole.method.stopped is None:
        whole.train_step()
    whole.read()
    checkpoint.save(tmp_path / "checkpoint.pt", whole.kind, whole.state_dict())
    epochs += finish(whole)
    result = whole.method.result(whole)

    resumed = tiny_state(name, **space)
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt", resumed.kind))
    assert finish(resumed) == epochs[1:]
    for ours, theirs in zip(resumed.network.arch_parameters(), whole.network.arch_parameters(), strict=True):
        assert torch.equal(ours, theirs)
    theirs = whole.network.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in resumed.network.state_dict().items())
    assert resumed.method.result(resumed) == result

    assert read_architecture(result.to_json()) == result
    for value in epochs[-1]["method"].values():
        numbers = value if isinstance(value, list) else [value]
        assert all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match=r"method must be one of darts.*got 'dart'"):
        tiny_state("dart")
    with pytest.raises(ValueError, match="cannot be imported"):
        tiny_state("nowhere:Nothing")
    with pytest.raises(ValueError, match="is not a subclass"):
        tiny_state("json:JSONDecoder")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"method": "gdas", "order": 2}, "no second order: its difference needs passes that use the same ops"),
        ({"method": "snas", "order": 2}, "no second order: its alphas do not look through a step"),
        ({"op_dropout": 0.1, "order": 2}, "op_dropout has no second order"),
        ({"method": "p-darts", "order": 2}, "skip_dropout has no second order"),
        ({"epochs": 6, "alpha_warmup": 0.95}, r"alpha_warmup must be below 0.9167 to leave one of 6 epochs.*got 0.95"),
        ({"method": "p-darts", "alpha_warmup": 0.6}, "to leave one of 1 epochs of a stage"),
        ({"method": "gdas", "method_options": {"tau": 1}}, "method_options sets 'tau', which is unknown"),
        ({"method": "gdas", "method_options": {"tau_max": 0}}, "method_options: tau_max must be above 0"),
        ({"method_options": {"tau": 1}}, r"method_options sets 'tau', which is unknown; the names are \(none\)"),
    ],
)
def test_what_has_no_meaning_is_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        tiny_state(**fields)


@pytest.mark.parametrize("name", methods.NAMES)
def test_a_trial_step_on_numbers_without_meaning_leaves_no_trace(name: str) -> None:
    """As where GPU kernels are only compiled."""
    state, untouched = (tiny_state(name) for _ in range(2))
    meant = state.architect.loss
    state.architect.loss = lambda outputs, targets: meant(outputs, targets) * math.nan
    state.trial_step(5)
    state.architect.loss = meant
    for searched in (state, untouched):
        torch.manual_seed(1)
        finish_epoch(searched)
    for ours, theirs in zip(state.network.parameters(), untouched.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(state.network.arch_parameters(), untouched.network.arch_parameters(), strict=True):
        assert torch.equal(ours, theirs)
