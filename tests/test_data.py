"""data/: every format there and back, what a broken file says, and how rows become splits and a task."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import date
from decimal import Decimal
from itertools import combinations, product
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softprompt.config.options import DataOptions
from softprompt.data.csv_records import read_records
from softprompt.data.formats import ENDINGS, columns_of, open_writer, read_rows
from softprompt.data.labels import check_labels, labels_alike, new_labels
from softprompt.data.sources import Splits, load_splits, load_training_splits, make_task
from softprompt.data.task import Task
from softprompt.data.template import Template
from softprompt.errors import ConfigError, DataError
from softprompt.types import Row

EXAMPLES = Path(__file__).parents[1] / "examples"


def refused(function, *args, error=DataError, **kwargs):
    with pytest.raises(error) as caught:
        list(function(*args, **kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write(path, rows, columns=None):
    with open_writer(path, columns or list(rows[0])) as writer:
        for values in rows:
            writer.write(values)
    return path


def fields_of(path):
    return [dict(row.fields) for row in read_rows(path)]


# Files: there and back

TRICKY = [
    'comma, "quote"',
    "line\nbreak",
    "carriage\rreturn",
    "tab\there",
    "",
    " spaces ",
    "naïve 👍🏽",
    "\ufeffbom",
    "'",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip(tmp_path, ending):
    rows = [{"id": str(i), "Tweet text": text, "label": "a_b"} for i, text in enumerate(TRICKY)]
    path = write(tmp_path / f"A{ending}", rows)
    assert fields_of(path) == rows
    assert columns_of(path) == ["id", "Tweet text", "label"]
    word = "line" if ending == ".jsonl" else "row"
    assert [row.where for row in read_rows(path)][:3] == [f"A{ending}, {word} {n}" for n in (1, 2, 3)]
    assert [p.name for p in tmp_path.iterdir()] == [f"A{ending}"]


@pytest.mark.parametrize("ending", ENDINGS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_any_text_survives(tmp_path, ending, texts):
    path = write(tmp_path / f"A{ending}", [{"text": text} for text in texts])
    assert [values["text"] for values in fields_of(path)] == texts


def outcome(records):
    """The records until the first error, and its message."""
    found = []
    try:
        found.extend(record for record in records)
    except csv.Error as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize("length", range(6))
def test_records_are_those_of_pythons_csv_module(length):
    for characters in product('a",\n\r\t', repeat=length):
        text = "".join(characters)
        strict = csv.reader(io.StringIO(text, newline=""), strict=True)
        assert outcome(read_records(io.StringIO(text, newline=""), ",", quoted=True)) == outcome(strict), text
        plain = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        assert outcome(read_records(io.StringIO(text, newline=""), "\t", quoted=False)) == outcome(plain), text


@pytest.mark.parametrize("text", ["{}", '"{}"', '"a\n{}"', "1,{}\n"])
def test_fields_may_be_long_but_not_without_end(text, monkeypatch):
    long = "x" * 200_000
    ((*_, cell),) = read_records(io.StringIO(text.format(long), newline=""), ",", quoted=True)
    assert cell.removeprefix("a\n") == long
    monkeypatch.setattr("softprompt.data.csv_records.MOST_CHARACTERS", 199_999)
    with pytest.raises(csv.Error, match="field limit"):
        list(read_records(io.StringIO(text.format(long), newline=""), ",", quoted=True))


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_types_survive_where_the_format_has_them(tmp_path, ending):
    rows = [{"n": 1, "x": 0.5, "b": True, "tags": ["a", "b"], "none": None}] * 2
    assert fields_of(write(tmp_path / f"A{ending}", rows)) == rows


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_delimited_cells_are_text(tmp_path, ending):
    path = write(tmp_path / f"A{ending}", [{"n": 1, "x": 0.5, "tags": ["ä"], "none": None}])
    assert fields_of(path) == [{"n": "1", "x": "0.5", "tags": '["ä"]', "none": ""}]


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_rows_is_a_file_all_the_same(tmp_path, ending):
    with open_writer(tmp_path / f"A{ending}", ["a", "b"]):
        pass
    assert fields_of(tmp_path / f"A{ending}") == []


@pytest.mark.parametrize(("ending", "missing"), [(".csv", ""), (".parquet", None), (".jsonl", ...)])
def test_a_row_may_lack_a_column(tmp_path, ending, missing):
    path = write(tmp_path / f"A{ending}", [{"a": "1"}, {"a": "2", "b": "3"}], ["a", "b"])
    assert fields_of(path)[0] == ({"a": "1"} if missing is ... else {"a": "1", "b": missing})
    assert columns_of(path) == ["a", "b"]


def test_parquet_in_several_batches_settles_its_types_at_the_end(tmp_path):
    rows = [{"n": i, "late": None if i < 2000 else "x"} for i in range(2500)] + [{"n": 0.5, "late": "y"}]
    assert fields_of(write(tmp_path / "A.parquet", rows)) == rows


def test_dates_out_of_parquet_go_into_json(tmp_path):
    pq.write_table(pa.table({"day": [date(2024, 2, 29)]}), tmp_path / "A.parquet")
    path = write(tmp_path / "B.jsonl", fields_of(tmp_path / "A.parquet"))
    assert fields_of(path) == [{"day": "2024-02-29"}]


def test_rows_are_streamed(tmp_path):
    """The first row comes before the broken third is read."""
    path = put(tmp_path, "A.jsonl", '{"a": 1}\n{"a": 2}\nbroken\n')
    rows = read_rows(path)
    assert next(rows).fields == {"a": 1}
    assert next(rows).where == "A.jsonl, line 2"
    assert "A.jsonl, line 3: not valid JSON" in refused(next, rows)


def test_byte_order_mark_and_blank_lines(tmp_path):
    bom = b"\xef\xbb\xbf"
    assert fields_of(put(tmp_path, "A.csv", bom + b"a,b\r\n1,2\r\n\r\n3,4\r\n\r\n")) == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    path = put(tmp_path, "A.jsonl", bom + b'{"a": 1}\n\n{"a": 2}')
    assert [(row.fields["a"], row.where) for row in read_rows(path)] == [(1, "A.jsonl, line 1"), (2, "A.jsonl, line 3")]
    assert fields_of(put(tmp_path, "A.json", bom + b'{"data": [{"a": 1}]}')) == [{"a": 1}]


def test_endings_in_capitals(tmp_path):
    assert fields_of(put(tmp_path, "A.CSV", "a\n1\n")) == [{"a": "1"}]


def test_columns_of_json_are_those_of_all_rows(tmp_path):
    assert columns_of(put(tmp_path, "A.jsonl", '{"a": 1}\n{"b": 2, "a": 1}\n')) == ["a", "b"]


# Files: what a broken one says


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("A.csv", "", "A.csv is empty; its first line must name the columns"),
        ("A.csv", "a,b\n1,2\n3,4,5\n", "A.csv, row 2: 3 fields, but the header has 2 ('a' and 'b'); put double quotes"),
        ("A.csv", "a,b\n1\n", "A.csv, row 1: 1 fields, but the header has 2 ('a' and 'b'); is one missing?"),
        ("A.csv", "a,b,a\n", "A.csv: columns 1 and 3 are both called 'a'; rename one"),
        ("A.csv", ",a\n0,x\n", "A.csv: column 1 of 2 has no name; name it or remove it"),
        ("A.csv", 'a,b\n1,2\n"x"y,2\n', "A.csv, row 2: ',' expected after '\"'; in a quoted field each double quote"),
        ("A.csv", 'a,b\n1,"2\n3,4\n', "A.csv, row 1: unexpected end of data; in a quoted field"),
        ("A.csv", "text;label\nx;y\n", "A.csv: the header 'text;label' is one column; is it separated by semicolons?"),
        ("A.tsv", "text,label\nx,y\n", "is it separated by commas? A .csv is separated by commas, a .tsv by tabs"),
        ("A.csv", b"a,b\n1,2\ncaf\xe9,3\n", "A.csv, line 3: not UTF-8 (byte 0xe9); save the file as UTF-8"),
        ("A.jsonl", "a".encode("utf-16"), "A.jsonl, line 1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("A.jsonl", '{"a": 1}\n{"a": \n', "A.jsonl, line 2: not valid JSON (Expecting value at column"),
        ("A.jsonl", "[1]\n", 'A.jsonl, line 1: a row must be an object such as {"text": "..."}, not a list'),
        ("A.jsonl", '{"a": "\\ud83d"}\n', "A.jsonl, line 1: contains half of a character"),
        ("A.jsonl", "[" * 100_000, "A.jsonl, line 1: not usable JSON"),
        ("A.json", '{"a": 1}\n{"a": 2}\n', "A.json: not valid JSON (Extra data at line 2, column 1); a file with one"),
        ("A.json", '{"rows": []}', 'A.json: must hold a list of objects, or {"data": [...]}, not an object'),
        ("A.json", '[{"a": 1}, "x"]', 'A.json, row 2: a row must be an object such as {"text": "..."}, not a text'),
        ("A.parquet", "PAR1 not", "A.parquet: not a readable Parquet file ("),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    assert message in refused(read_rows, put(tmp_path, name, content))


def test_paths_that_are_no_file_of_rows(tmp_path):
    put(tmp_path, "train.csv", "a\n")
    assert refused(read_rows, tmp_path / "trian.csv").endswith("trian.csv does not exist; did you mean 'train.csv'?")
    assert refused(read_rows, tmp_path / "no" / "A.csv").endswith("A.csv does not exist; check the path")
    assert f"is a folder; give a file of rows, such as {tmp_path / 'train.csv'}" in refused(read_rows, tmp_path)
    path = put(tmp_path, "A.xlsx", "x")
    supported = "the supported ones are .csv, .tsv, .json, .jsonl, .parquet"
    assert f"{path} has the extension '.xlsx'; {supported}" in refused(read_rows, path)
    assert "has no extension; the supported ones are" in refused(read_rows, put(tmp_path, "rows", "x"))
    assert "did you mean '.jsonl'?" in refused(open_writer(tmp_path / "A.jsnl", ["a"]).__enter__)


def test_writer_refuses_what_would_be_lost(tmp_path):
    with open_writer(tmp_path / "A.csv", ["text"]) as writer:
        writer.write({"text": "x"})
        message = refused(writer.write, {"text": "x", "txt": "y"})
        assert writer.num_rows == 1
    assert (
        message
        == "row 2 does not fit the file: there is no column 'txt'; the only column is 'text'; did you mean 'text'?"
    )
    assert "both called 'a'" in refused(open_writer(tmp_path / "B.csv", ["a", "a"]).__enter__)
    (tmp_path / "C.csv").mkdir()
    assert "is a folder; give the name of a file in it" in refused(open_writer(tmp_path / "C.csv", ["a"]).__enter__)
    assert "cannot write" in refused(open_writer(tmp_path / "A.csv" / "B.csv", ["a"]).__enter__)
    with pytest.raises(DataError, match=r"write \.jsonl instead"):
        write(tmp_path / "D.parquet", [{"a": 1}, {"a": "x"}])


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_writer_leaves_the_old_file(tmp_path, ending):
    path = write(tmp_path / f"A{ending}", [{"a": "old"}])
    refused(write, path, [{"a": "new"}, {"b": "does not fit"}])
    assert fields_of(path) == [{"a": "old"}]
    assert len(list(tmp_path.iterdir())) == 1


# Splits


def rows_of(labels, name="train.csv"):
    return [Row({"text": f"t{i}", "label": label}, f"{name}, row {i}") for i, label in enumerate(labels, start=1)]


def csv_file(folder, name, labels):
    return write(folder / name, [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)])


def test_packaged_complaints():
    splits = load_splits(DataOptions(dataset_name="complaints"))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [596, 100, 260]
    assert splits.train[0].where == "train.jsonl, line 1"
    task = make_task(splits, DataOptions(dataset_name="complaints"), end_token_id=2)
    assert set(task.labels) == {"complaint", "no complaint"}
    assert task.template == "text : {text} Label : "
    assert task.end_token_id == 2
    check_labels(splits.test, task.labels, DataOptions())


def words(row):
    return set(re.findall(r"[a-z0-9']+", row.fields["text"].lower()))


def test_no_text_of_the_demo_resembles_one_of_another_split():
    splits = load_splits(DataOptions(dataset_name="complaints"))
    judged = [list(read_rows(path)) for path in sorted(EXAMPLES.glob("everyday*.jsonl"))]
    parts = [[words(row) for row in rows] for rows in (splits.train, splits.validation, splits.test, *judged)]
    pairs = [(one, other) for a, b in combinations(parts, 2) for one in a for other in b]
    assert judged
    assert max(len(one & other) / len(one | other) for one, other in pairs) <= 0.5


def test_limits_and_other_splits():
    options = DataOptions(dataset_name="complaints", train_split="validation", max_train_samples=5, max_eval_samples=7)
    splits = load_splits(options)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [5, 7, 7]
    assert splits.train[0].where == "validation.jsonl, line 1"


def test_files(tmp_path):
    train, test = csv_file(tmp_path, "A.csv", "xyxy"), csv_file(tmp_path, "B.csv", "xy")
    splits = load_splits(DataOptions(train_file=train, test_file=test))
    assert (len(splits.train), splits.validation, len(splits.test), splits.labels) == (4, [], 2, ())
    evaluated = load_splits(DataOptions(test_file=test), need_train=False)
    assert (evaluated.train, len(evaluated.test)) == ([], 2)


def test_a_file_stands_in_for_one_split(tmp_path):
    test = csv_file(tmp_path, "B.csv", "xy")
    splits = load_splits(DataOptions(dataset_name="complaints", test_file=test), need_train=False)
    assert (splits.train, len(splits.validation), len(splits.test)) == ([], 100, 2)


RAFT = ["Unlabeled", "complaint", "no_complaint"]


def save_set(folder, labels, names=RAFT, split="train", column="Label"):
    """One split of a data set with a ClassLabel column, as a folder of Parquet files that datasets loads."""
    feature = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"Tweet text": datasets.Value("string"), column: feature})
    rows = {"Tweet text": [f"t{i}" for i in range(len(labels))], column: labels}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


def raft_options(name, **changes):
    return DataOptions(dataset_name=name, text_column=["Tweet text"], label_column="Label", **changes)


def test_class_labels_become_names(tmp_path):
    name = save_set(tmp_path / "raft", [2, 1, 2])
    save_set(tmp_path / "raft", [0, 0], split="test")
    splits = load_splits(raft_options(name))
    assert [row.fields["Label"] for row in splits.train] == ["no complaint", "complaint", "no complaint"]
    assert splits.train[1].where == f"{name} train, row 2"
    assert splits.labels == ("complaint", "no complaint")
    assert splits.test == []  # all of it Unlabeled
    task = make_task(splits, raft_options(name), end_token_id=None)
    assert task.labels == ("complaint", "no complaint")
    assert task.template == "Tweet text : {Tweet text} Label : "


@pytest.mark.parametrize("names", [["neg", "pos"], None])
def test_a_test_split_of_minus_ones_is_left_out(tmp_path, names):
    name = save_set(tmp_path / "set", [0, 1, 0, 1], names=names)
    save_set(tmp_path / "set", [-1, -1], names=names, split="test")
    save_set(tmp_path / "set", [0, 1], names=names, split="validation")
    splits = load_splits(raft_options(name))
    assert (len(splits.validation), splits.test) == (2, [])
    assert load_splits(raft_options(name), need_train=False).train == []


def test_a_withheld_split_that_was_asked_for_is_an_error(tmp_path):
    name = save_set(tmp_path / "raft", [2, 1])
    save_set(tmp_path / "raft", [0, 0], split="test")
    message = refused(load_splits, raft_options(name, test_split="test"))
    assert f"{name} test, row 1: the column 'Label' is empty" in message
    message = refused(load_splits, raft_options(name), need_train=False)
    assert message.startswith(f"{name} has no labelled validation or test rows; give test_file")


def test_data_sets_that_bring_a_script_are_read_from_the_converted_branch(tmp_path, monkeypatch):
    folder = save_set(tmp_path / "raft", [2, 1])
    load = datasets.load_dataset
    asked = []

    def scripted(name, config_name, revision=None):
        asked.append((name, config_name, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found raft.py")
        return load(folder)

    monkeypatch.setattr(datasets, "load_dataset", scripted)
    splits = load_splits(raft_options("ought/raft", dataset_config_name="twitter_complaints"))
    assert splits.train[0].where == "ought/raft train, row 1"
    assert asked[1] == ("ought/raft", "twitter_complaints", "refs/convert/parquet")


def test_no_network_is_one_line():
    message = refused(load_splits, DataOptions(dataset_name="nobody/nothing"))
    assert message.startswith("cannot load the data set 'nobody/nothing': Couldn't reach 'nobody/nothing' on the Hub")
    assert message.endswith("; check the network, or give its rows as train_file")
    assert refused(load_splits, DataOptions(dataset_name="complaint")).endswith("; did you mean 'complaints'?")


def test_a_folder_without_data_is_one_line(tmp_path):
    message = refused(load_splits, DataOptions(dataset_name=str(tmp_path)))
    assert message.startswith(f"cannot load the data set '{tmp_path}'")


def test_unknown_columns_and_splits(tmp_path):
    path = write(tmp_path / "A.csv", [{"Tweet text": "x", "label": "y"}])
    assert refused(load_splits, DataOptions(train_file=path, text_column=["Tweet txt"])) == (
        "A.csv, row 1 (text_column): there is no column 'Tweet txt'; the columns are 'Tweet text' and 'label'; "
        "did you mean 'Tweet text'?"
    )
    message = refused(load_splits, DataOptions(train_file=path, text_column=["Tweet text"], label_column="lable"))
    assert message.startswith("A.csv, row 1 (label_column): there is no column 'lable'")
    message = refused(load_splits, DataOptions(dataset_name="complaints", test_split="tets"))
    assert message == (
        "test_split='tets', but the splits of complaints are 'train', 'validation' and 'test'; did you mean 'test'?"
    )


def test_empty_files_and_labels(tmp_path):
    empty = put(tmp_path, "A.csv", "text,label\n")
    assert refused(load_splits, DataOptions(train_file=empty)) == f"{empty} has no rows; train needs at least one"
    gaps = csv_file(tmp_path, "B.csv", ["x", "y", " "])
    assert "B.csv, row 3: the column 'label' is empty" in refused(load_splits, DataOptions(train_file=gaps))
    lists = write(tmp_path / "C.jsonl", [{"text": "x", "label": ["a", "b"]}])
    assert "C.jsonl, line 1: the column 'label' holds a list" in refused(load_splits, DataOptions(train_file=lists))


@pytest.mark.parametrize(
    ("options", "need_train", "message"),
    [
        (
            {},
            True,
            "there are no rows to train on: give train_file (.csv, .tsv, .json, .jsonl, .parquet) or dataset_name",
        ),
        ({"test_file": "A.csv"}, True, "there are no rows to train on"),
        (
            {"train_file": "A.csv"},
            False,
            "there are no rows to evaluate on: give test_file, validation_file or dataset",
        ),
        ({"train_file": "A.csv", "test_split": "test"}, True, "test_split='test' needs dataset_name; give it"),
        ({"dataset_name": __file__}, True, "is a file; give it as train_file"),
    ],
)
def test_options_that_name_no_source(options, need_train, message):
    given = DataOptions(**options)
    assert message in refused(load_splits, given, need_train=need_train, error=ConfigError)


# The task


def task_of(labels, known=(), **options):
    splits = Splits(rows_of(labels), [], [], known)
    return make_task(splits, DataOptions(**options), end_token_id=None)


def test_labels_are_in_order_of_first_appearance():
    assert task_of("bac").labels == ()
    assert task_of("bacb").labels == ()  # half of the rows share their label
    assert task_of("bab").labels == ("b", "a")
    assert task_of("baba").labels == ("b", "a")
    assert task_of("bab", task="classification").labels == ("b", "a")
    assert task_of("baba", task="generation").labels == ()


def test_many_labels_are_generation():
    assert len(task_of([str(i) for i in range(100)] * 2).labels) == 100
    assert task_of([str(i) for i in range(101)] * 2).labels == ()


def test_named_classes_are_kept_even_where_rows_are_few():
    assert task_of(["b", "a"], known=("a", "b", "c")).labels == ("a", "b", "c")
    assert task_of(["b", "a"], known=("a", "b", "c"), task="generation").labels == ()


def test_one_class_is_refused():
    assert "every training row has the label 'a' (label)" in refused(task_of, "aaa")


def test_template_must_fit_and_must_not_read_the_label():
    assert "there is no column 'txt'" in refused(task_of, "abab", template="{text} {txt}")
    assert "contains the label column 'label'" in refused(task_of, "abab", template="{text} {label}")
    assert "contains the label column" in refused(task_of, "abab", text_column=["text", "label"])


def test_task_carries_the_options():
    task = task_of("abab", template="{text} => ", max_length=32)
    assert task == Task(("text",), "label", "{text} => ", ("a", "b"), 32, None)


def test_check_labels():
    labels, options = ("complaint", "no complaint"), DataOptions()
    check_labels(rows_of(["complaint"]), labels, options)
    message = refused(check_labels, rows_of(["complaint", "complant"], "B.csv"), labels, options)
    assert message == (
        "B.csv, row 2: the label 'complant' is not in the training rows, whose labels are 'complaint' and "
        "'no complaint'; did you mean 'complaint'?"
    )
    check_labels(rows_of(["anything"]), (), options)
    assert refused(check_labels, rows_of(["praise"]), labels, options).endswith(
        "; if it is correct, list all labels in the option labels"
    )


def test_labels_that_training_has_not_seen():
    task = task_of(["complaint", "no complaint"] * 2)
    assert new_labels(rows_of(["complaint", "praise", "question", "praise"]), task) == {"praise": 2, "question": 1}
    assert new_labels(rows_of(["anything"]), task_of("abab", task="generation")) == {}
    for slip in ("complant", "Complaint", "NO COMPLAINT"):
        assert "did you mean '" in refused(new_labels, rows_of(["praise", slip]), task)


def test_a_field_may_hold_a_whole_document(tmp_path):
    text = "word " * 40_000
    (tmp_path / "long.csv").write_text(f'text,label\n"{text}",yes\n')
    assert [row.fields["text"] for row in read_rows(tmp_path / "long.csv")] == [text]


# Missing values


NAN = float("nan")
MISSING = [None, NAN, Decimal("nan"), np.float32("nan"), np.datetime64("NaT"), pd.NaT, pd.NA, "", " \t"]
PRESENT = ["None", "NA", "nan", "NaN", "null", "<NA>", "0", 0, 0.0, False]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_a_missing_label_or_text_is_an_error(value):
    row = Row({"text": "x", "label": value, "note": value}, "A.jsonl, line 3")
    task = Task(("text",), "label", "{text}|{note}")
    with pytest.raises(DataError, match=r"A\.jsonl, line 3: the column 'label' is empty; every row needs a label"):
        task.label_of(row.fields, row.where)
    with pytest.raises(DataError, match=r"row 3: the column 'text' is empty; every row needs a text"):
        task.check_text({"text": value}, "A.csv, row 3")
    if not isinstance(value, str):
        assert Template("{text}|{note}", ["text"]).render(row.fields, row.where) == "x|"  # never "nan"


@pytest.mark.parametrize("value", PRESENT, ids=repr)
def test_what_only_names_a_missing_value_is_text(value):
    task = Task(("text",), "label", "{text}")
    assert task.label_of({"label": value}, "row 1") == str(value)
    task.check_text({"text": value}, "row 1")


def missing_in(folder, ending, column):
    """A file of six rows whose fourth lacks a value, as the format has it."""
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(6)]
    path = folder / f"A{ending}"
    if ending in (".csv", ".tsv"):
        rows[3][column] = ""
        return write(path, rows)
    if ending == ".parquet":
        rows[3][column] = None
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    rows[3][column] = NAN
    text = json.dumps(rows) if ending == ".json" else "\n".join(map(json.dumps, rows))
    assert "NaN" in text
    return put(folder, path.name, text)


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_says_which_value_is_missing(tmp_path, ending, column):
    path = missing_in(tmp_path, ending, column)
    place = f"A{ending}, {'line' if ending == '.jsonl' else 'row'} 4"
    for options in ({"train_file": path}, {"dataset_name": "complaints", "test_file": path}):
        assert refused(load_splits, DataOptions(**options)).startswith(f"{place}: the column {column!r} is empty")
    unlabeled = DataOptions(dataset_name="complaints", unlabeled_file=path)
    if column == "text":
        assert f"{place}: the column 'text' is empty" in refused(load_splits, unlabeled)
    else:
        assert len(load_splits(unlabeled).unlabeled) == 6


def test_numbers_with_gaps_out_of_parquet(tmp_path):
    """A column of numbers has NaN, not null, where pandas had nothing."""
    table = pa.table({"text": ["x", "y", "z"], "label": pa.array([1.0, NAN, 2.0], from_pandas=False)})
    pq.write_table(table, tmp_path / "A.parquet")
    message = refused(load_splits, DataOptions(train_file=tmp_path / "A.parquet"))
    assert message.startswith("A.parquet, row 2: the column 'label' is empty")


def test_a_data_set_with_a_gap(tmp_path):
    rows = {"text": ["x", "y", "z", None], "label": ["a", "b", None, None]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "set" / "train.parquet"))
    message = refused(load_splits, DataOptions(dataset_name=str(tmp_path / "set")))
    assert message.startswith(f"{tmp_path / 'set'} train, row 3: the column 'label' is empty")
    splits = load_splits(DataOptions(dataset_name=str(tmp_path / "set"), max_train_samples=2))
    assert (len(splits.train), splits.num_empty) == (2, 0)


def test_strings_that_look_missing_are_labels_and_texts(tmp_path):
    path = put(tmp_path, "A.csv", "text,label\nNA,None\nNone,NA\nnan,None\n<NA>,NA\n")
    splits = load_splits(DataOptions(train_file=path))
    assert [tuple(row.fields.values()) for row in splits.train][:2] == [("NA", "None"), ("None", "NA")]
    assert make_task(splits, DataOptions(), end_token_id=None).labels == ("None", "NA")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.csv", "text,label\n,\nx,a\n\n,,,\n  ,\ny,b\n,\n"),
        ("A.tsv", "text\tlabel\n\t\nx\ta\n\n\t\t\t\n  \t\ny\tb\n\t\n"),
        (
            "A.jsonl",
            '{}\n{"text": "x", "label": "a"}\n{"text": null, "label": NaN}\n{"text": "y", "label": "b"}\n{}\n{}\n',
        ),
        ("A.json", '[{}, {"text": "x", "label": "a"}, {"text": ""}, {"label": " "}, {"text": "y", "label": "b"}, {}]'),
    ],
)
def test_rows_of_nothing_are_left_out_and_counted(tmp_path, name, content):
    splits = load_splits(DataOptions(train_file=put(tmp_path, name, content)))
    assert [row.fields["text"] for row in splits.train] == ["x", "y"]
    assert splits.num_empty == 4
    assert [
        row.fields["text"] for row in load_splits(DataOptions(train_file=tmp_path / name, max_train_samples=1)).train
    ] == ["x"]


def test_one_of_several_text_columns_may_be_empty(tmp_path):
    path = put(tmp_path, "A.jsonl", '{"a": "x", "b": NaN, "label": "yes"}\n{"a": null, "b": "", "label": "no"}\n')
    options = DataOptions(train_file=path, text_column=["a", "b"])
    assert "A.jsonl, line 2: the columns 'a' and 'b' are empty; every row needs a text" in refused(load_splits, options)
    splits = load_splits(options.model_copy(update={"max_train_samples": 1}))
    assert splits.train[0].fields == {"a": "x", "b": None, "label": "yes"}


# Tab-separated files, and files without a header


def cells_of(path, **options):
    return [list(row.fields.values()) for row in read_rows(path, **options)]


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (['ham\t"Hello" she said', "spam\tyou won"], [["ham", '"Hello" she said'], ["spam", "you won"]]),
        (['ham\t"Hello there', 'spam\tyou "won"'], [["ham", '"Hello there'], ["spam", 'you "won"']]),
        (['ham\t"Hello there', 'spam\tyou won"'], [["ham", '"Hello there'], ["spam", 'you won"']]),
        (['ham\t"Hi', 'spam\t"Ho"'], [["ham", '"Hi'], ["spam", '"Ho"']]),
        (['ham\t"', "spam\tx"], [["ham", '"'], ["spam", "x"]]),
        (['ham\t"Hi"', 'spam\t"say ""no"""'], [["ham", "Hi"], ["spam", 'say "no"']]),
        (['ham\t"two', 'lines"', "spam\tx"], [["ham", "two\nlines"], ["spam", "x"]]),
        (['ham\t"a\tb"', "spam\tx"], [["ham", "a\tb"], ["spam", "x"]]),
        (["ham\tit's 5\" long", "spam\tx"], [["ham", "it's 5\" long"], ["spam", "x"]]),
    ],
)
@pytest.mark.parametrize("names", [None, ["label", "text"]])
def test_tabs_with_and_without_quotes(tmp_path, lines, rows, names):
    """Quotes are taken off where all of them close and no line is lost by it; else every character is kept."""
    head = [] if names else ["label\ttext"]
    path = put(tmp_path, "A.tsv", "\n".join([*head, *lines]) + "\n")
    assert cells_of(path, column_names=names) == rows
    assert columns_of(path, names) == ["label", "text"]


