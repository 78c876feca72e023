import math

import numpy as np
import pytest
import torch

from gera_lightning.losses.base import UNPAIRED, Projected, StepBatch
from gera_lightning.losses.structure import (
    StructureLoss,
    jensen_shannon,
    similarity_distribution,
    structure_loss,
)
from gera_lightning.models.maps import normalized
from gera_lightning.utils.errors import UserError


def rows(n=7, d=5, seed=0, dtype=torch.float64):
    return normalized(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).to(dtype)


def slow_distribution(x, temperature):
    """Row by row: unit rows, less their mean, a softmax of each row's dot products."""
    x = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x]
    mean = [sum(row[k] for row in x) / len(x) for k in range(len(x[0]))]
    x = [[v - m for v, m in zip(row, mean, strict=True)] for row in x]
    out = []
    for one in x:
        weights = [
            math.exp(sum(u * v for u, v in zip(one, other, strict=True)) / temperature)
            for other in x
        ]
        out.append([w / sum(weights) for w in weights])
    return np.array(out)


def slow_structure(x, z, temperature, hops):
    p, q = slow_distribution(x, temperature), slow_distribution(z, temperature)
    total = 0.0
    for hop in range(1, hops + 1):
        p_l, q_l = np.linalg.matrix_power(p, hop), np.linalg.matrix_power(q, hop)
        each = []
        for one, other in zip(p_l, q_l, strict=True):
            middle = [(u + v) / 2 for u, v in zip(one, other, strict=True)]
            kl = [
                sum(u * math.log(u / m) for u, m in zip(d, middle, strict=True))
                for d in (one, other)
            ]
            each.append(sum(kl) / 2)
        total += sum(each) / len(each) / hop
    return total / hops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hops", [1, 2, 4])
@pytest.mark.parametrize("temperature", [0.05, 0.7])
def test_the_loss_equals_slow_loops(temperature, hops, dtype):
    x, z = 3 * rows(dtype=dtype), rows(d=3, seed=1, dtype=dtype)
    value = structure_loss(x, z, temperature, hops)
    assert value.dtype == dtype
    expected = slow_structure(x.double().tolist(), z.double().tolist(), temperature, hops)
    assert expected > 1e-3
    assert float(value) == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 1e-10)


def test_rows_of_every_hop_sum_to_one():
    p = similarity_distribution(rows(), 0.05)
    torch.testing.assert_close(
        torch.linalg.matrix_power(p, 3).sum(1), torch.ones(7, dtype=torch.float64)
    )


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_the_closed_form_of_rows_at_right_angles(temperature):
    p = similarity_distribution(torch.eye(50, dtype=torch.float64), temperature)
    own = 1 / (1 + 49 * math.exp(-1 / temperature))
    expected = torch.full((50, 50), (1 - own) / 49, dtype=torch.float64).fill_diagonal_(own)
    torch.testing.assert_close(p, expected)


def test_divergence_of_equal_and_of_disjoint_distributions():
    p = torch.tensor([[0.3, 0.7, 0.0, 0.0]], dtype=torch.float64)
    assert float(jensen_shannon(p, p)) == 0
    assert float(jensen_shannon(p, p.flip(1))) == pytest.approx(math.log(2))


def test_what_keeps_the_similarities_costs_nothing():
    x = rows()
    turn = torch.linalg.qr(rows(5, 5, 3))[0]
    assert float(structure_loss(x, x @ turn, hops=3)) == pytest.approx(0, abs=1e-12)
    assert float(structure_loss(x, 4 * x)) == pytest.approx(0, abs=1e-12)
    assert float(structure_loss(x, x.roll(1, 0), 0.5)) > 0.03  # another row's place does


def test_the_order_of_rows_does_not_matter():
    x, z, order = (
        rows(),
        rows(d=3, seed=1),
        torch.randperm(7, generator=torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(
        structure_loss(x[order], z[order], hops=2), structure_loss(x, z, hops=2)
    )


def test_gradients_are_those_of_finite_differences_and_of_the_mapped_side_alone():
    x, z = rows().requires_grad_(), rows(d=3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: structure_loss(x.detach(), t, hops=2), z)
    structure_loss(x, z).backward()
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_duplicates_and_a_collapsed_map_stay_finite(dtype):
    x = rows(dtype=dtype)[[0, 0, 0, 1, 2]]
    z = torch.ones(5, 3, dtype=dtype, requires_grad=True)
    value = structure_loss(x, normalized(z), 0.001)
    value.backward()
    assert 0 < float(value.detach()) <= math.log(2) + 1e-6
    assert z.grad.isfinite().all()


def step(number=0):
    x = {
        key: rows(n, d, seed)
        for seed, (key, n, d) in enumerate(
            (("pairs_a", 6, 5), ("pairs_b", 6, 4), ("unpaired_a", 7, 5), ("unpaired_b", 8, 4))
        )
    }
    return StepBatch(
        **{key: Projected(v, normalized(v[:, :3])) for key, v in x.items()},
        positives=torch.eye(6),
        step=number,
    )


def test_the_module_sums_both_modalities_of_the_rows_it_is_told_of():
    whole = step()
    for name, sides in (("unpaired", whole.unpaired), ("pairs", (whole.pairs_a, whole.pairs_b))):
        loss = StructureLoss(name, hops=2)
        assert loss.requires == ((UNPAIRED,) if name == "unpaired" else ())
        torch.testing.assert_close(
            loss.on_step(whole), sum(structure_loss(side.x, side.z, hops=2) for side in sides)
        )


def test_its_weight_grows_to_one():
    full = float(StructureLoss().on_step(step()))
    assert [
        float(StructureLoss(warmup=4).on_step(step(s))) / full for s in (0, 1, 3, 4, 100)
    ] == pytest.approx([0.25, 0.5, 1, 1, 1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": "unpared"}, ["unpared", "did you mean 'unpaired'"]),
        ({"temperature": 0}, ["temperature=0", "above 0"]),
        ({"hops": 0}, ["hops=0", "at least 1"]),
        ({"warmup": -1}, ["warmup=-1", "at least 0"]),
    ],
)
def test_a_mistake_names_key_value_and_remedy(settings, words):
    with pytest.raises(UserError) as caught:
        StructureLoss(**settings)
    assert all(word in str(caught.value) for word in words), caught.value
