from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from gera_lightning.aligners import Aligner
from gera_lightning.config import EvaluationConfig
from gera_lightning.data.held_out import HeldOutItems
from gera_lightning.data.splits import split_items
from gera_lightning.evaluation.evaluate import evaluate
from gera_lightning.evaluation.retrieval import foscttm, rank_positives
from gera_lightning.models.maps import Linear, normalized
from gera_lightning.models.preprocessing import Preprocessing
from gera_lightning.models.shared_space import CSLS, SharedSpace
from gera_lightning.utils.errors import UserError

D_A, D_B = 5, 4
# modality a: two rows per item, spoken by voices; modality b: one row an item, and names that are
# searched in test too
ITEMS_A = [f"i{n:02d}" for n in range(24) for _ in range(2)]
VOICES = [("v1", "v2")[n % 2] if n < 24 else ("v1", "new")[n % 2] for n in range(48)]
SPLIT_A = ["train" if n < 24 else "test" for n in range(48)]
ITEMS_B = [f"i{n:02d}" for n in range(22)] + [
    "alone"
]  # two test items of a have no row in b, `alone` none in a
SPLIT_B = ["train" if n < 12 else "test" for n in range(23)]


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def held(make_store) -> HeldOutItems:
    a = make_store("a", cloud(48, D_A).numpy(), item=ITEMS_A, split=SPLIT_A, group=VOICES)
    b = make_store("b", cloud(23, D_B, 1).numpy(), item=ITEMS_B, split=SPLIT_B)
    return HeldOutItems.load(a, b, split_items(a.rows, b.rows))


def make_aligner(corrected=False):
    space = SharedSpace(
        Linear(D_A, 3, weight=cloud(D_A, 3, 2)), Linear(D_B, 3, weight=cloud(D_B, 3, 3))
    ).requires_grad_(False)
    if corrected:
        space.correction = CSLS(
            3,
            pool_a=space.embed("a", cloud(20, D_A, 4)),
            pool_b=space.embed("b", cloud(20, D_B, 5)),
        )
    return Aligner(
        Preprocessing.fit(cloud(30, D_A, 6) + 0.2),
        Preprocessing.fit(cloud(30, D_B, 7) + 0.2),
        space,
    )


def slow_ranks(table, item_q, item_g):
    """Rank of the best positive of each query that has one; no ties here."""
    out = {}
    for i, item in enumerate(item_q):
        own = [table[i][j] for j, other in enumerate(item_g) if other == item]
        if own:
            out[i] = 1 + sum(
                table[i][j] > max(own) for j, other in enumerate(item_g) if other != item
            )
    return out


def test_held_out_rows_are_the_test_side_numbered_alike(held):
    assert list(held.a.rows["item"]) == ITEMS_A[24:]
    assert list(held.b.rows["item"]) == ITEMS_B[12:]
    np.testing.assert_array_equal(held.a.x, cloud(48, D_A)[24:])
    number_a, number_b = (
        dict(zip(ITEMS_A[24:], held.item_a.tolist(), strict=True)),
        dict(zip(ITEMS_B[12:], held.item_b.tolist(), strict=True)),
    )
    assert all(number_a[item] == number for item, number in number_b.items() if item in number_a)
    assert len(set(number_a.values()) | set(number_b.values())) == 13


def test_a_row_is_unseen_when_training_never_heard_its_group(held):
    assert held.a.unseen.tolist() == [voice == "new" for voice in VOICES[24:]]
    assert not held.b.unseen.any()


@pytest.mark.parametrize("corrected", [False, True])
def test_measures_and_ranks_equal_slow_loops_over_the_aligners_scores(held, corrected):
    aligner = make_aligner(corrected)
    found, ranks = evaluate(aligner, held, EvaluationConfig(overlap_k=4))
    scores = aligner.score(held.a.x, held.b.x).numpy()
    items_a, items_b = ITEMS_A[24:], ITEMS_B[12:]
    for direction, table, item_q, item_g, names in (
        ("ab", scores, items_a, items_b, held.a.rows["row"]),
        ("ba", scores.T, items_b, items_a, held.b.rows["row"]),
    ):
        slow = slow_ranks(table, item_q, item_g)
        values = np.array(list(slow.values()))
        assert len(values) == {"ab": 20, "ba": 10}[direction]  # rows without a partner do not count
        for k in (1, 5, 10):
            assert found[f"{direction}/r@{k}"] == pytest.approx((values <= k).mean())
        assert found[f"{direction}/mrr"] == pytest.approx((1 / values).mean())
        assert found[f"{direction}/median_rank"] == np.median(values)
        mine = ranks[ranks["direction"] == direction]
        assert list(mine["row"]) == [names[i] for i in slow]
        assert list(mine["item"]) == [item_q[i] for i in slow]
        assert list(mine["rank"]) == list(values)
        assert set(mine["positives"]) == {1 if direction == "ab" else 2}


