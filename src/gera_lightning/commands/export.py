"""Write both stores in the shared space, with a FAISS index each.

    gera export EXPERIMENT [out=FOLDER method=coupled_ridge budget=300 key=value ...]

The stores `a` and `b` can be read by autofaiss and clip-retrieval. The dot product of a row of one
and a row of the other is the aligner's score.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gera_lightning.aligners.aligner import Aligner, Rows
from gera_lightning.config.overrides import split_overrides, split_target
from gera_lightning.data.store import EmbeddingStore, StoreWriter
from gera_lightning.evaluation.neighborhoods import evenly_spaced_indices
from gera_lightning.experiment.load_run import LoadedRun, load_run
from gera_lightning.geometry.neighbors import GrowingIndex
from gera_lightning.utils import distributed
from gera_lightning.utils.errors import UserError

MAX_TRAINING_ROWS = 200_000
"""Rows, spread evenly, that an index (`IVF...`, `PQ...`) is trained on at most."""


@torch.inference_mode()
def score_rows(aligner: Aligner, side: str, x: Rows) -> Tensor:
    """Rows whose dot products with those of the other modality are the aligner's scores.

    Unit rows `z` where it scores by cosine. With a correction, `p` being a row's hubness penalty,
    `[z_a; 1; -p_a]` and `[z_b; -p_b; 1]`: their dot product is `cos(z_a, z_b) - p_a - p_b`.

    Args:
        aligner: of a finished run.
        side: modality of the rows.
        x: frozen embeddings `[n, D_in]`, or a store of them.

    Returns:
        `[n, D]`, or `[n, D + 2]` under a correction.
    """
    return _scoring(aligner, side, aligner.encode(side, x))


def _scoring(aligner: Aligner, side: str, z: Tensor) -> Tensor:
    """`score_rows` of encoded rows."""
    if aligner.space.correction is None:
        return z
    penalty = -aligner.space.correction.penalty(z, side).unsqueeze(1)
    one = torch.ones_like(penalty)
    return torch.cat([z, one, penalty] if side == "a" else [z, penalty, one], dim=1)


def export(
    target: str,
    overrides: Sequence[str] = (),
    *,
    out: str = "",
    method: str = "",
    budget: int | None = None,
    dtype: str = "float32",
    index: str = "Flat",
) -> Path:
    """Write both modalities in the shared space: stores `a`, `b` and indices `a.index`, `b.index`.

    The indices are FAISS's, for inner products; their numbers are rows of the store.

    Args:
        target, overrides, method, budget: see `load_run`.
        out: the folder to write; by default `export` in the run's folder.
        dtype: of the stores, `float32` or `float16`.
        index: FAISS index factory string.

    Raises:
        UserError: the folder is not empty, FAISS cannot make the index, another dtype, or as
            `load_run`.
    """
    run = load_run(target, overrides, method=method, budget=budget)
    folder = Path(out) if out else run.folder / "export"
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(
            "holds a store or other files already",
            key="out",
            value=str(folder),
            remedy="remove it, or choose another folder by out=...",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)

    def write(device: torch.device) -> None:
        run.aligner.to(device)
        # in a scratch folder first: a whole export or none
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            whole = Path(scratch) / "export"
            whole.mkdir()
            for side in "ab":
                _write_side(run, side, whole, dtype, index)
            os.replace(whole, folder)

    distributed.run_with_cpu_fallback(run.device, write, f"the aligner in {run.folder}")
    return folder


def _write_side(run: LoadedRun, side: str, folder: Path, dtype: str, index: str) -> None:
    """Write one modality's store and index part by part: only the index is whole in memory."""
    store, aligner = getattr(run, side), run.aligner
    name = (
        f"{store.encoder.get('name')} in the shared space of"
        f" {run.folder.parent.name}/{run.folder.name}"
    )
    writer = StoreWriter(folder / side, dtype, resume=False)
    growing = None
    for z in aligner.encoded(side, store):
        rows = _scoring(aligner, side, z).cpu()
        growing = growing or _empty_index(run, side, index, rows.shape[1])
        growing.add(rows)
        writer.append(rows.numpy(), store.rows.iloc[writer.count : writer.count + len(rows)])
    assert growing is not None
    growing.write(folder / f"{side}.index")
    modality = run.modalities["ab".index(side)]
    encoder = {"name": name, "modality": modality, "metric": "dot product"}
    writer.finish(encoder, store.manifest.get("source") or {})


def _empty_index(run: LoadedRun, side: str, index: str, dim: int) -> GrowingIndex:
    """The index to add one modality's rows to, trained where it needs training."""
    store = getattr(run, side)
    refusal = UserError(
        f"cannot be made by FAISS of {len(store)} rows of width {dim}",
        key="index",
        value=index,
        remedy="'Flat' is exact",
    )
    try:
        growing = GrowingIndex(dim, index)
    except UserError as error:
        raise refusal from error
    if not growing.is_trained:
        rows = score_rows(
            run.aligner, side, store.read(evenly_spaced_indices(len(store), MAX_TRAINING_ROWS))
        )
        try:
            growing.train(rows)
        except RuntimeError as error:  # too few of them
            raise refusal from error
    return growing


def run(words: Sequence[str]) -> None:
    """The command line's `gera export`."""
    target, rest = split_target(words)
    options, overrides = split_overrides(rest, export)
    folder = export(target, overrides, **options)
    names = [EmbeddingStore(folder / side).encoder["modality"] for side in "ab"]
    print(f"{names[0]:<12} {folder / 'a'}, {folder / 'a.index'}")
    print(f"{names[1]:<12} {folder / 'b'}, {folder / 'b.index'}")
    print(
        "             the dot product of their rows is the score; faiss.read_index reads an index"
    )
