"""When does the geometric loss help? Its gain over the same method without it, paired, on synthetic
views where the truth is known, one factor changed at a time.

    python benchmarks/geometry_study.py [SEEDS]

Writes `docs/geometry.csv`, one row per condition and seed, and draws `docs/geometry.png`. A stopped
run goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import gera_lightning

DOCS = Path(__file__).resolve().parents[1] / "docs"
VIEWS = {"items": 3000, "latent_dim": 3, "noise": 0.5}
BASE: dict[str, Any] = {"pairs": 100, "method": "gera_mlp"}
TWINS = {
    "gera": "contrastive",
    "gera_linear": "contrastive_linear",
    "gera_linear_ridge": "contrastive_linear_ridge",
    "gera_mlp": "contrastive_mlp",
}
NAMES = {
    "gera_mlp": "MLP, random start",
    "gera": "MLP, ridge start",
    "gera_linear": "linear, random start",
    "gera_linear_ridge": "linear, ridge start",
}
FACTORS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "pairs": [(str(n), {"pairs": n}) for n in (30, 100, 300, 1000)],
    "unpaired rows per modality": [
        *((str(n), {"data.pool_size": n}) for n in (100, 300)),
        ("1200", {}),
    ],
    "map and start": [(name, {"method": method}) for method, name in NAMES.items()],
    "weight": [
        (str(w), {"losses.geometric.weight": w}) for w in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    ],
    "neighbours K": [(str(k), {"graph.k": k}) for k in (4, 8, 16, 32, 64)],
    "kernel": [(k, {"losses.geometric.kernel": k}) for k in ("heat", "student", "laplacian")],
    "bandwidth": [
        (b, {"losses.geometric.bandwidth": b}) for b in ("patch", "self_tuning", "global")
    ],
    "noise of the frozen spaces": [
        (str(n), {"data.synthetic.noise": n}) for n in (0.0, 0.25, 0.5, 1.0, 2.0)
    ],
    "nuisance of the frozen spaces": [
        (str(n), {"data.synthetic.nuisance": n}) for n in (0.0, 0.5, 1.0, 2.0)
    ],
}
"""What is changed, and its values, each as settings over `BASE`."""


def gain(settings: dict[str, Any], seed: int) -> dict[str, float]:
    """R@10, the mean of both directions, with the geometric loss and without it."""
    settings = {**BASE, **settings}
    pairs, method = settings.pop("pairs"), settings.pop("method")
    views = {f"data.synthetic.{key}": value for key, value in VIEWS.items()}
    both = {**views, **{k: v for k, v in settings.items() if k.startswith("data.")}}
    own = {k: v for k, v in settings.items() if not k.startswith("data.")}
    variants = {"with": {"of": method, **own}, "without": {"of": TWINS[method]}}
    outcome = gera_lightning.train(
        {"data": {"synthetic": {}}},
        **{"budgets": [pairs], "seeds": [seed], "methods": [*variants], "variants": variants},
        **{"data.split": "dev", "data.reserved_pairs": 1000, "data.synthetic.seed": seed, **both},
        **{"runs_dir": "runs/geometry_study", "trainer.accelerator": "cpu", "loggers": []},
    )
    runs = outcome.results
    recall = runs.assign(recall=runs[["ab/r@10", "ba/r@10"]].mean(axis=1)).set_index("method")
    return {name: float(recall.loc[name, "recall"]) for name in variants}


def draw(table: pd.DataFrame) -> None:
    """A panel per factor: mean gain, and a bar of twice the standard error over seeds."""
    figure, panels = plt.subplots(3, 3, figsize=(12, 9), sharey=True, layout="constrained")
    for panel, factor in zip(panels.flat, FACTORS, strict=True):
        mine = table[table["factor"] == factor]
        groups = mine.groupby("value", sort=False)["gain"]
        mean, error = groups.mean(), 2 * groups.sem().fillna(0)
        panel.errorbar(range(len(mean)), mean, error, fmt="o", capsize=3)
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set_xticks(
            range(len(mean)), mean.index, rotation=20 if len(str(mean.index[0])) > 6 else 0
        )
        panel.set_title(factor, fontsize=10)
    for panel in panels[:, 0]:
        panel.set_ylabel("gain of R@10")
    figure.savefig(DOCS / "geometry.png", dpi=110)


def main() -> None:
    """Every condition and seed that the table lacks."""
    seeds, path = int(sys.argv[1]) if len(sys.argv) > 1 else 3, DOCS / "geometry.csv"
    rows = pd.read_csv(path, dtype={"value": str}).to_dict("records") if path.exists() else []
    known = {(row["factor"], row["value"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for factor, values in FACTORS.items():
            for value, settings in values:
                if (factor, value, seed) in known:
                    continue
                found = gain(settings, seed)
                difference = found["with"] - found["without"]
                about = {"factor": factor, "value": value, "seed": seed}
                rows.append({**about, **found, "gain": difference})
                pd.DataFrame(rows).round(4).to_csv(path, index=False)
                print(f"{factor:<32}{value:<22}{seed}   {difference:+.3f}", flush=True)
    draw(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
