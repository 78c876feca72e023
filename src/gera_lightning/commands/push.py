"""Share an aligner on the Hugging Face hub, with a model card.

    gera push FOLDER USER/NAME [private=true]

FOLDER is that of a run or of an aligner. `Aligner.from_pretrained("USER/NAME")` loads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config.overrides import parse_kwargs, split_paths
from gera_lightning.experiment.load_run import existing_aligner_folder
from gera_lightning.utils.files import read_bounded


def push(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload an aligner and its card; the repository's address.

    Args:
        folder: of a run, whose recall the card then shows, or of an aligner.
        repository: `USER/NAME`; made where it is missing.
        private: make it a private one.
        token: of the hub; by default that of `hf auth login`.

    Raises:
        UserError: no aligner there, or the hub refuses.
    """
    place = existing_aligner_folder(folder)
    try:
        measures = json.loads(read_bounded(place.parent / "metrics.json"))
    except (OSError, ValueError):
        measures = None
    aligner = Aligner.load(place)
    kept = measures if isinstance(measures, dict) else None
    return aligner.push_to_hub(repository, measures=kept, private=private, token=token)


def run(words: Sequence[str]) -> None:
    """The command line's `gera push`."""
    folder, repository, rest = split_paths(
        words, "push", "an aligner and a repository", "runs/mine/aligner me/my-aligner"
    )
    print(push(folder, str(repository), **parse_kwargs(rest, push)))
