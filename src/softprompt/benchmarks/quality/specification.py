"""What a benchmark measures: a YAML file becomes frozen options. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...config.options import DataOptions, ModelOptions, TrainOptions, build_options, nearest, read_yaml
from ...errors import ConfigError
from .methods import KINDS, RECIPES, SOFTPROMPT

OURS = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run", "seed"}
"""Options of a training run that the benchmark sets itself, beside those of the model and of the rows."""
_NAME = re.compile(r"\w[\w.+-]*")


class TaskOptions(DataOptions):
    """One task: where its rows are, as for ``softprompt train``, and what is known of it."""

    instruction: str | None = Field(None, description="What to do, in words [default: one made of the labels].")


class MethodSpec(BaseModel):
    """One method under the name it has in the table.

    Attributes:
        kind: a name of ``methods.KINDS``.
        options: those that differ from the kind's own defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    options: dict[str, Any] = {}


class QualityOptions(ModelOptions):
    """A whole benchmark."""

    tasks: dict[str, TaskOptions] = Field(..., min_length=1, description="Name -> rows.")
    methods: dict[str, MethodSpec] = Field(..., min_length=1, description="Name -> method.")
    output_dir: Path = Field(..., description="Folder for scores, predictions, table and pictures.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Each draws its own training rows.")
    more_seeds: dict[str, list[int]] = Field(
        {}, description="Method -> further seeds, beside those that all methods have."
    )
    shots: list[int] = Field([50], min_length=1, description="Numbers of training rows.")
    max_test_rows: int | None = Field(None, ge=1, description="Test on a fixed sample of so many rows.")
    reference: str | None = Field(None, description="Method that others are compared with [default: the first].")
    bootstrap_samples: int = Field(2000, ge=100, description="Resamples behind an interval.")

    @field_validator("seeds", "shots")
    @classmethod
    def _each_once(cls, value: list[int], info: Any) -> list[int]:
        least = 1 if info.field_name == "shots" else 0
        if min(value) < least:
            raise ValueError(f"{min(value)} is less than {least}")
        return _distinct(value)

    @model_validator(mode="after")
    def _known_reference(self) -> QualityOptions:
        for name in (*self.tasks, *self.methods):
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} is not valid: files are named after it; use letters, digits, ._+-")
        for what, names in (("reference", [self.reference] if self.reference else []), ("more_seeds", self.more_seeds)):
            for name in names:
                if name not in self.methods:
                    raise ValueError(f"{what}={name!r} is not among the methods{nearest(name, self.methods)}")
        for name in self.more_seeds:
            _distinct(self.seeds_of(name))
            if min(self.more_seeds[name], default=0) < 0:
                raise ValueError(f"more_seeds of {name}: {min(self.more_seeds[name])} is less than 0")
        return self

    def seeds_of(self, method: str) -> list[int]:
        """All seeds of a method; those of all methods come first."""
        return [*self.seeds, *self.more_seeds.get(method, [])]

    @property
    def compared_with(self) -> str:
        """Name of the reference method."""
        return self.reference or next(iter(self.methods))


def read_spec(path: Path) -> QualityOptions:
    """Read a benchmark's YAML file; paths in it are as seen from the current folder.

    Raises:
        ConfigError: it is missing, not YAML, or has a name or value that cannot work.
    """
    values = {name.replace("-", "_"): value for name, value in read_yaml(path, as_written=True).items()}
    if "tasks" in values:
        tasks = _mapping(values["tasks"], f"{path}: tasks must be lines of 'name:', with the task's options below")
        values["tasks"] = {name: _task(name, given, path) for name, given in tasks.items()}
    if "methods" in values:
        values["methods"] = _methods(values["methods"], path)
    return build_options(QualityOptions, values, where=str(path))


def _task(name: str, given: Any, path: Path) -> TaskOptions:
    where = f"{path}, task {name}"
    options = build_options(TaskOptions, _mapping(given, f"{where}: no options stand below it"), where=where)
    if options.task == "generation":
        raise ConfigError(f"{where}: task=generation has no labels to compare; a benchmark needs classes")
    return options


def _methods(given: Any, path: Path) -> dict[str, MethodSpec]:
    """Methods from a list of names, or from lines of ``name: {option: value}``."""
    problem = f"{path}: methods must be a list of names, or lines of 'name: {{option: value}}'"
    if isinstance(given, list):
        entries: list[tuple[Any, Any]] = []
        for each in given:
            entries += [(each, None)] if isinstance(each, str) else _mapping(each, problem).items()
    else:
        entries = list(_mapping(given, problem).items())
    names = [name for name, _ in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: the method {twice[0]!r} stands there twice")
    return {name: _method(name, options, path) for name, options in entries}


def _method(name: str, given: Any, path: Path) -> MethodSpec:
    where = f"{path}, method {name}"
    values = _mapping(given or {}, f"{where}: what stands below it must be lines of 'option: value'")
    values = {option.replace("-", "_"): value for option, value in values.items()}
    if name in KINDS and name != SOFTPROMPT:
        return MethodSpec(kind=name, options=_typed(build_options(KINDS[name].options, values, where=where), values))
    if not values and name in RECIPES:
        values = {"recipe": name}
    if not values and name != SOFTPROMPT:
        known = [*RECIPES, *KINDS]
        raise ConfigError(
            f"{path}: there is no method {name!r}{nearest(name, known)} (there is {', '.join(known)}; with options of "
            "softprompt train below it, a name stands for such a run)"
        )
    for option in values:
        if option in OURS or option in ModelOptions.model_fields or option in _ROWS:
            raise ConfigError(f"{where}: {option} is the same for all methods, or set by the benchmark itself")
    built = build_options(TrainOptions, {**values, "output_dir": "-"}, where=where)
    return MethodSpec(kind=SOFTPROMPT, options=_typed(built, values))


def _typed(built: BaseModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, which are text, in the types that the options have."""
    return {option: getattr(built, option) for option in given}


_ROWS = DataOptions.model_fields.keys() - {"template", "max_length"}


def _mapping(value: Any, problem: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(problem)
    return dict(value)


def _distinct(values: list[Any]) -> list[Any]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return values
