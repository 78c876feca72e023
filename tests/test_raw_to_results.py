"""Raw files to stores to a result row, through the shipped experiments: their folders small and
made here, their networks tiny and random.

Items are melodies of named notes (or pictures of named colours), and their texts name them: so even
random networks carry what pairs the two modalities, and a result above chance shows that rows of
one store meet their partners in the other.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image

from gera_lightning import cli
from gera_lightning.data.store import EmbeddingStore

NOTES = ["do", "re", "mi", "fa", "so", "la", "ti", "ut"]
COLOURS = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 255, 255),
    (255, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
]
ITEMS, TEST = 90, 20
Made = tuple[Path, list[str]]
"""A shipped experiment's words that point it to what was made."""


def melodies(seed: int = 0) -> list[list[int]]:
    """No two alike: a test item that is a copy of a train item is refused."""
    known = list(combinations_with_replacement(range(len(NOTES)), 4))
    order = np.random.default_rng(seed).permutation(len(known))
    return [list(known[number]) for number in order[:ITEMS]]


def words(notes: list[int]) -> str:
    return " ".join(NOTES[n] for n in notes)


def melody(notes: list[int], rate: int) -> np.ndarray:
    """40 ms a note, an octave and a bit over all of them."""
    time = np.arange(int(0.04 * rate)) / rate
    return np.concatenate([0.4 * np.sin(2 * np.pi * 300 * 1.35**n * time) for n in notes]).astype(
        np.float32
    )


def picture(notes: list[int]) -> Image.Image:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    for quarter, note in enumerate(notes):
        pixels[:, 8 * quarter : 8 * quarter + 8] = COLOURS[note]
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints in the formats of HuBERT, DINOv2, CLAP and a sentence-transformers MPNet."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "initializer_range": 0.2,
    }
    convolutions = {
        "conv_dim": (32, 32, 32),
        "conv_kernel": (10, 8, 4),
        "conv_stride": (5, 4, 4),
        "num_feat_extract_layers": 3,
    }
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 8}
    transformers.HubertModel(
        transformers.HubertConfig(**small, **convolutions, **positions)
    ).save_pretrained(folder / "hubert")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder / "hubert")
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    transformers.Dinov2Model(
        transformers.Dinov2Config(**vision, initializer_range=0.2)
    ).save_pretrained(folder / "dinov2")
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(
        folder / "dinov2"
    )
    audio = {
        "spec_size": 256,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 64,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
    }
    audio |= {"num_attention_heads": [2, 2, 2], "enable_fusion": False}
    text = {
        "vocab_size": 16,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    transformers.ClapModel(
        transformers.ClapConfig(text_config=text, audio_config=audio)
    ).save_pretrained(folder / "clap")
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder / "clap")
    sentence_folder(folder / "mpnet", small)
    return folder


def sentence_folder(folder: Path, small: dict[str, Any]) -> None:
    vocabulary = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *NOTES]
    folder.mkdir()
    (folder / "words.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.MPNetModel(
        transformers.MPNetConfig(vocab_size=len(vocabulary), **small)
    ).save_pretrained(folder)
    tokenizer = transformers.MPNetTokenizer(
        vocab={word: n for n, word in enumerate(vocabulary)}, vocab_file=str(folder / "words.txt")
    )
    tokenizer.save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{k}"}
        for n, (p, k) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True})
    )


def librispeech(folder: Path) -> list[str]:
    for n, notes in enumerate(melodies()):
        where, speaker = ("test-clean", 900 + n % 2) if n < TEST else ("train-clean-100", n % 5)
        chapter = folder / where / str(speaker) / str(n // 6)
        chapter.mkdir(parents=True, exist_ok=True)
        name = f"{speaker}-{n // 6}-{n:04d}"
        with open(chapter / f"{speaker}-{n // 6}.trans.txt", "a") as file:
            file.write(f"{name} {words(notes)}\n")
        soundfile.write(chapter / f"{name}.flac", melody(notes, 16_000), 16_000)
    (folder / "train-clean-360").mkdir()
    return [f"embed.{side}.corpus.root={folder}" for side in "ab"] + ["embed.a.encoder.layer=1"]


def coco(folder: Path) -> list[str]:
    content: dict[str, dict[str, list[Any]]] = {
        split: {"images": [], "annotations": []} for split in ("train", "test")
    }
    for n, notes in enumerate(melodies()):
        split = "test" if n < TEST else "train"
        (folder / split).mkdir(parents=True, exist_ok=True)
        picture(notes).save(folder / split / f"{n:012d}.png")
        content[split]["images"].append({"id": n + 1, "file_name": f"{n:012d}.png"})
        content[split]["annotations"] += [
            {"id": 2 * n + c, "image_id": n + 1, "caption": words(notes)} for c in (0, 1)
        ]
    for split, values in content.items():
        (folder / f"{split}.json").write_text(json.dumps(values))
    paths = {"captions": "{split}.json", "images": "{split}"}
    return [
        f"embed.{side}.corpus.{key}.{split}={folder / pattern.format(split=split)}"
        for side in "ab"
        for key, pattern in paths.items()
        for split in content
    ]


def audiocaps(folder: Path) -> list[str]:
    folder.mkdir()
    number = 0
    for split in ("train", "test"):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["audiocap_id", "youtube_id", "start_time", "caption"])
            for n, notes in enumerate(melodies()):
                if (split == "test") == (n < TEST):
                    soundfile.write(folder / f"yt{n}.wav", melody(notes, 48_000), 48_000)
                    for _ in range(5 if split == "test" else 1):
                        table.writerow([number, f"yt{n}", 30, words(notes)])
                        number += 1
    tables = [
        f"embed.{side}.corpus.path.{split}={folder / split}.csv"
        for side in "ab"
        for split in ("train", "test")
    ]
    return [*tables, f"embed.a.corpus.root={folder}"]


