"""Many adapters on one base model: names, changes on disk, memory, threads."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import softprompt
from cli_tools import forked, make_base, read_csv, write_rows
from serving_tools import KINDS, assert_same, make_adapters
from softprompt import PromptLibrary
from softprompt.errors import AdapterError, ConfigError, UnknownAdapterError
from softprompt.inference import library as library_module
from softprompt.inference.mixed import run_mixed
from softprompt.inference.mixed_rows import LabelRow

TEXTS = ["good service", "why is the phone awful", "thanks sir", "help"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_adapters(tmp_path_factory.mktemp("library"))


@pytest.fixture
def folders(made, tmp_path, monkeypatch):
    """Copies of the adapters, whose changes are read at once."""
    monkeypatch.setattr(library_module, "SETTLE_SECONDS", 0.0)
    shutil.copytree(f"{made[1]['front']}/..", tmp_path / "adapters")
    return tmp_path / "adapters"


def replace_prompt(folder, source):
    """Another adapter's files, under the same name."""
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


def test_every_adapter_answers_as_it_does_alone(made):
    library = PromptLibrary(made[1])
    assert library.names == sorted(KINDS)
    for name in ("front", "back", "probed", "joint"):
        alone = softprompt.load(made[1][name])
        assert_same(library.predict(TEXTS, name), alone.predict(TEXTS))


def test_names(made, tmp_path):
    """From a mapping, from the last part of a path, from a folder of adapters."""
    front, back = made[1]["front"], made[1]["back"]
    assert PromptLibrary({"a": front, "b": back}).names == ["a", "b"]
    assert PromptLibrary([front, f"{back}/"]).names == ["back", "front"]
    shutil.copytree(front, tmp_path / "x")
    (tmp_path / "not an adapter").mkdir()
    assert PromptLibrary(adapter_dir=tmp_path).names == ["x"]
    with pytest.raises(ConfigError, match="two adapters are named 'front'"):
        PromptLibrary([front, front])
    with pytest.raises(ConfigError, match="two adapters are named 'x'"):
        PromptLibrary({"x": front}, adapter_dir=tmp_path)
    with pytest.raises(ConfigError, match="is that of the base model"):
        PromptLibrary({made[0]: front})
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'y'; there are: x"):
        PromptLibrary(adapter_dir=tmp_path).get("y")


def test_without_adapters(made, tmp_path):
    assert PromptLibrary(model_name_or_path=made[0]).names == []
    with pytest.raises(ConfigError, match="no adapter to load"):
        PromptLibrary(adapter_dir=tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        PromptLibrary(adapter_dir=tmp_path / "absent")


def test_an_adapter_of_another_base_is_refused_by_name(made, tmp_path):
    other = make_base(tmp_path / "other-base")
    with pytest.raises(AdapterError, match=r"was trained on .*base, not on .*other-base"):
        PromptLibrary(made[1], model_name_or_path=other)


def test_a_changed_folder_is_read_again(folders):
    library = PromptLibrary(adapter_dir=folders)
    before = library.get("front")
    assert library.get("front") is before
    replace_prompt(folders / "front", folders / "probed")
    after = library.get("front")
    assert after is not before
    assert after.loaded.linear_probe is not None
    assert library.problems == {}


def test_a_change_that_goes_on_is_not_read(folders, monkeypatch):
    """The old version stays in use until the folder has not changed for a while."""
    library = PromptLibrary(adapter_dir=folders)
    before = library.get("front")
    monkeypatch.setattr(library_module, "SETTLE_SECONDS", 3600.0)
    replace_prompt(folders / "front", folders / "probed")
    assert library.get("front") is before
    monkeypatch.setattr(library_module, "SETTLE_SECONDS", 0.0)
    assert library.get("front") is not before


@pytest.mark.parametrize("damage", ["weights", "config", "task", "gone", "base"])
def test_a_damaged_folder_keeps_the_old_version(folders, damage):
    library = PromptLibrary(adapter_dir=folders)
    before, kept = library.get("front"), library.predict("good service", "front")
    if damage == "gone":
        shutil.rmtree(folders / "front")
    elif damage == "base":
        config = folders / "front" / "adapter_config.json"
        config.write_text(config.read_text().replace("/base", "/another"))
    else:
        name = {"weights": "adapter_model.safetensors", "config": "adapter_config.json", "task": "task.json"}[damage]
        (folders / "front" / name).write_bytes(b"damaged")
    assert library.get("front") is before
    assert list(library.problems) == ["front"]
    assert library.predict("good service", "front") == kept
    shutil.rmtree(folders / "front", ignore_errors=True)
    shutil.copytree(folders / "probed", folders / "front")
    assert library.get("front") is not before
    assert library.problems == {}


def test_a_damaged_adapter_at_the_start(folders):
    """One of a folder is reported, and read once it is mended; one that was named is an error."""
    weights = folders / "back" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:40])
    library = PromptLibrary(adapter_dir=folders)
    assert list(library.problems) == ["back"]
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        library.get("back")
    assert library.predict("help", "front")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        PromptLibrary([folders / "back"])
    weights.write_bytes(whole)
    assert library.get("back").task.labels == ("yes", "no")


def test_an_adapter_that_is_added_later(folders):
    library = PromptLibrary({"front": folders / "front"}, adapter_dir=folders.parent)
    (folders / "probed").rename(folders.parent / "new")
    assert library.names == ["front", "new"]
    assert library.get("new").loaded.linear_probe is not None


