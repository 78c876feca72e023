from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gera_lightning.evaluation.comparisons import (
    Bootstrap,
    Hits,
    Multiplier,
    compare,
    load_hits,
    multipliers,
)
from gera_lightning.utils.errors import UserError


def made(recalls, seeds=5, items=300, seed=0, spread=0.0):
    """Hits of methods `{name: [recall at each budget]}`; methods share the items' hardness and the
    seeds' luck.
    """
    rng = np.random.default_rng(seed)
    hardness, luck = (
        rng.random((2, items)),
        (rng.normal(0, spread, seeds) if spread else np.zeros(seeds)),
    )
    values = np.array(list(recalls.values()))
    hits = hardness < values[:, :, None, None, None] + luck[None, None, :, None, None]
    budgets = [50 * 2**n for n in range(values.shape[1])]
    return Hits(list(recalls), budgets, list(range(seeds)), hits.astype(float), np.ones((2, items)))


# ---- reading ----


def ranks(path, ab, ba, items_ab=None):
    path.mkdir(parents=True)
    parts = []
    for direction, values in (("ab", ab), ("ba", ba)):
        names = (
            items_ab if direction == "ab" and items_ab else [f"i{n}" for n in range(len(values))]
        )
        parts.append(
            pd.DataFrame(
                {
                    "direction": direction,
                    "row": names,
                    "item": names,
                    "rank": values,
                    "positives": 1,
                }
            )
        )
    pd.concat(parts).to_parquet(path / "ranks.parquet")
    return path


def runs(*rows):
    return pd.DataFrame(rows, columns=["method", "budget", "seed", "folder"])