WORDS = st.text(st.sampled_from('ab "'), min_size=1, max_size=6).filter(str.strip)


@given(st.lists(st.tuples(st.sampled_from(["ham", "spam"]), WORDS), min_size=1, max_size=6))
def test_lines_written_without_quotes_are_never_merged(tmp_path, pairs):
    """As many rows as lines; each is what was written, or that without the quotes around it if all of them close."""
    path = put(tmp_path, "A.tsv", "".join(f"{label}\t{text}\n" for label, text in pairs))
    rows = cells_of(path, column_names=["label", "text"])
    assert [label for label, _ in rows] == [label for label, _ in pairs]
    written = [text for _, text in pairs]
    unquoted = [text[1:-1].replace('""', '"') if text[0] == '"' else text for text in written]
    assert [text for _, text in rows] in (written, unquoted)
    if [text for _, text in rows] != written:
        assert all(len(text) > 1 and text[-1] == '"' for text in written if text[0] == '"')


def test_the_sms_spam_collection(tmp_path):
    """Its form, ``ham<TAB>text`` without header or quoting, made of the real messages where they are."""
    source = Path(__file__).parents[2] / "shared" / "data" / "sms_spam" / "train.jsonl"
    if not source.is_file():
        pytest.skip("the SMS Spam Collection is not beside this checkout")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    pairs = [["spam" if row["label"] == "spam" else "ham", row["text"]] for row in rows]
    assert any(text.startswith('"') for _, text in pairs)
    path = put(tmp_path, "SMSSpamCollection.tsv", "".join(f"{label}\t{text}\n" for label, text in pairs))
    options = DataOptions(train_file=path, column_names=["label,text"])
    splits = load_splits(options)
    assert [[row.fields["label"], row.fields["text"]] for row in splits.train] == pairs
    assert set(make_task(splits, options, end_token_id=None).labels) == {"ham", "spam"}


