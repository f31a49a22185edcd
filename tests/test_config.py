"""The adapter config: PEFT's fields and file format, and our refusals. PEFT's own config tests, met in substance."""

import copy
import json
import pickle
import re
import warnings

import pytest

from softprompt import (
    ConfigError,
    PeftConfig,
    PeftType,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
    TaskType,
    get_peft_config,
)
from softprompt.config.adapter_config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfigMixin

TEXT = {
    "prompt_tuning_init": "TEXT",
    "prompt_tuning_init_text": "w5 w6",
    "tokenizer_name_or_path": "somewhere",
    "tokenizer_kwargs": {"use_fast": True},
}
FIELDS = [
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
    "modules_to_save",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
]


def full():
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **TEXT)


def write(folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


# -- construction ----------------------------------------------------------------------------------


def test_fields_stand_in_pefts_order_with_its_defaults():
    config = PromptTuningConfig()
    values = config.to_dict()
    assert list(values) == FIELDS
    assert values.pop("peft_version").startswith("0.")
    given = {key: value for key, value in values.items() if value is not None}
    assert given == {
        "peft_type": PeftType.PROMPT_TUNING,
        "inference_mode": False,
        "prompt_tuning_init": PromptTuningInit.RANDOM,
    }
    assert PromptTuningConfig("CAUSAL_LM").task_type == "CAUSAL_LM"


def test_defaults_and_order_are_pefts():
    peft = pytest.importorskip("peft")
    theirs, ours = peft.PromptTuningConfig().to_dict(), PromptTuningConfig().to_dict()
    del theirs["peft_version"], ours["peft_version"]
    assert list(theirs.items()) == list(ours.items())


def test_classes_and_properties():
    assert PromptTuningConfig.__mro__[1:4] == (PromptLearningConfig, PeftConfig, PeftConfigMixin)
    assert PromptTuningConfig().is_prompt_learning
    assert not PeftConfig().is_prompt_learning
    assert not PromptTuningConfig().is_adaption_prompt
    assert PEFT_TYPE_TO_CONFIG_MAPPING["PROMPT_TUNING"] is PromptTuningConfig
    assert {init.value for init in PromptTuningInit} == {"TEXT", "SAMPLE_VOCAB", "RANDOM"}
    assert PeftType.PROMPT_TUNING == "PROMPT_TUNING"


@pytest.mark.parametrize("task", [*[task.value for task in TaskType], None])
def test_valid_task_types(task):
    assert PromptTuningConfig(task_type=task).task_type == task


def test_invalid_task_type():
    expected = (
        "Invalid task type: 'invalid-task'. Must be one of the following task types: "
        "SEQ_CLS, SEQ_2_SEQ_LM, CAUSAL_LM, TOKEN_CLS, QUESTION_ANS, FEATURE_EXTRACTION."
    )
    with pytest.raises(ValueError, match="Invalid task type") as caught:
        PromptTuningConfig(task_type="invalid-task")
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x"}, "tokenizer_name_or_path can't be None"),
        (
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x", "tokenizer_name_or_path": ""},
            "When prompt_tuning_init='TEXT', tokenizer_name_or_path can't be",
        ),
        (
            {"prompt_tuning_init": PromptTuningInit.TEXT, "tokenizer_name_or_path": "x"},
            "When prompt_tuning_init='TEXT', prompt_tuning_init_text can't be None",
        ),
        ({"prompt_tuning_init": "TEXT"}, "tokenizer_name_or_path can't be None"),
        ({"tokenizer_kwargs": {"a": 1}}, "tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'."),
        (
            {"tokenizer_kwargs": {"a": 1}, "prompt_tuning_init": "SAMPLE_VOCAB"},
            "tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'.",
        ),
        ({"prompt_tuning_init": "FOO"}, "'FOO'"),
        ({"prompt_tuning_init": "text"}, "'text'"),
        ({"num_virtual_tokens": 0}, "at least 1, not 0"),
        ({"num_virtual_tokens": -3}, "at least 1, not -3"),
        ({"num_virtual_tokens": 2.5}, "2.5"),
        ({"num_virtual_tokens": "8"}, "'8'"),
        ({"num_virtual_tokens": True}, "True"),
    ],
)
def test_values_that_cannot_work_are_refused(values, fragment):
    with pytest.raises(ValueError, match=re.escape(fragment)) as caught:
        PromptTuningConfig(**values)
    assert isinstance(caught.value, ConfigError)


