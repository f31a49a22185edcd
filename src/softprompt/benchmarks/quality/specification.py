"""The YAML file of a quality benchmark, read into immutable options. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...config.options import RENAMED, DataOptions, ModelOptions, TrainOptions, build_options, nearest
from ...config.yaml_file import read_yaml
from ...errors import ConfigError
from .method_kinds import KINDS, RECIPES, SOFTPROMPT

SET_BY_BENCHMARK = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run", "seed"}
"""Options of a training run that the benchmark sets itself, besides those of the model and the rows."""
_NAME = re.compile(r"\w[\w.+-]*")


class TaskOptions(DataOptions):
    """One task: the source of its rows, as in ``softprompt train``, and its instruction."""

    instruction: str | None = Field(None, description="Instruction for the model [default: built from the labels].")


class MethodSpec(BaseModel):
    """One method, under the name that it has in the tables.

    Attributes:
        kind: a key of ``method_kinds.KINDS``.
        options: those given in the file; the others keep their defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    options: dict[str, Any] = {}


class QualityOptions(ModelOptions):
    """A whole quality benchmark."""

    tasks: dict[str, TaskOptions] = Field(..., min_length=1, description="Tasks by name.")
    methods: dict[str, MethodSpec] = Field(..., min_length=1, description="Methods by name.")
    output_dir: Path = Field(..., description="Folder for scores, predictions, tables and plots.")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds; each draws its own sample of training rows.")
    more_seeds: dict[str, list[int]] = Field({}, description="Additional seeds by method, beyond those of all methods.")
    shots: list[int] = Field([50], min_length=1, description="Numbers of training rows.")
    max_test_rows: int | None = Field(None, ge=1, description="Size of a fixed sample of test rows [default: all].")
    reference: str | None = Field(None, description="Method that the others are compared with [default: the first].")
    bootstrap_samples: int = Field(2000, ge=100, description="Bootstrap resamples per interval.")

    @field_validator("seeds", "shots")
    @classmethod
    def _each_once(cls, value: list[int], info: Any) -> list[int]:
        least = 1 if info.field_name == "shots" else 0
        if min(value) < least:
            raise ValueError(f"{min(value)} is less than {least}")
        return _distinct(value)

    @model_validator(mode="after")
    def _check_names(self) -> QualityOptions:
        for name in (*self.tasks, *self.methods):
            if not _NAME.fullmatch(name):
                raise ValueError(f"invalid name {name!r}: files are named after it; use letters, digits and ._+-")
        for what, names in (("reference", [self.reference] if self.reference else []), ("more_seeds", self.more_seeds)):
            for name in names:
                if name not in self.methods:
                    raise ValueError(f"{what}={name!r} is not one of the methods{nearest(name, self.methods)}")
        for name in self.more_seeds:
            _distinct(self.seeds_of(name))
            if min(self.more_seeds[name], default=0) < 0:
                raise ValueError(f"more_seeds of {name}: {min(self.more_seeds[name])} is less than 0")
        return self

    def seeds_of(self, method: str) -> list[int]:
        """All seeds of a method; the seeds shared by all methods come first."""
        return [*self.seeds, *self.more_seeds.get(method, [])]

    @property
    def compared_with(self) -> str:
        """Name of the reference method."""
        return self.reference or next(iter(self.methods))


def read_spec(path: Path) -> QualityOptions:
    """Read the YAML file of a benchmark. Paths in it are relative to the current folder.

    Raises:
        ConfigError: the file is missing, is not YAML, or has an invalid name or value.
    """
    values = {name.replace("-", "_"): value for name, value in read_yaml(path, as_written=True).items()}
    if "tasks" in values:
        tasks = _mapping(values["tasks"], f"{path}: tasks must map each name to the options of the task")
        values["tasks"] = {name: _task(name, given, path) for name, given in tasks.items()}
    if "methods" in values:
        values["methods"] = _methods(values["methods"], path)
    return build_options(QualityOptions, values, where=str(path))


def _task(name: str, given: Any, path: Path) -> TaskOptions:
    where = f"{path}, task {name}"
    options = build_options(TaskOptions, _mapping(given, f"{where}: no options are given"), where=where)
    if options.task == "generation":
        raise ConfigError(f"{where}: task=generation has no labels; the quality benchmark compares classifiers")
    return options


def _methods(given: Any, path: Path) -> dict[str, MethodSpec]:
    """Methods from a list of names, or from a mapping of names to options."""
    problem = f"{path}: methods must be a list of names, or map each name to {{option: value}}"
    if isinstance(given, list):
        entries: list[tuple[Any, Any]] = []
        for each in given:
            entries += [(each, None)] if isinstance(each, str) else _mapping(each, problem).items()
    else:
        entries = list(_mapping(given, problem).items())
    names = [name for name, _ in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: the method {twice[0]!r} is given twice")
    return {name: _method(name, options, path) for name, options in entries}


def _method(name: str, given: Any, path: Path) -> MethodSpec:
    where = f"{path}, method {name}"
    values = _mapping(given or {}, f"{where}: its options must be lines of 'option: value'")
    values = {option.replace("-", "_"): value for option, value in values.items()}
    if name in KINDS and name != SOFTPROMPT:
        return MethodSpec(kind=name, options=_typed(build_options(KINDS[name].options, values, where=where), values))
    if not values and name in RECIPES:
        values = {"recipe": name}
    if not values and name != SOFTPROMPT:
        known = [*RECIPES, *KINDS]
        raise ConfigError(
            f"{path}: unknown method {name!r}{nearest(name, known)} (known: {', '.join(known)}; any other name needs "
            "options of softprompt train)"
        )
    for option in values:
        if option in SET_BY_BENCHMARK or option in ModelOptions.model_fields or option in _ROWS:
            raise ConfigError(f"{where}: {option} cannot differ between methods; remove it")
    built = build_options(TrainOptions, {**values, "output_dir": "-"}, where=where)
    return MethodSpec(kind=SOFTPROMPT, options=_typed(built, values))


def _typed(built: BaseModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, which are text in the file, converted to their types; old names replaced by new ones."""
    return {option: getattr(built, option) for option in (RENAMED.get(name, name) for name in given)}


_ROWS = DataOptions.model_fields.keys() - {"template", "max_length"}


def _mapping(value: Any, problem: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(problem)
    return dict(value)


def _distinct(values: list[Any]) -> list[Any]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice")
    return values
