"""Options of a run: names, defaults, ranges and help texts, once. Inert: no torch.

The command line, the YAML file and the library all use these classes. Names are those of
``transformers.TrainingArguments`` or of PEFT's config where one exists there.
"""

from __future__ import annotations

import difflib
import os
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError
from ..storage.atomic import expand
from .training_arguments import absent

EMBEDDED_MODEL = "smollm2-135m"


NameOrPath = Annotated[str, AfterValidator(expand)]
"""A path or another name; a leading ``~`` or ``~user`` is expanded, as in every ``Path``."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="after")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        return Path(expand(str(value))) if isinstance(value, Path) else value


class ModelOptions(_Options):
    """Which base model, and how it is loaded."""

    model_name_or_path: NameOrPath = Field(
        EMBEDDED_MODEL,
        description=f"Base model: a Hub id, a folder, a .gguf file, or {EMBEDDED_MODEL} (the embedded default).",
    )
    revision: str | None = Field(None, description="Revision of the base model on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number type of the base model; auto takes the checkpoint's own."
    )
    device: str = Field("auto", description="auto (cuda, mps, cpu: the first there is), or a torch device.")
    attn_implementation: str | None = Field(None, description="Attention of transformers: sdpa, eager, ...")
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository brings.")


class DataOptions(_Options):
    """Where rows come from, and how one becomes a text."""

    dataset_name: NameOrPath | None = Field(
        None, description="A data set of the Hub, or 'complaints' (comes with softprompt)."
    )
    dataset_config_name: str | None = Field(None, description="Configuration of the Hub data set.")
    train_split: str = Field("train", description="Split of the Hub data set to train on.")
    validation_split: str | None = Field(None, description="Split to validate on [default: 'validation' if there].")
    test_split: str | None = Field(None, description="Split to test on [default: 'test' if there and labelled].")
    train_file: Path | None = Field(None, description="Training rows: .csv, .tsv, .json, .jsonl or .parquet.")
    validation_file: Path | None = Field(None, description="Validation rows, for the table of each epoch.")
    test_file: Path | None = Field(None, description="Test rows, for the figures at the end.")
    text_column: list[str] = Field(
        ["text"], min_length=1, description="Column of the text; may be given several times."
    )
    label_column: str = Field("label", description="Column of the label or target text.")
    column_names: list[str] | None = Field(
        None,
        min_length=1,
        description="Names of the columns, such as label,text, for .csv and .tsv files without a header.",
    )
    template: str | None = Field(
        None,
        description="What the model reads, with {column} fields; \\n is a line break "
        "[default: by recipe; guide: '{text_column} : {text} Label : '].",
    )
    task: Literal["auto", "classification", "generation"] = Field(
        "auto", description="auto: classification when most labels repeat and there are up to 100, else generation."
    )
    labels: list[str] | None = Field(
        None, min_length=2, description="All labels in order; may be given several times [default: as they come]."
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Most tokens of text and label together; longer texts are cut [default: what fits].",
    )
    unlabeled_file: Path | None = Field(
        None, description="Rows without labels, of which the prompts of num_folds learn more (150 of them; classes)."
    )
    max_train_samples: int | None = Field(None, ge=1, description="Use only the first so many training rows.")
    max_eval_samples: int | None = Field(None, ge=1, description="Use only the first so many validation and test rows.")

    @field_validator("text_column", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("column_names", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: Any) -> Any:
        """Split ``label,text`` into two names, given as a string or as the only item of a command line."""
        given = [value] if isinstance(value, str) else value
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
            return [name.strip() for name in given[0].split(",")]
        return given

    @field_validator("column_names")
    @classmethod
    def _named_once(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if not name or (value or []).count(name) > 1:
                raise ValueError(f"the name {name!r} {'occurs twice' if name else 'is empty'}; name each column once")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """Turn numbers into text, which labels are in the rows."""
        if not isinstance(value, (list, tuple)):
            return value
        return [str(each) if isinstance(each, (int, float)) else each for each in value]

    @model_validator(mode="after")
    def _one_source(self) -> DataOptions:
        if self.dataset_name and self.train_file:
            raise ValueError("dataset_name and train_file exclude each other; give one of them")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels has {max(self.labels, key=self.labels.count)!r} twice")
        if self.labels and self.task == "generation":
            raise ValueError("labels are for classification; leave them out, or task=generation")
        return self


class PromptOptions(_Options):
    """The soft prompt and its start."""

    num_virtual_tokens: int = Field(8, ge=1, description="Rows of the learned matrix.")
    prompt_tuning_init: Literal["TEXT", "SAMPLE_VOCAB", "RANDOM"] = Field(
        "TEXT", description="Where the prompt starts."
    )
    prompt_tuning_init_text: str | None = Field(
        None, description="Text to start from, for TEXT [default: an instruction made of the labels]."
    )
    prompt_placement: Literal["prefix", "suffix"] = Field(
        "prefix",
        description="prefix: prompt, text, label. suffix: text, prompt, label; each text is read once for all epochs.",
    )
    linear_probe: bool = Field(
        False, description="Also learn a linear read-out of the hidden states, which decides with the prompt (classes)."
    )
    num_folds: int = Field(
        0,
        ge=0,
        description="Cut the rows into so many parts and train a prompt behind the text without each; these decide "
        "together in place of the one prompt, as surely as the rows left out prove right (classes). 0 is off.",
    )
    fold_repeats: int = Field(1, ge=1, description="Cut the rows anew so many times, with new prompts each time.")
    fold_epochs: int = Field(15, ge=1, description="Passes over the training rows for these prompts.")
    fold_learning_rate: float = Field(
        1.0, gt=0, description="Their peak learning rate, in units of the size (RMS) of the base's input embeddings."
    )


class OptimizerOptions(_Options):
    """How the prompt learns."""

    objective: Literal["language_modeling", "classes"] = Field(
        "language_modeling",
        description="language_modeling: the loss of the label's tokens, as in the guide. "
        "classes: cross-entropy between the label texts, so that only telling them apart counts.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: rows of rare classes count more, so that all classes count alike."
    )
    learning_rate: float = Field(3e-2, gt=0, description="Peak learning rate of AdamW.")
    scale_learning_rate: bool = Field(
        False, description="Take learning_rate in units of the size (RMS) of the base's input embeddings."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Beta 1 of AdamW.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Beta 2 of AdamW.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Epsilon of AdamW.")
    max_grad_norm: float = Field(0.0, ge=0, description="Gradient clipping; 0 is off, as in the guide.")
    num_train_epochs: float = Field(50, gt=0, description="Passes over the training rows.")
    max_steps: int = Field(
        -1,
        ge=-1,
        description="Optimiser steps, in place of num_train_epochs; also a limit for each prompt of num_folds. "
        "-1 is off.",
    )
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows of one forward and backward pass.")
    per_device_eval_batch_size: int = Field(32, ge=1, description="Rows of one evaluation pass.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimiser step.")
    tokens_per_pack: int | None = Field(
        None,
        ge=1,
        description="Tokens computed at once; a batch with more is cut, its gradient is the same "
        "[default: 1024 on a CPU, else 16384].",
    )
    text_cache_memory: float = Field(
        2.0, ge=0, description="GiB of memory for what is known of texts before a prompt; the rest goes to disk."
    )
    gradient_checkpointing: bool = Field(
        False, description="Keep only the input of each layer for the backward pass: less memory, a third slower."
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Course of the learning rate."
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of the steps that warm up.")
    warmup_steps: float = Field(
        0, ge=0, description="Warm-up steps, in place of warmup_ratio; below 1, a share of all steps. 0 is off."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the start and of the order of rows.")
    full_determinism: bool = Field(False, description="Deterministic algorithms alone (slower on a GPU).")

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, value: int) -> int:
        if value == 0:
            raise ValueError("give a number of steps, or -1 for num_train_epochs")
        return value


class TrainOptions(ModelOptions, DataOptions, PromptOptions, OptimizerOptions):
    """All options of ``softprompt train``, flat, as in a YAML file.

    Defaults are the guide's. A recipe replaces those that were not given (``train/recipe.py``).
    """

    recipe: Literal["guide", "default", "best"] = Field(
        "default",
        description="What is not given is set by: guide, Hugging Face's guide; default, quick and steady; "
        "best, slower and better.",
    )
    output_dir: Path = Field(..., description="Folder for the adapter, metrics, pictures and checkpoints.")
    overwrite_output_dir: bool = Field(False, description="Replace a finished run in output_dir.")
    resume_from_checkpoint: NameOrPath | None = Field(
        None, description="'true' or 'last' for the newest checkpoint in output_dir, or a checkpoint folder."
    )
    eval_strategy: Literal["no", "epoch", "steps"] = Field("epoch", description="When to validate.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between validations, for eval_strategy=steps.")
    save_strategy: Literal["no", "epoch", "steps"] = Field("epoch", description="When to write a checkpoint.")
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints, for save_strategy=steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Checkpoints kept, beside the best one.")
    load_best_model_at_end: bool = Field(True, description="End with the prompt that validated best.")
    metric_for_best_model: Literal["macro_f1", "accuracy", "eval_loss"] | None = Field(
        None, description="What 'best' means [default: macro_f1 for classification, else eval_loss]."
    )
    logging_steps: int = Field(10, ge=1, description="Steps between lines of log.jsonl.")
    baselines: bool = Field(True, description="Also score the majority class and the untuned prompt on the test rows.")
    dry_run: bool = Field(False, description="Show the first rows as the model will see them, and stop.")

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _as_in_trainer(cls, value: Any) -> Any:
        """YAML's ``true`` and ``false``, as ``Trainer.train`` takes them."""
        return ("true" if value else None) if isinstance(value, bool) else value

    @field_validator("metric_for_best_model", mode="before")
    @classmethod
    def _with_and_without_eval(cls, value: Any) -> Any:
        """Accept ``loss``, ``eval_accuracy`` and so on, as ``Trainer`` does."""
        bare = value.removeprefix("eval_") if isinstance(value, str) else value
        return "eval_loss" if bare == "loss" else bare

    @model_validator(mode="after")
    def _strategies(self) -> TrainOptions:
        for name in ("eval", "save"):
            if getattr(self, f"{name}_strategy") == "steps" and getattr(self, f"{name}_steps") is None:
                raise ValueError(f"{name}_strategy=steps needs {name}_steps")
        if self.metric_for_best_model in ("macro_f1", "accuracy") and self.task == "generation":
            raise ValueError(f"metric_for_best_model={self.metric_for_best_model} needs classes; use eval_loss")
        if self.num_folds == 1:
            raise ValueError("num_folds=1 would leave no rows to learn from; give 0, or 2 and more")
        return self


