"""Pages of the documentation that are made from other files, and links that leave `docs/`.

`mkdocs build` calls the functions whose names begin with `on_`.
"""

from __future__ import annotations

import base64
import importlib
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PIPE = r"\|"
"""A bar inside a cell of a table."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)#]+)(#[^)]*)?\)")
API = {
    "aligners": [
        "aligners.aligner",
        "aligners.estimator",
        "aligners.coupled_ridge",
        "aligners.ridge",
        "aligners.kernel_ridge",
        "aligners.cca",
        "aligners.procrustes",
        "aligners.asif",
        "aligners.manifold_ridge",
        "aligners.self_training",
        "aligners.alternatives",
    ],
    "losses": [
        "losses.base",
        "losses.contrastive",
        "losses.geometric",
        "losses.structure",
        "losses.transport",
        "losses.pseudo_labels",
    ],
    "geometry": [
        "geometry.neighbors",
        "geometry.regions",
        "geometry.kernels",
        "geometry.diffusion",
    ],
    "filters": ["filters.base", "filters.diffusion", "filters.local_centering", "filters.beside"],
    "data": [
        "data.store",
        "data.splits",
        "data.synthetic",
        "embedding.corpus",
        "embedding.layouts",
    ],
    "encoders": [
        "encoders.base",
        "encoders.text",
        "encoders.speech",
        "encoders.image",
        "encoders.bundles",
        "encoders.rebuild",
    ],
    "training": ["training.module", "training.datamodule"],
    "evaluation": [
        "evaluation.retrieval",
        "evaluation.neighborhoods",
        "evaluation.classification",
        "evaluation.similarity",
        "evaluation.statistics",
    ],
}
"""Pages of the Python reference, with the modules that each shows."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from other files."""
    for path, content in (*_pages(), *_notebook("notebook")):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at pages, and leave the words of those that are none."""
    here = posixpath.dirname(page.file.src_uri)

    def linked(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups(default="")
        inside = _page_of(posixpath.normpath(posixpath.join("docs", here, target)))
        if inside is None:
            return words
        return f"{picture}[{words}]({posixpath.relpath(inside, here or '.')}{anchor})"

    return LINK.sub(linked, markdown)


def _page_of(path: str) -> str | None:
    """Where a file of the repository is in the documentation, if it is."""
    if found := re.fullmatch(r"data/(\w+)/README\.md", path):
        return f"data/{found[1]}.md"
    if path == "docs/notebook.ipynb":
        return "notebook.md"
    if path == "src/gera_lightning/config/schema.py":
        return "reference/settings.md"
    if path == "src/gera_lightning/config/presets":
        return "reference/methods.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def _pages() -> Iterator[tuple[str, str]]:
    """Path and text of each page that is made."""
    # as if it stood in docs/
    yield "index.md", _moved((ROOT / "README.md").read_text(encoding="utf-8"), "..")
    for name in ("wordnet_speech", "pictures", "spoken_words"):
        text = (ROOT / "data" / name / "README.md").read_text(encoding="utf-8")
        yield f"data/{name}.md", _moved(text, f"../../data/{name}")
    yield "reference/settings.md", _settings()
    yield "reference/methods.md", _methods()
    yield "reference/commands.md", _commands()
    yield "api/index.md", _public_names()
    for name, modules in API.items():
        shown = "\n\n".join(f"::: gera_lightning.{module}" for module in modules)
        yield f"api/{name}.md", f"# {name.capitalize()}\n\n{shown}\n"


def _notebook(name: str) -> Iterator[tuple[str, str | bytes]]:
    """The page of `docs/NAME.ipynb`: its text, code and kept outputs, and each picture of them."""
    lines = list[str]()
    for cell in json.loads((ROOT / "docs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        lines += [source] if cell["cell_type"] == "markdown" else ["```python", source, "```"]
        for number, output in enumerate(cell.get("outputs", ())):
            if "text" in output:
                lines += ["```text", "".join(output["text"]).rstrip(), "```"]
            elif png := output.get("data", {}).get("image/png"):
                picture = f"{name}_{cell['id']}_{number}.png"
                lines += ["", f"![what the cell draws]({picture})"]
                yield picture, base64.b64decode("".join(png))
        lines.append("")
    lines.append(f'<a href="../{name}.ipynb">The notebook itself</a>')
    yield f"{name}.md", "\n".join(lines)


def _moved(text: str, folder: str) -> str:
    """A page whose links are relative to another folder."""
    return LINK.sub(lambda m: f"{m[1]}[{m[2]}]({folder}/{m[3]}{m[4] or ''})", text)


def _settings() -> str:
    from gera_lightning.config.reference import reference

    lines = [
        "# Settings",
        "",
        "`gera show EXPERIMENT` prints those of an experiment.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    for one in reference():
        cells = (f"`{one.key}`", f"`{one.shown}`", one.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |")
    return "\n".join(lines)


def _methods() -> str:
    lines = ["# Methods", "", "The presets that come with the package, as their files are."]
    for path in sorted((ROOT / "src/gera_lightning/config/presets").glob("*.yaml")):
        lines += [
            "",
            f"## {path.stem}",
            "",
            "```yaml",
            path.read_text(encoding="utf-8").strip(),
            "```",
        ]
    return "\n".join(lines)


def _commands() -> str:
    from gera_lightning.cli import module_of
    from gera_lightning.commands import VERBS

    lines = ["# Commands", ""]
    for verb in VERBS:
        text = (importlib.import_module(module_of(verb)).__doc__ or "").strip()
        lines += [f"## gera {verb}", "", text, ""]
    return "\n".join(lines)


def _public_names() -> str:
    import gera_lightning

    names = [name for name in gera_lightning.__all__ if not name.startswith("_")]
    shown = []
    for name in names:
        made = getattr(gera_lightning, name)
        if callable(made):
            shown.append(f"::: {made.__module__}.{made.__qualname__}")
    return "# Python\n\nWhat `import gera_lightning` offers.\n\n" + "\n\n".join(shown) + "\n"