def test_adding_and_removing(made):
    library = PromptLibrary({"a": made[1]["front"]})
    library.add("b", made[1]["back"])
    assert library.names == ["a", "b"]
    with pytest.raises(AdapterError, match="no such folder"):
        library.add("c", "./absent")
    library.remove("b")
    assert library.names == ["a"]
    with pytest.raises(UnknownAdapterError):
        library.remove("b")


def test_prompts_are_prefilled_within_the_memory(made):
    """The least recently used is computed again; results are the same."""
    library = PromptLibrary(made[1])
    names = ["front", "probed", "pairs", "writer"]
    size = sum(each.nbytes for each in library.prompt(library.get("pairs")).cache.tensors)
    small = PromptLibrary(made[1], prompt_memory=2 * size)
    for name in names * 2:
        small.prompt(small.get(name))
        assert small._prompts.num_bytes <= 2 * size
    assert small.prompt(small.get("writer")) is small.prompt(small.get("writer"))
    assert_same(small.predict(TEXTS, "probed"), library.predict(TEXTS, "probed"))
    none = PromptLibrary(made[1], prompt_memory=0)
    assert_same(none.predict(TEXTS, "front"), library.predict(TEXTS, "front"))
    assert none._prompts.num_bytes == 0


def test_text_and_columns(made):
    library = PromptLibrary(made[1])
    row = {"text": "good service", "help": "thanks"}
    assert_same(library.predict(row, "pairs"), softprompt.load(made[1]["pairs"]).predict(row))
    with pytest.raises(softprompt.DataError, match="2 text columns"):
        library.predict("good", "pairs")
    with pytest.raises(softprompt.DataError, match="row 2"):
        library.predict(["good", ""], "front")


def test_several_adapters_for_one_text(made):
    library = PromptLibrary(made[1])
    found = library.predict_all("good service", ["front", "back", "joint"])
    assert list(found) == ["front", "back", "joint"]
    for name, prediction in found.items():
        assert_same(prediction, library.predict("good service", name))


def test_one_adapter_per_text(made):
    library = PromptLibrary(made[1])
    names = ["front", "joint", "back", "probed"]
    found = library.predict(TEXTS, names)
    for text, name, prediction in zip(TEXTS, names, found, strict=True):
        assert_same(prediction, library.predict(text, name))
    with pytest.raises(ConfigError, match="4 texts, but 1 adapter"):
        library.predict(TEXTS, ["front"])


def test_threads_do_not_mix_answers(made):
    """200 requests from 16 threads that alternate between adapters."""
    library = PromptLibrary(made[1])
    names = ("front", "back")
    expected = {(name, text): library.predict(text, name) for name in names for text in TEXTS}

    def ask(number):
        name, text = names[number % 2], TEXTS[number % 3]
        return (name, text), library.predict(text, name)

    with ThreadPoolExecutor(16) as threads:
        for key, answer in threads.map(ask, range(200)):
            assert_same(answer, expected[key])


def test_two_hundred_adapters(made):
    """All are loaded at once, and run in one call."""
    library = PromptLibrary({f"task {number}": made[1]["front"] for number in range(200)})
    adapters = [library.get(name) for name in library.names]
    rows = [LabelRow(library.prompt(each), each.classes, each.encode("good")) for each in adapters]
    found = torch.stack(run_mixed(library.runner, rows))
    assert len(found) == 200
    torch.testing.assert_close(found, found[:1].expand_as(found))


def test_predict_with_several_adapters(made, tmp_path):
    """A column for each adapter, named like it, in the order of the command line."""
    source = write_rows(tmp_path / "in.csv", [{"text": text, "help": "x"} for text in TEXTS])
    adapters = ["--adapter", f"one={made[1]['front']}", "--adapter", made[1]["joint"]]
    done = forked("predict", *adapters, "--input_file", source, "--output_file", str(tmp_path / "out.csv"))
    assert done.returncode == 0, done.stderr
    assert "4 rows written to" in done.stdout
    found = read_csv(tmp_path / "out.csv")
    assert list(found[0]) == ["text", "help", "one", "joint"]
    library = PromptLibrary(made[1])
    for column, name in (("one", "front"), ("joint", "joint")):
        assert [row[column] for row in found] == [each.label for each in library.predict(TEXTS, name)]


def test_predict_texts_with_several_adapters(made):
    adapters = ["--adapter", made[1]["front"], "--adapter", made[1]["back"]]
    done = forked("predict", *adapters, "--text", "good service")
    library = PromptLibrary(made[1])
    expected = [
        f"{name:<5}  {each.label}  {each.probability:.4f}"
        for name, each in library.predict_all("good service", ["front", "back"]).items()
    ]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--adapter", "{pairs}", "--input_file", "{csv}", "--output_file", "x.csv"], "reads the column 'help'"),
        (["--adapter", "text={back}", "--input_file", "{csv}", "--output_file", "x.csv"], "has a column 'text'"),
        (["--adapter", "{front}", "--text", "good"], "two adapters are named 'front'"),
        (["--adapter", "{back}", "--text", "good", "--generate"], "are for a single adapter"),
        (["--adapter", "{pairs}", "--text", "good"], "give them in --input_file"),
        (["--adapter", "gone=./gone", "--text", "good"], "no such folder"),
    ],
)
def test_wrong_input_for_several_adapters(made, tmp_path, more, message):
    source = write_rows(tmp_path / "in.csv", [{"text": "good"}])
    more = [each.format(csv=source, **made[1]) for each in more]
    done = forked("predict", "--adapter", made[1]["front"], *more, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x.csv").exists()