RENAMED = {"readout": "linear_probe"}
"""Option names of version 0.1, still accepted with a warning: old name -> new name."""

OptionsT = TypeVar("OptionsT", bound=_Options)


def build_options(cls: type[OptionsT], values: dict[str, Any], *, where: str = "") -> OptionsT:
    """Make options from a plain dictionary, turning the first mistake into one clear line.

    Args:
        values: option name -> value; names may be written with dashes.
        where: what to blame in the message, e.g. the YAML file.

    Raises:
        ConfigError: an unknown name (the nearest one is suggested), or a value out of range.
    """
    prefix = f"{where}: " if where else ""
    values = {name.replace("-", "_"): value for name, value in values.items()}
    for old in [name for name in values if RENAMED.get(name) in cls.model_fields]:
        new, value = RENAMED[old], values.pop(old)
        if new in values:
            raise ConfigError(f"{prefix}{old} is the old name of {new}; give only {new}")
        warnings.warn(f"{prefix}the option {old} is now called {new}", FutureWarning, stacklevel=2)
        values[new] = value
    for name in values:
        if name not in cls.model_fields:
            why = absent(name) if issubclass(cls, TrainOptions) else None
            raise ConfigError(f"{prefix}{why or f'unknown option {name!r}{nearest(name, cls.model_fields)}'}")
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        if not name:
            raise ConfigError(f"{prefix}{message}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{prefix}the option {name} is required") from None
        raise ConfigError(f"{prefix}{name}={_shown(first['input'])} is not valid: {_plain(first)}") from None


