"""Every part of a run on an accelerator: one that is no CUDA device but, like one, takes no rows of
the CPU (`stand_in_accelerator.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
TRAINED = (
    "gera",
    "gera_mlp",
    "contrastive_siglip",
    "fusemix",
    "structure",
    "structure_pairs",
    "sotalign",
    "sclip",
    "filtered",
)
CLOSED = (
    "coupled_ridge",
    "coupled_ridge_off",
    "ridge",
    "kernel_ridge",
    "cca_csls",
    "asif",
    "procrustes",
    "manifold_ridge",
    "manifold_kernel_ridge",
    "self_training",
)
SHORT = ("gera_mlp", "contrastive_siglip", "structure", "structure_pairs", "sotalign")
"""Presets with steps for many passes over the pairs; a few are enough here."""
SMALL = {
    "data": {
        "synthetic": {"items": 240, "dim_a": 12, "dim_b": 10, "features": 16},
        "reserved_pairs": 40,
    },
    "budgets": [40],
    "methods": ["ridge"],
    "variants": {
        **{f"short_{method}": {"of": method, "batch": {"min_epochs": 0}} for method in SHORT},
        "filtered": {  # a trained map behind filters that its start chooses
            "of": "gera",
            "filters": {
                "a": [
                    [],
                    [
                        {
                            "class": "gera_lightning.filters.diffusion.GraphDiffusion",
                            "k": 5,
                            "steps": 2,
                        }
                    ],
                ],
                "b": [
                    [],
                    [
                        {
                            "class": "gera_lightning.filters.local_centering.LocalCentering",
                            "clusters": 3,
                        }
                    ],
                ],
            },
        },
    },
    "dim": 8,
    "batch": {"pairs": 32, "unpaired": 20, "anchors": 8},
    "graph": {"k": 4},
    "tuning": {"folds": 2, "used_folds": 1},
    "trainer": {"max_steps": 8, "log_every_n_steps": 4},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each method on the CPU and on the stand-in."""
    folder = tmp_path_factory.mktemp("accelerator")
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    (folder / "experiments" / "small.yaml").write_text(yaml.safe_dump(SMALL))
    methods = [f"short_{method}" if method in SHORT else method for method in (*TRAINED, *CLOSED)]
    command = [sys.executable, str(HERE / "stand_in_accelerator.py"), "small", *methods]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-12000:]
    return {
        m.removeprefix("short_"): what
        for m, what in json.loads((folder / "found.json").read_text()).items()
    }


@pytest.mark.parametrize("method", [*TRAINED, *CLOSED])
def test_a_run_on_an_accelerator_computes_there_what_the_cpu_computes(found, method):
    cpu, there = found[method]["cpu"], found[method]["stand_in"]
    assert cpu["operations"] == 0
    assert there["operations"] > 300
    expected, row = cpu["row"], there["row"]
    assert {k: v for k, v in row.items() if isinstance(v, str)} == {
        k: v for k, v in expected.items() if isinstance(v, str)
    }
    assert row["chosen"] == pytest.approx(expected["chosen"])
    for name, value in expected.items():
        if isinstance(value, float) and name != "seconds":
            assert row[name] == pytest.approx(value, rel=1e-4), name
    assert found[method]["searched there"]
    assert found[method]["search"]
    assert found[method]["exported there"]
    assert found[method]["export"]


@pytest.mark.parametrize(
    "method", ["gera", "gera_mlp", "contrastive_siglip", "structure", "filtered"]
)
def test_the_host_waits_for_no_step_of_a_training(found, method):
    """It waits where held-out pairs are scored, rows are logged and a training ends; a wait within
    a step would come every step.
    """
    waits = {
        line
        for line in found[method]["stand_in"]["waits"]
        if line.split()[0]
        in ("module.py", "contrastive.py", "geometric.py", "maps.py", "kernels.py")
    }
    assert not waits
    assert any(
        line.startswith("retrieval.py") for line in found[method]["stand_in"]["waits"]
    )  # they are counted


def test_the_stand_in_takes_no_rows_of_the_cpu():
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from stand_in_accelerator import"
        " DEVICE, StandIn\nwith StandIn():\n    x = torch.ones(2, 3).to(DEVICE)\n    assert (x @"
        " x.T).cpu().tolist() == [[3, 3], [3, 3]]\n    for mistake in (lambda: x @ torch.ones(3,"
        " 2), lambda: torch.ones(2)[x[:, 0].long()], lambda: x.numpy()):\n        try:\n           "
        " mistake()\n        except (RuntimeError, TypeError):\n            continue\n        raise"
        " SystemExit('was taken')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(HERE)], check=True)
