import functools
import json
import pickle
import re
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from gera_lightning.aligners import CCA, Aligner, FitData, Procrustes, Ridge
from gera_lightning.filters import Beside, GraphDiffusion, LocalCentering, fit_filters
from gera_lightning.models.maps import Linear, ResidualMLP, Sequential, normalized
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.errors import UserError

D_A, D_B, N = 6, 5, 24


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + 0.3


def prepared():
    return [
        Preprocessing.fit(torch.cat([cloud(N, d, s), cloud(40, d, s + 2)]))
        for d, s in ((D_A, 0), (D_B, 1))
    ]


def fitted(form=Ridge()):  # noqa: B008
    """Maps of a closed form."""
    a, b = prepared()
    samples = FitData(
        a(cloud(N, D_A, 0)), b(cloud(N, D_B, 1)), a(cloud(40, D_A, 2)), b(cloud(40, D_B, 3))
    )
    return next(iter(form.candidates(samples, [form.default_setting(N)])))


def trained():
    heads = []
    for seed, d in enumerate((D_A, D_B)):
        generator = torch.Generator().manual_seed(seed)
        mlp = ResidualMLP(d, 4, hidden=7, dropout=0.5, generator=generator)
        nn.init.normal_(mlp.outer, generator=generator)
        filters, _ = fit_filters(
            [LocalCentering(clusters=3), Beside(GraphDiffusion(k=3))],
            normalized(cloud(40, d, seed + 2)),
        )
        heads.append(Sequential(filters, Linear(2 * d, d, generator=generator), mlp))
    return tuple(heads)


def make(maps, corrected=False, about=None):
    space = SharedSpace(*maps).eval()
    a, b = prepared()
    if corrected:
        with torch.inference_mode():
            space.correction = CSLS(
                3,
                pool_a=space.embed("a", a(cloud(40, D_A, 2))),
                pool_b=space.embed("b", b(cloud(40, D_B, 3))),
            )
    return Aligner(
        a,
        b,
        space,
        (
            {
                "dim_a": D_A,
                "dim_b": D_B,
                "encoders": {"a": {"name": "enc-a"}, "b": {"name": "enc-b"}},
            }
            if about is None
            else about
        ),
    )


def score(aligner):
    return aligner.score(cloud(7, D_A, 5), cloud(9, D_B, 6))


# ---- saved and loaded ----


def test_maps_behind_filters_and_a_correction_come_back_as_they_were_saved(tmp_path):
    aligner = make(trained(), corrected=True)
    aligner.save(tmp_path)
    again = Aligner.load(tmp_path)
    assert again.about == aligner.about
    assert torch.equal(score(again), score(aligner))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aligner.json", "maps.safetensors"]


def test_an_aligner_says_what_it_is():
    aligner = make(fitted(), corrected=True)
    aligner.about["stores"] = {"a": "data/sentences/speech", "b": "data/sentences/text"}
    assert repr(aligner) == (
        "Aligner(speech: 6 -> 11, text: 5 -> 11,"
        " maps Concat(Linear, Identity) and Concat(Identity, Linear), CSLS(k=3, weight=1))"
    )
    assert repr(make((Tripled(), Tripled()), about={})) == "Aligner(a, b, maps Tripled and Tripled)"


@pytest.mark.parametrize("center", [True, False])
def test_an_aligner_without_facts_about_it_is_saved_too(tmp_path, center):
    maps = fitted()
    a, b = (Preprocessing.fit(cloud(N, d, s), center) for d, s in ((D_A, 0), (D_B, 1)))
    aligner = Aligner(a, b, SharedSpace(*maps))
    aligner.save(tmp_path)
    assert torch.equal(score(Aligner.load(tmp_path)), score(aligner))


def test_one_map_on_both_sides_is_saved(tmp_path):
    shared = Linear(D_A, 4, generator=torch.Generator().manual_seed(0))
    preprocess = prepared()[0]
    aligner = Aligner(preprocess, preprocess, SharedSpace(shared, shared))
    aligner.save(tmp_path)
    assert torch.equal(
        Aligner.load(tmp_path).encode_b(cloud(3, D_A, 5)), aligner.encode_a(cloud(3, D_A, 5))
    )


def test_a_kill_between_the_two_files_of_an_aligner_is_found_out(tmp_path):
    first, second = make(trained()), make(trained())
    first.save(tmp_path)
    before = (tmp_path / "aligner.json").read_bytes()
    with torch.no_grad():
        next(second.space.map_a.parameters()).add_(1)
    second.save(tmp_path)
    (tmp_path / "aligner.json").write_bytes(before)
    with pytest.raises(
        UserError, match=r"maps\.safetensors is not the one that aligner\.json was written with"
    ):
        Aligner.load(tmp_path)


# ---- scores ----


