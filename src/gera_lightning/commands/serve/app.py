"""The page and what it asks for."""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gera_lightning.aligners.sharing import fitted_pairs
from gera_lightning.commands.serve.gallery import Gallery
from gera_lightning.embedding.corpus import SUFFIXES
from gera_lightning.embedding.query import NewItems, new_items
from gera_lightning.utils.errors import UserError

HOSTS = ["127.0.0.1", "localhost"]
"""Names under which the page answers: another site's page cannot ask it."""
MOST_BYTES = 64 * 2**20
MOST_RESULTS = 50


def make_app(gallery: Gallery) -> Starlette:
    """The web application of a gallery."""
    page = files("gera_lightning.commands.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def home(_: Request) -> Response:
        return HTMLResponse(page)

    async def about(_: Request) -> Response:
        made = gallery.run.aligner.about
        return JSONResponse(
            {
                "modalities": list(gallery.names.values()),
                "rows": [len(store) for store in gallery.stores.values()],
                "takes": [one for one in SUFFIXES if gallery.takes(one)],
                "method": made.get("method"),
                "pairs": fitted_pairs(made),
            }
        )

    async def search(request: Request) -> Response:
        try:
            async with request.form(max_files=1, max_part_size=MOST_BYTES) as form:
                k = _count(form.get("k"))
                upload, words = form.get("file"), form.get("words")
                if isinstance(words, str) and words.strip():
                    found = await run_in_threadpool(_by_words, gallery, words.strip(), k)
                elif upload is not None and not isinstance(upload, str):
                    name, content = Path(upload.filename or "").name, await upload.read()
                    found = await run_in_threadpool(_by_file, gallery, name, content, k)
                else:
                    raise UserError("type words, or drop a file")
        except (UserError, ValueError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse(found)

    async def row(request: Request) -> Response:
        side, number = request.path_params["side"], request.path_params["number"]
        if side not in gallery.stores or number >= len(gallery.stores[side]):
            return JSONResponse({"error": "no such row"}, status_code=404)
        try:
            k = _count(request.query_params.get("k"))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse(await run_in_threadpool(gallery.of_row, side, number, k))

    async def media(request: Request) -> Response:
        side, number = request.path_params["side"], request.path_params["number"]
        known = side in gallery.stores and number < len(gallery.stores[side])
        file = gallery.media(side, number) if known else None
        return Response(status_code=404) if file is None else FileResponse(file)

    return Starlette(
        routes=[
            Route("/", home),
            Route("/about", about),
            Route("/search", search, methods=["POST"]),
            Route("/row/{side}/{number:int}", row),
            Route("/media/{side}/{number:int}", media),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
    )


def _count(asked: object) -> int:
    """How many results to show: what was asked for, within limits; 5 where nothing was."""
    return min(max(int(str(asked or 5)), 1), MOST_RESULTS)


def _by_words(gallery: Gallery, words: str, k: int) -> dict[str, object]:
    known = gallery.matching(words)
    if known is not None:
        return gallery.of_row(*known, k)
    return {"query": {"text": words}, **gallery.of_new(NewItems("text", [words], [words]), k)}


def _by_file(gallery: Gallery, name: str, content: bytes, k: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (name or "file")
        path.write_bytes(content)
        new = new_items(str(path))
        if new.modality == "text" and not name.lower().endswith(SUFFIXES["text"]):
            raise UserError(f"{name!r} is no sound, picture or text")
        return {"query": {"text": name}, **gallery.of_new(new, k)}
