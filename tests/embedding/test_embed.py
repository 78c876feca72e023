"""Raw items to stores with a small network; bytes and rows against an uninterrupted run and a plain
loop.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from gera_lightning.config.embed_schema import EmbedConfig
from gera_lightning.data.store import EmbeddingStore, StoreWriter
from gera_lightning.embedding.batches import BatchPlan
from gera_lightning.embedding.corpus import Corpus, FolderOfFiles, Manifest, TableCorpus
from gera_lightning.embedding.embed import embed_corpus
from gera_lightning.embedding.layouts import WebDataset
from gera_lightning.embedding.shards import Encoded
from gera_lightning.encoders.base import Inputs, NetworkEncoder, masked_mean
from gera_lightning.encoders.layers import Layer, Layers
from gera_lightning.utils.errors import UserError

WORDS = ["a", "small", "dog", "and", "the", "red", "cat", "run", "over", "an", "old", "house"]
SETTINGS = EmbedConfig(shard_rows=10, accelerator="cpu", dtype="float32")


class CharacterEncoder(NetworkEncoder):
    """Characters through an embedding table, averaged: a real network whose rows do not depend on
    their batch.

    Args:
        fail_at: forward passes before one raises.
        pause: seconds a forward pass takes, so that a process can be killed inside a run.
    """

    name, revision, pooling, preprocessing = "characters", "1", "mean", "code points"

    def __init__(
        self,
        *,
        batch_size: int = 4,
        dim: int = 6,
        fail_at: int | None = None,
        pause: float = 0.0,
        refuse: str = "\0",
    ) -> None:
        self.dim, self.batch_size = dim, batch_size
        self.fail_at, self.pause, self.refuse = fail_at, pause, refuse
        self.passes = 0
        self.model = torch.nn.Embedding(1000, dim)
        self.model.weight.data = torch.randn(1000, dim, generator=torch.Generator().manual_seed(0))

    def settings(self) -> Mapping[str, Any]:
        return {}

    def size(self, item: str) -> int:
        return len(item)

    def prepare(self, items: Sequence[str]) -> Inputs:
        if any(self.refuse in item for item in items):
            raise ValueError("no such word")
        codes = torch.zeros(len(items), max(map(len, items)), dtype=torch.long)
        for row, item in zip(codes, items, strict=True):
            row[: len(item)] = torch.tensor([ord(c) for c in item])
        return {"codes": codes}

    def pooled(self, inputs: Inputs) -> Tensor:
        if self.passes == self.fail_at:
            raise RuntimeError("stopped here")
        self.passes += 1
        time.sleep(self.pause)
        return masked_mean(self.model(inputs["codes"]), (inputs["codes"] > 0).long())


def texts(count: int = 47) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


def manifest(folder: Path, values: list[str] | None = None) -> Manifest:
    table = pd.DataFrame({"text": texts() if values is None else values})
    table.insert(0, "item", [f"i{n}" for n in range(len(table))])
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / "texts.csv", index=False)
    return Manifest(folder / "texts.csv", "text")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def tones(folder: Path, count: int = 8) -> None:
    folder.mkdir()
    for n in range(count):
        soundfile.write(
            folder / f"{n}.wav", 0.3 * np.sin(np.arange(400 + 37 * n) * (0.1 + 0.02 * n)), 8_000
        )


class LoudnessEncoder:
    """An encoder without a network: loudness and length of a sound at 8 kHz; refuses what is
    shorter than 300 samples.
    """

    name, dim, sample_rate = "loudness", 2, 8_000

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}

    def encode(self, items: Sequence[np.ndarray]) -> np.ndarray:
        if any(len(item) < 300 for item in items):
            raise UserError("shorter than 300 samples")
        return np.array(
            [[np.sqrt((item**2).mean()), len(item)] for item in items], dtype=np.float32
        ).reshape(-1, 2)


def test_a_store_holds_what_the_encoder_gives(tmp_path: Path):
    corpus, encoder = manifest(tmp_path), CharacterEncoder()
    [store] = embed_corpus(corpus, encoder, tmp_path / "out", SETTINGS)
    assert [shard.count for shard in store.shards] == [10, 10, 10, 10, 7]
    assert store.rows["text"].tolist() == texts()
    assert store.rows["item"].tolist() == [f"i{n}" for n in range(47)]
    np.testing.assert_allclose(
        store.read(), np.concatenate([encoder.encode([text]) for text in texts()]), atol=1e-6
    )
    assert store.encoder == encoder.describe()
    assert store.manifest["source"]["corpus"] == "Manifest"
    assert store.manifest["source"]["skipped"] == 0
    store.verify()
    assert set(content(tmp_path / "out")) == {
        *(
            f"{kind}_{n:04d}.{end}"
            for n in range(5)
            for kind, end in (("emb", "npy"), ("rows", "parquet"))
        ),
        "manifest.json",
        "skipped.jsonl",
    }


@pytest.mark.parametrize(
    ("count", "rows", "batch", "size"),
    [(47, 10, 4, 1), (47, 10, 4, 3), (40, 10, 3, 2), (3, 10, 4, 2), (9, 4, 4, 3)],
)
def test_steps_cover_every_row_once_whatever_the_processes(
    count: int, rows: int, batch: int, size: int
):
    def batches(size: int, first: int = 0) -> dict[int, list[tuple[int, ...]]]:
        found: dict[int, list[tuple[int, ...]]] = {}
        for rank in range(size):
            plan = BatchPlan(count, rows, batch, first, rank, size)
            lasts = []
            for number in range(len(plan)):
                shard, part, last = plan.step(number)
                lasts += [shard] if last else []
                if members := tuple(plan.rows(shard))[part]:
                    found.setdefault(shard, []).append(members)
            assert lasts == list(range(first, plan.shards)), (
                "each process ends each shard once, in order"
            )
        return {shard: sorted(members) for shard, members in found.items()}

    alone = batches(1)
    assert sorted(row for members in alone.values() for part in members for row in part) == list(
        range(count)
    )
    assert max(len(part) for members in alone.values() for part in members) <= batch
    assert batches(size) == alone
    assert batches(size, first=1) == {shard: members for shard, members in alone.items() if shard}


def test_batches_hold_items_of_like_length(tmp_path: Path):
    seen = []
    encoder = CharacterEncoder()
    real = encoder.prepare
    encoder.prepare = lambda items: (seen.append([len(item) for item in items]), real(items))[1]  # type: ignore[method-assign]
    embed_corpus(manifest(tmp_path), encoder, tmp_path / "out", SETTINGS)
    shards = [
        [length for part in seen[n : n + 3] for length in part] for n in range(0, 12, 3)
    ]  # 10 rows in batches of 4, 4, 2
    assert all(lengths == sorted(lengths) for lengths in shards)


@pytest.mark.parametrize("packed", [False, True])
def test_batches_hold_sounds_of_like_size(tmp_path: Path, packed: bool):
    seen = []

    class Watched(LoudnessEncoder):
        batch_size = 2

        def encode(self, items: Sequence[np.ndarray]) -> np.ndarray:
            seen.extend(len(item) for item in items)
            return super().encode(items)

    tones(tmp_path / "wav")
    (tmp_path / "wav" / "0.wav").rename(tmp_path / "wav" / "9.wav")  # the shortest comes last
    corpus: Corpus = FolderOfFiles(tmp_path / "wav", "audio")
    if packed:
        (tmp_path / "tar").mkdir()
        with tarfile.open(tmp_path / "tar" / "0.tar", "w") as tar:
            for file in sorted((tmp_path / "wav").iterdir()):
                tar.add(file, file.name)
        corpus = WebDataset(tmp_path / "tar", "audio")
    [store] = embed_corpus(
        corpus, Watched(), tmp_path / "out", EmbedConfig(accelerator="cpu", shard_rows=4)
    )
    assert store.read()[:, 1].tolist() == [437, 474, 511, 548, 585, 622, 659, 400]
    assert seen == [437, 474, 511, 548, 400, 585, 622, 659]


def test_stopped_anywhere_it_ends_in_the_same_bytes(tmp_path: Path):
    """Also where a whole shard is skipped, and at most one shard is done again."""
    values = texts()
    values[10:20] = ["\x01"] * 10  # refused by the encoder below
    corpus = manifest(tmp_path, values)
    settings = EmbedConfig(shard_rows=10, accelerator="cpu", max_skipped=1.0)
    whole = CharacterEncoder(refuse="\x01")
    embed_corpus(corpus, whole, tmp_path / "whole", settings)
    assert len(EmbeddingStore(tmp_path / "whole")) == 37
    for stop in range(whole.passes):
        path = tmp_path / f"stopped{stop}"
        first, second = (
            CharacterEncoder(refuse="\x01", fail_at=stop),
            CharacterEncoder(refuse="\x01"),
        )
        with pytest.raises(RuntimeError, match="stopped here"):
            embed_corpus(corpus, first, path, settings)
        embed_corpus(corpus, second, path, settings)
        assert first.passes + second.passes - whole.passes < 3, (
            "less than one shard of three batches was done twice"
        )
        assert content(path) == content(tmp_path / "whole")


def test_no_more_than_a_shard_is_held(tmp_path: Path):
    """Memory does not grow with the corpus: batches of whole shards are let go."""
    held = []
    gc.collect()

    class Watched(CharacterEncoder):
        def pooled(self, inputs: Inputs) -> Tensor:
            held.append(sum(type(thing) is Encoded for thing in gc.get_objects()))
            return super().pooled(inputs)

    embed_corpus(manifest(tmp_path, texts(200)), Watched(), tmp_path / "out", SETTINGS)
    assert len(held) == 20 * 3
    assert max(held) - held[0] <= 3, "three batches a shard"
    assert max(held[30:]) <= max(held[:6])


def test_ctrl_c_is_passed_on_and_heard_again(tmp_path: Path):
    """Lightning would exit the process, and leave it deaf to the next one."""

    class Interrupted(CharacterEncoder):
        def pooled(self, inputs: Inputs) -> Tensor:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(manifest(tmp_path), Interrupted(), tmp_path / "out", SETTINGS)
    assert signal.getsignal(signal.SIGINT) == before
    assert (
        len(embed_corpus(manifest(tmp_path), CharacterEncoder(), tmp_path / "out", SETTINGS)[0])
        == 47
    )


@pytest.fixture
def stopped(tmp_path: Path) -> Manifest:
    """A corpus whose run to `out` stopped behind its second shard; all of it is in `whole`."""
    corpus = manifest(tmp_path)
    embed_corpus(corpus, CharacterEncoder(), tmp_path / "whole", SETTINGS)
    with pytest.raises(RuntimeError, match="stopped here"):
        embed_corpus(corpus, CharacterEncoder(fail_at=6), tmp_path / "out", SETTINGS)
    return corpus


@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet", "shard_0001.json"])
def test_a_shard_that_was_being_written_is_done_again(tmp_path: Path, stopped: Manifest, name: str):
    """As a kill between the files of a shard leaves them."""
    (tmp_path / "out" / "shard_0001.json").unlink()
    if name != "shard_0001.json":
        (tmp_path / "out" / name).write_bytes(b"half")
    embed_corpus(stopped, CharacterEncoder(), tmp_path / "out", SETTINGS)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["emb_0000.npy", "rows_0000.parquet", "shard_0000.json"])
def test_a_damaged_shard_is_not_gone_on_from(tmp_path: Path, stopped: Manifest, name: str):
    path = tmp_path / "out" / name
    assert (tmp_path / "out" / "shard_0001.json").exists()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    embed_corpus(stopped, CharacterEncoder(), tmp_path / "out", SETTINGS)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["emb_0001.npy", "rows_0001.parquet"])
def test_a_damaged_finished_store_is_refused_and_not_skipped(tmp_path: Path, name: str):
    corpus, out = manifest(tmp_path), tmp_path / "out"
    embed_corpus(corpus, CharacterEncoder(), out, SETTINGS)
    whole = content(out)
    (out / name).write_bytes((out / name).read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError) as error:
        embed_corpus(corpus, CharacterEncoder(), out, SETTINGS)
    assert error.value.key == str(out)
    embed_corpus(corpus, CharacterEncoder(), out, SETTINGS, overwrite=True)
    assert content(out) == whole


def test_killed_between_manifest_and_tidying_up(tmp_path: Path):
    corpus = manifest(tmp_path)
    embed_corpus(corpus, CharacterEncoder(), tmp_path / "out", SETTINGS)
    whole = content(tmp_path / "out")
    (tmp_path / "out" / ".embed").mkdir()
    (tmp_path / "out" / ".embed" / "plan.json").write_text("{}")
    (tmp_path / "out" / "shard_0000.json").write_text("{}")
    encoder = CharacterEncoder()
    embed_corpus(corpus, encoder, tmp_path / "out", SETTINGS)
    assert encoder.passes == 0, "a finished store is left as it is"
    assert content(tmp_path / "out") == whole


def worker(folder: Path, name: str, pause: float) -> None:
    """What the processes of the tests below run."""
    from gera_lightning.utils import distributed

    torch.set_num_threads(1)
    distributed.initialize()
    embed_corpus(manifest_of(folder), CharacterEncoder(pause=pause), folder / name, SETTINGS)


def manifest_of(folder: Path) -> Manifest:
    return Manifest(folder / "texts.csv", "text")


def command(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def test_kill_9_and_restart_end_in_the_same_bytes(tmp_path: Path):
    embed_corpus(manifest(tmp_path), CharacterEncoder(), tmp_path / "whole", SETTINGS)
    running = subprocess.Popen(
        command(__file__, str(tmp_path), "out", "0.1"), start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "shard_0001.json").exists():
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    encoder = CharacterEncoder()
    embed_corpus(manifest_of(tmp_path), encoder, tmp_path / "out", SETTINGS)
    assert encoder.passes <= 3 * 3, "the first two shards were kept"
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path):
    embed_corpus(manifest(tmp_path), CharacterEncoder(), tmp_path / "one", SETTINGS)
    launch = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        str(tmp_path),
        "two",
        "0",
    )
    done = subprocess.run(
        command(*launch),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_loader_processes_change_nothing(tmp_path: Path):
    corpus = manifest(tmp_path)
    for workers in (0, 2):
        settings = EmbedConfig(shard_rows=10, accelerator="cpu", workers=workers)
        embed_corpus(corpus, CharacterEncoder(), tmp_path / f"w{workers}", settings)
    assert content(tmp_path / "w0") == content(tmp_path / "w2")


def test_mixed_precision_is_lightnings(tmp_path: Path):
    class Mixed(CharacterEncoder):
        def pooled(self, inputs: Inputs) -> Tensor:
            assert torch.is_autocast_enabled("cpu")
            return super().pooled(inputs)

    [store] = embed_corpus(
        manifest(tmp_path),
        Mixed(),
        tmp_path / "out",
        EmbedConfig(accelerator="cpu", precision="bf16-mixed"),
    )
    np.testing.assert_allclose(store.read(), CharacterEncoder().encode(texts()), atol=2e-3)


def test_what_cannot_be_read_is_named_and_the_rest_kept(tmp_path: Path):
    tones(tmp_path / "wav")
    bad = {
        "3.wav": b"",
        "4.wav": b"no audio at all",
        "5.wav": (tmp_path / "wav" / "5.wav").read_bytes()[:300],
    }
    for name, raw in bad.items():
        (tmp_path / "wav" / name).write_bytes(raw)
    soundfile.write(
        tmp_path / "wav" / "6.wav", np.array([0.1, np.nan] * 300), 8_000, subtype="FLOAT"
    )
    soundfile.write(tmp_path / "wav" / "7.wav", np.zeros(0), 8_000)
    soundfile.write(tmp_path / "wav" / "8.wav", np.full(10, 0.1), 8_000)
    (tmp_path / "table.csv").write_text(
        "item,path\n" + "".join(f"{n},{n}.wav\n" for n in range(10))
    )
    corpus = Manifest(tmp_path / "table.csv", "audio", root=tmp_path / "wav")
    [store] = embed_corpus(
        corpus,
        LoudnessEncoder(),
        tmp_path / "out",
        EmbedConfig(accelerator="cpu", max_skipped=0.8, shard_rows=4),
    )
    assert store.rows["item"].tolist() == ["0", "1", "2"]
    assert store.read()[:, 1].tolist() == [400, 437, 474]
    skipped = [
        json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    ]
    assert {entry["path"]: entry["reason"].split(" (")[0] for entry in skipped} == {
        "3.wav": "empty file",
        "4.wav": "not audio that can be decoded",
        "5.wav": "truncated: its header promises more samples than it holds",
        "6.wav": "samples that are not finite",
        "7.wav": "no samples",
        "8.wav": "the encoder refuses it",
        "9.wav": "no such file",
    }
    assert store.manifest["source"]["skipped"] == 7


def test_a_tar_that_is_gone_in_mid_run_is_named(tmp_path: Path):
    tones(tmp_path / "wav", 4)
    (tmp_path / "tar").mkdir()
    for n in range(4):
        with tarfile.open(tmp_path / "tar" / f"{n}.tar", "w") as tar:
            tar.add(tmp_path / "wav" / f"{n}.wav", f"{n}.wav")

    class Losing(WebDataset):
        def raw(self, row: Mapping[str, Any]) -> str | bytes:
            (self.root / "2.tar").unlink(missing_ok=True)
            return super().raw(row)

    settings = EmbedConfig(accelerator="cpu", max_skipped=0.5)
    [store] = embed_corpus(
        Losing(tmp_path / "tar", "audio"), LoudnessEncoder(), tmp_path / "out", settings
    )
    assert store.rows["item"].tolist() == ["0/0", "1/1", "3/3"]
    [line] = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert (json.loads(line)["item"], "No such file" in json.loads(line)["reason"]) == ("2/2", True)


def test_what_is_cut_is_named_and_counted(tmp_path: Path):
    class Short(LoudnessEncoder):
        max_seconds = (
            0.06  # 480 samples: of the tones, 400 + 37 n samples long, the last five are longer
        )

    tones(tmp_path / "wav")
    settings = EmbedConfig(accelerator="cpu", shard_rows=3)
    [store] = embed_corpus(
        FolderOfFiles(tmp_path / "wav", "audio"), Short(), tmp_path / "out", settings
    )
    assert store.read()[:, 1].tolist() == [400, 437, 474, 480, 480, 480, 480, 480]
    cut = [json.loads(line) for line in (tmp_path / "out" / "cut.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in cut] == [f"{n}.wav" for n in range(3, 8)]
    assert cut[-1]["reason"] == "cut to the first 0.06 s of 0.1 s"
    assert (store.manifest["source"]["cut"], store.manifest["source"]["skipped"]) == (5, 0)


@pytest.mark.parametrize("changed", ["0.wav", "7.wav"])
def test_a_raw_file_that_changed_since_it_was_embedded_is_noticed(tmp_path: Path, changed: str):
    """One of a shard that is still to do may change."""

    class Stopped(LoudnessEncoder):
        def encode(self, items: Sequence[np.ndarray]) -> np.ndarray:
            if any(len(item) == 400 + 37 * 7 for item in items):
                raise RuntimeError("stopped here")
            return super().encode(items)

    tones(tmp_path / "wav")
    corpus, settings = (
        FolderOfFiles(tmp_path / "wav", "audio"),
        EmbedConfig(accelerator="cpu", shard_rows=3),
    )
    with pytest.raises(RuntimeError, match="stopped here"):
        embed_corpus(corpus, Stopped(), tmp_path / "out", settings)
    soundfile.write(tmp_path / "wav" / changed, np.full(999, 0.5), 8_000)
    if changed == "7.wav":
        [store] = embed_corpus(corpus, LoudnessEncoder(), tmp_path / "out", settings)
        assert store.read()[7, 1] == 999
        return
    with pytest.raises(UserError, match=r"rows '0.wav' to '2.wav' have changed.*overwrite=true"):
        embed_corpus(corpus, LoudnessEncoder(), tmp_path / "out", settings)
    [store] = embed_corpus(corpus, LoudnessEncoder(), tmp_path / "out", settings, overwrite=True)
    assert store.read()[0, 1] == 999


def test_a_corpus_may_give_arrays(tmp_path: Path):
    sounds = {f"r{n}": np.full(300 + n, 0.1 * n, dtype=np.float32) for n in range(5)}
    rows = pd.DataFrame({"row": list(sounds), "item": list(sounds)})
    corpus = TableCorpus(rows, "audio", {"name": "made"}, lambda row: sounds[row["row"]])
    [store] = embed_corpus(
        corpus, LoudnessEncoder(), tmp_path / "out", EmbedConfig(accelerator="cpu", dtype="float32")
    )
    np.testing.assert_array_equal(store.read(), LoudnessEncoder().encode(list(sounds.values())))
    assert list(store.rows.columns) == ["row", "item"]


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path):
    class MeanColour(LoudnessEncoder):
        dim = 3

        def encode(self, items: Sequence[Image.Image]) -> np.ndarray:
            return np.array(
                [np.asarray(item).reshape(-1, 3).mean(0) for item in items], dtype=np.float32
            )

    (tmp_path / "i").mkdir()
    for n in range(3):
        Image.new("RGB", (9, 9), (n, 2 * n, 3 * n)).save(tmp_path / "i" / f"{n}.png")
    (tmp_path / "i" / "1.png").write_bytes((tmp_path / "i" / "1.png").read_bytes()[:50])
    settings = EmbedConfig(accelerator="cpu", max_skipped=0.5)
    [store] = embed_corpus(
        FolderOfFiles(tmp_path / "i", "image"), MeanColour(), tmp_path / "out", settings
    )
    assert store.read().tolist() == [[0, 0, 0], [2, 4, 6]]
    assert "not an image" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_too_many_skipped_stop_the_run_which_then_goes_on(tmp_path: Path):
    corpus = manifest(tmp_path, [*texts(40), "", "", *["\x01"] * 4])
    encoder = CharacterEncoder(refuse="\x01")
    with pytest.raises(UserError, match=r"6 of 46 items.*no such word") as caught:
        embed_corpus(corpus, encoder, tmp_path / "out", SETTINGS)
    assert (caught.value.key, caught.value.value) == ("embed.max_skipped", 0.05)
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 6
    again = CharacterEncoder(refuse="\x01")
    [store] = embed_corpus(
        corpus,
        again,
        tmp_path / "out",
        EmbedConfig(shard_rows=10, accelerator="cpu", dtype="float32", max_skipped=0.2),
    )
    assert (len(store), again.passes) == (40, 0)


def test_strict_stops_at_the_first(tmp_path: Path):
    strict = EmbedConfig(shard_rows=10, accelerator="cpu", strict=True)
    with_empty = manifest(tmp_path / "empty", [*texts(40), ""])
    with pytest.raises(UserError, match=r"1 of 41 items.*no text") as caught:
        embed_corpus(with_empty, CharacterEncoder(), tmp_path / "out", strict)
    assert caught.value.key == "embed.strict"
    corpus = manifest(tmp_path, [*texts(12), "\x01", *texts(30)])
    with pytest.raises(UserError, match="no such word"):
        embed_corpus(corpus, CharacterEncoder(refuse="\x01"), tmp_path / "other", strict)
    # an encoder that takes it goes on from there
    [store] = embed_corpus(corpus, CharacterEncoder(), tmp_path / "other", strict)
    assert len(store) == 43


@pytest.mark.parametrize(
    ("value", "reason"), [(1e6, "not finite in float16"), (1e-9, "too small for float16")]
)
def test_rows_that_do_not_fit_are_left_out(tmp_path: Path, value: float, reason: str):
    encoder = CharacterEncoder()
    encoder.model.weight.data[ord("z")] = value
    settings = EmbedConfig(accelerator="cpu", max_skipped=0.5)
    [store] = embed_corpus(manifest(tmp_path, ["a", "z", "b"]), encoder, tmp_path / "out", settings)
    assert store.rows["text"].tolist() == ["a", "b"]
    assert reason in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_another_run_begins_anew_where_no_shard_is_whole(tmp_path: Path):
    corpus = manifest(tmp_path)
    with pytest.raises(RuntimeError, match="stopped here"):
        embed_corpus(corpus, CharacterEncoder(fail_at=2), tmp_path / "out", SETTINGS)
    [wider] = embed_corpus(corpus, CharacterEncoder(dim=7), tmp_path / "out", SETTINGS)
    assert (len(wider), wider.dim) == (47, 7)
    embed_corpus(corpus, CharacterEncoder(dim=7), tmp_path / "fresh", SETTINGS)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_whole_shards_of_another_run_are_kept_unless_asked(tmp_path: Path):
    corpus, path = manifest(tmp_path), tmp_path / "out"
    with pytest.raises(RuntimeError, match="stopped here"):
        embed_corpus(corpus, LayeredEncoder(fail_at=8), path, SETTINGS)
    kept = content(path)
    for other in (CharacterEncoder(dim=7), LayeredEncoder([0, 2])):
        with pytest.raises(UserError, match=r"20 rows of an unfinished run.*overwrite=true"):
            embed_corpus(corpus, other, path, SETTINGS)
        assert content(path) == kept
    going_on = LayeredEncoder()
    embed_corpus(corpus, going_on, path, SETTINGS)
    assert going_on.passes == 14 - 6, "with the settings put back it goes on"
    with pytest.raises(RuntimeError, match="stopped here"):
        embed_corpus(corpus, LayeredEncoder(fail_at=8), path, SETTINGS, overwrite=True)
    assert embed_corpus(corpus, CharacterEncoder(dim=7), path, SETTINGS, overwrite=True)[0].dim == 7


class LayeredEncoder(CharacterEncoder):
    """Layer k is k times the characters' mean."""

    def __init__(self, layer: Layer = "all", **options: Any) -> None:
        super().__init__(**options)
        self.layers = Layers.of(layer, 2)

    def settings(self) -> Mapping[str, Any]:
        return {"layer": self.layers.numbers}

    def pooled(self, inputs: Inputs) -> Tensor:
        rows = super().pooled(inputs)
        return self.layers.stack([number * rows for number in self.layers.chosen])


