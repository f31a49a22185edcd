"""``softprompt benchmark speed`` on a tiny model: implementations agree, and metrics are what they are called.

No test judges a time.
"""

import inspect
import io
import json
import subprocess
import sys

import pytest
import torch
from rich.console import Console

import cli_tools
import tiny
from softprompt import ConfigError, DataError, TrainingError
from softprompt.benchmarks.speed import peft_calls, plain_forward, softprompt_calls, suite
from softprompt.benchmarks.speed.base_models import twin
from softprompt.benchmarks.speed.catalog import DROP_IN, OURS, PEFT_BEST, PEFT_GUIDE, PREFIX, TITLES, WORKLOADS
from softprompt.benchmarks.speed.inputs import left_padded, left_padded_texts
from softprompt.benchmarks.speed.registry import make_workload
from softprompt.benchmarks.speed.roofline import Roofline, linears
from softprompt.benchmarks.speed.settings import SpeedOptions
from softprompt.benchmarks.speed.shapes import random_base
from softprompt.benchmarks.speed.summary import result_table
from softprompt.benchmarks.speed.tables import GEMMA, SMOLLM2, as_markdown
from softprompt.benchmarks.speed.timing import speeds, spread
from softprompt.benchmarks.speed.workloads.evaluation import compare_scores
from softprompt.benchmarks.speed.workloads.intents import intents
from softprompt.benchmarks.speed.workloads.training_step import compare_steps
from softprompt.cli import evaluate
from softprompt.config.options import build_options
from softprompt.engine import plans
from softprompt.types import Example

IN_ONE_PROCESS = [name for name in WORKLOADS if name != "serve"]
"""The workloads that start no servers."""

pytest.importorskip("peft")

