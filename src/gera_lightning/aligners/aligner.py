"""The artefact of every method: two maps into one space, with their preprocessing, saved as a folder and searched with.

Legend: `n` rows, `D_a`, `D_b` frozen widths, `D` shared width. The folder holds `aligner.json` and `maps.safetensors`; it never
names code to import, so a map of a class that is not ours must be handed to `load` by the caller.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from gera_lightning import __version__
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.errors import UserError
from gera_lightning.files import replace_atomically
from gera_lightning.geometry.neighbors import search
from gera_lightning.heads import Concat, Identity, Linear, ResidualMLP, normalized

FORMAT = "gera-aligner"
VERSION = 1
KINDS: dict[str, type[nn.Module]] = {"linear": Linear, "residual_mlp": ResidualMLP, "identity": Identity}


class Preprocessing(nn.Module):
    """`n(n(x) - mean)`: L2 normalisation, centring by the training rows' mean, normalisation again.

    Args:
        mean: `[D]` mean of the normalised training rows; None normalises only.
    """

    def __init__(self, mean: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    @classmethod
    def fit(cls, x: Tensor, center: bool = True) -> Preprocessing:
        """From training rows `[n, D]`."""
        return cls(normalized(x).mean(0, dtype=torch.float64).to(x.dtype) if center else None)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, D] -> [n, D]`."""
        x = normalized(x)
        return x if self.mean is None else normalized(x - self.mean)