def test_several_layers_are_a_store_each_in_one_pass(tmp_path: Path):
    values = [*texts(), "\x01"]
    corpus, encoder = manifest(tmp_path, values), LayeredEncoder(refuse="\x01")
    stores = embed_corpus(corpus, encoder, tmp_path / "out", SETTINGS)
    assert [store.path.name for store in stores] == ["layer_00", "layer_01", "layer_02"]
    assert encoder.passes == 4 * 3 + 2, "as many as of one layer"
    for number, store in enumerate(stores):
        [alone] = embed_corpus(
            corpus, LayeredEncoder(number, refuse="\x01"), tmp_path / f"alone{number}", SETTINGS
        )
        assert store.data_hash == alone.data_hash
        assert store.encoder == alone.encoder
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 1
    again = LayeredEncoder(refuse="\x01")
    assert [
        store.data_hash for store in embed_corpus(corpus, again, tmp_path / "out", SETTINGS)
    ] == [s.data_hash for s in stores]
    assert again.passes == 0
    with pytest.raises(UserError, match="overwrite=true"):
        embed_corpus(corpus, LayeredEncoder(1, refuse="\x01"), tmp_path / "out", SETTINGS)
    [one] = embed_corpus(
        corpus, LayeredEncoder(1, refuse="\x01"), tmp_path / "out", SETTINGS, overwrite=True
    )
    assert one.path == tmp_path / "out"
    assert not list(tmp_path.glob("out/layer_*"))


