"""Adapter folders: saving, loading, going on training, and files that a stranger may have sent."""

import json
import os
import shutil
from unittest import mock

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

import tiny
from softprompt import (
    AdapterError,
    AdapterMismatchError,
    AutoPeftModelForCausalLM,
    ConfigError,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    PromptTuningConfig,
    SoftPromptError,
    get_peft_model,
)
from softprompt.data.task import Task
from softprompt.inference.adapter_files import fetch_adapter
from softprompt.storage.record import Metrics

P = 5
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def config(**more):
    return PromptTuningConfig(**{"task_type": "CAUSAL_LM", "num_virtual_tokens": P, **more})


def make(**more):
    return get_peft_model(tiny.fresh("llama"), config(**more))


def load(folder, family="llama", **more):
    return PeftModel.from_pretrained(tiny.fresh(family), folder, **more)


def inputs():
    input_ids = torch.stack(tiny.ids(8, 8))
    return {"input_ids": input_ids, "labels": input_ids}


@pytest.fixture
def folder(tmp_path):
    """A sound adapter to damage."""
    make().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, **changes):
    values = json.loads((folder / CONFIG).read_text())
    values.update(changes)
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.PEFT_FAMILIES)
def test_save_and_load(family, tmp_path):
    model = get_peft_model(tiny.fresh(family), config())
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", CONFIG, WEIGHTS]
    read = load(tmp_path, family)
    assert type(read) is PeftModelForCausalLM
    assert list(read.state_dict()) == list(model.state_dict())
    assert all(torch.equal(value, read.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(read(**inputs()).logits, model(**inputs()).logits)


def test_saving_does_not_change_the_model(tmp_path):
    model = make()
    before = model.peft_config["default"].to_dict()
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].to_dict() == before
    assert model.prompt.requires_grad
    assert json.loads((tmp_path / CONFIG).read_text())["inference_mode"] is True


def test_loaded_prompts_are_frozen(folder):
    """PEFT leaves them trainable by mistake."""
    model = load(folder)
    assert model.peft_config["default"].inference_mode is True
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert model.get_nb_trainable_parameters()[0] == 0


def test_training_goes_on_where_it_stopped(tmp_path):
    """PEFT refuses is_trainable=True for prompts."""
    model = make()
    optimizer = torch.optim.SGD([model.prompt], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs()).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    again = load(tmp_path, is_trainable=True)
    assert again.peft_config["default"].inference_mode is False
    assert [name for name, p in again.named_parameters() if p.requires_grad] == [
        "prompt_encoder.default.embedding.weight"
    ]
    optimizer.zero_grad()
    losses = []
    for each in (model, again):
        loss = each(**inputs()).loss
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    assert torch.equal(model.prompt.grad, again.prompt.grad)
    again.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / CONFIG).read_text())["inference_mode"] is True


def test_config_given_is_used_by_identity(folder):
    given = config()
    model = load(folder, config=given)
    assert model.peft_config["default"] is given
    assert given.inference_mode is True
    read = PeftConfig.from_pretrained(folder)
    assert read.inference_mode is True
    with pytest.raises(ValueError, match="config must be a PeftConfig, not dict"):
        load(folder, config={"num_virtual_tokens": P})


def test_loading_never_loads_a_tokenizer(tmp_path, tokenizer_dir):
    make(prompt_tuning_init="TEXT", prompt_tuning_init_text="w7", tokenizer_name_or_path=tokenizer_dir).save_pretrained(
        tmp_path
    )
    edit(tmp_path, tokenizer_name_or_path="nowhere/at-all", inference_mode=False)
    with mock.patch("transformers.AutoTokenizer.from_pretrained") as loader:
        load(tmp_path, is_trainable=True)
    loader.assert_not_called()


def test_loading_draws_no_start(folder):
    """A file that asks for SAMPLE_VOCAB is not started anew, whatever it says of inference."""
    edit(folder, prompt_tuning_init="SAMPLE_VOCAB", inference_mode=False)
    with mock.patch("softprompt.peft.initialization.sample_vocab") as draw:
        model = load(folder, is_trainable=True)
    draw.assert_not_called()
    assert torch.equal(model.prompt, load_file(folder / WEIGHTS)["prompt_embeddings"])


# -- several adapters ------------------------------------------------------------------------------


