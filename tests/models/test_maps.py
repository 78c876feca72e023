import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from gera_lightning.models import maps
from gera_lightning.models.maps import (
    Concat,
    Identity,
    Linear,
    ResidualMLP,
    Sequential,
    WeightedBlocks,
    build_map,
    describe_map,
    normalized,
)
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.utils.errors import UserError


def cloud(n=12, d=5, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_unit(x):
    return np.stack([row / np.sqrt((row**2).sum()) for row in x])


def test_normalized_rows_have_unit_length_and_a_zero_row_stays_zero():
    x = cloud(dtype=torch.float64)
    np.testing.assert_allclose(normalized(x), slow_unit(x.numpy()), rtol=1e-12)
    assert torch.equal(normalized(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("center", [True, False])
def test_preprocessing_equals_its_formula_and_remembers_the_training_rows(center):
    train, new = cloud(dtype=torch.float64) + 0.7, cloud(3, seed=1, dtype=torch.float64) + 0.7
    mean = slow_unit(train.numpy()).sum(0) / len(train) if center else 0
    preprocess = Preprocessing.fit(train, center)
    np.testing.assert_allclose(
        preprocess(new), slow_unit(slow_unit(new.numpy()) - mean), rtol=1e-10
    )
    torch.testing.assert_close(
        preprocess(new[:1]), preprocess(new)[:1]
    )  # a row's image does not depend on its company
    torch.testing.assert_close(preprocess(7 * new), preprocess(new))
    assert list(preprocess.state_dict()) == (["mean"] if center else [])


@pytest.mark.parametrize(("dim_in", "dim"), [(6, 4), (4, 6), (5, 5)])
def test_linear_starts_orthogonal_and_is_drawn_from_its_generator(dim_in, dim):
    weight = Linear(dim_in, dim, generator=generator()).weight.detach()
    small = weight.T @ weight if dim <= dim_in else weight @ weight.T
    torch.testing.assert_close(small, torch.eye(min(dim_in, dim)), atol=1e-5, rtol=0)
    torch.manual_seed(99)
    assert torch.equal(Linear(dim_in, dim, generator=generator()).weight, weight)
    assert not torch.equal(Linear(dim_in, dim, generator=generator(1)).weight, weight)


def test_linear_is_a_product_and_owns_its_start():
    weight = cloud(5, 3, seed=1)
    linear = Linear(5, 3, weight=weight)
    np.testing.assert_allclose(
        linear(cloud()).detach(), cloud().numpy() @ weight.numpy(), rtol=1e-5, atol=1e-6
    )
    kept = weight.clone()
    weight.zero_()
    assert torch.equal(linear.weight, kept)
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        Linear(3, 5, weight=kept)


def test_a_residual_mlp_starts_as_its_linear_part():
    weight = cloud(5, 3, seed=1)
    mlp = ResidualMLP(5, 3, hidden=8, dropout=0.5, weight=weight, generator=generator())
    assert torch.equal(
        mlp(cloud()), Linear(5, 3, weight=weight)(cloud())
    )  # in training mode too: the branch is zero


def test_a_residual_mlp_equals_its_formula():
    mlp = ResidualMLP(5, 3, hidden=8, dropout=0.5, generator=generator()).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(mlp.parameters()):
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator(number), dtype=torch.float64)
            )
    w, v, c, u = (
        p.detach().numpy() for p in (mlp.linear.weight, mlp.inner, mlp.inner_bias, mlp.outer)
    )
    x = cloud(dtype=torch.float64).numpy()
    gelu = np.vectorize(lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2)
    np.testing.assert_allclose(
        mlp(torch.from_numpy(x)).detach(), x @ w + gelu(x @ v + c) @ u, rtol=1e-10
    )


def test_dropout_acts_in_training_alone():
    mlp = ResidualMLP(5, 3, hidden=64, dropout=0.5, generator=generator())
    nn.init.ones_(mlp.outer)
    torch.manual_seed(0)
    assert not torch.equal(mlp(cloud()), mlp(cloud()))
    mlp.eval()
    assert torch.equal(mlp(cloud()), mlp(cloud()))


def test_a_branch_without_width_is_refused():
    with pytest.raises(UserError, match="hidden=0"):
        ResidualMLP(5, 3, hidden=0)


def test_concat_averages_the_cosines_of_its_parts():
    a, b = cloud(4, 5), cloud(6, 3, seed=1)
    f, g = Linear(5, 3, generator=generator(2)), Linear(3, 5, generator=generator(3))
    scores = (Concat(f, Identity(5))(a) @ Concat(Identity(3), g)(b).T).detach()
    for i in range(4):
        for j in range(6):
            cosines = [
                nn.functional.cosine_similarity(u, v, dim=0)
                for u, v in ((f(a)[i], b[j]), (a[i], g(b)[j]))
            ]
            assert scores[i, j].item() == pytest.approx(
                sum(c.item() for c in cosines) / 2, abs=1e-6
            )


def test_chain_applies_its_maps_in_order():
    first, second = (
        Linear(5, 3, generator=generator()),
        ResidualMLP(3, 4, hidden=6, generator=generator(1)),
    )
    assert torch.equal(Sequential(first, second)(cloud()), second(first(cloud())))


@pytest.mark.parametrize(
    "mapping",
    [
        Linear(5, 3, generator=generator()),
        ResidualMLP(5, 3, hidden=7, dropout=0.25, generator=generator()),
        Identity(5),
        Concat(Linear(5, 3, generator=generator()), Identity(5), shares=[3, 1]),
        Sequential(Linear(5, 6, generator=generator()), WeightedBlocks([2, 4], [1, 2])),
        Concat(
            Linear(5, 3, generator=generator()),
            Sequential(
                Linear(5, 4, generator=generator()), ResidualMLP(4, 2, generator=generator())
            ),
        ),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_described_map_is_rebuilt_from_plain_json_and_its_weights(mapping):
    record = json.loads(json.dumps(describe_map(mapping)))
    again = build_map(record)
    again.load_state_dict(mapping.state_dict())
    assert type(again) is type(mapping)
    assert torch.equal(again.eval()(cloud()), mapping.eval()(cloud()))
    assert describe_map(again) == describe_map(mapping)


class Doubled(nn.Module):
    """A user's own map."""

    settings: dict[str, int] = {}  # noqa: RUF012

    def forward(self, x):
        return 2 * x


def test_an_unregistered_map_must_be_handed_over():
    record = describe_map(Concat(Doubled(), Identity(5)))
    with pytest.raises(UserError, match=r"'Doubled'.*kinds="):
        build_map(record)
    assert isinstance(build_map(record, {"Doubled": Doubled}).maps[0], Doubled)
    assert "Doubled" not in maps.MAPS


def test_shares_weight_the_mean_of_the_parts_cosines():
    f, x, y = (
        Linear(5, 3, generator=torch.Generator().manual_seed(0)),
        torch.randn(4, 5),
        torch.randn(6, 5),
    )
    both = Concat(f, Identity(5), shares=[3, 1])
    expected = 0.75 * normalized(f(x)) @ normalized(f(y)).T + 0.25 * normalized(x) @ normalized(y).T
    torch.testing.assert_close(both(x) @ both(y).T, expected)
    with pytest.raises(ValueError, match="shares"):
        Concat(f, shares=[1, 2])


def test_blocks_of_one_map_equal_a_concat_of_two():
    f, g = (Linear(5, width, generator=torch.Generator().manual_seed(width)) for width in (3, 4))
    joined = Sequential(
        Linear(5, 7, weight=torch.cat([f.weight, g.weight], 1).detach()),
        WeightedBlocks([3, 4], [1, 2]),
    )
    x = torch.randn(6, 5)
    torch.testing.assert_close(joined(x), Concat(f, g, shares=[1, 2])(x))