def test_values_that_can_work_are_not():
    assert PromptTuningConfig(tokenizer_kwargs={}).tokenizer_kwargs == {}
    assert PromptTuningConfig(**{**TEXT, "prompt_tuning_init_text": ""}).prompt_tuning_init_text == ""
    assert PromptTuningConfig(tokenizer_name_or_path="x").tokenizer_name_or_path == "x"
    with pytest.raises(TypeError, match="no_such_field"):
        PromptTuningConfig(no_such_field=1)


# -- round trips -----------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    config = full()
    config.save_pretrained(tmp_path / "new" / "folder")
    read = PromptTuningConfig.from_pretrained(tmp_path / "new" / "folder")
    assert read == config
    assert read.to_dict() == config.to_dict()
    assert type(read) is PromptTuningConfig
    assert read.peft_type is PeftType.PROMPT_TUNING
    assert type(read.task_type) is str
    text = (tmp_path / "new" / "folder" / "adapter_config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True), (
        "indented by 2, sorted, no newline at the end"
    )
    assert json.loads(text) == {**config.to_dict(), "peft_type": "PROMPT_TUNING"}


def test_enum_members_and_sets_are_written_as_plain_json(tmp_path):
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4, modules_to_save={"b", "a"})
    config.save_pretrained(tmp_path, auto_mapping_dict={"base_model_class": "X"})
    values = PeftConfig.from_json_file(tmp_path / "adapter_config.json")
    assert type(values) is dict
    assert (values["task_type"], values["modules_to_save"]) == ("CAUSAL_LM", ["a", "b"])
    assert values["auto_mapping"] == {"base_model_class": "X"}
    assert config.auto_mapping is None


def test_saving_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AssertionError, match="is a file"):
        full().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_to_dict_is_a_deep_copy():
    config = full()
    config.to_dict()["tokenizer_kwargs"]["use_fast"] = False
    assert config.tokenizer_kwargs == {"use_fast": True}
    assert full().to_dict() == config.to_dict()


def test_attributes_set_later_are_kept(tmp_path):
    config = full()
    config.peft_type = "test"
    config.num_virtual_tokens = 9
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "test"
    assert config.to_dict()["num_virtual_tokens"] == 9


@pytest.mark.parametrize("backend", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies(backend):
    config = full()
    twin = backend(config)
    assert twin == config
    assert twin is not config
    if backend is not copy.copy:
        assert twin.tokenizer_kwargs is not config.tokenizer_kwargs


# -- loading ---------------------------------------------------------------------------------------


def test_the_file_wins_over_keyword_arguments(tmp_path):
    write(tmp_path, peft_type="PROMPT_TUNING", num_virtual_tokens=7)
    read = PromptTuningConfig.from_pretrained(tmp_path, num_virtual_tokens=99, token_dim=5, nonsense=1)
    assert (read.num_virtual_tokens, read.token_dim) == (7, 5)


def test_subfolder(tmp_path):
    write(tmp_path / "inner", peft_type="PROMPT_TUNING", num_virtual_tokens=7)
    assert PeftConfig.from_pretrained(tmp_path, subfolder="inner").num_virtual_tokens == 7


@pytest.mark.parametrize("loader", [PeftConfig, PromptTuningConfig])
def test_forward_compatible(tmp_path, loader):
    write(tmp_path, peft_type="PROMPT_TUNING", num_virtual_tokens=7, foobar=1, spam={"eggs": 2})
    with pytest.warns(UserWarning, match="Unexpected keyword") as caught:
        read = loader.from_pretrained(tmp_path)
    (warning,) = caught
    start = "Unexpected keyword arguments ['foobar', 'spam'] for class PromptTuningConfig, these are ignored."
    assert str(warning.message).startswith(start)
    assert read.num_virtual_tokens == 7
    assert not hasattr(read, "foobar")


def test_known_keys_do_not_warn(tmp_path):
    full().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", [PeftConfig, PromptTuningConfig])
def test_missing_type_and_unknown_keys(tmp_path, loader):
    """Sanity check: such a file may be anything, so it is not loaded with its keys dropped."""
    write(tmp_path, num_virtual_tokens=7, foobar=1)
    fragment = (
        f"The {loader.__name__} config that is trying to be loaded is missing required keys: \\{{'peft_type'\\}}."
    )
    with pytest.raises(TypeError, match=fragment):
        loader.from_pretrained(tmp_path)


def test_missing_type_alone(tmp_path):
    write(tmp_path, task_type="CAUSAL_LM", num_virtual_tokens=7)
    assert PromptTuningConfig.from_pretrained(tmp_path).num_virtual_tokens == 7
    with pytest.raises(TypeError, match=r"missing required keys: \{'peft_type'\}"):
        PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["LORA", "nonsense"])
