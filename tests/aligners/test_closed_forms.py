"""What every closed form has to do, as a user calls it and as tuning does."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from gera_lightning import aligners
from gera_lightning.aligners import (
    ASIF,
    CCA,
    Aligner,
    Alternatives,
    ClosedForm,
    CoupledRidge,
    Estimator,
    FitData,
    KernelRidge,
    ManifoldRidge,
    Procrustes,
    Ridge,
    SelfTraining,
)
from gera_lightning.models import Preprocessing, SharedSpace, normalized
from gera_lightning.utils.errors import UserError

D_A, D_B, N, POOL = 6, 5, 24, 40
FORMS = {
    "ridge": Ridge(),
    "ridge one way": Ridge("a_to_b"),
    "ridge the other way": Ridge("b_to_a"),
    "kernel ridge": KernelRidge(),
    "kernel ridge one way": KernelRidge("a_to_b"),
    "manifold ridge": ManifoldRidge(),
    "manifold ridge the other way": ManifoldRidge("b_to_a", unpaired=30),
    "manifold kernel ridge": ManifoldRidge(kernel=True),
    "cca": CCA(),
    "csa": CCA("csa"),
    "gaussian": CCA("gaussian"),
    "procrustes": Procrustes(),
    "asif": ASIF(),
    "coupled ridge": CoupledRidge(),
    "coupled cosine": CoupledRidge(predict=False),
    "uncentered": CoupledRidge(centered=False),
    "self-training": SelfTraining(),
    "self-training of cca": SelfTraining(CCA(), rounds=1),
    "alternatives": Alternatives(CoupledRidge(), (CCA("gaussian"), Ridge())),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


def cloud(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.3


PAIRS = cloud(N, D_A, 0), cloud(N, D_B, 1)
POOLS = cloud(POOL, D_A, 2), cloud(POOL, D_B, 3)
NEW = cloud(7, D_A, 4), cloud(9, D_B, 5)


def fresh(form):
    return type(form)(**form.get_params())


def prepared(pairs=PAIRS, pools=POOLS):
    """Preprocessed as `fit` documents it, by hand."""
    preprocess = [Preprocessing.fit(torch.cat(rows)) for rows in zip(pairs, pools, strict=True)]
    a, b = preprocess
    return FitData(a(pairs[0]), b(pairs[1]), a(pools[0]), b(pools[1])), preprocess


def test_every_closed_form_of_the_package_is_among_these():
    known = {cls for cls in vars(aligners).values() if isinstance(cls, type)}
    forms = {cls for cls in known if issubclass(cls, Estimator)} - {Estimator}
    assert {type(form) for form in FORMS.values()} == forms
    assert all(isinstance(form, ClosedForm) for form in FORMS.values())


# ---- on arrays ----


@each_form
def test_fit_gives_the_maps_of_its_setting_on_preprocessed_rows(form):
    form = fresh(form)
    assert form.fit(*PAIRS, *POOLS) is form
    samples, (a, b) = prepared()
    [maps] = form.candidates(samples, [form.default_setting(N)])
    space = SharedSpace(*maps).requires_grad_(False)
    z_a, z_b = space.embed("a", a(NEW[0])), space.embed("b", b(NEW[1]))
    torch.testing.assert_close(form.encode_a(NEW[0]), z_a)
    torch.testing.assert_close(form.encode_b(NEW[1]), z_b)
    assert z_a.shape[1] == z_b.shape[1]
    torch.testing.assert_close(z_a.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(z_b.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(form.score(*NEW), z_a @ z_b.T)


@each_form
def test_search_ranks_by_the_score_both_ways(form):
    form = fresh(form).fit(*PAIRS, *POOLS)
    score = form.score(*NEW)
    for direction, table, rows in (("ab", score, NEW), ("ba", score.T, NEW[::-1])):
        values, index = form.search(*rows, k=4, direction=direction)
        torch.testing.assert_close(values, table.sort(dim=1, descending=True).values[:, :4])
        torch.testing.assert_close(values, table.gather(1, index))


@each_form
@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.float64])
def test_numpy_and_torch_of_any_precision_give_the_same(form, kind):
    def as_given(x):
        return x.to(kind) if isinstance(kind, torch.dtype) else x.numpy().astype(kind)

    expected = fresh(form).fit(*PAIRS, *POOLS).score(*NEW)
    found = fresh(form).fit(*map(as_given, PAIRS), *map(as_given, POOLS))
    assert torch.equal(found.score(*map(as_given, NEW)), expected)
    assert torch.equal(fresh(form).fit(*PAIRS, *POOLS).score(*NEW), expected)


@each_form
def test_what_is_saved_is_loaded(form, tmp_path):
    form = fresh(form).fit(*PAIRS, *POOLS)
    form.aligner_.save(tmp_path)
    again = Aligner.load(tmp_path)
    assert torch.equal(again.score(*NEW), form.score(*NEW))
    assert again.about == form.aligner_.about
    assert repr(again) == repr(form.aligner_)
    maps = json.dumps(json.loads((tmp_path / "aligner.json").read_text())["maps"])
    assert all(word.isidentifier() for word in re.findall(r'"([^"]*)"', maps))  # no import path


@each_form
def test_pairs_alone_are_enough_and_their_order_does_not_matter(form):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(6))
    first, second = (fresh(form).fit(*(x[i] for x in PAIRS)) for i in (torch.arange(N), order))
    torch.testing.assert_close(first.score(*NEW), second.score(*NEW), atol=1e-4, rtol=1e-4)


@each_form
def test_a_form_says_what_it_is_and_whether_it_is_fitted(form):
    form = fresh(form)
    assert eval(repr(form)) == form
    with pytest.raises(UserError) as error:
        form.encode_a(NEW[0])
    assert (error.value.key, error.value.problem) == (type(form).__name__, "is not fitted")
    assert repr(form.fit(*PAIRS, *POOLS)).startswith(f"{fresh(form)!r} fitted with ")


@each_form
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_what_is_fitted_lies_on_the_device_of_the_pairs(form):
    expected = fresh(form).fit(*PAIRS, *POOLS).score(*NEW)
    found = fresh(form).fit(*(x.cuda() for x in PAIRS), *POOLS).score(*NEW)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


def test_keywords_replace_parts_of_the_default_setting():
    form = KernelRidge().fit(*PAIRS, penalty=0.5)
    assert form.setting_ == {"penalty": 0.5, "factor": 2.0}
    strong = form.score(*NEW)
    assert not torch.allclose(KernelRidge().fit(*PAIRS, penalty=0.1).score(*NEW), strong)


@pytest.mark.parametrize(
    ("rows", "setting", "key"),
    [
        ((PAIRS[0][:, 0], PAIRS[1]), {}, "x_a"),
        ((PAIRS[0], PAIRS[1][:-1]), {}, "x_b"),
        ((PAIRS[0][:1], PAIRS[1][:1]), {}, "x_a"),
        ((["speech", "text"], PAIRS[1]), {}, "x_a"),
        ((PAIRS[0] + 1j, PAIRS[1]), {}, "x_a"),
        ((*PAIRS, POOLS[1]), {}, "unpaired_a"),
        (PAIRS, {"penalti": 1.0}, "penalti"),
        (PAIRS, {"penalty": -1.0}, "penalty"),
        (PAIRS, {"penalty": "1"}, "penalty"),
        ((torch.ones(N, D_A), PAIRS[1]), {}, "Ridge"),
    ],
)
def test_a_mistake_is_named_by_its_argument(rows, setting, key):
    with pytest.raises(UserError) as error:
        Ridge().fit(*rows, **setting)
    assert error.value.key == key


def test_a_row_that_is_not_finite_is_named():
    x = PAIRS[0].clone()
    x[3, 1] = torch.nan
    with pytest.raises(UserError, match="x_a: row 3 is not finite"):
        Ridge().fit(x, PAIRS[1])


def test_a_matrix_that_has_no_root_is_the_users_to_mend():
    with pytest.raises(UserError) as error:
        CoupledRidge().fit(*(torch.cat([x, x]) for x in PAIRS), penalty=0)
    assert error.value.key == "CoupledRidge"


# ---- as tuning calls them ----


@each_form
def test_candidates_are_what_each_setting_alone_gives_in_any_order(form):
    samples, _ = prepared()
    settings = list(form.settings(8, N))
    turned = settings[::-1]
    together = list(form.candidates(samples, turned))
    assert 2 <= len(together) == len(settings) <= 8
    assert list(form.settings(1, N)) == settings[:1] or len(form.settings(1, N)) == 1
    for setting, (map_a, map_b) in zip(turned, together, strict=True):
        [(alone_a, alone_b)] = form.candidates(samples, [setting])
        torch.testing.assert_close(
            normalized(map_a(samples.pool_a)) @ normalized(map_b(samples.pool_b)).T,
            normalized(alone_a(samples.pool_a)) @ normalized(alone_b(samples.pool_b)).T,
        )


@each_form
def test_rows_keep_their_precision(form):
    samples, _ = prepared()
    doubles = FitData(*(x.double() for x in vars(samples).values()))
    for given in (samples, doubles):
        [(map_a, map_b)] = form.candidates(given, [form.default_setting(N)])
        assert map_a(given.x_a).dtype == map_b(given.x_b).dtype == given.x_a.dtype


@pytest.mark.parametrize("pools", [POOLS, (POOLS[0][:0], POOLS[1][:0])], ids=["pools", "no pools"])
@pytest.mark.parametrize(
    "form", [KernelRidge(), ManifoldRidge(kernel=True), CoupledRidge(), CCA(), ASIF(), Procrustes()]
)
def test_identical_rows_of_a_modality_keep_the_maps_finite(form, pools):
    given = FitData(torch.ones(N, D_A), PAIRS[1], *pools)
    for map_a, map_b in form.candidates(given, form.settings(8, N)):
        assert map_a(NEW[0]).isfinite().all()
        assert map_b(NEW[1]).isfinite().all()


@pytest.mark.parametrize(
    ("form", "fields", "key"),
    [
        (Ridge, {"direction": "a_to_bb"}, "direction"),
        (Ridge, {"smallest": 0.0}, "smallest"),
        (Ridge, {"smallest": 9.0, "largest": 1.0}, "smallest"),
        (KernelRidge, {"direction": "b"}, "direction"),
        (KernelRidge, {"factors": ()}, "factors"),
        (KernelRidge, {"factors": (0.0,)}, "factors"),
        (ManifoldRidge, {"direction": "b"}, "direction"),
        (ManifoldRidge, {"smallest": -1.0}, "smallest"),
        (ManifoldRidge, {"smoothness": ()}, "smoothness"),
        (ManifoldRidge, {"smoothness": (-1.0,)}, "smoothness"),
        (ManifoldRidge, {"k": 0}, "k"),
        (ManifoldRidge, {"unpaired": -1}, "unpaired"),
        (ManifoldRidge, {"factor": 0.0}, "factor"),
        (CCA, {"smallest": 0.0}, "smallest"),
        (CCA, {"dims": ()}, "dims"),
        (CCA, {"dims": (1.5,)}, "dims"),
        (CCA, {"similarity": "gauss"}, "similarity"),
        (ASIF, {"shares": ()}, "shares"),
        (ASIF, {"shares": (0.0, 1.0)}, "shares"),
        (ASIF, {"powers": (0.0,)}, "powers"),
        (CoupledRidge, {"settings_tried": ()}, "settings_tried"),
        (CoupledRidge, {"settings_tried": ((1.0,),)}, "settings_tried"),
        (CoupledRidge, {"settings_tried": ((1.0, 0.0),)}, "settings_tried"),
        (SelfTraining, {"base": 3}, "base"),
        (SelfTraining, {"ratios": ()}, "ratios"),
        (SelfTraining, {"weight": 0.0}, "weight"),
        (SelfTraining, {"base": KernelRidge(), "weight": 0.5}, "weight"),
        (SelfTraining, {"rounds": 0}, "rounds"),
        (Alternatives, {"form": "ridge", "others": ()}, "form"),
        (Alternatives, {"form": Ridge(), "others": (3,)}, "others"),
        (Alternatives, {"form": Ridge(), "others": (Alternatives(Ridge(), ()),)}, "others"),
    ],
)
def test_an_impossible_field_is_named(form, fields, key):
    with pytest.raises(UserError) as error:
        form(**fields)
    assert error.value.key == key


@pytest.mark.parametrize("form", [KernelRidge(), CoupledRidge(), ManifoldRidge(kernel=True)])
def test_more_pairs_than_kernel_matrices_have_room_for_are_refused(form):
    for refused in (lambda: form.settings(2, 10_000_000), lambda: form.default_setting(10_000_000)):
        with pytest.raises(UserError) as error:
            refused()
        assert error.value.key == "pairs"
    assert ManifoldRidge().settings(2, 10_000_000)  # whose matrices are of the widths