BATCH = (Example((4, 5, 6), (7, 2)), Example((8,), (9, 10, 2)), Example((11, 12, 13, 14, 15), (2,)))
EQUALLY_LONG = (Example((4, 5, 6), (7, 2)), Example((8, 9, 10), (11, 2)))
SMALL = ("--model", "base", "--text_column", "tweet", "--max_length", "20", "--num_virtual_tokens", "4")
FEW = ("--rounds", "2", "--per_device_train_batch_size", "4", "--num_threads", "1")
LONG = {"suffix": ("--text_tokens", "40")}  # the rows' own texts are too short for it
SPEED_KEYS = {
    "rows_per_second",
    "spread",
    "workload",
    "model",
    "num_virtual_tokens",
    "rows_per_batch",
    "rounds",
    "dtype",
}
PEFT_KEYS = {
    "peft_guide_rows_per_second",
    "peft_best_rows_per_second",
    "speedup_vs_peft_guide",
    "speedup_vs_peft_best",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    cli_tools.make_base(folder / "base", words=" ".join(intents()).split())
    texts = [" ".join(cli_tools.WORDS[i % 18 : i % 18 + 3 + i % 4]) for i in range(24)]
    rows = [{"tweet": text, "label": ("yes", "no")[i % 2]} for i, text in enumerate(texts)]
    cli_tools.write_rows(folder / "train.csv", rows)
    cli_tools.write_rows(folder / "free.csv", [{"tweet": text, "label": f"a{i}"} for i, text in enumerate(texts)])
    return folder


def bench(place, *arguments, train_file="train.csv", check=False):
    """What ``softprompt benchmark speed`` prints; with ``check``, it must succeed."""
    done = cli_tools.forked("benchmark", "speed", *arguments, *SMALL, *FEW, "--train_file", train_file, cwd=place)
    assert not check or done.returncode == 0, done.stderr
    return done


def options(place, **changes):
    given = {
        "model_name_or_path": str(place / "base"),
        "train_file": str(place / "train.csv"),
        "text_column": ["tweet"],
    }
    given |= {"max_length": 20, "num_virtual_tokens": 4, "per_device_train_batch_size": 4, "num_threads": 1}
    return build_options(SpeedOptions, given | {"memory": False, "rounds": 2} | changes)


# --- the command ----------------------------------------------------------------------------------------------


def test_train(place):
    result = json.loads(bench(place, "train", "--json", check=True).stdout)
    assert result.keys() >= SPEED_KEYS | PEFT_KEYS
    assert result["workload"] == "train"
    guide = result["peft_guide_rows_per_second"]
    assert result["speedup_vs_peft_guide"] == pytest.approx(result["rows_per_second"] / guide)
    assert result["drop_in_speedup_vs_peft_guide"] == pytest.approx(result["drop_in_rows_per_second"] / guide)
    assert result["max_relative_gradient_difference"] < 1e-4
    assert result["max_relative_loss_difference"] < 1e-5
    assert result["memory_ratio"] == pytest.approx(result["peak_memory_bytes"] / result["peft_peak_memory_bytes"])
    assert result["peak_memory_bytes"] != result["peft_peak_memory_bytes"], "each in a process of its own"
    assert result["roofline_fraction"] > 0
    assert result["torch_gflops"] > 0
    assert 0 < result["plan_seconds_fraction"] < 1
    assert set(result["spread"]) == set(TITLES["train"])


@pytest.mark.parametrize("workload", ["evaluate", "tasks"])
def test_scoring(place, workload):
    result = json.loads(bench(place, workload, "--json", "--no_memory", check=True).stdout)
    assert result.keys() >= SPEED_KEYS | PEFT_KEYS
    assert result["rows_per_batch"] == (16 if workload == "evaluate" else 64)
    assert result.get("per_device_eval_batch_size") == (32 if workload == "evaluate" else None)
    assert result["max_relative_label_probability_difference"] < 1e-4
    assert result["max_relative_label_log_probability_difference"] < 1e-5
    assert result["max_label_share_difference"] < 1e-4
    assert result["predicted_labels_equal"] == result["rows_compared"] > 0
    assert "peak_memory_bytes" not in result


def test_generate(place):
    result = json.loads(bench(place, "generate", "--json", "--no_memory", check=True).stdout)
    assert result.keys() >= SPEED_KEYS | PEFT_KEYS
    assert result["rows_equal_alone"] == result["rows_compared"] == 4
    assert result["peft_guide_rows_equal_alone"] == 4, "row by row nothing is padded, and PEFT is exact"
    assert result["new_tokens"] == 10


@pytest.mark.full
def test_serve(place):
    result = json.loads(bench(place, "serve", "--concurrency", "3", "--json", check=True).stdout)
    assert result.keys() >= SPEED_KEYS | PEFT_KEYS
    assert (result["rows_per_batch"], result["concurrency"], result["num_tasks"]) == (96, 3, 8)
    assert result["max_relative_label_probability_difference"] < 1e-4
    assert result["texts_equal"] == result["texts_compared"] > 0
    for prefix in ("", "peft_guide_", "peft_best_"):
        latencies = [result[f"{prefix}latency_ms_{share}"] for share in ("p50", "p95", "p99")]
        assert 0 < latencies[0] <= latencies[1] <= latencies[2]
    assert "peak_memory_bytes" not in result
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(result_table(result))
    shown = console.export_text()
    assert [line for line in TITLES["serve"].values() if line not in shown] == []
    assert "3 requests in flight: p50" in shown
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 24, "system": "Linux", "versions": {"torch": "2"}}
    entry = {"date": "2026-01-01", "seconds": 1, "result": {**result, "model": SMOLLM2}}
    page = as_markdown({"machine": machine, "rows": "rows", "measurements": {"benchmark speed serve": entry}})
    assert "## Server" in page
    assert f"| **{result['speedup_vs_peft_guide']:.2f}x** |" in page


@pytest.mark.heavy
def test_ours_alone(place):
    given = ("--against", "none", "--text_tokens", "30", "--json")
    result = json.loads(bench(place, "train", *given, check=True).stdout)
    assert not [key for key in result if "peft" in key or "drop_in" in key]
    assert result["text_tokens"] == 30
    assert result["peak_memory_bytes"] > 0
    assert 4 * 30 <= result["unique_tokens_per_step"] <= 4 + 4 * 32
    assert result["max_relative_gradient_difference"] < 1e-4