def test_ranks_become_hits_by_item(tmp_path):
    """Two rows of a for an item, and an item that only b asks for."""
    one = ranks(tmp_path / "one", [1.0, 10.5, 10.0], [2.0, 11.0, 3.0], ["i0", "i0", "i1"])
    two = ranks(tmp_path / "two", [11.0, 12.0, 1.0], [2.0, 1.0, 30.0], ["i0", "i0", "i1"])
    found = load_hits(
        runs(("m", 100, 3, one), ("k", 50, 1, two), ("k", 100, 1, tmp_path / "without"))
    )
    assert (found.methods, found.budgets, found.seeds) == (["m", "k"], [50, 100], [1, 3])
    assert found.rows.tolist() == [[2, 1, 0], [1, 1, 1]]
    assert found.hits[0, 1, 1].tolist() == [[1, 1, 0], [1, 0, 1]]
    assert found.hits[1, 0, 0].tolist() == [[0, 1, 0], [1, 1, 0]]
    assert np.isnan(found.hits).sum() == 6 * 6  # the other six places
    bootstrap = Bootstrap(found, draws=50)
    assert bootstrap.by_seed[0, 0, 1, 1] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_near_duplicates_are_drawn_together(tmp_path):
    """Three items of a family are one thing to find; the recall itself still counts rows."""
    folder = ranks(tmp_path / "one", [1.0, 11.0, 10.0, 1.0], [2.0, 11.0, 3.0, 12.0])
    table = pd.read_parquet(folder / "ranks.parquet")
    table.assign(family=table["item"].map({"i0": "f", "i1": "f", "i2": "f", "i3": "g"})).to_parquet(
        folder / "ranks.parquet"
    )
    found = load_hits(runs(("m", 100, 0, folder)))
    assert found.rows.tolist() == [[3, 1], [3, 1]]
    assert found.hits[0, 0, 0].tolist() == [[2, 1], [2, 0]]
    bootstrap = Bootstrap(found, draws=200)
    assert bootstrap.by_seed[0, 0, 0, 0] == pytest.approx(5 / 8)
    both, f, g = (
        5 / 8,
        (2 / 3 + 2 / 3) / 2,
        (1 + 0) / 2,
    )  # families drawn: each once, or one of them twice
    assert set(np.round(bootstrap.by_seed[1:, 0, 0, 0], 9)) == {round(v, 9) for v in (both, f, g)}


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = ranks(tmp_path / "one", [1.0, 2.0], [1.0, 2.0])
    two = ranks(tmp_path / "two", [1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(UserError, match=r"two.*has other test items"):
        load_hits(runs(("m", 10, 0, one), ("k", 10, 0, two)))
    with pytest.raises(UserError, match="second run of the same method"):
        load_hits(runs(("m", 10, 0, one), ("m", 10, 0, two)))
    with pytest.raises(UserError, match="overwrite=true"):
        load_hits(runs(("m", 10, 0, tmp_path)))


# ---- the bootstrap ----


def slow_bootstrap(hits, m, r, n, draws, seed):
    """Draw seeds and items with a loop, both methods alike."""
    rng, out = np.random.default_rng(seed), []
    seeds, items = hits.hits.shape[2], hits.hits.shape[4]
    for _ in range(draws):
        s, i = rng.integers(0, seeds, seeds), rng.integers(0, items, items)
        recall = [
            np.mean([hits.hits[k, n, j][:, i].sum(1) / hits.rows[:, i].sum(1) for j in s])
            for k in (m, r)
        ]
        out.append(recall[0] - recall[1])
    return np.array(out)


def test_differences_equal_a_slow_bootstrap():
    hits = made({"m": [0.5], "r": [0.42]}, seeds=6, items=120, spread=0.05)
    noisy = np.random.default_rng(5).random(hits.hits.shape) < 0.15
    hits = Hits(
        hits.methods, hits.budgets, hits.seeds, np.where(noisy, 1 - hits.hits, hits.hits), hits.rows
    )
    found = Bootstrap(hits, draws=4000).difference("m", "r", 50)
    slow = slow_bootstrap(hits, 0, 1, 0, 4000, 9)
    assert found is not None
    assert found.estimate.value == pytest.approx(hits.hits[0].mean() - hits.hits[1].mean())
    assert found.error == pytest.approx(slow.std(), rel=0.05)
    assert [found.estimate.low, found.estimate.high] == pytest.approx(
        list(np.quantile(slow, [0.025, 0.975])), abs=0.006
    )
    assert found.p == pytest.approx(2 * min((slow <= 0).mean(), (slow >= 0).mean()), abs=0.02)


def test_pairing_takes_out_what_both_methods_share():
    hits = made({"m": [0.5], "r": [0.45]}, spread=0.1)
    bootstrap = Bootstrap(hits)
    found = bootstrap.difference("m", "r", 50)
    alone = bootstrap.draws_of("m", 50)[1:].std()
    assert found.error < alone / 3
    assert bootstrap.difference("m", "m", 50).p == 1.0


def test_seeds_that_differ_widen_the_interval_and_one_seed_draws_items_alone():
    calm, wild = (
        Bootstrap(made({"m": [0.5]}, spread=spread)).recall("m", 50) for spread in (0.0, 0.15)
    )
    assert wild.high - wild.low > 1.5 * (calm.high - calm.low)
    one = Bootstrap(made({"m": [0.5]}, seeds=1, items=400)).recall("m", 50)
    value = one.value
    # two directions with hardness of their own: the error of a share over 800 queries
    assert one.high - one.low == pytest.approx(
        2 * 1.96 * np.sqrt(value * (1 - value) / 800), rel=0.15
    )


def test_missing_runs_leave_the_common_seeds():
    hits = made({"m": [0.5, 0.6], "r": [0.4, 0.5]}, seeds=4, spread=0.1)
    hits.hits[0, 0, 0] = np.nan
    hits.hits[1, 0, 3] = np.nan
    hits.hits[1, 1] = np.nan
    bootstrap = Bootstrap(hits)
    found = bootstrap.difference("m", "r", 50)
    assert found.seeds == 2
    assert found.estimate.value == pytest.approx(
        hits.hits[0, 0, 1:3].mean() - hits.hits[1, 0, 1:3].mean()
    )
    assert bootstrap.recall("m", 50).value == pytest.approx(hits.hits[0, 0, 1:].mean())
    assert bootstrap.difference("m", "r", 100) is None
    assert bootstrap.recall("r", 100) is None
    assert bootstrap.recall("nobody", 50) is None
    assert [c.difference.method for c in compare(bootstrap, "m", 100)] == []


def test_intervals_cover_the_truth_as_often_as_they_say():
    """150 experiments of eight seeds whose items and seeds both vary; bootstrap intervals of few
    seeds are somewhat short.
    """
    covered = []
    for number in range(150):
        rng = np.random.default_rng(1000 + number)
        luck = rng.normal(0, 0.03, 8)
        hits = rng.random((1, 1, 8, 2, 60)) < (0.4 + luck)[None, None, :, None, None]
        found = Bootstrap(
            Hits(["m"], [50], list(range(8)), hits.astype(float), np.ones((2, 60))), draws=199
        ).recall("m", 50)
        covered.append(found.low <= 0.4 <= found.high)
    assert 0.88 <= np.mean(covered) <= 1.0


def test_comparisons_are_corrected_for_the_number_of_peers():
    hits = made({"m": [0.5], "near": [0.49], "far": [0.3], "mid": [0.46]}, items=150)
    noisy = np.random.default_rng(5).random(hits.hits.shape) < 0.2
    bootstrap = Bootstrap(
        Hits(
            hits.methods,
            hits.budgets,
            hits.seeds,
            np.where(noisy, 1 - hits.hits, hits.hits),
            hits.rows,
        )
    )
    found = {c.difference.reference: c for c in compare(bootstrap, "m", 50)}
    assert set(found) == {"near", "far", "mid"}
    for comparison in found.values():
        plain = comparison.difference
        assert comparison.p_holm >= plain.p
        assert comparison.low <= plain.estimate.low
        assert comparison.high >= plain.estimate.high
        assert (comparison.low <= 0 <= comparison.high) == (comparison.p_holm > 0.05)
        assert 2.8 * plain.error < comparison.detectable < 3.5 * plain.error
    assert found["far"].p_holm < 0.01
    assert found["near"].p_holm > 0.05
    fewer = {
        c.difference.reference: c for c in compare(bootstrap, "m", 50, peers=["m", "mid", "far"])
    }
    assert set(fewer) == {"mid", "far"}
    assert all(fewer[name].difference.p == found[name].difference.p for name in fewer)
    assert fewer["mid"].p_holm <= found["mid"].p_holm
    turned = {c.difference.method: c for c in compare(bootstrap, "m", 50, sign=-1)}
    for name, comparison in turned.items():
        assert (comparison.low, comparison.high) == (-found[name].high, -found[name].low)


# ---- label multipliers ----


def test_a_method_that_does_at_n_what_the_baseline_does_at_2n_doubles_its_labels():
    hits = made(
        {
            "base": [0.2, 0.3, 0.4, 0.5],
            "double": [0.3, 0.4, 0.5, 0.6],
            "half": [0.1, 0.2, 0.3, 0.4],
        },
        items=4000,
    )
    found = {(m.method, m.budget): m for m in multipliers(Bootstrap(hits, draws=199), "base")}
    assert len(found) == 8
    for budget in (50, 100, 200):
        assert found["double", budget].value == pytest.approx(2.0, rel=0.05)
        assert found["double", budget].low <= 2.001
        assert found["double", budget].high >= 1.999
    assert found["half", 200].value == pytest.approx(0.5, rel=0.05)
    assert str(found["double", 400]) == "> 1 [> 1, > 1]"
    assert str(found["half", 50]) == "< 1 [< 1, < 1]"


def test_a_longer_curve_of_the_baseline_measures_what_was_censored():
    """The same, but the baseline alone ran on 400 and 800 pairs too: its other runs are missing
    there.
    """
    recalls = {"base": [0.2, 0.3, 0.4, 0.5, 0.6], "double": [0.3, 0.4, 0.5, 0.6, 0.7]}
    hits = made(recalls, items=4000)
    hits.hits[1, 3:] = np.nan
    found = {m.budget: m for m in multipliers(Bootstrap(hits, draws=199), "base")}
    assert sorted(found) == [50, 100, 200]
    assert found[200].value == pytest.approx(2.0, rel=0.05)
    assert (found[200].least, found[200].most) == (0.25, 4.0)
    short = Hits(hits.methods, hits.budgets[:3], hits.seeds, hits.hits[:, :3], hits.rows)
    assert np.isposinf(
        {m.budget: m for m in multipliers(Bootstrap(short, draws=199), "base")}[200].value
    )


def test_a_multiplier_is_of_the_seeds_that_both_have():
    """The method alone ran on lucky seeds too: they do not flatter it, and the seeds that both have
    are drawn alike.
    """
    hits = made({"base": [0.2, 0.3, 0.4], "m": [0.2, 0.3, 0.4]}, seeds=6, items=4000)
    hits.hits[1, :, 3:] = 1.0
    hits.hits[0, :, 3:] = np.nan
    found = multipliers(Bootstrap(hits, draws=199), "base")
    assert [(m.budget, str(m)) for m in found] == [
        (50, "1.00 [1.00, 1.00]"),
        (100, "1.00 [1.00, 1.00]"),
        (200, "1.00 [1.00, 1.00]"),
    ]
    hits.hits[0, 2, :3] = np.nan  # no seed ran on the whole curve
    hits.hits[0, 2, 3:] = 0.4
    assert multipliers(Bootstrap(hits, draws=199), "base") == []


def test_an_interval_may_be_censored_on_one_side():
    hits = made({"base": [0.2, 0.3, 0.4], "m": [0.25, 0.395, 0.41]}, items=200)
    noisy = np.random.default_rng(5).random(hits.hits.shape) < 0.2
    hits = Hits(
        hits.methods, hits.budgets, hits.seeds, np.where(noisy, 1 - hits.hits, hits.hits), hits.rows
    )
    [at_100] = [m for m in multipliers(Bootstrap(hits), "base") if m.budget == 100]
    assert np.isfinite(at_100.value)
    assert np.isposinf(at_100.high)
    assert str(at_100).endswith(", > 2]")
    assert 0.5 <= at_100.low < at_100.value


def test_a_missing_baseline_has_no_multipliers():
    assert multipliers(Bootstrap(made({"m": [0.2, 0.3]}), draws=50), "base") == []
    assert str(Multiplier("m", "b", 100, 0.25, 4, 1.8, -np.inf, np.inf)) == "1.80 [< 0.25, > 4]"
