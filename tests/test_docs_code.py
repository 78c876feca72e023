"""Every block of code and every command of the README and of docs/ is run, or checked where it
takes long: a renamed verb, key, preset, experiment, target or file fails here.

`docs/extending.md` is run by `test_extending.py`, `docs/notebook.ipynb` by `test_notebook.py`.
"""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import transformers
import yaml

from gera_lightning.cli import main, module_of
from gera_lightning.commands import VERBS
from gera_lightning.config import load
from gera_lightning.config.overrides import parse_kwargs, split_overrides
from gera_lightning.data.store import EmbeddingStore, write_store
from gera_lightning.utils.errors import UserError
from gera_lightning.utils.instantiate import check_part

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md"))),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SPAN = re.compile(r"`((?:\.venv/bin/)?(?:gera|make|python|pip) [^`]+)`")
ON_EXPERIMENTS = ("train", "sweep", "align", "embed", "show", "report", "search", "serve", "export")
ON_EXPERIMENTS += ("keep",)
OVERRIDES_ALONE = ("train", "sweep", "embed", "keep")
FUNCTIONS = {"import": "import_vectors", "align": "align_experiment"}
"""What a verb calls, where it has another name."""
PLACEHOLDERS = {"VERB": "train"}
"""Words of the pages that stand for any: what they are checked as."""


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of a page's fenced blocks, in order."""
    found = FENCE.findall((ROOT / page).read_text())
    return [(language, text) for language, text in found if language in (languages or [language])]


def commands_of(block: str) -> list[list[str]]:
    """The words of each command of a bash block, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [
        shlex.split(command, comments=True)
        for line in lines
        for command in line.split("&&")
        if shlex.split(command, comments=True)
    ]


def all_commands() -> list[tuple[str, list[str]]]:
    """Every command of every page: those of bash blocks, and those that stand in a sentence."""
    found = []
    for page in PAGES:
        for _, block in blocks(page, "bash"):
            found += [(page, words) for words in commands_of(block)]
        prose = FENCE.sub("", (ROOT / page).read_text())
        found += [(page, shlex.split(span)) for span in SPAN.findall(prose)]
    return found


# ---- checking a command without running it ----


def check(words: Sequence[str]) -> None:
    """Fail where a command could not be run as it stands."""
    name, rest = words[0].removeprefix(".venv/bin/"), [PLACEHOLDERS.get(w, w) for w in words[1:]]
    if name == "make":
        check_make(rest)
    elif name == "gera":
        check_gera(rest)
    elif name == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), rest[1]
    elif name == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif name == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(rest))
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
    else:
        raise AssertionError(f"no way to check {' '.join(words)!r}")


def check_make(words: Sequence[str]) -> None:
    """What the target would run, checked in its turn."""
    # -o: as if the environment were there
    call = ["make", "--dry-run", "--no-print-directory", "-o", ".venv/.ready", *words]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [query] = [w.removeprefix("Q=") for w in words if w.startswith("Q=")] or ["words"]
    for line in done.stdout.splitlines():
        if line.startswith(".venv/bin/gera "):
            check_gera(shlex.split(line.replace('"$Q"', shlex.quote(query)))[1:])


def check_gera(words: Sequence[str]) -> None:
    """The verb is there and takes these keys; the experiment is there and takes its own."""
    verb, rest = words[0], [word for word in words[1:] if not word.endswith("...")]
    assert verb in VERBS, verb
    module = importlib.import_module(module_of(verb))
    function = getattr(module, FUNCTIONS.get(verb, verb), None)
    positional, keys = [w for w in rest if "=" not in w], [w for w in rest if "=" in w]
    if verb not in ON_EXPERIMENTS or of_a_folder(positional[:1]):
        assert not keys or parse_kwargs(keys, function)
        return
    own, overrides = ({}, keys) if verb in OVERRIDES_ALONE else split_overrides(keys, function)
    target = own.get("method") and f"methods=[{own['method']}]"
    load(positional[0], [*overrides, *([target] if target else [])], sweep=verb == "sweep")


def of_a_folder(target: Sequence[str]) -> bool:
    """Whether an aligner's folder stands in an experiment's place, or nothing does."""
    return not target or "/" in target[0] or target[0] in ("FOLDER", "my_aligner")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' commands are run: with the shipped experiments, and `mine` of the pages."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "experiments", "experiments")
    [(_, mine)] = blocks("docs/tutorial.md", "yaml")
    Path("experiments/mine.yaml").write_text(mine)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_commands_can_be_run_as_they_stand(page, folder):
    for words in (words for of, words in all_commands() if of == page):
        check(words)


@pytest.mark.parametrize(
    "wrong",
    [
        "make trian EXP=speech_text",
        "make train EXP=speech_txet",
        'make train EXP=speech_text ARGS="budget=[100]"',
        "gera shwo speech_text",
        "gera show speech_text methods=[girdge]",
        "gera export mine dimm=1024",
        "gera doctor data/a data/b budgett=3",
        "gera train speech_text losses.geometric.wieght=1",
        "python benchmarks/nothing.py",
        "python -m gera_lightning.nothing",
        "pip install '.[nothing]'",
    ],
)
def test_a_command_that_is_wrong_is_found(wrong, folder):
    with pytest.raises((AssertionError, UserError)):
        check(shlex.split(wrong))


def test_blocks_say_what_they_are():
    for page in PAGES:
        for language, text in blocks(page):
            assert language in ("bash", "python", "yaml", "text", ""), page
            assert language or not re.search(r"^\S*(gera|make|pip|python) ", text, re.M), page


# ---- YAML ----


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/extending.md"])
def test_yaml_is_of_the_schema(page, folder):
    for _, text in blocks(page, "yaml"):
        settings = yaml.safe_load(text)
        if "losses" in settings:  # of a method, not of an experiment
            settings = {"methods": ["it"], "variants": {"it": {"of": "contrastive", **settings}}}
        embed = load(settings).common.embed
        for side in (embed.a, embed.b) if "embed" in settings else ():
            check_part(side.corpus, "embed.corpus")
            check_part(side.encoder, "embed.encoder")


# ---- Python ----


def made_store(path: str, x: np.ndarray, **columns: Sequence[str]) -> None:
    """A store whose rows of one number are of one item."""
    items = [f"i{n:03d}" for n in range(len(x))]
    rows = pd.DataFrame({"row": items, "item": items, **columns})
    write_store(path, x, rows, encoder={"name": "made"}, source={"name": "made"}, dtype="float32")


def views(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two linear views of one latent, `[n, 8]` and `[n, 6]`."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(n, 5))
    return tuple((latent @ rng.normal(size=(5, width))).astype(np.float32) for width in (8, 6))


def run_python(text: str, names: dict[str, Any], where: str) -> None:
    """Run a block as if it were a file of this name."""
    exec(compile(text, where, "exec"), names)


def test_the_readmes_python_runs(folder):
    a, b = views(160)
    made_store("data/pictures/image", a)
    made_store("data/pictures/text", b)
    names = {"x_a": a[:40], "x_b": b[:40], "pool_a": a[40:90], "pool_b": b[90:140]}
    names |= {"new_a": a[140:], "all_b": b, "x": torch.from_numpy(a), "z": torch.from_numpy(b)}
    names |= {"vectors": a, "ids": [f"i{n}" for n in range(len(a))]}
    for number, (_, text) in enumerate(blocks("README.md", "python")):
        run_python(text.replace("max_steps=100", "max_steps=2"), names, f"README {number}")
        names.setdefault("found", names["rows"])  # a later block has other rows
    assert (names["found"][:, 0] == torch.arange(140, 160)).float().mean() > 0.5
    assert names["similarity"].shape == (20, 160)
    assert float(names["loss"]) > 0
    assert Path("my_aligner/aligner.json").is_file()
    assert len(EmbeddingStore("data/mine/audio")) == 160


# ---- the tutorial, from raw files to a search ----

NOTES = ["do", "re", "mi", "fa", "so", "la"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def networks(folder: Path) -> None:
    """Small random networks in the formats of HuBERT and BERT."""
    torch.manual_seed(0)
    small = {**SMALL, "intermediate_size": 32, "initializer_range": 0.3}
    waves = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 4)}
    waves |= {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8}
    config = transformers.HubertConfig(**small, **waves, num_conv_pos_embedding_groups=2)
    transformers.HubertModel(config).save_pretrained("hubert")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained("hubert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NOTES]
    config = transformers.BertConfig(**small, vocab_size=len(words), max_position_embeddings=32)
    transformers.BertModel(config).save_pretrained("bert")
    vocabulary = {word: number for number, word in enumerate(words)}
    transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained("bert")


@pytest.fixture
def recordings(folder: Path) -> None:
    """Melodies beside the names of their notes, and arrays with their ids."""
    Path("raw/recordings").mkdir(parents=True)
    Path("raw/new").mkdir()
    time = np.arange(640) / 16_000
    tunes = list(itertools.product(range(len(NOTES)), repeat=3))[::2]
    for number, tune in enumerate(tunes):
        sound = np.concatenate([np.sin(2 * np.pi * 300 * 1.35**n * time) for n in tune])
        soundfile.write(f"raw/recordings/{number:03d}.wav", 0.4 * sound, 16_000)
        Path(f"raw/recordings/{number:03d}.txt").write_text(" ".join(NOTES[n] for n in tune))
    for copy in ("new.wav", "raw/new/1.wav"):
        shutil.copy("raw/recordings/007.wav", copy)
    Path("classes.txt").write_text("000: do do do\n001: do do mi\n")
    for name, x in zip(("speech", "text"), views(60), strict=True):
        np.save(f"{name}.npy", x)
    pd.DataFrame({"id": [f"i{n}" for n in range(60)]}).to_csv("ids.csv", index=False)


APPENDED = {
    "embed": "embed.a.encoder.checkpoint=hubert embed.a.encoder.layer=1 embed.accelerator=cpu"
    " embed.b.encoder.checkpoint=bert",
    "train": "budgets=[25] seeds=[0] data.reserved_pairs=25",
    "report": "budgets=[25] seeds=[0] data.reserved_pairs=25",
}
"""What makes a command of the tutorial small."""
FOREVER = ("serve", "push")
"""Commands that end on Ctrl-C alone, or speak to the hub: they are checked, not run."""


def test_the_tutorial_runs_from_raw_files_to_a_search(networks, recordings, capsys):
    names: dict[str, Any] = {}
    for language, text in blocks("docs/tutorial.md", "bash", "python"):
        if language == "python":
            run_python(text, names, "tutorial")
            continue
        for words in commands_of(text):
            verb = words[1]
            if verb == "evaluate" and not Path("data/other").exists():
                shutil.copytree("data/recordings", "data/other")
            if verb not in FOREVER:
                words = [*words[1:], *APPENDED.get(verb, "").split()]
                assert main(words) == 0, (words, capsys.readouterr().err)
    said = capsys.readouterr().out
    assert "data/recordings/speech: 108 rows" in said
    assert "new.wav" in said
    assert names["rows"].shape == (1, 3)
    assert load("mine").common.data.a == "data/mine/speech"
    assert len(EmbeddingStore("data/mine/speech")) == 60
    assert Path("runs/recordings/report/index.html").is_file()