@pytest.mark.parametrize("against", ["peft", pytest.param("none", marks=pytest.mark.heavy)])
def test_suffix(place, against):
    result = json.loads(bench(place, "suffix", "--json", *LONG["suffix"], "--against", against, check=True).stdout)
    assert result.keys() >= SPEED_KEYS
    assert not [key for key in result if "peft" in key or "drop_in" in key]
    assert result["speedup_vs_prefix"] == pytest.approx(result["rows_per_second"] / result["prefix_rows_per_second"])
    assert set(result["spread"]) == set(TITLES["suffix"])
    assert result["read_texts_seconds"] > 0
    assert result["texts_read"] == 16
    assert result["max_relative_gradient_difference"] < 1e-4
    assert result["max_relative_loss_difference"] < 1e-5
    ratio = result["peak_memory_bytes"] / result["prefix_peak_memory_bytes"]
    assert result["memory_ratio_vs_prefix"] == pytest.approx(ratio)


def test_classes(place):
    result = json.loads(bench(place, "classes", "--json", check=True).stdout)
    assert result.keys() >= SPEED_KEYS
    assert not [key for key in result if "peft" in key or "drop_in" in key]
    assert result["speedup_vs_guide"] == pytest.approx(result["rows_per_second"] / result["guide_rows_per_second"])
    assert set(result["spread"]) == set(TITLES["classes"])
    assert result["num_classes"] == 151
    assert result["max_relative_gradient_difference"] < 1e-4
    assert result["max_relative_loss_difference"] < 1e-5
    assert result["memory_ratio_vs_guide"] == pytest.approx(
        result["peak_memory_bytes"] / result["guide_peak_memory_bytes"]
    )


def test_classes_are_the_same_rows_under_both_recipes(place):
    """What is counted is what is trained: texts without the guide's words, and each label's beginnings once."""
    training = make_workload("classes", options(place))
    candidates, batch = training.classes.ids, training.batches[0]
    shared = len({candidate[:n] for candidate in candidates for n in range(1, len(candidate))})
    assert len(set(candidates)) == 151
    assert training.more(())["tokens_per_step"] <= sum(len(right.input_ids) + shared for _, right in batch)
    assert training.more(())["positions_per_step"] == len(batch) * (1 + shared)
    for left, right in batch:
        assert left.label == right.label
        assert right.label in intents()


