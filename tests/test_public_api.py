"""What `import gera_lightning` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch

import gera_lightning
from gera_lightning import (
    CLIPLoss,
    DiffusionOperator,
    EmbeddingStore,
    GeometricLoss,
    Ridge,
    SigLIPLoss,
    align,
    knn_graph,
    write_store,
)


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = (
        "import sys, gera_lightning; gera_lightning.__all__;"
        " print([m for m in ('torch', 'numpy', 'lightning', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", gera_lightning.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(gera_lightning, name)
    assert name in dir(gera_lightning)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Ridges'"):
        gera_lightning.Ridges  # noqa: B018


def test_every_public_loss_and_operator_works_on_plain_tensors():
    x, y = rows(60, 8, 0), rows(60, 5, 1)
    unit = torch.nn.functional.normalize
    for loss in (CLIPLoss(), SigLIPLoss()):
        assert loss(unit(x), unit(x)) < loss(unit(x), unit(x).flip(0))
    geometric = GeometricLoss().fit(x, k=5)
    assert geometric(x, x) < 1e-6 < 0.01 < geometric(x, y)
    assert geometric(x[:20], x[:20]) < 1e-6  # of a batch the neighbours are looked for anew
    graph = knn_graph(x, 5)
    patches = x[graph.patches(torch.arange(60))]
    p = DiffusionOperator()(torch.cdist(patches, patches).square())
    torch.testing.assert_close(p.sum(-1), torch.ones(60, 6))


def test_arrays_are_aligned_scored_and_searched(monkeypatch):
    shipped = files("gera_lightning.config")
    monkeypatch.setattr("gera_lightning.config.loading.SHIPPED", shipped)
    latent = rows(150, 6, 0)
    x_a, x_b = (latent @ rows(6, width, width) for width in (12, 9))
    form = Ridge().fit(x_a[:100], x_b[:100])
    found = form.search(x_a[100:], x_b[100:], k=1)[1][:, 0]
    assert (found == torch.arange(50)).float().mean() > 0.8
    aligner = align(x_a[:100].numpy(), x_b[:100].numpy(), method="ridge")
    assert "ridge" in str(aligner.about["method"])
    found = aligner.search(x_a[100:], x_b[100:], k=1)[1][:, 0]
    assert (found == torch.arange(50)).float().mean() > 0.8


def test_a_store_is_written_and_read(tmp_path):
    import pandas as pd

    x = rows(4, 3, 0).numpy()
    table = pd.DataFrame({"row": list("abcd"), "item": list("wxyz")})
    write_store(
        tmp_path / "x", x, table, encoder={"name": "mine"}, source={"name": "made"}, dtype="float32"
    )
    store = EmbeddingStore(tmp_path / "x")
    np.testing.assert_array_equal(store.read(), x)
    assert "4" in repr(store)


def test_python_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "gera_lightning", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"gera {gera_lightning.__version__}\n"