@pytest.mark.parametrize("form", [Ridge(), CCA()])
def test_score_and_search_agree_with_slow_loops_of_the_csls_formula(tmp_path, form):
    make(fitted(form), corrected=True).save(tmp_path)
    aligner = Aligner.load(tmp_path)
    z_a, z_b = (
        aligner.encode_a(cloud(7, D_A, 5)).numpy(),
        aligner.encode_b(cloud(9, D_B, 6)).numpy(),
    )
    pool_a, pool_b = (
        aligner.encode_a(cloud(40, D_A, 2)).numpy(),
        aligner.encode_b(cloud(40, D_B, 3)).numpy(),
    )
    slow = np.zeros((7, 9))
    for i in range(7):
        for j in range(9):
            r_b = np.mean(sorted(pool_b @ z_a[i])[-3:])
            r_a = np.mean(sorted(pool_a @ z_b[j])[-3:])
            slow[i, j] = z_a[i] @ z_b[j] - (r_b + r_a) / 2
    np.testing.assert_allclose(score(aligner), slow, atol=1e-6)
    for direction, table, queries, gallery in (
        ("ab", slow, cloud(7, D_A, 5), cloud(9, D_B, 6)),
        ("ba", slow.T, cloud(9, D_B, 6), cloud(7, D_A, 5)),
    ):
        values, index = aligner.search(queries, gallery, 4, direction=direction)
        np.testing.assert_array_equal(index, np.argsort(-table, axis=1)[:, :4])
        np.testing.assert_allclose(values, -np.sort(-table, axis=1)[:, :4], atol=1e-6)


def test_encoding_in_parts_changes_nothing_and_nothing_gives_nothing():
    aligner = make(fitted())
    x = cloud(11, D_A, 5)
    torch.testing.assert_close(aligner.encode("a", x, chunk=4), aligner.encode_a(x))
    np.testing.assert_array_equal(aligner.encode_a(x.double().numpy()), aligner.encode_a(x))
    assert aligner.encode_a(x[:0]).shape == (0, aligner.encode_a(x).shape[1])
    values, index = aligner.search(x, cloud(3, D_B, 6), 10)
    assert values.shape == index.shape == (11, 3)


def test_a_probe_learns_from_encodings():
    z = make(fitted()).encode_a(cloud(11, D_A, 5))
    assert not z.requires_grad
    probe = nn.Linear(z.shape[1], 2)
    probe(z).sum().backward()  # an inference tensor could not be saved for that
    torch.testing.assert_close(probe.weight.grad[0], z.sum(0))


def test_dropout_is_off_in_an_aligner():
    maps = trained()
    for mapping in maps:
        mapping.train()
    aligner = make(maps)
    assert torch.equal(score(aligner), score(aligner))


def test_a_store_is_encoded_row_by_row(make_store):
    aligner, x = make(fitted()), cloud(11, D_A, 5)
    store = make_store("a", x.numpy(), shard_rows=4)
    torch.testing.assert_close(aligner.encode("a", store, chunk=3), aligner.encode_a(x))


# ---- what is refused ----


@pytest.mark.parametrize("x", [cloud(3, D_B), torch.zeros(D_A), ["a word"], torch.zeros(2, D_A, 1)])
def test_rows_of_another_width_or_shape_are_refused(x):
    with pytest.raises(UserError) as error:
        make(fitted()).encode_a(x)
    assert error.value.key == "embeddings of a"


def test_a_store_of_another_width_or_encoder_is_refused(make_store):
    encoders = {"a": {"name": "enc-a", "layer": 9}}
    aligner = make(fitted(), about={"dim_a": D_A, "dim_b": D_B, "encoders": encoders})
    with pytest.raises(UserError) as error:
        aligner.encode_b(make_store("b", cloud(3, 4).numpy()))
    assert error.value.key == "embeddings of b"
    with pytest.raises(UserError) as error:
        aligner.encode_a(make_store("other", cloud(3, D_A).numpy()))
    assert (error.value.key, error.value.value) == ("encoder", "enc-other")
    store = make_store("a", cloud(3, D_A).numpy())
    assert len(aligner.encode_a(store)) == 3, "a store that does not say its layer"
    store.manifest["encoder"]["layer"] = 3
    with pytest.raises(UserError) as error:
        aligner.encode_a(store)
    assert (error.value.key, error.value.value) == ("layer", 3)


@pytest.mark.parametrize(("key", "value"), [("direction", "aa"), ("k", 0)])
def test_an_impossible_search_is_refused(key, value):
    with pytest.raises(UserError) as error:
        make(fitted()).search(cloud(2, D_A), cloud(2, D_B), **{key: value})
    assert (error.value.key, error.value.value) == (key, value)


def test_values_that_are_not_finite_are_named_whether_they_came_in_or_a_map_made_them():
    maps, x = fitted(), cloud(5, D_A)
    x[3, 1] = torch.inf
    with pytest.raises(UserError, match="embedding 3 is not finite"):
        make(maps).encode("a", x, chunk=2)
    diverged = Linear(D_A, D_B, weight=torch.full((D_A, D_B), torch.nan))
    with pytest.raises(
        UserError, match="embedding 0 has no finite image: the map of modality a diverged"
    ):
        make((diverged, maps[1])).encode_a(cloud(5, D_A))