@pytest.mark.parametrize("workload", IN_ONE_PROCESS)
def test_a_table_for_people(place, workload):
    shown = bench(place, workload, "--no_memory", *LONG.get(workload, ()), check=True).stdout
    assert [line for line in TITLES[workload].values() if line not in shown] == []
    compared_with = "alone" if workload == "generate" else "one by one"  # the reference
    assert compared_with in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trian",), "did you mean 'train'"),
        (("train", "--against", "pefft"), "did you mean 'peft'"),
        (("train", "--shape", "bloomz"), "known: bloomz-560m"),
        (("train", "--per_device_train_batch_size", "25"), "24 rows do not fill a batch of 25"),
        (("train", "--text_tokens", "61"), "context is 64 positions"),
        (("suffix",), "0 rows with a text of at least 30 tokens do not fill a batch of 4"),
        (("generate", "--rounds", "0"), "rounds"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_mistakes(place, arguments, says):
    given = ("benchmark", "speed", *arguments[:1], *SMALL, *FEW, "--train_file", "train.csv", *arguments[1:])
    done = cli_tools.forked(*given, cwd=place)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("workload", ["evaluate", "tasks"])
def test_free_targets_have_no_labels_to_score(place, workload):
    done = bench(place, workload, "--no_memory", train_file="free.csv")
    assert done.returncode == 2
    assert "targets are free text" in done.stderr


def test_peft_is_loaded_only_for_its_sides():
    code = "import sys, softprompt.benchmarks.speed.registry; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_shape():
    with pytest.raises(ConfigError, match="did you mean 'bloomz-560m'"):
        random_base("bloomz-560")


# --- the implementations --------------------------------------------------------------------------------------


def test_the_guides_batch():
    batch = left_padded(BATCH, 8, torch.device("cpu"))
    assert batch["input_ids"].tolist()[1] == [0, 0, 0, 0, 8, 9, 10, 2]
    assert batch["attention_mask"].tolist()[1] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert batch["labels"].tolist()[1] == [-100] * 5 + [9, 10, 2]
    assert left_padded(BATCH, None, torch.device("cpu"))["input_ids"].shape == (3, 6)


def test_texts_to_continue():
    batch = left_padded_texts(BATCH, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[0, 0, 4, 5, 6], [0, 0, 0, 0, 8], [11, 12, 13, 14, 15]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 1, 5]


def test_all_sides_train_the_same(place):
    """On rows of one length, where PEFT is exact too."""
    training = make_workload("train", options(place))
    found = {name: training.make_implementation(name) for name in TITLES["train"]}
    found = {name: implementation.run(implementation.prepare(EQUALLY_LONG)) for name, implementation in found.items()}
    loss, gradient = plain_forward.loss_and_gradient(training.alone, training.prompt, EQUALLY_LONG)
    for name in (PEFT_GUIDE, PEFT_BEST, DROP_IN, OURS):
        tolerance = 1e-5 if name != PEFT_GUIDE else 1e-1  # it pads, and positions shift
        assert found[name][0] == pytest.approx(loss, rel=tolerance)
        if name != PEFT_GUIDE:
            assert torch.allclose(found[name][1], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("workload", ["train", "suffix"])
def test_a_large_batch_is_packed_with_the_same_gradient(place, monkeypatch, workload):
    more = {"text_tokens": 40} if workload == "suffix" else {}
    training = make_workload(workload, options(place, per_device_train_batch_size=16, **more))
    whole = training.make_implementation(OURS).run(training.batches[0])
    monkeypatch.setitem(plans.TOKENS_PER_PACK, "cpu", 30)
    cut = training.make_implementation(OURS).run(training.batches[0])
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)
    assert torch.allclose(cut[1], whole[1], rtol=1e-3, atol=1e-6)


def test_a_prompt_behind_the_texts(place):
    """Each implementation is right about its own order, and both have the same rows; texts are read before, once."""
    training = make_workload("suffix", options(place, text_tokens=40))
    batch = training.batches[0]
    for name, suffix in ((PREFIX, False), (OURS, True)):
        loss, gradient = training.make_implementation(name).run(batch)
        right, exact = plain_forward.loss_and_gradient(training.alone, training.prompt, batch, suffix=suffix)
        assert loss == pytest.approx(right, rel=1e-5)
        assert torch.allclose(gradient, exact, rtol=1e-3, atol=1e-6)
    implementation = training.make_implementation(OURS)
    new = []
    implementation._texts.read((example.input_ids for batch in training.batches for example in batch), new.append)
    assert new == [], "a text was not cached before the clock started"


def test_long_texts_alone_are_taken(place):
    """Of training rows first, then of the others."""
    texts = [" ".join(cli_tools.WORDS[:20] * 2)[: 200 if i % 3 else 20] for i in range(12)]
    rows = [{"tweet": f"{text} {i}", "label": ("yes", "no")[i % 2]} for i, text in enumerate(texts)]
    for name in ("mixed", "validation"):
        cli_tools.write_rows(place / f"{name}.csv", rows)
    files = {
        name: str(place / file) for name, file in (("train_file", "mixed.csv"), ("validation_file", "validation.csv"))
    }
    training = make_workload("suffix", options(place, max_length=50, **files))
    assert [len(batch) for batch in training.batches] == [4] * 4, "8 long ones of each file"
    assert all(len(example.input_ids) >= 30 for batch in training.batches for example in batch)


def test_no_gradient_is_no_result():
    right = torch.ones(2, 3)
    assert compare_steps([(1.0, right)], 1.0, right, 1e-2)["max_relative_gradient_difference"] == 0
    for wrong in (right * 1.1, right * torch.nan):
        with pytest.raises(TrainingError, match="measurement is invalid"):
            compare_steps([(1.0, right), (1.0, wrong)], 1.0, right, 1e-2)


def test_evaluation_goes_through_the_guides_batches(place):
    evaluation = make_workload("evaluate", options(place))
    (turn,) = evaluation.batches
    assert turn == evaluation.inputs.examples[:16], "24 rows make one turn of four batches"
    implementation = evaluation.make_implementation(PEFT_GUIDE)
    prepared = implementation.prepare(turn)
    assert [tuple(batch["input_ids"].shape) for batch in prepared] == [(4, 20)] * 4
    assert [len(texts) for _, texts in implementation.run(prepared)] == [4] * 4
    few = make_workload("evaluate", options(place, per_device_train_batch_size=10))
    assert [len(turn) for turn in few.batches] == [20], "fewer rows, fewer batches"


def test_our_evaluation_is_that_of_the_command(place, monkeypatch):
    sizes = []
    evaluation = make_workload("evaluate", options(place, per_device_train_batch_size=6))
    real = softprompt_calls.label_log_probs
    monkeypatch.setattr(
        softprompt_calls, "label_log_probs", lambda *a, **k: (sizes.append(k["batch_size"]), real(*a, **k))[1]
    )
    implementation = evaluation.make_implementation(OURS)
    found = implementation.run(implementation.prepare(evaluation.batches[0]))
    assert sizes == [inspect.signature(evaluate.command).parameters["batch_size"].default]
    texts = [example.input_ids for example in evaluation.batches[0]]
    alone = plain_forward.label_scores(evaluation.alone, evaluation.prompt, texts, evaluation.classes.ids)
    assert torch.allclose(found, alone, atol=1e-4), "in the order of the rows"


def test_pefts_label_is_found_where_the_guide_looks(place):
    """The guide's evaluation: the loss of a row without padding is right, and there is a text for each row."""
    evaluation = make_workload("evaluate", options(place))
    implementation = evaluation.make_implementation(PEFT_BEST)
    ((loss, texts),) = implementation.run(implementation.prepare(EQUALLY_LONG))
    right, _ = plain_forward.loss_and_gradient(evaluation.alone, evaluation.prompt, EQUALLY_LONG)
    assert loss == pytest.approx(right, rel=1e-5)
    assert len(texts) == 2


def test_tasks_have_prompts_of_their_own(place):
    tasks = make_workload("tasks", options(place))
    assert len({tuple(prompt.flatten().tolist()) for prompt in tasks.prompts}) == 16
    implementation = tasks.make_implementation(PEFT_GUIDE)
    groups = implementation.prepare(tasks.batches[0])
    assert sorted(name for name, _ in groups) == sorted(f"task{i}" for i in range(16))
    assert {tuple(batch["input_ids"].shape) for _, batch in groups} == {(4, 20)}
    assert [name for name, _ in groups] != sorted(name for name, _ in groups), "the stream is mixed"
    for number in (0, 15):
        assert torch.equal(peft_calls.prompt_of(implementation._model, number), tasks.prompts[number])


def test_a_stream_is_scored_in_its_own_order(place):
    tasks = make_workload("tasks", options(place))
    stream = tasks.batches[1]
    found = tasks.make_implementation(OURS).run(stream)
    for place_in_stream in (0, 7, 63):
        task, example = stream[place_in_stream]
        alone = plain_forward.label_scores(tasks.alone, tasks.prompts[task], [example.input_ids], tasks.labels)[0]
        assert torch.allclose(found[place_in_stream], alone, atol=1e-4)


def test_wrong_scores_are_no_result():
    right = torch.tensor([[-1.0, -2.0]])
    assert compare_scores(right, right, 1e-2)["max_relative_label_probability_difference"] == 0
    for wrong in (right + 0.1, right * torch.nan):
        with pytest.raises(TrainingError, match="measurement is invalid"):
            compare_scores(wrong, right, 1e-2)


def test_texts_of_a_given_length(place):
    workload = make_workload("train", options(place, text_tokens=40))
    assert {len(example.input_ids) for batch in workload.batches for example in batch} == {40}
    starts = [example.input_ids for batch in workload.batches for example in batch]
    assert len(set(starts)) == len(starts), "equal rows would be computed once"


def test_bad_rows(place):
    with pytest.raises(DataError):
        make_workload("train", options(place, text_column=["nothing"]))


# --- one base for all -----------------------------------------------------------------------------------------


def test_a_twin_shares_weights_and_nothing_else():
    base = tiny.fresh("llama").requires_grad_(False).eval()
    other = twin(base)
    assert all(a is b for a, b in zip(base.parameters(), other.parameters(), strict=True))
    assert other.config is not base.config
    other.train()
    assert not any(module.training for module in base.modules())


# --- the bound ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt"])
def test_linear_layers_are_counted(family):
    """Their weights are what the backbone has beside embeddings, norms and biases."""
    base = tiny.base(family)
    counted = sum(weight.numel() for weight in linears(base))
    embeddings = {id(m.weight) for m in base.modules() if isinstance(m, torch.nn.Embedding)}
    matrices = [w for w in base.base_model.parameters() if w.ndim == 2 and id(w) not in embeddings]
    assert counted == sum(weight.numel() for weight in matrices)


def test_the_bound_counts_each_token_once():
    base = tiny.base("llama")
    size = softprompt_calls.size_of(BATCH, 5)
    assert size.tokens == 5 + 5 + 4 + 6
    assert size.supervised == 6
    assert size.pairs == 15 + (25 + 15) + (20 + 10) + (30 + 21)
    bound = Roofline(base, [size])
    bound.measure()
    figures = bound.figures([bound.figures([1.0])["roofline_seconds"] * 2])
    per_token = sum(weight.numel() for weight in linears(base))
    expected = 4 * (size.tokens * per_token + size.supervised * base.get_output_embeddings().weight.numel())
    assert figures["gflop_per_step"] * 1e9 == pytest.approx(expected)
    assert figures["roofline_fraction"] == pytest.approx(0.5)
    assert figures["roofline_fraction"] <= figures["torch_roofline_fraction"] + 1e-12


# --- figures --------------------------------------------------------------------------------------------------


def test_speeds():
    found = speeds(8, {PEFT_GUIDE: [4.0, 2.0, 8.0], PEFT_BEST: [2.0], DROP_IN: [1.0], OURS: [0.5, 1.0, 0.25]})
    assert found["rows_per_second"] == 16
    assert found["peft_guide_rows_per_second"] == 2
    assert found["speedup_vs_peft_guide"] == 8
    assert found["speedup_vs_peft_best"] == 4
    assert found["drop_in_speedup_vs_peft_guide"] == 4
    assert speeds(8, {OURS: [1.0]}) == {"rows_per_second": 8, "spread": {OURS: 0}}
    found = speeds(8, {PREFIX: [4.0], OURS: [1.0]})
    assert (found["prefix_rows_per_second"], found["speedup_vs_prefix"]) == (2, 4)


def test_spread():
    assert spread([1.0, 1.0, 1.0, 1.0]) == 0
    assert spread([1.0, 3.0]) == 0.5
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(0.5)


# --- make bench -----------------------------------------------------------------------------------------------


def measurements(place):
    common = (*SMALL, *FEW, "--train_file", "train.csv")
    found = [
        suite.Measurement(SMOLLM2, (workload, *common, *LONG.get(workload, ()), "--no_memory"))
        for workload in IN_ONE_PROCESS[1:]
    ]
    scale = ("--against", "none", "--text_tokens", "30")
    return [
        suite.Measurement(SMOLLM2, ("train", *common)),
        *found,
        suite.Measurement(SMOLLM2, ("train", *common, *scale)),
    ]


@pytest.fixture
def forked_measurements(place, monkeypatch):
    """``report`` measures in processes that are forked: in half the time."""

    def run(measurement, rows):
        done = cli_tools.forked(*suite.command_of(measurement, rows), cwd=place)
        return {**json.loads(done.stdout), "model": measurement.model}

    monkeypatch.chdir(place)
    monkeypatch.setattr(suite, "run", run)


def announced(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if ": softprompt benchmark speed " in line]


def test_a_report_is_resumed(place, forked_measurements, capsys):
    """What is there is not measured again."""
    plan = [each for each in measurements(place) if each.arguments[0] in ("evaluate", "generate")]
    folder = place / "resumed"
    assert suite.measure_missing(plan, suite.Rows(), folder, only=["evaluate"]) == 0
    first = json.loads((folder / "results.json").read_text())["measurements"]
    assert len(first) == len(announced(capsys)) == 1
    assert suite.measure_missing(plan, suite.Rows(), folder) == 0
    assert len(announced(capsys)) == 1
    stored = json.loads((folder / "results.json").read_text())["measurements"]
    assert len(stored) == 2
    assert first.items() <= stored.items()


@pytest.mark.heavy
def test_a_whole_report(place, forked_measurements, capsys):
    plan, folder = measurements(place), place / "benchmarks"
    assert suite.measure_missing(plan, suite.Rows(), folder) == 0
    assert len(announced(capsys)) == 7
    stored = json.loads((folder / "results.json").read_text())
    assert len(stored["measurements"]) == 7
    assert stored["machine"]["cores"] > 0
    page = (folder / "results.md").read_text()
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert len(titles) == 11
    assert str(place) not in page
    (folder / "notes.md").write_text("## What stands in the way\n\nNothing.\n")
    assert suite.main(["--page", "--folder", str(folder)]) == 0
    assert "What stands in the way" in (folder / "results.md").read_text()


def test_a_failure_is_reported_and_the_rest_goes_on(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    wrong = suite.Measurement(SMOLLM2, ("train", "--model", "nowhere/at/all"))
    right = suite.Measurement(SMOLLM2, ("generate", *SMALL, *FEW, "--train_file", "train.csv", "--no_memory"))
    folder = place / "failing"
    assert suite.measure_missing([wrong, right], suite.Rows(), folder) == 1
    assert "failed: softprompt: the base model nowhere/at/all does not exist" in capsys.readouterr().out
    assert len(json.loads((folder / "results.json").read_text())["measurements"]) == 1


def test_results_of_version_0_1_are_kept(tmp_path):
    """``results.json`` with the command and key names of version 0.1."""
    command = "train --model m --num_virtual_tokens 8 --json"
    result = {"subject": "train", "gemm_bound_fraction": 0.5, "torch_gemm_bound_fraction": 0.7, "bound_seconds": 2.0}
    stored = {"machine": suite.machine(), "rows": "rows", "measurements": {f"bench {command}": {"result": result}}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(stored))
    (found,) = suite.reusable(path, suite.machine()).items()
    assert found[0] == f"benchmark speed {command}"
    assert found[1]["result"] == {
        "workload": "train",
        "roofline_fraction": 0.5,
        "torch_roofline_fraction": 0.7,
        "roofline_seconds": 2.0,
    }


def test_results_of_another_machine_are_not_kept(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"machine": {"cpu": "another"}, "measurements": {"a": {}}}))
    assert suite.reusable(path, suite.machine()) == {}
    assert "another machine" in capsys.readouterr().out


