"""FTT-NAS: the mixed reward, the policy's gradient, the choice at the end; faults in searches of any method."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_method import finish, finish_epoch, tiny_state
from tiny_search import tiny_config, tiny_images

from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.methods import ftt_nas
from fastdarts.methods.reinforce import Measured, gates, policy_gradients
from fastdarts.search import search
from fastdarts.spaces.darts.genotype import DARTS_V1


def test_the_reward_mixes_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_state("ftt-nas").method.share == 0.5
    assert tiny_state("ftt-nas", faults="adsaf:0.08").method.share == 0.2
    state = tiny_state("ftt-nas", method_options={"reward_weight": 0.25})
    task, seen = state.architect.task, []

    def fake(architect: Any, batch: Any, mixes: Any) -> Measured:
        seen.append(task._only[0])
        return Measured(0.8 if task._only[0] == 0 else 0.4, torch.tensor(1.0 + task._only[0]))

    monkeypatch.setattr(ftt_nas, "measured", fake)
    found = state.method.rewarded_on(state.architect, None, {})
    assert seen == [0.0, 1.0]
    assert found.reward == pytest.approx(0.75 * 0.8 + 0.25 * 0.4)
    assert float(found.loss) == 1.0


def test_the_policy_gradient_is_that_of_the_sampled_log_probability() -> None:
    """With a temperature and an entropy bonus, by autograd in float64."""
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_()
    network: Any = SimpleNamespace(alphas={"a": alpha}, extra_alphas={})
    samples = [{"a": gates(torch.randint(4, (5,), generator=generator), alpha.detach())} for _ in range(3)]
    advantages = [0.5, -0.25, 0.125]
    log_p = (alpha / 5).log_softmax(1)
    loss = -sum(r * (log_p * s["a"].weights).sum() for r, s in zip(advantages, samples, strict=True)) / 3
    loss = loss + 0.01 * (log_p.exp() * log_p).sum()  # minus the entropy
    (expected,) = torch.autograd.grad(loss, alpha)
    (found,) = policy_gradients(network, samples, advantages, 5.0, 0.01)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_policy_learns_the_op_that_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward one op of each row; the policy finds it."""

    def fake(architect: Any, batch: Any, mixes: Any) -> Measured:
        share = torch.cat([mix.weights[:, 1] for mix in mixes.values()]).mean()
        return Measured(float(share), torch.tensor(0.0))

    monkeypatch.setattr(ftt_nas, "measured", fake)
    state = tiny_state("ftt-nas", space="s2", arch_lr=0.3, epochs=30, method_options={"networks": 8, "memory": 0.8})
    x, y = torch.zeros(2, 1, 6, 6), torch.tensor([0, 1])
    for _ in range(150):
        state.method.alpha_step(state.search_step, (x, y), (x, y), torch.tensor(0.1))
    scores = state.method.scores(state.network)
    assert min(float(score[:, 1].mean()) for score in scores.values()) > 0.8
    assert all(op == "sep_conv_3x3" for op, _ in state.method.genotype(state.network).normal)


def test_the_best_of_samples_is_found() -> None:
    state = tiny_state("ftt-nas", epochs=1)
    epoch = finish(state)[-1]
    assert set(epoch) >= {"fault_accuracy", "fault_loss"}
    before = state.method.generator.get_state()
    result = state.method.result(state)
    compared = state.method.compared
    assert 1 <= len(compared) <= 9
    best = max(compared, key=lambda one: one.score)
    assert next(one.score for one in compared if one.architecture == result) == best.score
    assert torch.equal(state.method.generator.get_state(), before)
    assert state.method.result(state) == result


@pytest.mark.parametrize("method", ["darts", "single-level", "gdas"])
def test_any_search_may_have_faults(method: str) -> None:
    state = tiny_state(method, faults="mibb:1e-2", order=1, epochs=2)
    epoch = finish_epoch(state)
    assert ("fault_accuracy" in epoch) == (method != "single-level" or state.validation is not None)
    assert state.search_step.cuda_graphs is False


def test_what_cannot_have_faults_is_refused() -> None:
    for fields, words in (
        ({"faults": "mibb:1e-4", "order": 2}, "faults have no second order"),
        ({"fault_weight": 0.3}, "fault_weight needs faults"),
        ({"faults": "mibb:x"}, "faults must be KIND:RATE"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_state("darts", **{"order": 1, **fields})
    with pytest.raises(ValueError, match="fault_weight needs faults"):
        EvalConfig(dataset="digits", fault_weight=0.5)


def test_reports_show_accuracy_against_the_rate_of_faults(tmp_path: Any) -> None:
    images = tiny_images()
    found = search(tiny_config(tmp_path / "s", faults="adsaf:0.1", epochs=1), images, images)
    curve = json.loads((tmp_path / "s" / "faults.json").read_text())
    assert curve["rates"] == [0.0, 0.01, 0.03, 0.1, 0.3, 1.0]
    assert curve["accuracies"][0] == found.metrics[-1]["valid_accuracy"]
    assert curve["accuracies"][3] == found.metrics[-1]["fault_accuracy"]
    config = EvalConfig(
        dataset="custom", out=tmp_path / "e", device="cpu", epochs=1, init_channels=2, layers=1, batch_size=12,
        auxiliary=False, crop_padding=0, faults="mibb:0.01", fault_weight=0.5,
    )  # fmt: skip
    result = evaluate(DARTS_V1, config, images, images)
    assert result.faults is not None
    assert result.faults.accuracies[0] == pytest.approx(result.test_accuracy)
    assert str(result.faults).startswith("mibb, accuracy ")
    for folder in ("s", "e"):
        page = (tmp_path / folder / "report.html").read_text()
        assert "Accuracy under faults" in page
        assert ">fault rate</text>" in page
    tested = evaluate(DARTS_V1, EvalConfig(
        dataset="custom", device="cpu", init_channels=2, layers=1, batch_size=12, auxiliary=False, test_only=True,
        checkpoint=tmp_path / "e" / "checkpoint.pt", faults="mibb:0.01",
    ), images, images)  # fmt: skip
    assert tested.faults == result.faults
