"""Averaged SGD against torch's, and the rule that starts it."""

import copy

import pytest
import torch
from torch import nn

from fastdarts.bilevel.averaging import FlatASGD, stalls


def test_flat_asgd_is_torchs_under_a_rate_that_changes_each_step() -> None:
    ours = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    theirs = copy.deepcopy(ours)
    flat = FlatASGD(ours.parameters(), lr=0.3, weight_decay=1e-2)
    plain = torch.optim.ASGD(theirs.parameters(), lr=0.3, t0=0, lambd=0, weight_decay=1e-2)
    for step in range(9):
        x = torch.randn(5, 3, dtype=torch.float64)
        for network, optimizer in ((ours, flat), (theirs, plain)):
            optimizer.param_groups[0]["lr"] = 0.1 + 0.05 * step
            optimizer.zero_grad()
            (10 * network(x).square().sum()).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.25)
        plain.step()
        flat.step(max_norm=0.25)
        if step == 4:  # state dicts load in both directions
            saved = copy.deepcopy(flat.state_dict())
            flat.load_state_dict(copy.deepcopy(plain.state_dict()))
            plain.load_state_dict(saved)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
            torch.testing.assert_close(flat.state[a]["ax"], plain.state[b]["ax"], rtol=1e-13, atol=1e-15)
    raw = flat.flat.buffer.clone()
    with flat.averaged():
        assert torch.equal(flat.flat.buffer, flat.average)
        assert not torch.equal(raw, flat.average)
    assert torch.equal(flat.flat.buffer, raw)


def test_settings_without_support_are_named() -> None:
    layer = nn.Linear(2, 2)
    flat = FlatASGD(layer.parameters(), lr=0.1)
    other = torch.optim.ASGD(layer.parameters(), lr=0.1, lambd=0, t0=5)
    layer(torch.ones(1, 2)).sum().backward()
    other.step()
    with pytest.raises(ValueError, match="FlatASGD has t0 0; the state has 5"):
        flat.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="lr must be a number, at least 0; got -1"):
        FlatASGD(layer.parameters(), lr=-1)


def test_the_non_monotone_trigger() -> None:
    losses = [5, 4, 3, 2, 1, 1.5, 1.4, 1.3, 1.2, 1.1, 1.05]
    fired = [epoch for epoch in range(1, len(losses) + 1) if stalls(losses[:epoch], 5)]
    assert fired == [11]
    falling = [1 / epoch for epoch in range(1, 30)]
    assert not any(stalls(falling[:epoch], 5) for epoch in range(1, len(falling) + 1))
