"""Records survive the way to the disk and back; damage is named; a resumed log has no future."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import AdapterError, SoftPromptError
from softprompt.storage.record import EpochRecord, LogWriter, Metrics, PartialEpoch, TrainerState

numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | numbers
counts = st.integers(0, 10**9)
epochs = st.builds(
    EpochRecord,
    epoch=numbers,
    step=counts,
    learning_rate=numbers,
    train_loss=maybe,
    eval_loss=maybe,
    accuracy=maybe,
    macro_f1=maybe,
    seconds=numbers,
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scores = st.dictionaries(words, maybe, max_size=3)
states = st.builds(
    TrainerState,
    global_step=counts,
    epoch=numbers,
    max_steps=counts,
    num_train_epochs=counts,
    best_metric=maybe,
    metric_for_best_model=st.none() | words,
    best_step=st.none() | counts,
    best_model_checkpoint=st.none() | words,
    history=st.lists(epochs, max_size=4).map(tuple),
    finished=st.booleans(),
    seconds=numbers,
    num_train_examples=st.none() | counts,
    fingerprint=st.none() | words,
    partial_epoch=st.none() | st.builds(PartialEpoch, loss_sum=numbers, num_tokens=counts, seconds=numbers),
)
metrics = st.builds(
    Metrics,
    num_examples=counts,
    accuracy=maybe,
    perplexity=maybe,
    confusion_matrix=st.none() | st.lists(st.lists(counts, max_size=3).map(tuple), max_size=3).map(tuple),
    labels=st.none() | st.lists(words, max_size=3).map(tuple),
    per_class=st.none() | st.lists(scores, max_size=3).map(tuple),
    baselines=st.dictionaries(words, scores, max_size=3),
    exact_match=maybe,
)


@settings(max_examples=40, deadline=None)
@given(record=states | metrics)
def test_round_trip(tmp_path_factory, record):
    folder = tmp_path_factory.mktemp("run")
    record.save(folder)
    assert type(record).load(folder) == record


STATE = TrainerState(
    global_step=20,
    epoch=2.0,
    max_steps=100,
    num_train_epochs=10,
    history=tuple(EpochRecord(epoch=e, step=10 * e, learning_rate=0.03, train_loss=1.0 / e) for e in (1, 2)),
)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    Metrics(
        num_examples=2,
        eval_loss=math.nan,
        perplexity=math.inf,
        baselines={"untuned prompt": {"eval_loss": -math.inf}},
    ).save(tmp_path)
    text = (tmp_path / "metrics.json").read_text()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    values = json.loads(text, parse_constant=refuse)
    assert values["eval_loss"] is None
    assert values["perplexity"] is None
    assert values["baselines"]["untuned prompt"]["eval_loss"] is None
    assert Metrics.load(tmp_path).perplexity is None


def test_metrics_has_the_promised_keys_and_reads_as_a_table(tmp_path):
    Metrics(num_examples=4, confusion_matrix=((2, 0), (1, 1)), labels=("a", "ü")).save(tmp_path)
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    promised = {"accuracy", "macro_f1", "eval_loss", "perplexity", "num_examples", "examples_per_second"}
    promised |= {"confusion_matrix", "labels", "per_class", "expected_calibration_error", "baselines"}
    assert promised | {"exact_match"} <= set(json.loads(text))
    assert "    [2, 0],\n    [1, 1]\n" in text
    assert '"labels": ["a", "ü"]' in text


def test_unknown_keys_are_passed_over(tmp_path):
    STATE.save(tmp_path)
    path = tmp_path / "trainer_state.json"
    values = json.loads(path.read_text())
    values["from_a_later_release"] = {"x": 1}
    values["history"][0]["also_new"] = True
    path.write_text(json.dumps(values))
    assert TrainerState.load(tmp_path) == STATE


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda v: v.pop("global_step"), "global_step"),
        (lambda v: v.update(global_step="many"), "global_step: input should be a valid integer, not 'many'"),
        (lambda v: v.update(global_step="3"), "global_step: input should be a valid integer, not '3'"),
        (lambda v: v.update(finished=1), "finished: input should be a valid boolean, not 1"),
        (lambda v: v.update(history=3), "history"),
        (lambda v: v["history"][1].update(epoch=None), "history.1.epoch"),
    ],
)
def test_damage_is_named(tmp_path, damage, says):
    STATE.save(tmp_path)
    path = tmp_path / "trainer_state.json"
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="is damaged") as caught:
        TrainerState.load(tmp_path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(SoftPromptError, match="does not exist"):
        Metrics.load(tmp_path)
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.')
    with pytest.raises(SoftPromptError, match="not valid JSON"):
        Metrics.load(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    STATE.save(tmp_path)
    monkeypatch.setattr("softprompt.storage.atomic.os.replace", _fail)
    with pytest.raises(OSError, match="full"):
        dataclasses.replace(STATE, global_step=99).save(tmp_path)
    monkeypatch.undo()
    assert TrainerState.load(tmp_path) == STATE
    assert [p.name for p in tmp_path.iterdir()] == ["trainer_state.json"]


def _fail(*_):
    raise OSError("disk full")


def test_a_long_history_can_be_read_again(tmp_path):
    epoch = EpochRecord(epoch=1.0, step=1, learning_rate=0.1, train_loss=0.123456789012345)
    long = dataclasses.replace(STATE, history=(epoch,) * 10_000)
    long.save(tmp_path)
    assert (tmp_path / "trainer_state.json").stat().st_size > 1 << 20
    assert TrainerState.load(tmp_path) == long


def test_train_perplexity():
    def record(loss):
        return EpochRecord(epoch=1, step=1, learning_rate=0.1, train_loss=loss)

    assert record(None).train_perplexity is None
    assert record(math.log(5)).train_perplexity == pytest.approx(5)
    assert record(1e6).train_perplexity == math.inf


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_log_lines_are_there_when_write_returns(tmp_path):
    with LogWriter(tmp_path / "new") as log:
        log.write(step=10, loss=0.5, note="ü")
        assert lines(tmp_path / "new") == [{"step": 10, "loss": 0.5, "note": "ü"}]
        log.write(step=20, loss=math.nan)
        assert lines(tmp_path / "new")[1] == {"step": 20, "loss": None}
    log.close()


def test_resume_drops_later_lines_and_goes_on(tmp_path):
    with LogWriter(tmp_path) as log:
        for step in (10, 20, 30, 40):
            log.write(step=step)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "no step"}\n{"step": 15, "cut sho')
    with LogWriter(tmp_path, resume_step=20) as log:
        log.write(step=30, again=True)
    assert lines(tmp_path) == [{"step": 10}, {"step": 20}, {"event": "no step"}, {"step": 30, "again": True}]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_whole_line_without_its_end_is_not_glued_to_the_next(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}')
    with LogWriter(tmp_path, resume_step=2) as log:
        log.write(step=3)
    assert lines(tmp_path) == [{"step": 1}, {"step": 3}]


def test_a_new_run_starts_a_new_log_and_resume_needs_none(tmp_path):
    with LogWriter(tmp_path, resume_step=5) as log:
        log.write(step=6)
    with LogWriter(tmp_path) as log:
        log.write(step=1)
    assert lines(tmp_path) == [{"step": 1}]