@pytest.mark.parametrize(
    ("part", "calls"),
    [("append", 1), ("append", 5), ("append", 6), ("finish", 1), ("finish", 2), ("finish", 3)],
)
def test_stopped_between_two_layers_it_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, calls: int
):
    corpus = manifest(tmp_path)
    embed_corpus(corpus, LayeredEncoder(), tmp_path / "whole", SETTINGS)
    real, made = getattr(StoreWriter, part), []

    def dying(self: StoreWriter, *values: Any) -> Any:
        if len(made) == calls:
            raise RuntimeError("stopped here")
        made.append(self)
        return real(self, *values)

    monkeypatch.setattr(StoreWriter, part, dying)
    if calls < 3 or part == "append":
        with pytest.raises(RuntimeError, match="stopped here"):
            embed_corpus(corpus, LayeredEncoder(), tmp_path / "out", SETTINGS)
    else:  # after the last manifest, before the scratch is gone
        monkeypatch.setattr("gera_lightning.embedding.shards.remove_scratch", lambda *_: None)
        embed_corpus(corpus, LayeredEncoder(), tmp_path / "out", SETTINGS)
        monkeypatch.undo()
    monkeypatch.setattr(StoreWriter, part, real)
    again = LayeredEncoder()
    embed_corpus(corpus, again, tmp_path / "out", SETTINGS)
    assert again.passes == (14 - 3 * (calls // 3) if part == "append" else 0)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_row_that_one_layer_cannot_hold_is_left_out_of_all(tmp_path: Path):
    encoder = LayeredEncoder()
    encoder.model.weight.data[ord("z")] = 4e4  # twice that is beyond float16
    stores = embed_corpus(
        manifest(tmp_path, ["a", "z", "b"]),
        encoder,
        tmp_path / "out",
        EmbedConfig(accelerator="cpu", max_skipped=0.5),
    )
    assert [store.rows["text"].tolist() for store in stores] == [["a", "b"]] * 3


def test_a_store_made_otherwise_is_kept_unless_asked(tmp_path: Path):
    corpus = manifest(tmp_path)
    embed_corpus(corpus, CharacterEncoder(), tmp_path / "out", SETTINGS)
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match="overwrite=true"):
        embed_corpus(corpus, CharacterEncoder(dim=7), tmp_path / "out", SETTINGS)
    assert content(tmp_path / "out") == before
    assert (
        embed_corpus(corpus, CharacterEncoder(dim=7), tmp_path / "out", SETTINGS, overwrite=True)[
            0
        ].dim
        == 7
    )


def test_a_store_of_other_files_under_the_same_names_is_not_finished_before(tmp_path: Path):
    for name in ("here", "there"):
        tones(tmp_path / name)
    soundfile.write(tmp_path / "there" / "0.wav", np.full(999, 0.5), 8_000)
    (tmp_path / "table.csv").write_text("item,path\n" + "".join(f"{n},{n}.wav\n" for n in range(8)))
    here, there = (
        Manifest(tmp_path / "table.csv", "audio", root=tmp_path / name)
        for name in ("here", "there")
    )
    settings = EmbedConfig(accelerator="cpu")
    embed_corpus(here, LoudnessEncoder(), tmp_path / "out", settings)
    with pytest.raises(UserError, match="overwrite=true"):
        embed_corpus(there, LoudnessEncoder(), tmp_path / "out", settings)


def test_foreign_vectors_are_never_overwritten(tmp_path: Path):
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "out" / "emb_0000.npy", np.ones((2, 2)))
    with pytest.raises(UserError, match="not of this run"):
        embed_corpus(manifest(tmp_path), CharacterEncoder(), tmp_path / "out", SETTINGS)
    assert np.load(tmp_path / "out" / "emb_0000.npy").tolist() == [[1, 1], [1, 1]]


def test_two_writers_of_one_store_are_refused(tmp_path: Path):
    (tmp_path / "out" / ".embed").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / ".embed" / "lock"),
        pytest.raises(UserError, match="another process"),
    ):
        embed_corpus(manifest(tmp_path), CharacterEncoder(), tmp_path / "out", SETTINGS)


def test_settings_that_lightning_refuses_are_named(tmp_path: Path):
    settings = EmbedConfig(accelerator="abacus")
    with pytest.raises(UserError, match="abacus"):
        embed_corpus(manifest(tmp_path), CharacterEncoder(), tmp_path / "out", settings)


@pytest.mark.parametrize(
    "options",
    [{"shard_rows": 0}, {"workers": -1}, {"dtype": "float64"}, {"devices": 0}, {"max_skipped": 2}],
)
def test_settings_are_checked(options: dict[str, Any]):
    [(key, value)] = options.items()
    with pytest.raises(UserError, match=f"embed.{key}='?{value}"):
        EmbedConfig(**options)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