def test_unseen_groups_are_asked_for_and_searched_alone(held):
    aligner = make_aligner()
    found, _ = evaluate(aligner, held, EvaluationConfig())
    scores, unseen = aligner.score(held.a.x, held.b.x).numpy(), held.a.unseen
    items_a, items_b = np.array(ITEMS_A[24:]), np.array(ITEMS_B[12:])
    asked = list(slow_ranks(scores[unseen], items_a[unseen], items_b).values())
    searched = list(slow_ranks(scores[unseen].T, items_b, items_a[unseen]).values())
    assert found["ab/unseen/mrr"] == pytest.approx(np.mean([1 / r for r in asked]))
    assert found["ba/unseen/mrr"] == pytest.approx(np.mean([1 / r for r in searched]))
    assert found["ba/unseen/chance@10"] == pytest.approx(10 / 12)


def test_where_both_modalities_have_unseen_groups_these_search_each_other(make_store):
    a = make_store("a", cloud(48, D_A).numpy(), item=ITEMS_A, split=SPLIT_A, group=VOICES)
    renderers = ["r" if n < 12 or n % 2 else "new" for n in range(23)]
    b = make_store("b", cloud(23, D_B, 1).numpy(), item=ITEMS_B, split=SPLIT_B, group=renderers)
    held, aligner = HeldOutItems.load(a, b, split_items(a.rows, b.rows)), make_aligner()
    found, _ = evaluate(aligner, held, EvaluationConfig())
    table = aligner.score(held.a.x[held.a.unseen], held.b.x[held.b.unseen]).numpy()
    items_a, items_b = np.array(ITEMS_A[24:])[held.a.unseen], np.array(ITEMS_B[12:])[held.b.unseen]
    assert 0 < len(items_b) < 11
    for direction, ranks in (
        ("ab", slow_ranks(table, items_a, items_b)),
        ("ba", slow_ranks(table.T, items_b, items_a)),
    ):
        assert found[f"{direction}/unseen/mrr"] == pytest.approx(
            np.mean([1 / rank for rank in ranks.values()])
        )


def test_rows_of_a_condition_are_evaluated_apart(make_store):
    """`robot` rows of a search all of b; `human` rows of both search each other; neither is in the
    measures of the others.
    """
    kinds_a = [None if n < 36 else "robot" if n < 42 else "human" for n in range(48)]
    kinds_b = [None if n < 20 else "human" for n in range(23)]
    items_a = [*ITEMS_A[:36], *ITEMS_A[24:30], *ITEMS_A[42:]]
    columns = {"split": SPLIT_A, "item": items_a, "condition": kinds_a}
    a = make_store("a", cloud(48, D_A).numpy(), **columns)
    columns = {"split": SPLIT_B, "item": [*ITEMS_B[:20], "i21", "i22", "i23"]}
    b = make_store("b", cloud(23, D_B, 1).numpy(), **columns, condition=kinds_b)
    held, aligner = HeldOutItems.load(a, b, split_items(a.rows, b.rows)), make_aligner()
    found, ranks = evaluate(aligner, held, EvaluationConfig())
    assert set(held.conditions) == {"robot", "human"}
    x_a, x_b = torch.tensor(a.read()), torch.tensor(b.read())
    items_b = [*ITEMS_B[:20], "i21", "i22", "i23"]
    for name, in_a, in_b in (
        ("", slice(24, 36), slice(12, 20)),
        ("robot/", slice(36, 42), slice(12, 20)),
        ("human/", slice(42, 48), slice(20, 23)),
    ):
        table = aligner.score(x_a[in_a], x_b[in_b]).numpy()
        q, g = np.array(items_a[in_a]), np.array(items_b[in_b])
        for direction, expected in (
            ("ab", slow_ranks(table, q, g)),
            ("ba", slow_ranks(table.T, g, q)),
        ):
            mean = np.mean([1 / rank for rank in expected.values()])
            assert found[f"{direction}/{name}mrr"] == pytest.approx(mean), (direction, name)
    assert set(ranks["item"]) <= set(items_a[24:36])


def test_there_are_no_unseen_measures_without_groups(make_store):
    a = make_store("a", cloud(24, D_A).numpy(), split=["train", "test"] * 12)
    b = make_store("b", cloud(24, D_B, 1).numpy(), split=["train", "test"] * 12)
    found, _ = evaluate(
        make_aligner(), HeldOutItems.load(a, b, split_items(a.rows, b.rows)), EvaluationConfig()
    )
    assert not [name for name in found if "unseen" in name]