def cc12m(folder: Path) -> list[str]:
    folder.mkdir()
    for first in range(0, ITEMS, 40):
        with tarfile.open(folder / f"{first // 40:05d}.tar", "w") as tar:
            for n, notes in list(enumerate(melodies()))[first : first + 40]:
                png = io.BytesIO()
                picture(notes).save(png, "PNG")
                for ending, content in (
                    ("png", png.getvalue()),
                    ("txt", words(notes).encode()),
                    ("json", b"{}"),
                ):
                    member = tarfile.TarInfo(f"{n:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return [
        *(f"embed.{side}.corpus.root={folder}" for side in "ab"),
        "data.test_share=0.25",
        "embed.a.encoder.pooling=mean",
    ]


CASES: dict[str, tuple[Callable[[Path], list[str]], str, tuple[int, int]]] = {
    "librispeech": (librispeech, "hubert", (ITEMS, ITEMS)),
    "coco": (coco, "dinov2", (ITEMS, 2 * ITEMS)),
    "cc12m": (cc12m, "dinov2", (ITEMS, ITEMS)),
    "audiocaps": (audiocaps, "clap", (ITEMS, ITEMS - TEST + 5 * TEST)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shipped_experiment_from_raw_files_to_a_result(
    name: str, networks: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make, network, counts = CASES[name]
    overrides = [
        *make(tmp_path / "raw"),
        *(f"data.{side}={tmp_path / side}" for side in "ab"),
        f"embed.a.encoder.checkpoint={networks / network}",
        f"embed.b.encoder.checkpoint={networks / 'mpnet'}",
        *(
            "embed.workers=0",
            "embed.accelerator=cpu",
            "embed.precision=32-true",
            "embed.shard_rows=37",
        ),
        *(
            "methods=[ridge]",
            "budgets=[50]",
            "data.reserved_pairs=50",
            "seeds=[0]",
            f"runs_dir={tmp_path / 'runs'}",
            f"cache_dir={tmp_path}",
        ),
    ]
    experiment = str(repository / "experiments" / f"{name}.yaml")
    assert cli.main(["embed", experiment, *overrides]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'a'}: {counts[0]} rows" in said
    stores = [EmbeddingStore(tmp_path / side) for side in "ab"]
    assert (len(stores[0]), len(stores[1])) == counts
    assert all(
        "split" not in store.rows or (store.rows["split"] == "test").any() for store in stores
    )
    assert set(stores[0].rows["item"]) == set(stores[1].rows["item"])
    assert cli.main(["embed", experiment, *overrides]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    assert cli.main(["train", experiment, *overrides]) == 0
    [row] = [
        json.loads(line)
        for line in (tmp_path / "runs" / name / "results.jsonl").read_text().splitlines()
    ]
    assert (row["method"], row["budget"]) == ("ridge", 50)
    for direction in ("ab", "ba"):
        assert row[f"{direction}/mrr"] > 2.5 * np.mean(1 / np.arange(1, TEST + 1)), (
            "partners are found well above chance"
        )


def test_all_layers_are_embedded_compared_and_one_is_aligned(
    networks: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        *coco(tmp_path / "raw"),
        *(f"data.{side}={tmp_path / side}" for side in "ab"),
        *(
            f"embed.{side}.encoder.checkpoint={networks / name}"
            for side, name in (("a", "dinov2"), ("b", "mpnet"))
        ),
        *("embed.a.encoder.layer=all", "embed.b.encoder.layer=[1,-1]"),
        *("embed.workers=0", "embed.accelerator=cpu", "embed.precision=32-true"),
    ]
    experiment = str(repository / "experiments" / "coco.yaml")
    assert cli.main(["embed", experiment, *words]) == 0
    assert f"{tmp_path / 'a'}: {ITEMS} rows of width 64, 3 layers" in capsys.readouterr().out
    assert cli.main(["affinity", str(tmp_path / "a"), str(tmp_path / "b"), "k=5"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert {tuple(line[:2]) for line in lines} == {
        (f"layer_0{a}", f"layer_0{b}") for a in (0, 1, 2) for b in (1, 2)
    }
    assert float(lines[0][2]) == max(float(line[2]) for line in lines) > 2 * float(lines[0][3])
    best = [
        f"data.{side}={tmp_path / side / name}"
        for side, name in zip("ab", lines[0][:2], strict=True)
    ]
    small = [
        "methods=[ridge]",
        "budgets=[50]",
        "data.reserved_pairs=50",
        "seeds=[0]",
        f"runs_dir={tmp_path / 'runs'}",
        f"cache_dir={tmp_path}",
    ]
    assert cli.main(["train", experiment, *best, *small]) == 0
    assert (
        cli.main(
            ["train", experiment, *small, f"data.a={tmp_path / 'a'}", f"data.b={tmp_path / 'b'}"]
        )
        == 2
    )
    assert "it holds layer_00, layer_01, layer_02: name one of them" in capsys.readouterr().err
