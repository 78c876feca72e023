import numpy as np
import pytest
import torch
from scipy.stats import skew

from gera_lightning.evaluation import neighborhoods, retrieval
from gera_lightning.models.maps import normalized


def rows(n, d=4, seed=0):
    return normalized(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def tied(n, d=3, seed=0):
    """Rows of small whole numbers: their products tie often, and exactly."""
    return torch.randint(-1, 2, (n, d), generator=torch.Generator().manual_seed(seed)).double()


def items(n, among, seed=0):
    return torch.randint(0, among, (n,), generator=torch.Generator().manual_seed(seed))


CASES = {
    "one positive": (rows(9), rows(9, seed=1), torch.arange(9), torch.arange(9).flip(0)),
    "several positives": (rows(12), rows(15, seed=1), items(12, 5), items(15, 5, 1)),
    "some without": (rows(12), rows(6, seed=1), items(12, 9), items(6, 9, 1)),
    "ties": (tied(20), tied(25, seed=1), items(20, 6), items(25, 6, 1)),
    "many positives": (tied(30), tied(40, seed=1), items(30, 2), items(40, 2, 1)),
    "collapsed": (torch.ones(7, 2), torch.ones(11, 2), torch.arange(7), torch.arange(11)),
}


def best_ranks(*case, **settings):
    return retrieval.rank_positives(*case, **settings).best


def slow_ranks(z_q, z_g, item_q, item_g):
    out = []
    for q, item in zip(z_q.numpy(), item_q.tolist(), strict=True):
        scores = [float(np.dot(q, g)) for g in z_g.numpy()]
        own = [s for s, i in zip(scores, item_g.tolist(), strict=True) if i == item]
        others = [s for s, i in zip(scores, item_g.tolist(), strict=True) if i != item]
        # ties at the mean rank: the mean of the best and the worst place among equals
        best, worst = (
            (1 + sum(s > max(own) for s in others), 1 + sum(s >= max(own) for s in others))
            if own
            else (np.nan, np.nan)
        )
        out.append((best + worst) / 2)
    return np.array(out)


# ---- ranks ----


@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_slow_loops(case):
    np.testing.assert_array_equal(best_ranks(*CASES[case]), slow_ranks(*CASES[case]))


@pytest.mark.parametrize("chunk", [1, 5, 7, 100])
@pytest.mark.parametrize("case", CASES)
def test_ranks_in_parts_equal_ranks_at_once(case, chunk):
    torch.testing.assert_close(
        best_ranks(*CASES[case], chunk=chunk),
        best_ranks(*CASES[case]),
        equal_nan=True,
        rtol=0,
        atol=0,
    )


def test_a_collapsed_map_ranks_as_chance_does():
    n = 101
    z, item = torch.ones(n, 3), torch.arange(n)
    ranks = best_ranks(z, z, item, item)
    assert ranks.tolist() == [(n + 1) / 2] * n  # the mean rank of a random order
    found = retrieval.retrieval(retrieval.rank_positives(z, z, item, item), item, item)
    assert found["r@1"] == found["r@10"] == 0.0
    assert found["median_rank"] == 51.0
    assert both_ways(z, z, item, item) == pytest.approx(0.5)


def test_a_large_gallery_is_scored_in_parts(monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_SCORES", 50)  # two queries of 25 gallery rows
    case = CASES["ties"]
    np.testing.assert_array_equal(best_ranks(*case), slow_ranks(*case))


@pytest.mark.parametrize("case", ["one positive", "several positives", "many positives"])
def test_rows_that_are_no_numbers_rank_behind_all_others_and_a_diverged_map_as_chance_does(case):
    z_q, z_g, item_q, item_g = (part.clone() for part in CASES[case])
    z_g[0] = torch.nan
    lowest = z_g.clone()
    lowest[0] = 0
    z_low, g_low = (
        torch.cat([z_q, torch.ones(len(z_q), 1)], 1),
        torch.cat([lowest, torch.zeros(len(z_g), 1)], 1),
    )
    g_low[0, -1] = -1e6
    np.testing.assert_array_equal(
        best_ranks(z_q, z_g, item_q, item_g), slow_ranks(z_low, g_low, item_q, item_g)
    )
    diverged = best_ranks(z_q * torch.nan, z_g * torch.nan, item_q, item_g)
    np.testing.assert_array_equal(diverged, slow_ranks(z_q * 0, lowest * 0, item_q, item_g))


def test_no_queries_have_no_ranks():
    assert best_ranks(
        torch.zeros(0, 2), torch.zeros(3, 2), torch.zeros(0).long(), torch.arange(3)
    ).shape == (0,)


# ---- measures from ranks ----

RANKS = torch.tensor([1.0, 1.5, 2, 5, 5.5, 10, 11, 40], dtype=torch.float64)


def test_measures_of_known_ranks():
    metric = retrieval.RetrievalRanks()
    metric.update(RANKS)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["r@1"] == 1 / 8  # a tie at the first place is not a hit
    assert found["r@5"] == 4 / 8
    assert found["r@10"] == 6 / 8
    assert found["mrr"] == pytest.approx(np.mean([1 / r for r in RANKS.tolist()]))
    assert found["median_rank"] == 5.25


def test_measures_in_parts_equal_those_at_once_and_skip_queries_without_a_positive():
    whole, parts = retrieval.RetrievalRanks(), retrieval.RetrievalRanks()
    whole.update(RANKS)
    for part in (RANKS[:3], torch.tensor([torch.nan, torch.nan], dtype=torch.float64), RANKS[3:]):
        parts.update(part)
    assert parts.compute() == whole.compute()
    parts.reset()
    parts.update(RANKS[:1])
    assert float(parts.compute()["r@1"]) == 1.0


def test_retrieval_joins_ranks_and_chance():
    case = CASES["some without"]
    found, ranks = (
        retrieval.retrieval(retrieval.rank_positives(*case, chunk=5), *case[2:]),
        slow_ranks(*case),
    )
    ranks = ranks[~np.isnan(ranks)]
    assert 0 < len(ranks) < 12
    for k in (1, 5, 10):
        assert found[f"r@{k}"] == np.mean(ranks <= k)
    assert found["mrr"] == pytest.approx(np.mean(1 / ranks))
    assert found["median_rank"] == np.median(ranks)
    assert found["chance@10"] == retrieval.chance(case[2].numpy(), case[3].numpy(), 10)


# ---- chance ----


@pytest.mark.parametrize("top", [1, 3, 10])
def test_chance_equals_monte_carlo(top):
    rng = np.random.default_rng(0)
    item_q, item_g = rng.integers(0, 9, 20), rng.integers(0, 8, 25)
    asked = [item for item in item_q if item in item_g]
    assert len(asked) < len(item_q)
    orders = [rng.permutation(item_g)[:top] for _ in range(4000)]
    drawn = np.mean([[item in order for item in asked] for order in orders])
    assert retrieval.chance(item_q, item_g, top) == pytest.approx(drawn, abs=0.015)


def test_chance_of_one_positive_is_the_share_of_the_gallery():
    item = np.arange(40)
    assert retrieval.chance(item, item[::-1], 10) == pytest.approx(0.25)
    assert retrieval.chance(item[:4], item[:4], 10) == pytest.approx(1.0)
    assert retrieval.chance(np.array([5, 999]), item, 1) == pytest.approx(
        1 / 40
    )  # a query without a positive does not count


# ---- FOSCTTM ----


def both_ways(z_a, z_b, item_a, item_b, **settings):
    ways = ((z_a, z_b, item_a, item_b), (z_b, z_a, item_b, item_a))
    return np.mean([retrieval.foscttm(retrieval.rank_positives(*w, **settings)) for w in ways])


def slow_foscttm(z_a, z_b, item_a, item_b):
    means = []
    for z_q, z_g, item_q, item_g in ((z_a, z_b, item_a, item_b), (z_b, z_a, item_b, item_a)):
        shares = []
        for q, item in zip(z_q.numpy(), item_q.tolist(), strict=True):
            scores = [float(np.dot(q, g)) for g in z_g.numpy()]
            for j, other in enumerate(item_g.tolist()):
                if other == item:
                    rest = scores[:j] + scores[j + 1 :]
                    shares.append(np.mean([(s > scores[j]) + 0.5 * (s == scores[j]) for s in rest]))
        means.append(np.mean(shares))
    return np.mean(means)


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("case", CASES)
def test_foscttm_equals_slow_loops(case, chunk):
    assert both_ways(*CASES[case], chunk=chunk) == pytest.approx(
        slow_foscttm(*CASES[case]), abs=1e-12
    )


def test_foscttm_of_a_perfect_and_of_the_worst_map():
    z, item = rows(9), torch.arange(9)
    assert both_ways(z, z, item, item) == 0.0
    assert both_ways(z, -z, item, item) == pytest.approx(1.0)


# ---- hubness ----


def test_hubness_equals_a_slow_count():
    z_q, z_g = rows(40), rows(30, seed=1)
    counts = [0] * 30
    for q in z_q.numpy():
        for j in np.argsort([-float(np.dot(q, g)) for g in z_g.numpy()])[:5]:
            counts[j] += 1
    assert retrieval.hubness(z_q, z_g, 5) == pytest.approx(float(skew(counts)))


def test_a_hub_raises_hubness_and_an_even_gallery_has_none():
    z_q = rows(200, 16)
    z_g = rows(100, 16, 1)
    hub = torch.cat([z_g[:-1], 3 * normalized(z_q.mean(0, keepdim=True))])
    assert retrieval.hubness(z_q + z_q.mean(0), hub) > retrieval.hubness(z_q, z_g)
    assert retrieval.hubness(rows(20), rows(8, seed=1), 10) == 0.0


# ---- neighbourhoods ----


def slow_neighbours(x, k):
    d2 = [[float(((p - q) ** 2).sum()) for q in x.numpy()] for p in x.numpy()]
    return [
        set(sorted((j for j in range(len(x)) if j != i), key=lambda j: d2[i][j])[:k])
        for i in range(len(x))
    ]


@pytest.mark.parametrize("k", [1, 4, 29])
def test_knn_overlap_equals_slow_loops(k):
    x, z = rows(30, 6), rows(30, 3, 1)
    shared = [
        len(before & after) / k
        for before, after in zip(slow_neighbours(x, k), slow_neighbours(z, k), strict=True)
    ]
    assert neighborhoods.knn_overlap(x, z, k) == pytest.approx(np.mean(shared))


def test_knn_overlap_is_whole_under_a_rotation_and_chance_under_shuffling():
    x = rows(400, 6)
    rotation, _ = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    assert neighborhoods.knn_overlap(x, x @ rotation) == 1.0
    shuffled = x[torch.randperm(400, generator=torch.Generator().manual_seed(2))]
    assert neighborhoods.knn_overlap(x, shuffled) == pytest.approx(10 / 399, abs=0.01)


def test_knn_overlap_with_exact_copies_and_too_few_points():
    x = rows(10).repeat(2, 1)
    assert neighborhoods.knn_overlap(x, x, 3) == 1.0
    assert neighborhoods.knn_overlap(rows(4), rows(4, seed=1), 10) == 1.0  # k is cut to all others


def slow_trustworthiness(x, z, k):
    n, near = len(x), slow_neighbours(x, k)
    d2 = ((x[:, None] - x[None]) ** 2).sum(-1).fill_diagonal_(-1).numpy()
    far = sum(
        sorted(range(n), key=lambda j, i=i: d2[i][j]).index(j) - k
        for i, after in enumerate(slow_neighbours(z, k))
        for j in after - near[i]
    )
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * far


@pytest.mark.parametrize("k", [1, 4, 9])
def test_trustworthiness_equals_slow_loops(k):
    x, z = rows(30, 6), rows(30, 3, 1)
    assert neighborhoods.trustworthiness(x, z, k) == pytest.approx(slow_trustworthiness(x, z, k))
    assert neighborhoods.trustworthiness(z, x, k) != pytest.approx(
        neighborhoods.trustworthiness(x, z, k)
    )


def test_trustworthiness_of_a_rotation_of_many_rows_and_of_few():
    x = rows(60, 6)
    rotation, _ = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    assert neighborhoods.trustworthiness(x, x @ rotation) == 1.0
    z = rows(60, 3, 1)
    some = np.linspace(0, 59, 20).astype(int)
    assert neighborhoods.trustworthiness(x, z, 3, most=20) == neighborhoods.trustworthiness(
        x[some], z[some], 3
    )
    assert neighborhoods.trustworthiness(
        rows(4), rows(4, seed=1), 10
    ) == neighborhoods.trustworthiness(rows(4), rows(4, seed=1), 1)
    assert neighborhoods.trustworthiness(rows(2), rows(2, seed=1)) == 1.0


# ---- average precision ----


def slow_map(z_q, z_g, item_q, item_g):
    """From the list of the gallery in order of scores, when no two tie."""
    precisions = []
    for q, item in zip(z_q.numpy(), item_q.tolist(), strict=True):
        hits = [
            item_g.tolist()[j] == item
            for j in np.argsort([-float(np.dot(q, g)) for g in z_g.numpy()])
        ]
        places = [place for place, hit in enumerate(hits, start=1) if hit]
        if places:
            precisions.append(np.mean([sum(hits[:place]) / place for place in places]))
    return np.mean(precisions)


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("case", ["one positive", "several positives", "some without"])
def test_average_precision_equals_slow_loops(case, chunk):
    assert retrieval.mean_average_precision(
        retrieval.rank_positives(*CASES[case], chunk=chunk)
    ) == pytest.approx(slow_map(*CASES[case]), abs=1e-12)
    assert retrieval.retrieval(retrieval.rank_positives(*CASES[case]), *CASES[case][2:])[
        "map"
    ] == pytest.approx(slow_map(*CASES[case]))


def test_average_precision_equals_scikit_learns():
    from sklearn.metrics import average_precision_score

    z_q, z_g, item_q, item_g = rows(40), rows(50, seed=1), items(40, 7), items(50, 7, 1)
    scores = (z_q @ z_g.T).numpy()
    theirs = [
        average_precision_score((item_g == item).numpy(), row)
        for item, row in zip(item_q, scores, strict=True)
    ]
    assert retrieval.mean_average_precision(
        retrieval.rank_positives(z_q, z_g, item_q, item_g)
    ) == pytest.approx(np.mean(theirs))


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("case", ["ties", "many positives"])
def test_ranks_of_all_positives_equal_slow_loops(case, chunk):
    z_q, z_g, item_q, item_g = CASES[case]
    slow = []
    for i, item in enumerate(item_q.tolist()):
        scores = (z_g @ z_q[i]).tolist()
        own = [scores[j] for j in range(len(z_g)) if item_g[j] == item]
        for s in own:
            # ties at the mean rank
            slow.append(
                (
                    i,
                    *(
                        np.mean([1 + sum(t > s for t in among), sum(t >= s for t in among)])
                        for among in (scores, own)
                    ),
                )
            )
    found = retrieval.rank_positives(z_q, z_g, item_q, item_g, chunk=chunk)
    fast = list(zip(found.query.tolist(), found.rank.tolist(), found.among.tolist(), strict=True))
    assert len(slow) > len(set(slow))  # there are ties
    assert sorted(fast) == sorted(slow)


def test_a_ranking_of_some_queries_is_that_of_these_queries_alone():
    z_q, z_g, item_q, item_g = CASES["some without"]
    asked = torch.arange(12) % 3 > 0
    found, alone = (
        retrieval.rank_positives(z_q, z_g, item_q, item_g).of(asked),
        retrieval.rank_positives(z_q[asked], z_g, item_q[asked], item_g),
    )
    for name in ("best", "query", "rank", "among"):
        torch.testing.assert_close(
            getattr(found, name), getattr(alone, name), equal_nan=True, rtol=0, atol=0
        )
    assert found.size == alone.size == 6


# ---- same-modality retrieval ----


def slow_label_precision(z, item, label, k, orders):
    """Mean over many orders of the rows: ties fall either way."""
    rng, shares, scores = np.random.default_rng(0), [], (z @ z.T).tolist()
    item, label = item.tolist(), label.tolist()
    taking_part = [i for i in range(len(z)) if label[i] >= 0]
    for i in taking_part:
        others = [j for j in taking_part if item[j] != item[i]]
        if any(label[j] == label[i] for j in others):
            draws = []
            for _ in range(orders):
                near = sorted(rng.permutation(others), key=lambda j, i=i: -scores[i][j])[:k]
                draws.append(np.mean([int(label[j] == label[i]) for j in near]))
            shares.append(np.mean(draws))
    return np.mean(shares)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize(("z", "exact"), [(rows(30), True), (tied(30), False)])
def test_label_precision_equals_slow_loops(z, exact, chunk):
    item, label = items(30, 15), items(30, 5, 1) - 1
    expected = slow_label_precision(z, item, label, 4, 1 if exact else 300)
    assert neighborhoods.label_precision(z, item, label, 4, chunk=chunk) == pytest.approx(
        expected, abs=1e-12 if exact else 0.01
    )


def test_label_precision_of_clear_a_collapsed_and_no_labels():
    label = torch.arange(5).repeat(8)
    clear = torch.eye(5)[label]
    assert neighborhoods.label_precision(clear, torch.arange(40), label, 7) == 1.0
    assert (
        neighborhoods.label_precision(clear, torch.arange(40), label, 14) == 0.5
    )  # seven of its kind, seven others
    assert neighborhoods.label_precision(
        torch.ones(40, 3), torch.arange(40), label
    ) == pytest.approx(7 / 39)  # chance
    assert np.isnan(neighborhoods.label_precision(rows(5), torch.arange(5), torch.arange(5)))
    assert np.isnan(
        neighborhoods.label_precision(rows(5), torch.zeros(5), torch.zeros(5))
    )  # all rows are of one item
    assert np.isnan(neighborhoods.label_precision(rows(5), torch.arange(5), torch.full((5,), -1)))


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("z", [rows(30), tied(30)])
def test_group_recall_equals_slow_loops(z, chunk):
    item, group = items(30, 9), items(30, 4, 1) - 1
    hits = []
    for i in range(30):
        own = [
            float(z[i] @ z[j])
            for j in range(30)
            if item[j] == item[i] and group[j] != group[i] and min(group[i], group[j]) >= 0
        ]
        others = [float(z[i] @ z[j]) for j in range(30) if item[j] != item[i]]
        if own:
            hits.append(
                1 + sum(s > max(own) for s in others) + sum(s == max(own) for s in others) / 2 <= 5
            )
    assert 0 < np.mean(hits) < 1
    assert neighborhoods.group_recall(z, item, group, 5, chunk=chunk) == pytest.approx(
        np.mean(hits)
    )


def test_group_recall_of_one_group_is_nothing():
    assert np.isnan(neighborhoods.group_recall(rows(6), torch.arange(6) // 2, torch.zeros(6)))
    assert (
        neighborhoods.group_recall(torch.ones(60, 2), torch.arange(60) // 2, torch.arange(60) % 2)
        == 0.0
    )  # collapsed: the middle
