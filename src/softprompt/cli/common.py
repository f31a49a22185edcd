"""The adapter argument of ``evaluate``, ``predict`` and ``inspect``, and loading the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config.options import ModelOptions, build_options
from ..storage.atomic import expand
from .show import working

if TYPE_CHECKING:
    from ..inference.pipeline import Predictor

_HELP = "Adapter: a folder, or a Hub id (owner/name)."
Adapter = Annotated[str, typer.Option("--adapter", help=_HELP, callback=expand)]
AdapterArgument = Annotated[str, typer.Argument(help=_HELP, callback=expand)]


def load(adapter: str, given: dict[str, Any]) -> Predictor:
    """Load the adapter with the base model that it names, or with the one that is given."""
    options = model_options(given)
    with working("loading the base model ..."):
        from ..inference.pipeline import load_predictor

        return load_predictor(adapter, options)


def model_options(given: dict[str, Any]) -> ModelOptions:
    """The options of the base model among a command's options."""
    return build_options(ModelOptions, {k: v for k, v in given.items() if k in ModelOptions.model_fields})
