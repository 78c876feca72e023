"""Speed of the embed runner against a bare loop around the same network on the same batches, and
its peak memory as the corpus grows.

python benchmarks/bench_embed.py            speed and memory, three minutes
python benchmarks/bench_embed.py full       rows a second of the networks of librispeech.yaml,
coco.yaml, cc12m.yaml and audiocaps.yaml

The networks are of real size with random weights: speed and memory do not ask what they know. One
    thread.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch
import transformers

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.embedding.corpus import Corpus, Listing, RowsAndFiles
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.embedding.reading import read_audio
from gera_lightning.encoders.base import NetworkEncoder
from gera_lightning.encoders.speech import SpeechEncoder
from gera_lightning.encoders.text import TextEncoder

Result = TypeVar("Result")
SIZE = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
LAYERS = 6
WORDS = [
    f"{a}{b}{c}"
    for a in "bdfgklmnprst"
    for b in ("a", "e", "i", "o", "u", "ai", "ou", "ee")
    for c in "bdfgklmnprst"
]
RATE = 16_000
SETTINGS = EmbedConfig(shard_rows=256, accelerator="cpu")
SPEED_ROWS, MEMORY_ROWS, ROUNDS = {"text": 768, "audio": 96}, (1_000, 20_000), 3


class MadeTexts(Corpus):
    """Sentences of 4 to 24 made words (2 to 5 where memory is measured)."""

    modality, where = "text", "made"

    def __init__(self, count: int, *, short: bool = False) -> None:
        self.count, self.lengths = count, (2, 6) if short else (4, 25)

    def listing(self) -> Listing:
        rng = np.random.default_rng(0)
        texts = (
            " ".join(rng.choice(WORDS, rng.integers(*self.lengths))) for _ in range(self.count)
        )
        return Listing.of(
            ({"item": f"{n:06d}", "text": text} for n, text in enumerate(texts)), "text", self.where
        )

    def raw(self, row: Mapping[str, Any]) -> str:
        return str(row["text"])


class MadeSounds(RowsAndFiles):
    """Noise of 0.5 to 3 s in WAV files; where memory is measured one file of 0.05 s, read again for
    each row.
    """

    modality, where = "audio", "made"

    def __init__(self, count: int, folder: Path, *, short: bool = False) -> None:
        self.count, self.root, self.files = count, folder, 1 if short else count
        rng = np.random.default_rng(0)
        for n in range(self.files):
            samples = 0.1 * rng.standard_normal(
                RATE // 20 if short else rng.integers(RATE // 2, 3 * RATE)
            )
            soundfile.write(folder / f"{n}.wav", samples, RATE)

    def listing(self) -> Listing:
        return Listing.of(
            ({"item": f"{n:06d}", "path": f"{n % self.files}.wav"} for n in range(self.count)),
            "audio",
            self.where,
        )


def text_encoder(folder: Path, layers: int) -> TextEncoder:
    """A BERT."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "words.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), num_hidden_layers=layers, **SIZE)
    transformers.BertModel(config).save_pretrained(folder)
    words = str(folder / "words.txt")
    transformers.BertTokenizerFast(vocab=words, vocab_file=words).save_pretrained(folder)
    return TextEncoder(folder, batch_size=32)