def test_column_names(tmp_path):
    csv = put(tmp_path, "A.csv", 'yes,"Hi, you"\nno,x\n')
    splits = load_splits(DataOptions(train_file=csv, test_file=csv, column_names="label, text"))
    assert [dict(row.fields) for row in splits.train] == [
        {"label": "yes", "text": "Hi, you"},
        {"label": "no", "text": "x"},
    ]
    assert splits.test[0].where == "A.csv, row 1"
    assert "A.csv, row 1: 2 fields, but column_names has 3 ('a', 'b' and 'c'); is one missing?" in refused(
        read_rows, csv, ["a", "b", "c"]
    )
    assert "the first line is a header with these names; leave column_names out" in refused(
        read_rows, csv, ["yes", "Hi, you"]
    )
    lines = put(tmp_path, "B.jsonl", '{"text": "x"}\n')
    for function in (read_rows, columns_of):
        assert "column_names is for .csv and .tsv files without a header; B.jsonl" in refused(function, lines, ["a"])
    options = DataOptions(dataset_name="complaints", column_names=["a"])
    assert "column_names is for files without a header" in refused(load_splits, options, error=ConfigError)
    message = refused(load_splits, DataOptions(train_file=csv))
    assert message.endswith("; if the file has no header, name its columns with column_names")
    gap = put(tmp_path, "D.tsv", 'ham\t\nspam\t"x"\n')
    assert cells_of(gap, column_names=["label", "text"]) == [["ham", ""], ["spam", "x"]]
    broken = put(tmp_path, "C.csv", 'yes,x\nno,"x" y\n')
    assert refused(read_rows, broken, ["a", "b"]).startswith("C.csv, row 2: ")


