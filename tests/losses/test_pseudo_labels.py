import math

import numpy as np
import ot
import pytest
import torch

from gera_lightning.losses.base import Projected, StepBatch
from gera_lightning.losses.pseudo_labels import CaptionLoss, caption_loss, pseudo_labels
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError

B, N_A, N_B = 6, 9, 7


def rows(n, seed=0, d=4):
    return normalized(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def make_step(scale=5.0):
    names = {"pairs_a": B, "pairs_b": B, "unpaired_a": N_A, "unpaired_b": N_B}
    mapped = {
        name: Projected(torch.zeros(n, 2), rows(n, seed))
        for seed, (name, n) in enumerate(names.items())
    }
    return StepBatch(
        **mapped,
        positives=torch.eye(B),
        scale=None if scale is None else torch.tensor(scale, dtype=torch.float64),
    )


def published_labels(unpaired, paired, reg, iterations):
    """As the published code does it: POT's Sinkhorn, rows normalised."""
    n, b = len(unpaired), len(paired)
    plan = ot.bregman.sinkhorn(
        np.full(n, 1 / n),
        np.full(b, 1 / b),
        1 - unpaired @ paired.T,
        reg=reg,
        numItermax=iterations,
        stopThr=0,
        warn=False,
    )
    return plan / plan.sum(1, keepdims=True)


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_labels_are_those_of_the_published_code(eps):
    unpaired, paired = rows(N_A, 1), rows(B, 2)
    expected = published_labels(unpaired.numpy(), paired.numpy(), eps, 4000)
    np.testing.assert_allclose(
        pseudo_labels(unpaired, paired, eps, 4000).numpy(), expected, atol=1e-9
    )


@pytest.mark.parametrize("iterations", [1, 10])
def test_labels_of_a_row_sum_to_one(iterations):
    labels = pseudo_labels(rows(N_A, 1), rows(B, 2), 0.05, iterations)
    torch.testing.assert_close(labels.sum(1), torch.ones(N_A, dtype=torch.float64))
    assert labels.min() >= 0


def test_each_pair_is_used_alike():
    """The marginal of the pairs; nearest neighbours alone would take some pairs often and some
    never.
    """
    unpaired, paired = rows(40, 1), rows(B, 2)
    labels = pseudo_labels(unpaired, paired, 0.1, 3000)
    torch.testing.assert_close(
        labels.sum(0), torch.full((B,), 40 / B, dtype=torch.float64), rtol=1e-6, atol=0
    )
    nearest = (unpaired @ paired.T / 0.1).softmax(1).sum(0)
    assert float(nearest.max() / nearest.min()) > 1.5


def test_copies_of_the_pairs_take_the_partners_as_labels():
    paired = torch.eye(B, dtype=torch.float64)
    torch.testing.assert_close(pseudo_labels(paired.flip(0), paired, 0.01), paired.flip(0))


def test_the_loss_equals_a_slow_loop():
    logits, labels = 3 * rows(N_A, 1, B), rows(N_A, 2, B).square()
    total = 0.0
    for s, q in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in s))
        total += sum(w * (log_sum - v) for w, v in zip(q, s, strict=True))
    assert float(caption_loss(logits, labels)) == pytest.approx(total / N_A)


@pytest.mark.parametrize("eps", [None, 0.3])
def test_the_module_draws_unpaired_rows_to_the_other_modalitys_pairs(eps):
    step, scale = make_step(), 5.0
    each = {}
    for side, other in ("ab", "ba"):
        u, own, far = (
            getattr(step, name).z
            for name in (f"unpaired_{side}", f"pairs_{side}", f"pairs_{other}")
        )
        labels = published_labels(u.numpy(), own.numpy(), eps or 1 / scale, 2000)
        log_p = torch.log_softmax(scale * u @ far.T, 1).numpy()
        each[side] = -(labels * log_p).sum(1).mean() / 2
        assert float(CaptionLoss(side, eps, 2000).on_step(step)) == pytest.approx(
            each[side], rel=1e-6
        )
    assert float(CaptionLoss("both", eps, 2000).on_step(step)) == pytest.approx(
        sum(each.values()), rel=1e-6
    )


def test_no_gradient_flows_through_the_labels_but_the_scale_learns():
    step = make_step()
    z = {
        name: getattr(step, name).z.requires_grad_()
        for name in ("pairs_a", "pairs_b", "unpaired_a", "unpaired_b")
    }
    step.scale.requires_grad_()
    CaptionLoss("a").on_step(step).backward()
    assert z["pairs_a"].grad is None  # the labels alone come from them
    assert z["unpaired_b"].grad is None
    labels = pseudo_labels(z["unpaired_a"], z["pairs_a"], 1 / 5.0).numpy()
    p = torch.softmax(5.0 * z["unpaired_a"] @ z["pairs_b"].T, 1).detach().numpy()
    slope = (p - labels) / N_A / 2  # the derivative of soft cross-entropy in its logits
    np.testing.assert_allclose(
        z["unpaired_a"].grad.numpy(), 5.0 * slope @ z["pairs_b"].detach().numpy(), atol=1e-12
    )
    assert float(step.scale.grad) == pytest.approx(
        float((slope * (z["unpaired_a"] @ z["pairs_b"].T).detach().numpy()).sum())
    )


def test_a_pair_loss_without_a_scale_is_refused():
    with pytest.raises(UserError, match="a temperature"):
        CaptionLoss().on_step(make_step(None))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sides": "bot"}, ["sides='bot'", "did you mean 'both'"]),
        ({"eps": 0.0}, ["eps=0.0", "above 0"]),
        ({"iterations": 0}, ["iterations=0", "at least 1"]),
    ],
)
def test_a_mistake_names_key_value_and_remedy(settings, words):
    with pytest.raises(UserError) as caught:
        CaptionLoss(**settings)
    assert all(word in str(caught.value) for word in words), caught.value
