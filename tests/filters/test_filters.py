"""What every filter has to do."""

from __future__ import annotations

import pytest
import torch

from gera_lightning import filters
from gera_lightning.filters import Beside, Filter, GraphDiffusion, LocalCentering, fit_filters
from gera_lightning.models import normalized
from gera_lightning.models.maps import build_map, describe_map
from gera_lightning.utils.errors import UserError

FILTERS = {
    "diffusion": GraphDiffusion(k=4),
    "diffusion of several steps": GraphDiffusion(k=4, alpha=1.0, steps=3),
    "local centring": LocalCentering(clusters=5),
    "beside diffusion": Beside(GraphDiffusion(k=4)),
    "beside local centring": Beside(LocalCentering(clusters=5)),
}
each_filter = pytest.mark.parametrize("each", FILTERS.values(), ids=list(FILTERS))


def rows(n, seed=0, dtype=torch.float64):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalized(x).to(dtype)


def test_every_filter_of_the_package_is_among_these():
    known = {cls for cls in vars(filters).values() if isinstance(cls, type)}
    assert {type(each) for each in FILTERS.values()} == {
        cls for cls in known if issubclass(cls, Filter)
    } - {Filter}


@each_filter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_keep_their_precision_and_do_not_depend_on_each_other(each, dtype):
    pool, new = rows(30, dtype=dtype), rows(7, 1, dtype)
    mapping = each.fit(pool)
    image = mapping(new)
    assert image.dtype == dtype
    torch.testing.assert_close(mapping(new[2:4]), image[2:4])
    assert torch.equal(each.fit(pool)(new), image)
    precise = each.fit(rows(30))(rows(7, 1))
    torch.testing.assert_close(image.double(), precise, atol=1e-5, rtol=1e-4)


@each_filter
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("pool", [rows(0), rows(1), rows(3), rows(1).expand(9, 6)])
def test_a_small_pool_and_one_of_copies_do(each, pool):
    new = rows(7, 1)
    mapping = each.fit(pool)
    assert mapping(new).shape == (7, mapping(rows(1, 2)).shape[1])
    assert mapping(new).isfinite().all()
    assert mapping(pool).isfinite().all()


@each_filter
@pytest.mark.parametrize("size", [0, 30])
def test_a_fitted_filter_is_rebuilt_by_its_kind(each, size):
    mapping = each.fit(rows(size, dtype=torch.float32))
    again = build_map(describe_map(mapping))
    again.load_state_dict(mapping.state_dict())
    new = rows(7, 1, torch.float32)
    assert torch.equal(again(new), mapping(new))


def test_beside_averages_the_cosines_of_features_and_filtered_features():
    x, new = rows(30), rows(9, 1)
    z = Beside(GraphDiffusion(k=5)).fit(x)(new)
    diffused = normalized(GraphDiffusion(k=5).fit(x)(new))
    torch.testing.assert_close(z @ z.T, (new @ new.T + diffused @ diffused.T) / 2)


def test_filters_follow_each_other_each_on_the_last_ones_pool():
    x, new = rows(30), rows(9, 1)
    first, second = LocalCentering(clusters=3), GraphDiffusion(k=5)
    mapping, filtered = fit_filters([first, second], x)
    centred = normalized(first.fit(x)(x))
    torch.testing.assert_close(filtered, normalized(second.fit(centred)(centred)))
    torch.testing.assert_close(mapping(x), filtered)
    torch.testing.assert_close(
        mapping(new), normalized(second.fit(centred)(normalized(first.fit(x)(new))))
    )


def test_no_filter_is_the_identity():
    mapping, filtered = fit_filters([], rows(30))
    assert torch.equal(filtered, rows(30))
    assert torch.equal(mapping(rows(3, 2)), rows(3, 2))


@pytest.mark.parametrize(
    ("each", "key", "value"),
    [
        (LocalCentering, "clusters", 1),
        (LocalCentering, "temperature", 0.0),
        (GraphDiffusion, "kernel", "gauss"),
        (GraphDiffusion, "k", 0),
        (GraphDiffusion, "steps", 0),
        (GraphDiffusion, "factor", 0.0),
        (GraphDiffusion, "strength", 1.5),
        (Beside, "filter", 3),
    ],
)
def test_an_impossible_field_is_named(each, key, value):
    with pytest.raises(UserError) as error:
        each(**{key: value})
    assert (error.value.key, error.value.value) == (key, value)
