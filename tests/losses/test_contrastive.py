import math

import numpy as np
import pytest
import torch

from gera_lightning.losses.contrastive import (
    CLIPLoss,
    SigLIPLoss,
    clip_loss,
    positives_of,
    siglip_loss,
)
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError

DTYPES = [torch.float32, torch.float64]
ITEMS = {
    "distinct": [0, 1, 2, 3, 4, 5],
    "one twice": [0, 1, 2, 1, 3, 4],
    "two and three": [7, 2, 7, 2, 5, 2],
    "all one": [3] * 6,
}


def logits_of(dtype=torch.float64, b=6, seed=0):
    return (
        4 * torch.randn(b, b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).to(dtype)


def positives(name):
    item = torch.tensor(ITEMS[name])
    return positives_of(item, item)


def slow_clip(s, items):
    """Rows, then columns, one softmax after the other."""
    n, total = len(s), 0.0
    for table in (s, s.T):
        for i in range(n):
            same = [j for j in range(n) if items[j] == items[i]]
            log_sum = math.log(sum(math.exp(v) for v in table[i]))
            total += sum(log_sum - table[i][j] for j in same) / len(same)
    return total / (2 * n)


def slow_siglip(s, items):
    n = len(s)
    return (
        sum(
            math.log(1 + math.exp(-(1 if items[i] == items[j] else -1) * s[i][j]))
            for i in range(n)
            for j in range(n)
        )
        / n
    )


def test_positives_are_the_rows_of_the_same_item():
    found = positives_of(torch.tensor([4, 9, 4]), torch.tensor([9, 4]))
    assert found.tolist() == [[False, True], [True, False], [False, True]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize(("loss", "slow"), [(clip_loss, slow_clip), (siglip_loss, slow_siglip)])
def test_losses_equal_slow_loops(loss, slow, items, dtype):
    value = loss(logits_of(dtype), positives(items))
    assert value.dtype == dtype
    assert float(value) == pytest.approx(
        slow(logits_of().numpy(), ITEMS[items]), rel=1e-5 if dtype == torch.float32 else 1e-12
    )


def test_with_one_positive_a_row_clip_is_the_published_cross_entropy():
    s, target = logits_of(), torch.arange(6)
    published = (
        torch.nn.functional.cross_entropy(s, target)
        + torch.nn.functional.cross_entropy(s.T, target)
    ) / 2
    torch.testing.assert_close(clip_loss(s, positives("distinct")), published)


@pytest.mark.parametrize("items", ITEMS)
def test_the_least_clip_loss_spreads_a_row_over_its_positives(items):
    """Cross-entropy against a uniform target is at least its entropy, reached where the positives
    stand equal and far above the rest.
    """
    same = positives(items)
    least = np.mean([math.log(ITEMS[items].count(i)) for i in ITEMS[items]])
    assert float(clip_loss(60.0 * same.double(), same)) == pytest.approx(least, abs=1e-9)
    assert float(clip_loss(logits_of(), same)) > least


def test_rows_of_the_same_item_are_never_negatives():
    """Raising a same-item pair's score raises neither loss where it stands below the others; as a
    negative it would.
    """
    s = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    for loss in (clip_loss, siglip_loss):
        (gradient,) = torch.autograd.grad(loss(s, positives("one twice")), s)
        assert gradient[1, 3] < 0
        assert gradient[3, 1] < 0
        assert gradient[0, 1] > 0


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
@pytest.mark.parametrize("items", ITEMS)
def test_losses_do_not_see_the_order_of_rows_or_which_side_is_which(loss, items):
    s, same = logits_of(), positives(items)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(loss(s[order][:, order], same[order][:, order]), loss(s, same))
    torch.testing.assert_close(loss(s.T, same.T), loss(s, same))


def test_clip_does_not_see_a_shift_of_all_scores():
    torch.testing.assert_close(
        clip_loss(logits_of() + 3, positives("one twice")),
        clip_loss(logits_of(), positives("one twice")),
    )


def test_equal_scores_cost_as_much_as_guessing():
    for name in ITEMS:
        assert float(clip_loss(torch.zeros(6, 6), positives(name))) == pytest.approx(math.log(6))
        assert float(siglip_loss(torch.zeros(6, 6), positives(name))) == pytest.approx(
            6 * math.log(2)
        )


@pytest.mark.parametrize("items", ["distinct", "two and three"])
@pytest.mark.parametrize("make", [CLIPLoss, SigLIPLoss])
def test_gradients_equal_finite_differences(make, items):
    loss = make(0.5).double()
    z_a, z_b = (
        normalized(
            torch.randn(6, 4, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        )
        for s in (0, 1)
    )
    for leaf in (z_a, z_b):
        leaf.requires_grad_()
    torch.autograd.gradcheck(
        lambda a, b, *_: loss(a, b, positives(items)), (z_a, z_b, *loss.parameters())
    )


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_large_scores_stay_finite(loss):
    s = (1e4 * logits_of(torch.float32)).requires_grad_()
    value = loss(s, positives("one twice"))
    (gradient,) = torch.autograd.grad(value, s)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_modules_scale_and_bias_the_cosines():
    z_a, z_b = (
        normalized(torch.randn(6, 4, generator=torch.Generator().manual_seed(s))) for s in (0, 1)
    )
    same = positives("one twice")
    torch.testing.assert_close(CLIPLoss(0.07)(z_a, z_b, same), clip_loss(z_a @ z_b.T / 0.07, same))
    torch.testing.assert_close(
        SigLIPLoss(20.0, -8.0)(z_a, z_b, same), siglip_loss(20 * z_a @ z_b.T - 8, same)
    )


@pytest.mark.parametrize(("make", "start"), [(CLIPLoss, 0.001), (SigLIPLoss, 1000.0)])
def test_the_scale_is_clamped(make, start):
    assert make(start).scale.item() == 100.0
    assert make(start, max_scale=30.0).scale.item() == 30.0


@pytest.mark.parametrize(
    ("make", "names"), [(CLIPLoss, ["log_scale"]), (SigLIPLoss, ["bias", "log_scale"])]
)
def test_scale_and_bias_are_learned_unless_fixed(make, names):
    assert sorted(n for n, p in make().named_parameters() if p.requires_grad) == names
    assert not [n for n, p in make(learned=False).named_parameters() if p.requires_grad]
    assert make().scale.item() == pytest.approx(1 / 0.07 if make is CLIPLoss else 10.0, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_impossible_scales_are_refused(value):
    with pytest.raises(UserError, match="temperature="):
        CLIPLoss(value)
    with pytest.raises(UserError, match="scale="):
        SigLIPLoss(value)
