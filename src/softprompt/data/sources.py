"""The rows of a run, from the packaged data set, the Hub, files or memory; and the task that they define.

=========================  ===================================================================
``dataset_name``           ``complaints`` (packaged), else a data set of the Hub or a folder
``train_file``, ...        files of rows (``formats.py``); may replace a split of a data set
rows in memory             as ``in_memory.py`` accepts them; may replace a split of a data set
=========================  ===================================================================

Labels that a data set stores as numbers with names (``ClassLabel``) become their names, with spaces for
underscores. A split whose labels are withheld (-1, or ``Unlabeled`` as in RAFT) is omitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ..config.options import DataOptions, nearest
from ..errors import ConfigError, DataError
from ..types import Row
from .delimited import DELIMITERS
from .formats import ENDINGS, read_rows
from .in_memory import Rows, class_name, class_names, declared_labels, is_withheld, rows_from
from .labels import MOST_CLASSES, check_labels, labels_repeat, only_the_first
from .non_empty_rows import NonEmptyRows
from .task import Task
from .template import Template, listed, resolve_template, to_text, unknown_column

COMPLAINTS = "complaints"
"""Name of the data set that comes with softprompt."""

_FOLDER = Path(__file__).parent / COMPLAINTS

Role = Literal["train", "validation", "test", "unlabeled"]


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of a run; a split that the source lacks is empty.

    Attributes:
        train: training rows; every row has a label, as in validation and test.
        validation: rows scored during training.
        test: rows scored after training.
        labels: the classes, if the source declares them; else empty.
        unlabeled: rows of which only the text is used.
        num_empty: number of rows skipped because all columns are empty.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    labels: tuple[str, ...] = ()
    unlabeled: tuple[Row, ...] = ()
    num_empty: int = 0


def load_splits(
    options: DataOptions, *, need_train: bool = True, in_memory: Mapping[Role, Rows] = MappingProxyType({})
) -> Splits:
    """Read the rows that the options name.

    Args:
        options: source, splits, columns and limits.
        need_train: whether to read the training rows; without them, ``train`` is empty.
        in_memory: rows of some splits, in place of those that the options name.

    Raises:
        ConfigError: no source is given, or conflicting options.
        DataError: a source cannot be read, is empty, or lacks a column, or a row lacks its text or label.
    """
    _check_options(options, need_train, in_memory)
    source = _data_set(options)
    rows: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    roles: tuple[Role, ...] = ("train", "validation", "test") if need_train else ("validation", "test")
    num_empty = 0
    for role in roles:
        rows[role], empty = _rows_for(role, source, options, in_memory)
        num_empty += empty
    if not any(rows.values()):
        raise DataError(
            f"{options.dataset_name} has no labelled validation or test rows; give test_file, or name a split "
            "with test_split"
        )
    unlabeled, empty = _unlabeled(options, in_memory) if need_train else ((), 0)
    labels = declared_labels(in_memory.get("train"), options.label_column) or (source.labels if source else ())
    return Splits(rows["train"], rows["validation"], rows["test"], labels, unlabeled, num_empty + empty)


def load_training_splits(options: DataOptions, in_memory: Mapping[Role, Rows] = MappingProxyType({})) -> Splits:
    """Read the rows of a training run, and check all that can be checked without a tokenizer.

    Args:
        in_memory: as for ``load_splits``.

    Raises:
        ConfigError: no source is given, or conflicting options.
        DataError: a source, column, label or template is wrong.
    """
    splits = load_splits(options, in_memory=in_memory)
    find_template(list(splits.train[0].fields), options)
    labels = find_labels(splits, options)
    for rows in (splits.train, splits.validation, splits.test):
        check_labels(rows, labels, options)
    return splits


def make_task(splits: Splits, options: DataOptions, *, end_token_id: int | None) -> Task:
    """The task of the training rows: the resolved template, and the classes of a classification.

    Raises:
        DataError: the template does not fit the columns or contains the label, or there is only one class.
    """
    return Task(
        text_columns=tuple(options.text_column),
        label_column=options.label_column,
        template=find_template(list(splits.train[0].fields), options),
        labels=find_labels(splits, options),
        max_length=options.max_length,
        end_token_id=end_token_id,
    )


def find_template(columns: Sequence[str], options: DataOptions) -> str:
    """The template of the options, checked against the columns of the rows.

    Raises:
        DataError: it does not fit the columns, or contains the label.
    """
    template = resolve_template(options.template, options.text_column, columns)
    if options.label_column in Template(template, options.text_column).fields:
        raise DataError(
            f"the template contains the label column {options.label_column!r}, so the model would see the answer; "
            "remove it from template or text_column"
        )
    return template


@dataclass(frozen=True, slots=True)
class _DataSet:
    """A data set with splits; ``rows(split)`` reads one."""

    name: str
    splits: tuple[str, ...]
    rows: Callable[[str], Iterator[Row]]
    labels: tuple[str, ...] = ()  # by number, where the label column is a ClassLabel


def _data_set(options: DataOptions) -> _DataSet | None:
    if options.dataset_name is None:
        return None
    if options.dataset_name == COMPLAINTS:
        return _DataSet(COMPLAINTS, ("train", "validation", "test"), _packaged_rows)
    splits = _load_dataset(options.dataset_name, options.dataset_config_name)
    return _from_datasets(options.dataset_name, splits, options.label_column)


def _packaged_rows(split: str) -> Iterator[Row]:
    return read_rows(_FOLDER / f"{split}.jsonl")


def _from_datasets(name: str, splits: Mapping[str, Any], label_column: str) -> _DataSet:
    """A data set from the result of ``datasets.load_dataset``: a ``datasets.Dataset`` for each split."""

    def rows(split: str) -> Iterator[Row]:
        names = class_names(splits[split].features)
        for number, values in enumerate(splits[split], start=1):
            fields = {key: class_name(value, names.get(key)) for key, value in values.items()}
            yield Row(fields, f"{name} {split}, row {number}")

    return _DataSet(name, tuple(splits), rows, declared_labels(next(iter(splits.values())), label_column))


def _load_dataset(name: str, config_name: str | None) -> Mapping[str, Any]:
    """The splits of a data set by name.

    Raises:
        DataError: in one line, why it cannot be had.
    """
    import datasets

    try:
        try:
            loaded = datasets.load_dataset(name, config_name)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # Older data sets, such as the guide's RAFT, contain a loading script, which is no longer run. The Hub has
            # their converted rows on this branch.
            loaded = datasets.load_dataset(name, config_name, revision="refs/convert/parquet")
    except Exception as error:  # its own errors, and those of httpx, fsspec and pyarrow
        raise DataError(_why_not_loaded(name, error)) from error
    splits: Mapping[str, Any] = loaded
    return splits


def _why_not_loaded(name: str, error: Exception) -> str:
    import datasets.exceptions

    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    close = nearest(name, [COMPLAINTS])
    if isinstance(error, ConnectionError):
        remedy = f"; check the network, or give its rows as train_file{close}"
    elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
        remedy = f"; check the name on huggingface.co/datasets (a private one needs: hf auth login){close}"
    else:
        remedy = close
    return f"cannot load the data set {name!r}: {reason.rstrip('.')}{remedy}"


def _rows_for(
    role: Role, source: _DataSet | None, options: DataOptions, in_memory: Mapping[Role, Rows]
) -> tuple[list[Row], int]:
    """The checked rows of one split (none if the source has none), and the number of empty rows skipped."""
    limit = options.max_train_samples if role == "train" else options.max_eval_samples
    file: Path | None = getattr(options, f"{role}_file")
    asked: str | None = getattr(options, f"{role}_split")
    if role in in_memory:
        reader, name = _from_memory(role, in_memory[role], options), f"the {role} data"
    elif file is not None:
        reader, name = NonEmptyRows(read_rows(file, options.column_names)), str(file)
    elif source is None or (asked is None and role not in source.splits):
        return [], 0
    elif asked is not None and asked not in source.splits:
        there_are = f"{listed(source.splits)}{nearest(asked, source.splits)}"
        raise DataError(f"{role}_split={asked!r}, but the splits of {source.name} are {there_are}")
    else:
        split = asked or role
        reader, name = NonEmptyRows(source.rows(split)), f"{source.name} {split}"
    rows = list(islice(reader, limit))
    if not rows:
        raise DataError(f"{name} has no rows; {role} needs at least one")
    is_split = file is None and asked is None and role not in in_memory
    if is_split and all(is_withheld(row.fields.get(options.label_column, "?")) for row in rows):
        return [], 0
    _check_rows(rows, options, nameless=_may_lack_names(file, options))
    return rows, reader.num_empty


def _from_memory(role: Role, given: Rows, options: DataOptions) -> NonEmptyRows:
    return NonEmptyRows(rows_from(given, options.text_column, options.label_column, name=role))


def _unlabeled(options: DataOptions, in_memory: Mapping[Role, Rows]) -> tuple[tuple[Row, ...], int]:
    file = options.unlabeled_file
    if "unlabeled" in in_memory:
        reader, name = _from_memory("unlabeled", in_memory["unlabeled"], options), "the unlabeled data"
    elif file is not None:
        reader, name = NonEmptyRows(read_rows(file, options.column_names)), str(file)
    else:
        return (), 0
    rows = tuple(reader)
    if not rows:
        raise DataError(f"{name} has no rows; leave it out")
    probe = _columns_only(options)
    for row in rows:
        _check_columns(row, "text_column", options.text_column, nameless=_may_lack_names(file, options))
        probe.check_text(row.fields, row.where)
    return rows, reader.num_empty


def _may_lack_names(file: Path | None, options: DataOptions) -> bool:
    """Whether a file may lack a header, so that its first row was read as column names."""
    return file is not None and file.suffix.lower() in DELIMITERS and not options.column_names


def _check_columns(row: Row, option: str, columns: Iterable[str], *, nameless: bool) -> None:
    for column in columns:
        if column not in row.fields:
            may_be_row = nameless and not nearest(column, row.fields)
            remedy = "; if the file has no header, name its columns with column_names" if may_be_row else ""
            raise DataError(f"{row.where} ({option}): {unknown_column(column, row.fields)}{remedy}")


def _check_rows(rows: Iterable[Row], options: DataOptions, *, nameless: bool) -> None:
    """Check that every row has its text columns, a text and a label."""
    task = _columns_only(options)
    for row in rows:
        _check_columns(row, "text_column", task.text_columns, nameless=nameless)
        _check_columns(row, "label_column", (task.label_column,), nameless=nameless)
        to_text(row.fields[task.label_column], task.label_column, row.where)
        task.label_of(row.fields, row.where)
        task.check_text(row.fields, row.where)


def _columns_only(options: DataOptions) -> Task:
    """A task with columns only, for checks."""
    return Task(tuple(options.text_column), options.label_column, template="")


def _check_options(options: DataOptions, need_train: bool, in_memory: Mapping[Role, Rows]) -> None:
    """Refuse options that name no source, name two, or would be ignored."""
    for role in in_memory:
        if getattr(options, f"{role}_file") is not None:
            raise ConfigError(f"{role}_file and rows in memory for {role} exclude each other; give one of them")
    name = options.dataset_name
    a_data_set = f"dataset_name (a data set of the Hub, or {COMPLAINTS!r})"
    if name is None:
        if need_train and options.train_file is None and "train" not in in_memory:
            raise ConfigError(f"there are no rows to train on: give train_file ({', '.join(ENDINGS)}) or {a_data_set}")
        given = options.validation_file or options.test_file or in_memory
        if not need_train and not given:
            raise ConfigError(f"there are no rows to evaluate on: give test_file, validation_file or {a_data_set}")
        for option in ("dataset_config_name", "validation_split", "test_split"):
            if getattr(options, option) is not None:
                raise ConfigError(
                    f"{option}={getattr(options, option)!r} needs dataset_name; give it, or leave {option} out"
                )
    elif Path(name).is_file():
        raise ConfigError(f"dataset_name={name!r} is a file; give it as train_file")
    files = (options.train_file, options.validation_file, options.test_file, options.unlabeled_file)
    if options.column_names and not any(files):
        raise ConfigError(f"column_names is for files without a header, but the data set is {name!r}; leave it out")


def find_labels(splits: Splits, options: DataOptions) -> tuple[str, ...]:
    """The labels of a classification task in a fixed order; empty for generation.

    Raises:
        DataError: there is only one class.
    """
    if options.task == "generation":
        return ()
    probe = _columns_only(options)
    counts = Counter(probe.label_of(row.fields, row.where) for row in splits.train)
    named = tuple(options.labels or splits.labels)
    classes = named or tuple(counts)  # a Counter keeps the order of first appearance
    if options.task == "auto" and not named and not (len(counts) <= MOST_CLASSES and labels_repeat(counts)):
        return ()
    if len(classes) < 2:
        raise DataError(
            f"every training row has the label {classes[0]!r} ({options.label_column}); a classification needs at "
            f"least two classes; task=generation accepts any text{only_the_first(options.max_train_samples)}"
        )
    return classes
