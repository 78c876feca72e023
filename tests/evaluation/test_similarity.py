from __future__ import annotations

import numpy as np
import pytest
import torch

from gera_lightning import cli
from gera_lightning.evaluation.similarity import _Layer, affinity, linear_cka, mutual_knn
from gera_lightning.utils.errors import UserError


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow_mutual_knn(a: np.ndarray, b: np.ndarray, k: int) -> float:
    shared = 0
    for i in range(len(a)):
        near = []
        for x in (a, b):
            cosines = [x[i] @ y / np.linalg.norm(x[i]) / np.linalg.norm(y) for y in x]
            near.append(set([j for j in np.argsort(cosines)[::-1] if j != i][:k]))
        shared += len(near[0] & near[1])
    return shared / k / len(a)


def kernel_cka(a: np.ndarray, b: np.ndarray) -> float:
    """The definition by centred Gram matrices (HSIC), not by features."""
    n = len(a)
    h = np.eye(n) - 1 / n
    k, m = h @ a @ a.T @ h, h @ b @ b.T @ h
    return float(np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m)))


def test_mutual_knn_equals_a_loop():
    a, b = cloud(40, 5), cloud(40, 7, 1)
    b[:, :5] += 2 * a
    assert mutual_knn(3 * a, b, 4) == pytest.approx(
        slow_mutual_knn(a.numpy(), b.numpy(), 4), abs=1e-9
    )


def test_linear_cka_equals_its_definition_by_kernels():
    a, b = cloud(30, 5) + 3, cloud(30, 8, 1)
    b[:, :5] += a
    assert linear_cka(a, b) == pytest.approx(
        kernel_cka(a.double().numpy(), b.double().numpy()), abs=1e-9
    )


def test_rotation_scale_and_shift_change_no_cka():
    a = cloud(30, 6)
    rotation = torch.linalg.qr(cloud(6, 6, 1))[0]
    assert linear_cka(a, 5 * a @ rotation + 2) == pytest.approx(1, abs=1e-6)
    assert mutual_knn(a, 5 * a @ rotation, 5) == pytest.approx(1)
    assert linear_cka(a, torch.ones(30, 3)) == 0


def test_pairs_of_stores_are_found_and_test_items_left_out(make_store):
    x = cloud(60, 6).numpy()
    items = [f"i{n}" for n in range(60)]
    split = ["test" if n < 20 else "train" for n in range(60)]
    order = np.random.default_rng(0).permutation(60)
    a = make_store("a", x, item=items, split=split)
    poisoned = x.copy()
    poisoned[:20] = np.nan  # reading a test row raises
    b = make_store(
        "b", poisoned[order], item=[items[n] for n in order], split=[split[n] for n in order]
    )
    found = affinity([a], [b], k=5)
    assert found.pairs == 40
    [row] = found.table.to_dict("records")
    assert (row["a"], row["b"], row["knn"], row["cka"]) == (
        "a",
        "b",
        pytest.approx(1),
        pytest.approx(1),
    )
    assert max(row["knn_shuffled"], row["cka_shuffled"]) < 0.5
    assert affinity([a], [b], k=5, most=10).pairs == 10


def test_of_an_item_with_several_rows_one_is_taken(make_store):
    x = cloud(30, 4).numpy()
    a = make_store("a", x, item=[f"i{n % 15}" for n in range(30)], split=["train"] * 29 + ["train"])
    b = make_store(
        "b",
        np.concatenate([x[:15], x[:1]]),
        item=[f"i{n}" for n in range(15)] + ["t"],
        split=["train"] * 15 + ["test"],
    )
    assert affinity([a], [b]).pairs == 15, "no test item is needed"
    c = make_store("c", x, item=[f"i{n % 15}" for n in range(30)])
    d = make_store("d", x[:15], item=[f"i{n}" for n in range(15)])
    assert 3 <= affinity([c], [d], test_share=0.3).pairs < 15


@pytest.mark.parametrize(("key", "value"), [("k", 0), ("most", 2)])
def test_a_value_that_means_nothing_is_refused(make_store, key, value):
    a = make_store("a", cloud(9, 3).numpy())
    with pytest.raises(UserError) as error:
        affinity([a], [a], **{key: value})
    assert (error.value.key, error.value.value) == (key, value)


def test_shuffled_pairs_are_measured_as_the_reordered_rows_are(make_store):
    """What is computed once per store and then reordered equals the measures of reordered rows."""
    x, y, order = cloud(30, 4), cloud(30, 5, 1), torch.randperm(30)
    y[:, :4] += x
    given, plain = _Layer.of(y, 5).reordered(order), _Layer.of(y[order], 5)
    assert [set(row) for row in given.near.tolist()] == [set(row) for row in plain.near.tolist()]
    torch.testing.assert_close(given.centered, plain.centered)


def test_stores_without_common_items_are_refused(make_store):
    a, b = (
        make_store("a", cloud(30, 3).numpy()),
        make_store("b", cloud(30, 3).numpy(), item=[f"j{n}" for n in range(30)]),
    )
    with pytest.raises(UserError, match="0 train items in common"):
        affinity([a], [b])


def test_every_layer_of_a_is_compared_with_every_layer_of_b(make_store):
    """Layers 1 of both agree, layer 0 of a agrees in part; the closest pair comes first, and each
    line is that of its two stores alone.
    """
    x = cloud(60, 6)
    layers = {
        "a/layer_00": x + cloud(60, 6, 1),
        "a/layer_01": x,
        "b/layer_00": cloud(60, 5, 2),
        "b/layer_01": 2 * x,
    }
    stores = {
        name: make_store(name, values.numpy(), row=[f"{name[0]}{n}" for n in range(60)])
        for name, values in layers.items()
    }
    a, b = ([store for name, store in stores.items() if name[0] == side] for side in "ab")
    table = affinity(a, b, k=5).table
    assert table[["a", "b"]].to_numpy().tolist()[:2] == [
        ["layer_01", "layer_01"],
        ["layer_00", "layer_01"],
    ]
    assert table["knn"].is_monotonic_decreasing
    for row in table.to_dict("records"):
        [alone] = affinity([stores[f"a/{row['a']}"]], [stores[f"b/{row['b']}"]], k=5).table.to_dict(
            "records"
        )
        assert alone == row


def test_layers_of_one_side_have_the_same_rows(make_store):
    a, c = make_store("a", cloud(30, 3).numpy()), make_store("c", cloud(30, 3).numpy())
    with pytest.raises(UserError, match=r"a and .*c hold different rows"):
        affinity([a, c], [a])


def test_the_command_prints_a_table(make_store, capsys, tmp_path):
    a, b = make_store("a", cloud(40, 3).numpy()), make_store("b", cloud(40, 3).numpy())
    assert cli.main(["affinity", str(a.path), str(b.path), "k=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a", "b", "mutual", "4-NN", "shuffled", "linear", "CKA", "shuffled"]
    assert [word for n, word in enumerate(lines[2].split()) if n not in (3, 5)] == [
        "a",
        "b",
        "1.000",
        "1.000",
    ]
    for name in ("layer_00", "layer_01"):
        make_store(f"layers/{name}", cloud(40, 3).numpy(), row=[f"r{n}" for n in range(40)])
    assert cli.main(["affinity", str(a.path), str(tmp_path / "layers")]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "layer_00",
        "layer_01",
    ]
    assert cli.main(["inspect", str(tmp_path / "layers")]) == 2
    assert "it holds layer_00, layer_01: name one of them" in capsys.readouterr().err
    assert cli.main(["affinity", str(a.path)]) == 2
    assert "takes two stores" in capsys.readouterr().err