def test_foscttm_and_overlap_are_those_of_the_mapped_rows(held):
    aligner = make_aligner(corrected=True)
    found, _ = evaluate(aligner, held, EvaluationConfig(overlap_k=3))
    z_a, z_b = aligner.encode_a(held.a.x), aligner.encode_b(held.b.x)
    scores = aligner.score(held.a.x, held.b.x)
    ways = []
    for table, item_q, item_g in (
        (scores, held.item_a, held.item_b),
        (scores.T, held.item_b, held.item_a),
    ):
        closer = [
            ((row > row[j]).sum() / (len(row) - 1)).item()
            for row, item in zip(table, item_q, strict=True)
            for j in (item_g == item).nonzero()[:, 0]
        ]
        ways.append(np.mean(closer))
    assert found["foscttm"] == pytest.approx(np.mean(ways))
    uncorrected = foscttm(rank_positives(z_a, z_b, held.item_a, held.item_b))
    assert uncorrected != pytest.approx(ways[0])  # the correction counts
    for side, z, x in (("a", z_a, held.a.x), ("b", z_b, held.b.x)):
        frozen = aligner.preprocess[side](x)
        near = [(-(v @ v.T)).fill_diagonal_(torch.inf).argsort(1)[:, :3] for v in (frozen, z)]
        shared = np.mean(
            [
                len(set(before.tolist()) & set(after.tolist())) / 3
                for before, after in zip(*near, strict=True)
            ]
        )
        assert found[f"{side}/knn_overlap"] == pytest.approx(shared)


def test_chunks_change_nothing(held):
    whole, ranks = evaluate(make_aligner(True), held, EvaluationConfig(chunk=4096))
    parts, in_parts = evaluate(make_aligner(True), held, EvaluationConfig(chunk=3))
    assert parts == pytest.approx(whole, rel=1e-12)
    pd.testing.assert_frame_equal(in_parts, ranks)


@pytest.mark.parametrize(("weight", "value"), [(torch.eye(D_A), 1.0), (torch.zeros(D_A, D_A), 0.0)])
def test_a_perfect_and_a_collapsed_map(make_store, weight, value):
    """Two views that are one: the identity finds every partner, a map to one point ranks them all
    in the middle.
    """
    x = normalized(cloud(81, D_A)).numpy()
    a, b = (make_store(name, x, split=["test"] * 61 + ["train"] * 20) for name in "ab")
    aligner = Aligner(
        Preprocessing(None),
        Preprocessing(None),
        SharedSpace(Linear(D_A, D_A, weight=weight), Linear(D_A, D_A, weight=weight)),
    )
    found, ranks = evaluate(
        aligner, HeldOutItems.load(a, b, split_items(a.rows, b.rows)), EvaluationConfig()
    )
    for direction in ("ab", "ba"):
        assert found[f"{direction}/r@1"] == found[f"{direction}/r@10"] == value
        assert found[f"{direction}/median_rank"] == (1 if value else 31)
        assert found[f"{direction}/chance@10"] == pytest.approx(10 / 61)
    assert found["foscttm"] == pytest.approx(0 if value else 0.5)
    assert set(ranks["rank"]) == {1.0 if value else 31.0}
    assert (ranks["family"] == ranks["item"]).all()  # the stores name none


# ---- within a modality ----


def test_unimodal_measures_are_those_of_labels_and_groups(make_store):
    label = [f"c{n // 2 % 4}" if n % 7 else None for n in range(48)]
    a = make_store(
        "a", cloud(48, D_A).numpy(), item=ITEMS_A, split=SPLIT_A, group=VOICES, label=label
    )
    b = make_store("b", cloud(23, D_B, 1).numpy(), item=ITEMS_B, split=SPLIT_B)
    held, aligner = (
        HeldOutItems.load(a, b, split_items(a.rows, b.rows)),
        make_aligner(corrected=True),
    )
    found, _ = evaluate(aligner, held, EvaluationConfig(overlap_k=3))
    items, labels, voices = np.array(ITEMS_A[24:]), label[24:], VOICES[24:]
    for when, v in (
        ("before", aligner.preprocess["a"](held.a.x)),
        ("after", aligner.encode_a(held.a.x)),
    ):
        scores, shares, hits = (v @ v.T).numpy(), [], []
        for i in range(24):
            others = [j for j in range(24) if items[j] != items[i]]
            near = sorted((j for j in others if labels[j]), key=lambda j, i=i, s=scores: -s[i, j])[
                :10
            ]
            if labels[i]:
                shares.append(np.mean([labels[j] == labels[i] for j in near]))
            [partner] = [j for j in range(24) if items[j] == items[i] and j != i]
            if voices[partner] != voices[i]:
                hits.append(1 + sum(scores[i, j] > scores[i, partner] for j in others) <= 10)
        assert found[f"a/label_p@10/{when}"] == pytest.approx(np.mean(shares))
        assert found[f"a/group_r@10/{when}"] == pytest.approx(np.mean(hits))
    assert 0 < found["a/continuity"] < 1
    assert found["a/continuity"] != found["a/trustworthiness"]
    assert not [
        name for name in found if name.startswith("b/") and "@" in name
    ]  # no labels and no groups there


