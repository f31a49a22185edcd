"""``softprompt serve [DIR]``."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any

import typer

from ..config.options import ModelOptions, build_options
from ..config.serve_options import ServeOptions
from ..errors import MissingExtraError
from ..storage.atomic import expand
from .arguments import takes
from .show import console, working
from .terminal import Terminal

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@takes(ModelOptions, ServeOptions)
def command(
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="DIR", help="Adapter: a folder, or a Hub id.", callback=lambda given: given and expand(given)
        ),
    ] = None,
    **given: Any,
) -> None:
    """Serve adapters over HTTP until interrupted."""
    options = build_options(ServeOptions, {k: v for k, v in given.items() if k in ServeOptions.model_fields})
    model = build_options(ModelOptions, {k: v for k, v in given.items() if k in ModelOptions.model_fields})
    if folder is not None:
        options = options.model_copy(update={"adapter": [folder, *options.adapter]})
    if absent := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(", ".join(absent), "serve", "softprompt serve")
    terminal = Terminal(warnings_to_stderr=True)
    with working("loading the base model ..."):
        from ..serving.server import open_server

        server = open_server(model, options, terminal.on_warning)
    server.run_until_stopped(lambda line: console.print(line, markup=False, soft_wrap=True))