def read_yaml(path: str | os.PathLike[str], *, as_written: bool = False) -> dict[str, Any]:
    """Read a YAML file of options.

    Args:
        as_written: keep scalars as text, except that an option without a value is ``None``. The options define the
            types; YAML itself would read the labels ``[yes, 010]`` as ``[True, 8]``.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = _load_as_written(text) if as_written else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must hold lines of 'option: value'")
    return values


def _load_as_written(text: str) -> Any:
    import yaml

    null, merge = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
    by_first_letter = yaml.SafeLoader.yaml_implicit_resolvers.items()

    class Loader(yaml.SafeLoader):
        """Reads every scalar as text, except null outside a list."""

        def construct_sequence(self, node: Any, deep: bool = False) -> Any:
            for item in node.value:
                item.tag = "tag:yaml.org,2002:str" if item.tag == null else item.tag
            return super().construct_sequence(node, deep=deep)

    Loader.yaml_implicit_resolvers = {
        first: [one for one in found if one[0] in (null, merge)] for first, found in by_first_letter
    }
    return yaml.load(text, Loader)


def nearest(name: str, known: Any, least: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, or nothing; ``least`` is how near, in 0..1."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=least)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    """A value as the user wrote it: numbers from a command line or YAML arrive as text."""
    try:
        float(value)
        return str(value)
    except (TypeError, ValueError):
        return repr(value)


def _plain(error: Any) -> str:
    if error["type"] == "literal_error":
        given = str(error["input"])
        candidates = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"choose one of {', '.join(candidates)}{nearest(given, candidates)}"
    return str(error["msg"][0].lower() + error["msg"][1:]).removeprefix("value error, ")