def test_unknown_type_is_a_key_error_with_a_readable_line(tmp_path, kind):
    write(tmp_path, peft_type=kind)
    with pytest.raises(KeyError) as caught:
        PeftConfig.from_pretrained(tmp_path)
    assert isinstance(caught.value, ConfigError)
    assert str(caught.value).startswith(f"{tmp_path} is a {kind} adapter; softprompt supports PROMPT_TUNING and ")
    with pytest.raises(KeyError):
        get_peft_config({"peft_type": kind})


def test_get_peft_config():
    config = get_peft_config({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "task_type": "CAUSAL_LM"})
    assert type(config) is PromptTuningConfig
    assert config.num_virtual_tokens == 3
    assert get_peft_config({"peft_type": PeftType.PROMPT_TUNING}).num_virtual_tokens is None
    with pytest.raises(KeyError, match="peft_type"):
        get_peft_config({"num_virtual_tokens": 3})
    with pytest.raises(TypeError, match="foobar"):
        get_peft_config({"peft_type": "PROMPT_TUNING", "foobar": 1})


def test_from_peft_type():
    config = PeftConfig.from_peft_type(peft_type="PROMPT_TUNING", num_virtual_tokens=3)
    assert type(config) is PromptTuningConfig
    with pytest.raises(KeyError):
        PeftConfig.from_peft_type(peft_type="LORA")


def test_runtime_config_is_dropped_with_a_word(tmp_path):
    write(tmp_path, peft_type="PROMPT_TUNING", runtime_config={"ephemeral_gpu_offload": True})
    with pytest.warns(UserWarning, match="runtime_config"):
        config = PeftConfig.from_pretrained(tmp_path)
    assert not hasattr(config, "runtime_config")


def test_a_file_that_cannot_work_is_refused_on_loading(tmp_path):
    write(tmp_path, peft_type="PROMPT_TUNING", prompt_tuning_init="TEXT")
    with pytest.raises(ValueError, match="tokenizer_name_or_path can't be None"):
        PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\xff\x00", '{"a": 1' * 3], ids=str)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "adapter_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(Exception, match=r"adapter_config\.json") as caught:
        PeftConfig.from_pretrained(tmp_path)
    assert type(caught.value).__module__ == "softprompt.errors"


@pytest.mark.parametrize("where", ["folder", "missing/folder/here", "owner/repository"])
def test_absent_files_are_a_value_error_naming_them(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"Can't find 'adapter_config.json' at '") as caught:
        PeftConfig.from_pretrained(where)
    assert where in str(caught.value)


# -- version ---------------------------------------------------------------------------------------


def test_version_is_stamped_and_kept(tmp_path):
    stamped = PromptTuningConfig().peft_version
    assert stamped.startswith("0.21.2+softprompt.")
    write(tmp_path, peft_type="PROMPT_TUNING", peft_version="0.18.0")
    assert PeftConfig.from_pretrained(tmp_path).peft_version == "0.18.0"
    write(tmp_path, peft_type="PROMPT_TUNING")
    assert PeftConfig.from_pretrained(tmp_path).peft_version == stamped


def test_our_version_reads_as_pefts_release():
    version = pytest.importorskip("packaging.version")
    assert version.Version(PromptTuningConfig().peft_version).release == (0, 21, 2)
