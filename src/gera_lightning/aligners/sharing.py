"""An aligner shared on the Hugging Face hub, with a model card that says what it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gera_lightning.utils.errors import UserError

FILES = ("aligner.json", "maps.safetensors")
LIBRARY = "gera-lightning"


def fitted_pairs(about: Mapping[str, Any]) -> Any:
    """How many pairs an aligner was fitted on, the budget of its run or all; None if not known."""
    return about.get("budget", about.get("pairs"))


def model_card(about: Mapping[str, Any], measures: Mapping[str, Any] | None = None) -> str:
    """The README of a shared aligner: data, encoders, licences, pairs, recall and chance, limits.

    Args:
        about: what the aligner knows of itself.
        measures: a result row, such as `metrics.json` of its run; recall is left out without it.

    >>> card = model_card({"method": "ridge", "budget": 300, "modalities": ["image", "text"]})
    >>> "aligns image and text" in card, "300 pairs" in card
    (True, True)
    """
    a, b = (str(name) for name in about.get("modalities") or ("a", "b"))
    pairs = fitted_pairs(about)
    tags = json.dumps(["embedding-alignment", "retrieval", a, b])  # which is YAML, too
    lines = [
        f"---\nlibrary_name: {LIBRARY}\ntags: {tags}\n---",
        f"# An aligner of {a} and {b}",
        f"It aligns {a} and {b}: embeddings of two frozen encoders are mapped into one space, in"
        f" which one modality is searched with the other. Method: `{about.get('method')}` of"
        f" gera_lightning" + (f", fitted on {pairs:,} pairs." if isinstance(pairs, int) else "."),
        "## Encoders and data",
        "| modality | encoder | revision | data | licence |",
        "|---|---|---|---|---|",
        *(_row(about, side, name) for side, name in (("a", a), ("b", b))),
        "",
        "Embeddings of other encoders, layers or poolings are not what it was fitted on.",
    ]
    if measures:
        lines += ["## Recall on items that were held out", *_recall(measures, a, b)]
    lines += [
        "## Use",
        "```python",
        "from gera_lightning import Aligner",
        "",
        'aligner = Aligner.from_pretrained("...")  # this repository, or a folder',
        f"scores, rows = aligner.search({a}_embeddings, {b}_embeddings, k=5)",
        "```",
        "## Limits",
        "It knows what its pairs and unpaired rows show. Other domains, languages, voices or styles"
        " may be found less well: measure it on your own pairs with `gera evaluate`.",
    ]
    return "\n".join(lines) + "\n"


def _row(about: Mapping[str, Any], side: str, name: str) -> str:
    encoder = (about.get("encoders") or {}).get(side) or {}
    source = (about.get("sources") or {}).get(side) or {}
    cells = (
        encoder.get("name"),
        encoder.get("revision"),
        source.get("name"),
        source.get("licence"),
    )
    words = (str(cell).replace("|", "/") if cell else "not recorded" for cell in cells)
    return f"| {name} | {' | '.join(words)} |"


def _recall(measures: Mapping[str, Any], a: str, b: str) -> list[str]:
    lines = ["| direction | R@1 | R@10 | chance R@10 |", "|---|---:|---:|---:|"]
    for way, words in (("ab", f"{a} → {b}"), ("ba", f"{b} → {a}")):
        cells = [measures.get(f"{way}/{key}") for key in ("r@1", "r@10", "chance@10")]
        if all(isinstance(cell, float | int) for cell in cells):
            lines.append(f"| {words} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return lines


def push_folder(folder: Path, repository: str, *, private: bool, token: str | None) -> str:
    """Upload a folder to a repository of the hub, made where it is missing; its address.

    Raises:
        UserError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="An aligner")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"cannot be pushed to ({' '.join(str(error).split())[:300]})",
            key="repository",
            value=repository,
            remedy="log in by `hf auth login`, and name it USER/NAME",
        ) from error
    return str(url)


def downloaded(name: str | os.PathLike[str], revision: str | None, token: str | None) -> Path:
    """The folder of an aligner: a local one, or that of a repository of the hub.

    Raises:
        UserError: neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        found = snapshot_download(
            str(name), revision=revision, token=token, allow_patterns=list(FILES)
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            "is no folder, and no repository of the hub that can be reached"
            f" ({' '.join(str(error).split())[:300]})",
            key="aligner",
            value=str(name),
        ) from error
    return Path(found)