def test_the_plan(tmp_path):
    gguf = tmp_path / "models" / "gemma.gguf"
    gguf.parent.mkdir()
    gguf.touch()
    with_gemma, without = suite.all_measurements(str(gguf)), suite.all_measurements(None)
    train, evaluate, ours_and_tasks, smaller_things = 2 * 2, 2, 3 + len(suite.IN_FLIGHT), 2
    assert len(without) == train + evaluate + ours_and_tasks + len(suite.SCALES) + smaller_things
    suffix = [each for each in with_gemma if "suffix" in each.arguments]
    assert [each.model for each in suffix] == [SMOLLM2, GEMMA]
    assert all("8" in each.arguments for each in suffix)
    assert {each.model for each in with_gemma} - {each.model for each in without} == {GEMMA}
    commands = [suite.display(suite.command_of(each, suite.Rows())) for each in with_gemma]
    assert len(set(commands)) == len(commands)
    assert not [command for command in commands if str(tmp_path) in command]
    assert [command for command in commands if "models/gemma.gguf" in command]


def test_a_page_of_what_there_is():
    """A result that is missing leaves its table out, and the page stands."""
    machine = {"cpu": "a CPU", "cores": 2, "memory_gib": 24, "system": "Linux", "versions": {"torch": "2"}}
    result = {"workload": "train", "model": SMOLLM2, "num_virtual_tokens": 8, "num_threads": 2, "dtype": "float32"}
    entry = {"date": "2026-01-01", "seconds": 1, "result": result}
    page = as_markdown({"machine": machine, "rows": "rows", "measurements": {"benchmark speed train": entry}})
    assert "a CPU, 2 cores, 24 GiB" in page
    assert "softprompt benchmark speed train" in page