def test_a_folder_without_an_aligner_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing.*aligner\.json is missing"):
        Aligner.load(tmp_path / "nothing")
    make(fitted()).save(tmp_path)
    (tmp_path / "maps.safetensors").unlink()
    with pytest.raises(UserError, match=r"maps\.safetensors is missing"):
        Aligner.load(tmp_path)


def edited(folder, change):
    record = json.loads((folder / "aligner.json").read_text())
    change(record)
    (folder / "aligner.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("maps"),
        lambda r: r.pop("center"),
        lambda r: r.pop("correction"),
        lambda r: r["correction"].pop("k"),
        lambda r: r["correction"].update(k=0),
        lambda r: r["center"].update(a=False),
        lambda r: r.update(maps=[]),
        lambda r: r["maps"]["a"].pop("kind"),
        lambda r: r["maps"]["a"].update(settings={"rank": 3}),
        lambda r: r["maps"]["a"]["settings"].update(dim=99),
        lambda r: r["maps"]["a"]["settings"].update(dim="wide"),
        lambda r: r["maps"]["a"]["settings"].update(dim=-1),
        lambda r: r.update(correction=None),
    ],
)
def test_a_record_that_does_not_fit_its_weights_is_refused(tmp_path, change):
    make(fitted(Procrustes()), corrected=True).save(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(UserError):
        Aligner.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["space.map_a.weight", "preprocess.a.mean", "space.correction.pool_a"]
)
def test_missing_weights_are_refused(tmp_path, name):
    make(fitted(Procrustes()), corrected=True).save(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "maps.safetensors")
    del weights[name]
    safetensors.torch.save_file(weights, tmp_path / "maps.safetensors")
    edited(tmp_path, lambda r: r.pop("maps_sha256"))  # as an older version wrote it
    with pytest.raises(UserError, match="train it again"):
        Aligner.load(tmp_path)


@pytest.mark.parametrize("name", ["aligner.json", "maps.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\xff" + b[1:], lambda b: b"[]"],
)
def test_damaged_files_are_refused(tmp_path, name, damage):
    make(fitted()).save(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="damaged"):
        Aligner.load(tmp_path)


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 2}, {"version": None}])
def test_other_formats_and_versions_are_refused(tmp_path, change):
    make(fitted()).save(tmp_path)
    edited(tmp_path, lambda r: r.update(change))
    with pytest.raises(UserError, match="this version reads 'gera-aligner' version 1"):
        Aligner.load(tmp_path)


# ---- a folder never names code ----


class Tripled(nn.Module):
    """A user's own map."""

    settings: dict[str, int] = {}  # noqa: RUF012

    def forward(self, x):
        return 3 * x[:, :4]


def test_a_users_own_map_is_loaded_only_when_its_class_is_handed_over(tmp_path):
    aligner = make((Tripled(), Tripled()))
    aligner.save(tmp_path)
    with pytest.raises(UserError) as error:
        Aligner.load(tmp_path)
    assert (error.value.key, error.value.value) == ("kind", "Tripled")
    again = Aligner.load(tmp_path, map_classes={"Tripled": Tripled})
    assert torch.equal(score(again), score(aligner))


@pytest.mark.parametrize(
    "kind", ["trap_module.Map", "gera_lightning.models.maps.Linear", "os.system", "builtins.eval"]
)
def test_an_import_path_as_a_kind_is_refused_and_not_imported(tmp_path, monkeypatch, kind):
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    make(fitted(Procrustes())).save(tmp_path / "aligner")
    edited(tmp_path / "aligner", lambda r: r["maps"]["a"].update(kind=kind))
    with pytest.raises(UserError) as error:
        Aligner.load(tmp_path / "aligner")
    assert (error.value.key, error.value.value) == ("kind", kind)
    assert "trap_module" not in sys.modules


def test_a_saved_record_holds_no_import_path(tmp_path):
    make(trained(), corrected=True).save(tmp_path)
    record = json.loads((tmp_path / "aligner.json").read_text())
    words = set(re.findall(r'"([^"]*)"', json.dumps([record["maps"], record["correction"]])))
    assert {"residual_mlp", "csls"} <= words
    assert all(word.isidentifier() for word in words)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_a_pickle_in_place_of_weights_is_not_executed(tmp_path):
    make(fitted()).save(tmp_path)
    (tmp_path / "maps.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged"):
        Aligner.load(tmp_path)


def test_a_gallery_is_searched_part_by_part(monkeypatch):
    """As the whole of it is: the best of all parts, and no more than there are."""
    aligner = make(trained(), corrected=True)
    queries, gallery = cloud(5, D_A, 5), cloud(40, D_B, 6)
    scores = aligner.score(queries, gallery).sort(dim=1, descending=True)
    monkeypatch.setattr(Aligner, "encoded", functools.partialmethod(Aligner.encoded, chunk=7))
    for k in (3, 10, 50):
        values, index = aligner.search(queries, gallery, k)
        torch.testing.assert_close(values, scores.values[:, :k])
        assert torch.equal(index, scores.indices[:, :k])