def test_selected_adapters_in_their_folders(tmp_path):
    model = make()
    model.add_adapter("more", config(num_virtual_tokens=3))
    model.save_pretrained(tmp_path / "all")
    assert sorted(os.listdir(tmp_path / "all")) == ["README.md", CONFIG, WEIGHTS, "more"]
    assert sorted(os.listdir(tmp_path / "all" / "more")) == [CONFIG, WEIGHTS]
    model.save_pretrained(tmp_path / "one", selected_adapters=["more"])
    assert set(os.listdir(tmp_path / "one")) - {"README.md"} == {"more"}
    model.save_pretrained(tmp_path / "default", selected_adapters=["default"])
    assert sorted(os.listdir(tmp_path / "default")) == ["README.md", CONFIG, WEIGHTS]
    for place in (tmp_path / "all" / "more", tmp_path / "one" / "more"):
        assert torch.equal(load(place, adapter_name="more").prompt, model.prompt_of("more"))
    assert torch.equal(load(tmp_path / "all", subfolder="more").prompt, model.prompt_of("more"))


def test_load_adapter_under_a_new_name(tmp_path):
    other = make(num_virtual_tokens=3)
    other.save_pretrained(tmp_path)
    model = make()
    result = model.load_adapter(tmp_path, "more")
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert model.active_adapter == "default"
    assert model.prompt.requires_grad
    assert not model.prompt_of("more").requires_grad
    model.set_adapter("more")
    assert not model.prompt.requires_grad, "loaded frozen, and stays so"
    assert torch.equal(model(**inputs()).logits, other(**inputs()).logits)
    model.load_adapter(tmp_path, "third", is_trainable=True)
    model.set_adapter("third")
    assert model.prompt.requires_grad


def test_load_adapter_into_an_existing_one(folder):
    """Trainer resumes like this."""
    model = make()
    parameter = model.prompt
    model.load_adapter(folder, "default", is_trainable=True)
    assert model.prompt is parameter
    assert parameter.requires_grad
    assert torch.equal(parameter, load_file(folder / WEIGHTS)["prompt_embeddings"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        make(num_virtual_tokens=3).load_adapter(folder, "default")


def test_a_failed_load_leaves_the_model_as_it_was(folder):
    model = make()
    before = model.prompt.clone()
    save_file({"prompt_embeddings": torch.full((P, tiny.WIDTH), torch.nan)}, folder / WEIGHTS)
    for name in ("more", "default"):
        with pytest.raises(AdapterError):
            model.load_adapter(folder, name)
    assert list(model.peft_config) == list(model.prompt_encoder) == ["default"]
    assert torch.equal(model.prompt, before)


# -- refusals on saving ----------------------------------------------------------------------------


def test_saving_refusals(tmp_path):
    model = make()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match="no adapter is called 'nobody'"):
        model.save_pretrained(tmp_path / "new", selected_adapters=["nobody"])
    with pytest.raises(ConfigError, match="safe_serialization=False would write a pickle"):
        model.save_pretrained(tmp_path / "new", safe_serialization=False)
    model.save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "file").read_text() == "mine"


def test_saving_over_an_older_adapter(tmp_path):
    """Files that are not ours stay, a reader's changes to the card too."""
    make().save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = make(num_virtual_tokens=3)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert torch.equal(load(tmp_path).prompt, model.prompt)
    assert sorted(os.listdir(tmp_path)) == ["README.md", CONFIG, WEIGHTS, "notes.txt"]


@pytest.mark.parametrize("name", ["base-of-the-card", "/somewhere/on/disk"])
def test_card_names_library_and_base(tmp_path, name):
    base = tiny.fresh("llama")
    base.name_or_path = base.config.name_or_path = name
    get_peft_model(base, config()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == name
    text = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in text


# -- hostile and foreign folders -------------------------------------------------------------------


def test_a_pickle_is_refused(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "adapter_model.bin")
    with mock.patch("torch.load") as reader, pytest.raises(AdapterError, match=r"adapter_model\.bin, a pickle"):
        load(folder)
    reader.assert_not_called()


def test_a_pickle_beside_safetensors_is_never_opened(folder):
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load(folder).prompt.isfinite().all()


TENSORS = {
    "nan": ({"prompt_embeddings": torch.full((P, tiny.WIDTH), torch.nan)}, "NaN"),
    "inf": ({"prompt_embeddings": torch.full((P, tiny.WIDTH), torch.inf)}, "NaN or infinite"),
    "one-nan": (
        {"prompt_embeddings": torch.zeros(P, tiny.WIDTH).index_fill(0, torch.tensor([3]), torch.nan)},
        "NaN",
    ),
    "other-name": ({"lora_A": torch.zeros(P, tiny.WIDTH)}, "has no tensor 'prompt_embeddings'"),
    "empty": ({}, "has no tensor"),
    "vector": ({"prompt_embeddings": torch.zeros(P * tiny.WIDTH)}, "must be a matrix"),
    "cube": ({"prompt_embeddings": torch.zeros(1, P, tiny.WIDTH)}, "must be a matrix"),
    "integers": ({"prompt_embeddings": torch.zeros(P, tiny.WIDTH, dtype=torch.int64)}, "must be a matrix of floats"),
    "rows": ({"prompt_embeddings": torch.zeros(P + 1, tiny.WIDTH)}, "size mismatch"),
    "no-rows": ({"prompt_embeddings": torch.zeros(0, tiny.WIDTH)}, "size mismatch"),
    "width": ({"prompt_embeddings": torch.zeros(P, 16)}, "virtual tokens have size 16"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_cannot_be(case, folder):
    tensors, fragment = TENSORS[case]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=fragment):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"not safetensors at all"], ids=len)
