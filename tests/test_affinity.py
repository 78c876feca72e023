from __future__ import annotations

import numpy as np
import pytest
import torch

from gera_lightning import cli
from gera_lightning.affinity import affinity, linear_cka, mutual_knn
from gera_lightning.errors import UserError


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
    assert mutual_knn(3 * a, b, 4) == pytest.approx(slow_mutual_knn(a.numpy(), b.numpy(), 4), abs=1e-9)


def test_linear_cka_equals_its_definition_by_kernels():
    a, b = cloud(30, 5) + 3, cloud(30, 8, 1)
    b[:, :5] += a
    assert linear_cka(a, b) == pytest.approx(kernel_cka(a.double().numpy(), b.double().numpy()), abs=1e-9)


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
    b = make_store("b", poisoned[order], item=[items[n] for n in order], split=[split[n] for n in order])
    found = affinity(a, b, k=5)
    assert found.pairs == 40
    assert found.table["paired"].tolist() == pytest.approx([1, 1])
    assert found.table["shuffled"].max() < 0.5
    assert affinity(a, b, k=5, most=10).pairs == 10


def test_of_an_item_with_several_rows_one_is_taken(make_store):
    x = cloud(30, 4).numpy()
    a = make_store("a", x, item=[f"i{n % 15}" for n in range(30)], split=["train"] * 29 + ["train"])
    b = make_store("b", np.concatenate([x[:15], x[:1]]), item=[f"i{n}" for n in range(15)] + ["t"], split=["train"] * 15 + ["test"])
    with pytest.raises(UserError, match="no test rows in store a"):
        affinity(a, b)
    c = make_store("c", x, item=[f"i{n % 15}" for n in range(30)])
    assert 3 <= affinity(c, make_store("d", x[:15], item=[f"i{n}" for n in range(15)]), test_share=0.3).pairs < 15


@pytest.mark.parametrize(("options", "message"), [({"k": 0}, "k=0"), ({"most": 2}, "most=2")])
def test_a_value_that_means_nothing_is_refused(make_store, options, message):
    a = make_store("a", cloud(9, 3).numpy())
    with pytest.raises(UserError, match=message):
        affinity(a, a, **options)


def test_stores_without_common_items_are_refused(make_store):
    a, b = make_store("a", cloud(30, 3).numpy()), make_store("b", cloud(30, 3).numpy(), item=[f"j{n}" for n in range(30)])
    with pytest.raises(UserError, match="0 train items in common"):
        affinity(a, b)


def test_the_command_prints_a_table(make_store, capsys):
    a, b = make_store("a", cloud(40, 3).numpy()), make_store("b", cloud(40, 3).numpy())
    assert cli.main(["affinity", str(a.path), str(b.path), "k=4"]) == 0
    out = capsys.readouterr().out
    assert "mutual 4-NN        1.000" in out
    assert "linear CKA         1.000" in out
    assert cli.main(["affinity", str(a.path)]) == 2
    assert "takes two stores" in capsys.readouterr().err