def audio_encoder(folder: Path, layers: int) -> SpeechEncoder:
    """A HuBERT with a slimmer front end."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        num_hidden_layers=layers, conv_dim=(128,) * 7, vocab_size=8, **SIZE
    )
    transformers.HubertModel(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return SpeechEncoder(folder)


def made(
    kind: str, folder: Path, count: int, layers: int, *, short: bool
) -> tuple[Corpus, NetworkEncoder]:
    """A corpus and its encoder."""
    if kind == "text":
        return MadeTexts(count, short=short), text_encoder(folder, layers)
    return MadeSounds(count, folder, short=short), audio_encoder(folder, layers)


@torch.inference_mode()
def bare_loop(corpus: Corpus, encoder: NetworkEncoder, path: Path) -> np.ndarray:
    """What one would write by hand: rows sorted by length within each shard, read, prepared,
    encoded, saved.
    """
    rows = corpus.listing().rows.to_dict("records")
    out = np.empty((len(rows), encoder.dim), dtype=np.float16)
    raws = [corpus.raw(row) for row in rows]  # type: ignore[arg-type]
    lengths = np.array(
        [len(raw) if isinstance(raw, str) else Path(raw).stat().st_size for raw in raws]
    )  # type: ignore[arg-type]
    for first in range(0, len(rows), SETTINGS.shard_rows):
        order = first + np.argsort(lengths[first : first + SETTINGS.shard_rows], kind="stable")
        for start in range(0, len(order), encoder.batch_size):
            chosen = order[start : start + encoder.batch_size]
            items = [
                raws[n] if corpus.modality == "text" else read_audio(raws[n], RATE, 30.0)
                for n in chosen
            ]
            out[chosen] = encoder.pooled(encoder.prepare(items)).numpy()
    np.save(path, out)
    return out


def timed(work: Callable[[], Result]) -> tuple[Result, np.ndarray]:
    """What `work` gives, and its seconds: on the clock, and of this process's CPU, which other
    processes do not disturb.
    """
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, np.array([time.perf_counter() - clock, time.process_time() - cpu])


def speed(kind: str) -> None:
    """Rows a second of both, in turn; they give the same rows."""
    count = SPEED_ROWS[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, encoder = made(kind, folder, count, LAYERS, short=False)
        took: dict[str, list[np.ndarray]] = {"bare loop": [], "runner": []}
        for turn in range(ROUNDS):
            bare, seconds = timed(lambda: bare_loop(corpus, encoder, folder / "bare.npy"))
            took["bare loop"].append(seconds)
            path = folder / f"store{turn}"
            [store], seconds = timed(
                lambda path=path: embed_corpus(corpus, encoder, path, SETTINGS)
            )
            took["runner"].append(seconds)
            np.testing.assert_allclose(
                store.read(), bare.astype(np.float32), rtol=2e-3, atol=1e-3
            )  # the rounding of float16
        rates = {name: count / np.min(each, axis=0) for name, each in took.items()}
        told = ", ".join(
            f"{name} {clock:.1f} rows/s ({cpu:.1f} a CPU second)"
            for name, (clock, cpu) in rates.items()
        )
        clock, cpu = rates["runner"] / rates["bare loop"]
        print(
            f"{kind}: {told}: {clock:.2f} of it ({cpu:.2f} by CPU time); {count:,} rows, {LAYERS}"
            f" layers of width {encoder.dim}, best of {ROUNDS}"
        )


def peak(kind: str, count: int) -> None:
    """Embed short items with one layer, and print this process's peak memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        corpus, encoder = made(kind, Path(name), count, 1, short=True)
        embed_corpus(corpus, encoder, Path(name) / "store", SETTINGS)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def memory(kind: str) -> None:
    """Peak memory of a process of its own for each size of corpus."""
    found = {}
    for count in MEMORY_ROWS:
        done = subprocess.run(
            [sys.executable, __file__, kind, str(count)], check=True, capture_output=True, text=True
        )
        found[count] = int(done.stdout.split()[-1])
    told = ", ".join(f"{count:,} rows {mib:,} MiB" for count, mib in found.items())
    print(f"{kind}: peak memory {told}")


@torch.inference_mode()
def full_size() -> None:
    """Rows per CPU second of the literature's networks, random weights, at their data's lengths."""
    words = {n: {"input_ids": torch.randint(5, 30_000, (8, n))} for n in (14, 24, 45)}
    networks: dict[str, tuple[Any, dict[str, Any]]] = {
        "HuBERT base, 12.5 s of speech": (
            transformers.HubertModel(transformers.HubertConfig()),
            {"input_values": torch.randn(1, 200_000)},
        ),
        "CLAP (HTS-AT), 10 s of sound": (
            transformers.ClapAudioModel(transformers.ClapAudioConfig()),
            {
                "input_features": torch.randn(2, 1, 1001, 64),
                "is_longer": torch.zeros(2, 1, dtype=torch.bool),
            },
        ),
        "DINOv2 base, 224 x 224": (
            transformers.Dinov2Model(transformers.Dinov2Config(image_size=224)),
            {"pixel_values": torch.randn(4, 3, 224, 224)},
        ),
        **{
            f"MPNet base, {n} tokens": (transformers.MPNetModel(transformers.MPNetConfig()), inputs)
            for n, inputs in words.items()
        },
    }
    for name, (network, inputs) in networks.items():
        network.eval()(**inputs)
        started, passes = time.process_time(), 0
        while time.process_time() - started < 8:
            network(**inputs)
            passes += 1
        rows = passes * len(next(iter(inputs.values())))
        size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        print(
            f"{name}: {rows / (time.process_time() - started):.2f} rows a CPU second ({size:.0f}"
            " million weights)"
        )


def main() -> None:
    """Both modalities; with arguments, the networks of full size or one measurement of memory."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if sys.argv[1:] == ["full"]:
        full_size()
        return
    if len(sys.argv) == 3:
        peak(sys.argv[1], int(sys.argv[2]))
        return
    for kind in SPEED_ROWS:
        speed(kind)
        memory(kind)


if __name__ == "__main__":
    main()