def test_damaged_weights(content, folder):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(AdapterError, match="not a valid safetensors file"):
        load(folder)


def test_truncated_weights(folder):
    whole = (folder / WEIGHTS).read_bytes()
    for keep in (5, 60, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:keep])
        with pytest.raises(AdapterError, match="not a valid safetensors file"):
            load(folder)


def test_oversized_weights(folder, monkeypatch):
    monkeypatch.setattr("softprompt.storage.adapter.MAX_PROMPT_BYTES", 100)
    with pytest.raises(AdapterError, match="at most 100"):
        load(folder)


def test_extra_tensors_are_left_alone(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "base_model.other.weight": torch.zeros(3)}, folder / WEIGHTS)
    assert torch.equal(load(folder).prompt, weights["prompt_embeddings"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_number_types_become_float32(dtype, folder):
    weights = load_file(folder / WEIGHTS)["prompt_embeddings"].to(dtype)
    save_file({"prompt_embeddings": weights}, folder / WEIGHTS)
    model = load(folder)
    assert model.prompt.dtype == torch.float32
    assert torch.equal(model.prompt, weights.float())


@pytest.mark.parametrize(
    ("changes", "error", "fragment"),
    [
        ({"token_dim": 16}, AdapterMismatchError, "embedding size 16, this one has 32"),
        ({"num_layers": 3}, AdapterMismatchError, "layers 3, this one has 2"),
        ({"num_attention_heads": 8}, AdapterMismatchError, "attention heads 8, this one has 4"),
        ({"num_virtual_tokens": 6}, AdapterMismatchError, "says 6 virtual tokens"),
        ({"modules_to_save": ["lm_head"]}, AdapterError, "modules_to_save"),
        ({"task_type": "SEQ_CLS"}, AdapterError, "task_type SEQ_CLS is not supported"),
        ({"num_transformer_submodules": 2}, AdapterError, "num_transformer_submodules 2"),
        ({"peft_type": "LORA"}, ConfigError, "is a LORA adapter"),
        ({"peft_type": "PREFIX_TUNING"}, KeyError, "PREFIX_TUNING"),
        ({"num_virtual_tokens": 0}, ConfigError, "at least 1"),
        ({"num_virtual_tokens": "many"}, ConfigError, "'many'"),
        ({"prompt_tuning_init": "FOO"}, ConfigError, "'FOO'"),
        ({"task_type": "FOO"}, ConfigError, "Invalid task type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_configs_that_cannot_be_loaded(changes, error, fragment, folder):
    edit(folder, **changes)
    with pytest.raises(error, match=fragment) as caught:
        load(folder)
    assert isinstance(caught.value, ValueError)
    if error is AdapterMismatchError:
        assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("family", ["opt350"])
def test_wrong_base_is_refused_though_the_config_says_nothing(family, folder):
    """PEFT loads it without a word and fails at the first forward."""
    edit(folder, token_dim=..., num_layers=..., num_attention_heads=...)
    with pytest.raises(AdapterMismatchError, match="size 32, the base model's embeddings have size 16"):
        load(folder, family)


def test_missing_number_of_virtual_tokens(folder):
    edit(folder, num_virtual_tokens=...)
    with pytest.raises(AdapterError):
        load(folder)


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG])
def test_missing_files_are_named(missing, folder):
    (folder / missing).unlink()
    with pytest.raises(AdapterError, match=f"Can't find '{missing}'"):
        load(folder)


def test_missing_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in (tmp_path / "none", "./none", "owner/none"):
        with pytest.raises(AdapterError, match=r"Can't find 'adapter_config\.json'"):
            load(where)


def test_subfolder_of_a_folder(folder):
    inner = folder / "inner"
    inner.mkdir()
    shutil.copy(folder / CONFIG, inner)
    shutil.copy(folder / WEIGHTS, inner)
    assert torch.equal(load(folder, subfolder="inner").prompt, load(folder).prompt)
    with pytest.raises(AdapterError, match="Can't find"):
        load(folder, subfolder="other")


# -- base and adapter together ---------------------------------------------------------------------


def test_auto_class(tmp_path):
    base = tiny.fresh("llama")
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, config())
    model.save_pretrained(tmp_path / "adapter")
    read = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert type(read) is PeftModelForCausalLM
    assert read.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    assert torch.equal(read(**inputs()).logits, model(**inputs()).logits)
    half = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", is_trainable=True, dtype=torch.bfloat16)
    assert half.base_model.dtype == torch.bfloat16
    assert half.prompt.dtype == torch.float32
    assert half.prompt.requires_grad


def test_auto_class_needs_to_know_the_base(folder):
    with pytest.raises(AdapterMismatchError, match="does not name its base model"):
        AutoPeftModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_a_float8_prompt_is_read(name, folder):
    save_file({"prompt_embeddings": torch.ones(P, tiny.WIDTH).to(getattr(torch, name))}, folder / WEIGHTS)
    assert torch.equal(load(folder).prompt.float(), torch.ones(P, tiny.WIDTH))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_model_name_or_path", 5),
        ("base_model_name_or_path", ["a"]),
        ("revision", {"a": 1}),
        ("peft_type", ["PROMPT_TUNING"]),
        ("tokenizer_name_or_path", True),
        ("token_dim", "32"),
        ("num_layers", 2.5),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(name, value, folder):
    edit(folder, **{name: value})
    wrong = rf"{CONFIG} is damaged: {name}: input should be a valid (string|integer)"
    with pytest.raises(ConfigError, match=f"{wrong}.*, not "):
        load(folder)


def test_a_huge_number_is_one_clear_error(folder):
    (folder / CONFIG).write_text('{"num_virtual_tokens": ' + "1" * 5000 + "}")
    with pytest.raises(SoftPromptError, match="is not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"labels": "ab"}, {"text_columns": "ab"}, {"labels": [1]}, {"labels": {"a": 1}}, {"text_columns": []},
     {"label_column": None}, {"max_length": True}],
)  # fmt: skip
def test_a_task_of_the_wrong_kind_is_refused(changes, tmp_path):
    values = {"text_columns": ["text"], "label_column": "label", "template": "{text}", "labels": ["a", "b"]}
    (tmp_path / "task.json").write_text(json.dumps(values))
    assert Task.read(tmp_path / "task.json").labels == ("a", "b")
    (tmp_path / "task.json").write_text(json.dumps(values | changes))
    with pytest.raises(AdapterError, match="damaged"):
        Task.read(tmp_path / "task.json")


def hub_error(kind, status):
    reply = mock.Mock(status_code=status, headers={})
    return kind(f"{status} for this\n\nreply", response=reply)


@pytest.mark.parametrize(
    ("error", "says"),
    [(lambda: hub_error(errors.GatedRepoError, 403), "gated; ask for access at .*a/b and log in"),
     (lambda: hub_error(errors.HfHubHTTPError, 503), "the download from the Hub failed: 503 for this reply"),
     (lambda: hub_error(errors.RepositoryNotFoundError, 404), "neither a folder here nor")],
    ids=["gated", "5xx", "unknown"],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_told_in_a_line(error, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", mock.Mock(side_effect=error()))
    with pytest.raises(AdapterError, match=says) as caught:
        fetch_adapter("a/b")
    assert "\n" not in str(caught.value)


def test_a_name_that_cannot_be_one_is_told_in_a_line():
    with pytest.raises(AdapterError, match="'a b/c' is neither a folder here nor a name that the Hub allows") as caught:
        fetch_adapter("a b/c")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics.json", '{"baselines": 0.5}'), ("trainer_state.json", "[]"), ("task.json", "{}"),
     ("train_config.yaml", "- a list"), ("train_metrics.json", "{")],
)  # fmt: skip
def test_foreign_files_do_not_cost_the_adapter(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.warns(UserWarning, match=f"the card leaves out {name}: "):
        make().save_pretrained(tmp_path)
    assert {"README.md", CONFIG, WEIGHTS} <= set(os.listdir(tmp_path))
    assert (tmp_path / name).read_text() == text


def test_a_readme_that_cannot_be_written_does_not_cost_the_adapter(tmp_path):
    (tmp_path / "README.md").mkdir()
    with pytest.warns(UserWarning, match="README.md was not written"):
        make().save_pretrained(tmp_path)
    assert {CONFIG, WEIGHTS} <= set(os.listdir(tmp_path))


def test_the_matrix_of_many_labels_is_on_the_card(tmp_path):
    """600 labels make a metrics.json of more than a mebibyte."""
    count = 600
    matrix = tuple(tuple(1000 * (i == j) for j in range(count)) for i in range(count))
    labels = tuple(f"label {i}" for i in range(count))
    Metrics(num_examples=count, accuracy=0.75, labels=labels, confusion_matrix=matrix).save(tmp_path)
    assert (tmp_path / "metrics.json").stat().st_size > 1 << 20
    make().save_pretrained(tmp_path)
    assert "**0.750**" in (tmp_path / "README.md").read_text()
