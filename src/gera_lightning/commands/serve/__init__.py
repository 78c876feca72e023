"""A page on this machine to try an aligner: type words, drop a sound or a picture, hear and see
what is found.

    gera serve EXPERIMENT [method=coupled_ridge port=8765 encoder_a=FOLDER encoder_b=FOLDER]

The folder of a run or of an aligner may stand for the experiment. The page is served to this
machine alone. It needs `pip install 'gera-lightning[serve]'`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from gera_lightning.config.overrides import split_overrides, split_target
from gera_lightning.experiment.load_run import load_run
from gera_lightning.utils.errors import UserError

HOST = "127.0.0.1"


def serve(
    target: str,
    overrides: Sequence[str] = (),
    *,
    method: str = "",
    budget: int | None = None,
    port: int = 8765,
    encoder_a: str = "",
    encoder_b: str = "",
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        target, overrides, method, budget: see `load_run`.
        port: of the page; 0 takes a free one.
        encoder_a, encoder_b: where the weights of each modality's encoder are, see `gera search`.

    Raises:
        UserError: packages that are missing, a port that is taken, or as `load_run`.
    """
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise UserError(
            "gera serve needs packages that are missing",
            remedy="pip install 'gera-lightning[serve]'",
        )
    import uvicorn

    from gera_lightning.commands.serve.app import make_app
    from gera_lightning.commands.serve.gallery import Gallery

    run = load_run(target, overrides, method=method, budget=budget)
    gallery = Gallery(run, {"a": encoder_a, "b": encoder_b})
    config = uvicorn.Config(make_app(gallery), host=HOST, port=port, log_level="warning")
    try:
        socket = config.bind_socket()
    except SystemExit as error:
        raise UserError("is taken", key="port", value=port, remedy="take port=0") from error
    print(f"http://{HOST}:{socket.getsockname()[1]}   (Ctrl-C ends it)", flush=True)
    uvicorn.Server(config).run(sockets=[socket])


def run(words: Sequence[str]) -> None:
    """The command line's `gera serve`."""
    target, rest = split_target(words)
    options, overrides = split_overrides(rest, serve)
    serve(target, overrides, **options)
