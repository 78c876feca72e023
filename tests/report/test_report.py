from __future__ import annotations

import itertools
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gera_lightning.report.figures import Series, _recall_panel, lines, recall_curve, styles
from gera_lightning.report.terminal import chance_line, results_table


def frame(seeds=2, unseen=False):
    """Numbers that name themselves: recall a->b is budget/1000, more for the second method and
    seed, b->a half of it.
    """
    rows = []
    for budget in (300, 100):
        for number, method in enumerate(("zeta", "alpha")):
            for seed in range(seeds):
                recall = budget / 1000 + 0.06 * number + 0.01 * seed
                row = {
                    "experiment": "e",
                    "method": method,
                    "budget": budget,
                    "seed": seed,
                    "seconds": 1.0 + seed,
                }
                for direction, share in (("ab", 1.0), ("ba", 0.5)):
                    row |= {
                        f"{direction}/r@1": recall * share / 10,
                        f"{direction}/r@10": recall * share,
                        f"{direction}/median_rank": 7.0 + seed,
                    }
                    row |= {f"{direction}/chance@10": 0.032 * share}
                    if unseen:
                        row |= {f"{direction}/unseen/r@10": recall * share / 2}
                rows.append(row)
    return pd.DataFrame(rows)


def cells(table):
    return [line.split() for line in table.splitlines()]


def test_one_seed_gives_plain_numbers_budgets_in_order_and_methods_as_given():
    lines = cells(results_table(frame(seeds=1)))
    body = [line for line in lines if "zeta" in line or "alpha" in line]
    assert body == [
        ["100", "zeta", "0.010", "0.005", "0.100", "0.050", "7", "7", "1.0"],
        ["alpha", "0.016", "0.008", "0.160", "0.080", "7", "7", "1.0"],
        ["300", "zeta", "0.030", "0.015", "0.300", "0.150", "7", "7", "1.0"],
        ["alpha", "0.036", "0.018", "0.360", "0.180", "7", "7", "1.0"],
    ]
    chance = results_table(frame(seeds=1), ("speech", "text"), 1231).splitlines()[-1]
    assert re.findall(r"[\d.,]*\d", chance) == ["10", "0.032", "0.016", "1,231"]


def test_directions_carry_the_names_of_the_modalities():
    header = results_table(frame(seeds=1), ("speech", "text")).splitlines()[:3]
    assert header[1].split()[-6:] == ["speech", "text"] * 3
    arrows = ["→", "text", "→", "speech"] * 3
    assert header[2].split() == ["pairs", "method", *arrows, "seconds"]


def test_where_chance_finds_half_the_items_the_table_says_that_recall_says_little():
    assert "says little" not in chance_line(frame(), ("a", "b"))
    few = frame().assign(**{"ab/chance@10": 0.5})
    assert "R@10 says little" in chance_line(few, ("a", "b"))
    assert "R@10 says little" in " ".join(results_table(few).split())


def test_several_seeds_give_mean_and_sample_deviation():
    [line] = [line for line in cells(results_table(frame(seeds=3))) if line[:2] == ["300", "zeta"]]
    values = [0.3, 0.31, 0.32]
    assert line[6:8] == [f"{np.mean(values):.3f}", f"±{np.std(values, ddof=1):.3f}"]
    assert "2.0" in line


def test_unseen_columns_appear_only_where_they_were_measured():
    assert "unseen" not in results_table(frame())
    table = results_table(frame(seeds=1, unseen=True), width=160)
    assert "unseen" in table
    [line] = [line for line in cells(table) if line[:2] == ["300", "zeta"]]
    assert line[-2:] == ["0.150", "0.075"]


def test_accuracy_takes_the_place_of_recall_where_classes_are_searched_by_name():
    rows = frame(seeds=1).assign(
        **{"ab/classes": 35.0, "ab/accuracy": 0.75, "ab/accuracy@5": 0.9},
        **{"ab/balanced_accuracy": 0.7, "ab/accuracy_chance": 1 / 35, "ab/robot/accuracy": 0.6},
    )
    table = results_table(rows, ("speech", "text"), width=160)
    head, _, below, first = table.splitlines()[:4]
    for words in ("accuracy", "top 5", "mean of classes", "accuracy robot"):
        assert words in head
    assert below.count("→ text") == 4  # no recall of that direction
    assert below.count("→ speech") == 1
    assert first.split()[2:6] == ["0.750", "0.900", "0.700", "0.600"]
    assert "chance accuracy: speech → text 0.029; chance R@10: text → speech 0.016" in table


@pytest.mark.parametrize("width", [100, 120, 200])
def test_no_line_is_wider_than_asked(width):
    assert max(len(line) for line in results_table(frame(), width=width).splitlines()) <= width


def test_the_curve_shows_every_methods_mean_against_the_pairs():
    figure = Figure()
    axis = figure.add_subplot()
    _recall_panel(axis, frame(), "ba", styles(["zeta", "alpha"]))
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert list(lines) == ["zeta", "alpha", "chance"]
    for method, step in (("zeta", 0.0), ("alpha", 0.06)):
        np.testing.assert_array_equal(lines[method].get_xdata(), [100, 300])
        expected = 0.5 * (np.array([0.1, 0.3]) + step + 0.005)
        np.testing.assert_allclose(lines[method].get_ydata(), expected)
    np.testing.assert_allclose(lines["chance"].get_ydata(), 0.016)
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["100", "300"]
    band = axis.collections[0].get_paths()[0].vertices
    at_300 = band[np.isclose(band[:, 0], 300), 1]
    deviation = 0.5 * np.std([0.3, 0.31], ddof=1)
    np.testing.assert_allclose(
        [at_300.min(), at_300.max()], 0.1525 + np.array([-1, 1]) * deviation, rtol=1e-6
    )


def test_a_curve_replaces_the_former_and_leaves_no_figure_open(tmp_path):
    from matplotlib import pyplot as plt

    path = tmp_path / "curve.png"
    path.write_text("an old file")
    recall_curve(frame(seeds=1), path, "t", ("speech", "text"), 40)
    recall_curve(frame(seeds=1), tmp_path / "new" / "curve.png", "t")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["curve.png"]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()
    assert mpl.get_backend().lower() == "agg"


@pytest.mark.parametrize(
    ("budgets", "labels"),
    [
        ([100, 300, 1000, 3000, 10000], ["100", "300", "1000", "3000", "10000"]),
        ([100, 1000, 8000, 10000], ["100", "1000", "", "10000"]),
        ([0, 50, 400], ["0", "50", "400"]),
    ],
)
def test_labels_of_ticks_do_not_touch(budgets, labels):
    none = [np.nan] * len(budgets)
    figure = lines([Series("m", budgets, budgets, none, none)], styles(["m"]), "t", "y")
    figure.canvas.draw()
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