class Aligner:
    """Two frozen spaces brought into one.

    Args:
        preprocess_a, preprocess_b: preprocessing of each modality.
        map_a, map_b: maps into the shared space.
        about: anything worth keeping with it: method, budget, seed, encoders, data hash.
    """

    def __init__(
        self, preprocess_a: Preprocessing, preprocess_b: Preprocessing, map_a: nn.Module, map_b: nn.Module, about: Mapping[str, Any] | None = None
    ) -> None:
        self.modules = nn.ModuleDict({"preprocess_a": preprocess_a, "preprocess_b": preprocess_b, "map_a": map_a, "map_b": map_b}).eval()
        self.about = dict(about or {})

    def to(self, device: str | torch.device) -> Aligner:
        """Move to a device, in place."""
        self.modules.to(device)
        return self

    def encode_a(self, x: Tensor | np.ndarray | EmbeddingStore) -> Tensor:
        """Unit rows `[n, D]` in the shared space from frozen embeddings of modality a, `[n, D_a]` (or a whole store of them)."""
        return self._encode("a", x)

    def encode_b(self, x: Tensor | np.ndarray | EmbeddingStore) -> Tensor:
        """Unit rows `[n, D]` in the shared space from frozen embeddings of modality b, `[n, D_b]` (or a whole store of them)."""
        return self._encode("b", x)

    @torch.inference_mode()
    def _encode(self, side: str, x: Tensor | np.ndarray | EmbeddingStore, chunk: int = 16384) -> Tensor:
        dim = self.about.get(f"dim_{side}")
        if isinstance(x, EmbeddingStore):
            known, given = self.about.get(f"encoder_{side}"), x.encoder.get("name")
            if known and given and known != given:
                raise UserError(f"{x.path}: embedded by {given!r}, but this aligner's modality {side} is {known!r}: embed with the same encoder")
            width, rows = x.dim, len(x)
        else:
            x = torch.as_tensor(x, dtype=torch.float32)
            if x.ndim != 2:
                raise UserError(f"embeddings must be [rows, width], got shape {tuple(x.shape)}")
            rows, width = x.shape
        if dim is not None and width != dim:
            raise UserError(f"embeddings are {width} wide, but this aligner's modality {side} is {dim} wide: check encoder and modality")
        device = next((t.device for t in self.modules.state_dict().values()), torch.device("cpu"))
        preprocess, mapping = self.modules[f"preprocess_{side}"], self.modules[f"map_{side}"]
        parts = []
        for start in range(0, rows, chunk):
            part = torch.from_numpy(x.read(slice(start, start + chunk))) if isinstance(x, EmbeddingStore) else x[start : start + chunk]
            parts.append(normalized(mapping(preprocess(part.to(device)))))
        return torch.cat(parts)

    def score(self, x_a: Tensor | np.ndarray, x_b: Tensor | np.ndarray) -> Tensor:
        """Cosine in the shared space of every row of a with every row of b, `[n_a, n_b]`."""
        return self.encode_a(x_a) @ self.encode_b(x_b).T

    def search(self, queries: Tensor | np.ndarray, gallery: Tensor | np.ndarray, k: int = 10, *, direction: str = "ab") -> tuple[Tensor, Tensor]:
        """The k best gallery rows of each query.

        Args:
            queries: frozen embeddings of the querying modality.
            gallery: frozen embeddings of the other.
            k: answers a query.
            direction: `ab`: queries are of a, the gallery of b; `ba` the other way.

        Returns:
            cosines `[n, k]` descending, and gallery row numbers `[n, k]`.
        """
        if direction not in ("ab", "ba"):
            raise UserError(f"direction={direction!r} must be 'ab' or 'ba'")
        z_q, z_g = self._encode(direction[0], queries), self._encode(direction[1], gallery)
        d2, index = search(z_q, z_g, k)
        return 1 - d2 / 2, index

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the folder; files appear whole or not at all."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "format": FORMAT,
            "version": VERSION,
            "library": __version__,
            "about": self.about,
            "center": {side: self.modules[f"preprocess_{side}"].mean is not None for side in "ab"},
            "maps": {side: describe_map(self.modules[f"map_{side}"]) for side in "ab"},
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.modules.state_dict().items()}
        replace_atomically(folder / "maps.safetensors", safetensors.torch.save(weights))
        replace_atomically(folder / "aligner.json", (json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, kinds: Mapping[str, type[nn.Module]] | None = None) -> Aligner:
        """Read a folder that `save` wrote.

        Args:
            path: the folder.
            kinds: your own map classes by name, where the aligner was trained with one.

        Raises:
            UserError: no aligner there, an unknown format or kind, or damaged weights.
        """
        folder = Path(path)
        try:
            record = json.loads((folder / "aligner.json").read_text())
            weights = safetensors.torch.load((folder / "maps.safetensors").read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"no aligner at {str(folder)!r} ({Path(error.filename).name} is missing): give the aligner/ folder of a run") from error
        except (ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"{folder}: the aligner is damaged ({error}): train it again") from error
        if (record.get("format"), record.get("version")) != (FORMAT, VERSION):
            raise UserError(f"{folder}: format {record.get('format')!r} version {record.get('version')!r}; this version reads {FORMAT!r} version {VERSION}")
        preprocess = {s: Preprocessing(torch.zeros(record["about"][f"dim_{s}"]) if record["center"][s] else None) for s in "ab"}
        maps = {s: build_map(record["maps"][s], {**KINDS, **(kinds or {})}) for s in "ab"}
        aligner = cls(preprocess["a"], preprocess["b"], maps["a"], maps["b"], record["about"])
        try:
            aligner.modules.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"{folder}: weights do not fit aligner.json ({str(error).splitlines()[0]}): train it again") from error
        return aligner


def describe_map(mapping: nn.Module) -> dict[str, Any]:
    """Kind and settings of a map, for `aligner.json`."""
    if isinstance(mapping, Concat):
        return {"kind": "concat", "parts": [describe_map(part) for part in mapping.maps]}
    names = {cls: name for name, cls in KINDS.items()}
    return {"kind": names.get(type(mapping), type(mapping).__name__), "settings": getattr(mapping, "settings", {})}


def build_map(record: Mapping[str, Any], kinds: Mapping[str, type[nn.Module]]) -> nn.Module:
    """The map that `describe_map` described, weights still to be filled in."""
    if record["kind"] == "concat":
        return Concat(*(build_map(part, kinds) for part in record["parts"]))
    if record["kind"] not in kinds:
        raise UserError(f"the aligner's map is a {record['kind']!r}, not one of {', '.join(kinds)}: pass its class, load(path, kinds={{{record['kind']!r}: ...}})")
    return kinds[record["kind"]](**record["settings"])