# ---- class names ----


def test_accuracy_is_that_of_the_best_class_name(make_store):
    """Rows of b with split `both` name the classes, one class by two prompts; a's labels are
    classes, one of them without a name.
    """
    label = [f"c{n % 4}" for n in range(48)]
    a = make_store(
        "a",
        cloud(48, D_A).numpy(),
        item=ITEMS_A,
        split=SPLIT_A,
        label=[label[n // 2] for n in range(48)],
    )
    names = ["c0", "c1", "c1", "c2"]
    b = make_store(
        "b",
        cloud(27, D_B, 1).numpy(),
        item=ITEMS_B + [f"name-{n}" for n in range(4)],
        split=[*SPLIT_B, *["both"] * 4],
        label=["c3"] * 23 + names,
    )
    held, aligner = (
        HeldOutItems.load(a, b, split_items(a.rows, b.rows)),
        make_aligner(corrected=True),
    )
    found, _ = evaluate(aligner, held, EvaluationConfig())
    scores = aligner.score(held.a.x, held.b.x[-4:]).numpy()
    asked = [i for i in range(24) if held.a.rows["label"][i] != "c3"]
    right = [names[int(scores[i].argmax())] == held.a.rows["label"][i] for i in asked]
    assert 0 < np.mean(right) < 1
    assert found["ab/accuracy"] == pytest.approx(np.mean(right))
    assert found["ab/accuracy_chance"] == pytest.approx(
        np.mean([names.count(held.a.rows["label"][i]) / 4 for i in asked])
    )
    assert "ab/classes" not in found  # items are no classes there
    assert "ba/accuracy" not in found


# ---- metrics of the user's own ----


METRIC = """
class Agreement:
    def __init__(self, power=1):
        self.power = power

    def __call__(self, evaluated):
        row_b = {item: n for n, item in enumerate(evaluated.rows_b["item"])}
        pairs = [(n, row_b[i]) for n, i in enumerate(evaluated.rows_a["item"]) if i in row_b]
        assert all(evaluated.item_a[n] == evaluated.item_b[m] for n, m in pairs)
        cosines = [float(evaluated.z_a[n] @ evaluated.z_b[m]) for n, m in pairs]
        width = evaluated.x_a.shape[1]
        return {"agreement": sum(c**self.power for c in cosines) / len(cosines), "width": width}


class Odd:
    def __call__(self, evaluated):
        return 3


class Taken:
    def __call__(self, evaluated):
        return {"foscttm": 0}
"""


@pytest.fixture
def my_metrics(tmp_path, monkeypatch):
    """A user's module beside the experiment."""
    (tmp_path / "my_metrics.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_metric_of_the_users_own_module_joins_the_row(held, my_metrics):
    aligner = make_aligner(corrected=True)
    spec = {"class": "my_metrics.Agreement", "power": 2}
    plain, _ = evaluate(aligner, held, EvaluationConfig())
    found, _ = evaluate(aligner, held, EvaluationConfig(metrics=[spec]))
    same = held.item_a.unsqueeze(1) == held.item_b.unsqueeze(0)
    cosines = (aligner.encode_a(held.a.x) @ aligner.encode_b(held.b.x).T)[same]
    assert found["agreement"] == pytest.approx(float(cosines.square().mean()))
    assert found["width"] == D_A
    assert {name: found[name] for name in plain} == plain


@pytest.mark.parametrize(("name", "value"), [("Odd", None), ("Taken", "foscttm")])
def test_a_metric_that_returns_no_numbers_or_a_taken_name_is_refused(held, my_metrics, name, value):
    spec = {"class": f"my_metrics.{name}"}
    with pytest.raises(UserError) as error:
        evaluate(make_aligner(), held, EvaluationConfig(metrics=[spec]))
    assert error.value.key == "evaluation.metrics[0]"
    assert error.value.value == (value or spec)


def test_a_metric_that_does_not_exist_is_refused_with_the_settings(my_metrics):
    with pytest.raises(UserError) as error:
        EvaluationConfig(metrics=[{"class": "my_metrics.Agrement"}])
    assert error.value.key == "evaluation.metrics[0].class"