def test_what_spreadsheets_add(tmp_path):
    """Columns without a name and without content at the end, and rows of separators alone."""
    path = put(tmp_path, "A.csv", "text,label,,\r\nx,a,,\r\ny,b\r\n,,,\r\nz,a,,,,\r\n,,,\r\n")
    assert columns_of(path) == ["text", "label"]
    splits = load_splits(DataOptions(train_file=path))
    assert [row.fields for row in splits.train] == [{"text": t, "label": x} for t, x in ("xa", "yb", "za")]
    assert splits.num_empty == 2
    assert splits.train[2].where == "A.csv, row 4"
    full = put(tmp_path, "B.csv", "text,label,\nx,a,\ny,b,c\n")
    assert "B.csv, row 2: 3 fields, but the header has 2" in refused(read_rows, full)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.csv", "text;label\nHello, you;x\n"),
        ("A.csv", "id;text, in words;label\n1;x;y\n"),
        ("A.csv", "text;label;\nx;y;\n"),
        ("A.tsv", "id;text;label\n1;x;y\n"),
    ],
)
def test_semicolons_are_told(tmp_path, name, content):
    assert "is it separated by semicolons? A .csv is separated by commas" in refused(
        read_rows, put(tmp_path, name, content)
    )


def test_semicolons_without_a_header(tmp_path):
    path = put(tmp_path, "A.csv", "yes;x\nno;y\n")
    assert "is it separated by semicolons?" in refused(read_rows, path, ["label", "text"])


# Labels


def test_max_train_samples_is_named_where_it_may_be_the_reason(tmp_path):
    path = csv_file(tmp_path, "A.csv", "aaabbbccc")
    options = DataOptions(train_file=path, test_file=path, max_train_samples=3)
    message = refused(make_task, load_splits(options), options, end_token_id=None)
    assert message.endswith("(max_train_samples=3 reads only the first rows; shuffle the file or raise it)")
    options = options.model_copy(update={"max_train_samples": 6})
    message = refused(load_training_splits, options)
    assert message.startswith("A.csv, row 7: the label 'c' is not in the training rows")
    assert message.endswith("(max_train_samples=6 reads only the first rows; shuffle the file or raise it)")


def test_labels_alike():
    labels = ["Spam", "no  spam", "ham", "spam ", "no spam", "SPAM", "Straße", "STRASSE", "nospam"]
    assert labels_alike(labels) == [("Spam", "spam ", "SPAM"), ("no  spam", "no spam", "nospam"), ("Straße", "STRASSE")]
    assert labels_alike(["complaint", "no complaint"]) == []
