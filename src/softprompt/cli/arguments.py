"""Command-line options, made from the option classes, which define names, defaults and help texts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..config.options import RENAMED, DataOptions, ModelOptions, OptimizerOptions, PromptOptions
from ..config.serve_options import ServeOptions
from ..training.recipes import RECIPES

BY_RECIPE = {name for kinds in RECIPES.values() for values in kinds.values() for name in values}
PANELS: dict[type[BaseModel], str] = {
    ModelOptions: "Base model",
    DataOptions: "Data",
    PromptOptions: "Soft prompt",
    OptimizerOptions: "Optimiser",
    ServeOptions: "Server",
}


def takes(
    *classes: type[BaseModel], only: Iterable[str] | None = None, without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options of some classes to a command; it receives the given ones as ``**options``.

    Values are text, which the class checks, so that errors are the same as for a YAML file.

    Args:
        classes: option classes, with the options they inherit.
        only, without: names to include or to exclude.
    """
    fields: dict[str, FieldInfo] = {}
    for cls in classes:
        fields |= {k: v for k, v in cls.model_fields.items() if (only is None or k in only) and k not in without}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]

        def command(**given: Any) -> None:
            named = {name: given.pop(name) for name in list(given) if name in fields or RENAMED.get(name) in fields}
            function(**given, **{name: value for name, value in named.items() if value not in (None, [])})

        parameters = [*own, *(_parameter(name, field) for name, field in _in_panels(fields))]
        old = {name: fields[new] for name, new in RENAMED.items() if new in fields}
        parameters += [_parameter(name, field, hidden=True) for name, field in old.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _in_panels(fields: dict[str, FieldInfo]) -> list[tuple[str, FieldInfo]]:
    order = [name for cls in PANELS for name in cls.model_fields if name in fields]
    return [(name, fields[name]) for name in [n for n in fields if n not in order] + order]


def _parameter(name: str, field: FieldInfo, *, hidden: bool = False) -> inspect.Parameter:
    is_flag = field.annotation is bool
    spelling = (
        f"--{name}/--no_{name}" if is_flag and (field.default or RENAMED.get(name, name) in BY_RECIPE) else f"--{name}"
    )
    is_list = any(get_origin(kind) is list for kind in (field.annotation, *get_args(field.annotation)))
    panel = next((panel for cls, panel in PANELS.items() if name in cls.model_fields), "Run")
    option = typer.Option(
        spelling,
        help=f"{field.description}{_default(name, field)}",
        metavar=_metavar(field),
        rich_help_panel=panel,
        show_default=False,
        hidden=hidden,
    )
    kind: Any = bool | None if is_flag else list[str] | None if is_list else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _default(name: str, field: FieldInfo) -> str:
    default = field.default
    if name in BY_RECIPE and "[default" not in str(field.description):
        return f" [default: by recipe; guide: {str(default).lower() if isinstance(default, bool) else default}]"
    if default is PydanticUndefined or default in (None, False, []) or "[default" in str(field.description):
        return "" if default is not PydanticUndefined else " [required]"
    return f" [default: {' '.join(default) if isinstance(default, list) else default}]"


def _metavar(field: FieldInfo) -> str | None:
    candidates = [c for c in get_args(field.annotation) if isinstance(c, str)]
    if not candidates:
        nested = [get_args(arg) for arg in get_args(field.annotation)]
        candidates = [c for group in nested for c in group if isinstance(c, str)]
    if candidates:
        return "|".join(candidates)
    for kind, word in ((bool, None), (int, "N"), (float, "X")):
        if field.annotation is kind or kind in get_args(field.annotation):
            return word
    return "TEXT"
