"""Sharing adapters: the genuine client of the Hub, against a stand-in for the Hub on this machine.

The client learns the Hub's address when it is imported, so everything that talks to the Hub runs in processes
of its own: the functions ``in_...`` below, by name. Those processes find each other's results in their home.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, run_with_hub

TESTS = Path(__file__).resolve().parent
IDS = [[7, 8, 9, 10, 11], [3, 4, 5, 6, 2]]
GUIDE = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "is it a complaint"}


def call(hub: HubServer, function: Any, home: Path, **options: Any) -> str:
    """Run a function of this file in a process whose Hub is ``hub``; what it printed."""
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_hub; test_hub.{function.__name__}()"
    options["env"] = {"OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return run_with_hub(hub, code, home, **options).stdout


@pytest.fixture(scope="module")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a random Llama with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    words = ["<pad>", "</s>", "<unk>", *"is it a complaint no tweet text label : how are you today sir".split()]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hub(base_files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer(user="me") as server:
        server.add_repo("base/tiny", base_files)
        yield server
        assert server.errors == []


@pytest.fixture(scope="module")
def pushed(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a process that has pushed ``me/tiny`` (:func:`in_push`)."""
    home = tmp_path_factory.mktemp("home")
    call(hub, in_push, home)
    return home


# --- what runs beside the stand-in ----------------------------------------------------------------


def base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained("base/tiny")


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS)).logits


def in_push() -> None:
    """Push one prompt three times: as the guide does, changed under a person's edits, changed onto a branch."""
    import torch
    from huggingface_hub import HfApi, hf_hub_download

    from softprompt import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4, tokenizer_name_or_path="base/tiny", **GUIDE)
    model = get_peft_model(base(), config)
    commit = model.push_to_hub("me/tiny", use_auth_token=True)
    assert str(commit.commit_url).endswith(f"/me/tiny/commit/{commit.oid}")

    card = Path(hf_hub_download("me/tiny", "README.md")).read_text()
    edited = card.replace("pipeline_tag: text-generation", "license: mit\npipeline_tag: text-generation")
    edited = f"{edited}\n## My notes\n\nTrained on a rainy day.\n"
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="me/tiny")
    torch.nn.init.normal_(model.prompt)
    model.push_to_hub("me/tiny", commit_message="better", commit_description="by luck")
    torch.save(logits(model), "second.pt")

    torch.nn.init.normal_(model.prompt)
    model.push_to_hub("me/tiny", revision="third")
    torch.save(logits(model), "third.pt")


def in_push_private() -> None:
    """A private repository, with two adapters in it."""
    import torch

    from softprompt import PromptTuningConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(base(), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4))
    model.add_adapter("other", PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3))
    model.push_to_hub("me/hidden", private=True, token="hf_test")
    for name in ("default", "other"):
        model.set_adapter(name)
        torch.save(logits(model), f"{name}.pt")


def in_load_private() -> None:
    import torch

    from softprompt import PeftConfig, PeftModel

    assert PeftConfig.from_pretrained("me/hidden", subfolder="other").num_virtual_tokens == 3
    model = PeftModel.from_pretrained(base(), "me/hidden", subfolder="other", token="hf_test")
    assert logits(model).equal(torch.load("other.pt"))
    model.load_adapter("me/hidden", "first")
    model.set_adapter("first")
    assert logits(model).equal(torch.load("default.pt"))


def in_load() -> None:
    import torch

    from softprompt import AutoPeftModelForCausalLM, PeftConfig, PeftModel, PromptTuningConfig

    config = PeftConfig.from_pretrained("me/tiny")
    assert isinstance(config, PromptTuningConfig)
    assert (config.base_model_name_or_path, config.num_virtual_tokens) == ("base/tiny", 4)
    assert config.prompt_tuning_init_text == GUIDE["prompt_tuning_init_text"]
    second, third = torch.load("second.pt"), torch.load("third.pt")
    assert not second.equal(third)
    assert logits(PeftModel.from_pretrained(base(), "me/tiny")).equal(second)
    assert logits(PeftModel.from_pretrained(base(), "me/tiny", revision="third")).equal(third)
    model = AutoPeftModelForCausalLM.from_pretrained("me/tiny")
    assert logits(model).equal(second)
    assert not model.training
    assert logits(AutoPeftModelForCausalLM.from_pretrained("me/tiny", revision="third")).equal(third)
    assert AutoPeftModelForCausalLM.from_pretrained("me/tiny", dtype=torch.bfloat16).dtype == torch.bfloat16


def in_load_without_network() -> None:
    """What is in the cache serves."""
    import torch

    from softprompt import PeftConfig, PeftModel

    assert PeftConfig.from_pretrained("me/tiny").num_virtual_tokens == 4
    assert logits(PeftModel.from_pretrained(base(), "me/tiny")).equal(torch.load("second.pt"))


def in_peft() -> None:
    """Both ways: PEFT loads ours, we load PEFT's."""
    import peft
    import torch

    import softprompt

    assert peft.PeftConfig.from_pretrained("me/tiny").peft_type == "PROMPT_TUNING"
    theirs = peft.PeftModel.from_pretrained(base(), "me/tiny")
    assert torch.allclose(logits(theirs), torch.load("second.pt"), atol=1e-5)

    torch.manual_seed(2)
    model = peft.get_peft_model(base(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    model.push_to_hub("me/theirs")
    ours = softprompt.PeftModel.from_pretrained(base(), "me/theirs")
    assert torch.allclose(logits(ours), logits(model), atol=1e-5)
    assert softprompt.PeftConfig.from_pretrained("me/theirs").base_model_name_or_path == "base/tiny"
    assert torch.allclose(logits(softprompt.AutoPeftModelForCausalLM.from_pretrained("me/theirs")), logits(ours))


def failure(function: Any, *args: Any, **kwargs: Any) -> tuple[str, str]:
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def in_failures() -> None:
    from softprompt import AutoPeftModelForCausalLM, PeftConfig, PeftModel

    model = base()
    found = {
        "config": failure(PeftConfig.from_pretrained, "me/absent"),
        "model": failure(PeftModel.from_pretrained, model, "me/absent"),
        "auto": failure(AutoPeftModelForCausalLM.from_pretrained, "me/absent"),
        "config file": failure(PeftModel.from_pretrained, model, "me/empty"),
        "weights": failure(PeftModel.from_pretrained, model, "me/bare"),
        "pickle": failure(PeftModel.from_pretrained, model, "me/pickle"),
        "revision": failure(PeftModel.from_pretrained, model, "me/tiny", revision="nowhere"),
        "subfolder": failure(PeftModel.from_pretrained, model, "me/tiny", subfolder="nowhere"),
        "base": failure(AutoPeftModelForCausalLM.from_pretrained, "me/homeless"),
        "name": failure(PeftConfig.from_pretrained, "not a name!"),
    }
    print(json.dumps(found))


def in_absence() -> None:
    from softprompt import PeftConfig

    print(json.dumps(failure(PeftConfig.from_pretrained, "me/tiny")))


def in_nobody() -> None:
    from softprompt import PeftConfig

    print(json.dumps(failure(PeftConfig.from_pretrained, "me/hidden")))


# --- tests ----------------------------------------------------------------------------------------


def test_push_writes_the_adapter_alone(hub: HubServer, pushed: Path) -> None:
    files = hub.files("me/tiny")
    assert files.keys() == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert len(files["adapter_model.safetensors"]) < 4 * 16 * 4 + 200
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "base/tiny"
    assert config["inference_mode"] is True
    assert not hub._repos["models", "me/tiny"].private


def test_push_says_what_it_is_told_to(hub: HubServer, pushed: Path) -> None:
    repo = hub._repos["models", "me/tiny"]
    last = repo.at("main")
    assert last is not None
    assert (last.title, last.message) == ("better", "by luck")
    assert {"refs/heads/main", "refs/heads/third"} <= repo.refs.keys()
    weights = [hub.files("me/tiny", revision)["adapter_model.safetensors"] for revision in ("main", "third")]
    assert weights[0] != weights[1]


def test_the_card_names_its_repository(hub: HubServer, pushed: Path) -> None:
    card = hub.files("me/tiny")["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "me/tiny")' in card
    assert "base_model: base/tiny" in card
    assert "library_name: peft" in card


def test_a_second_push_keeps_what_a_person_wrote(hub: HubServer, pushed: Path) -> None:
    card = hub.files("me/tiny")["README.md"].decode()
    assert card.endswith("\n## My notes\n\nTrained on a rainy day.\n")
    assert "\nlicense: mit\n" in card
    assert card.count("<!-- softprompt:begin -->") == 1


def test_what_was_pushed_loads(hub: HubServer, pushed: Path) -> None:
    call(hub, in_load, pushed)


def test_without_network_the_cache_serves(hub: HubServer, pushed: Path, base_files: dict[str, bytes]) -> None:
    with HubServer() as other:
        other.close()
        call(hub, in_load_without_network, pushed, pauses=False, env={"HF_ENDPOINT": other.endpoint})


def test_a_private_repository_with_two_adapters(hub: HubServer, tmp_path: Path) -> None:
    call(hub, in_push_private, tmp_path)
    assert hub._repos["models", "me/hidden"].private
    assert "other/adapter_model.safetensors" in hub.files("me/hidden")
    call(hub, in_load_private, tmp_path)
    kind, message = json.loads(call(hub, in_nobody, tmp_path, token=None))
    assert kind == "AdapterError"
    assert "me/hidden" in message


def test_peft_loads_ours_and_we_load_pefts(hub: HubServer, pushed: Path) -> None:
    pytest.importorskip("peft")
    call(hub, in_peft, pushed)
    assert len(hub.files("me/theirs")["adapter_model.safetensors"]) < 1000


def test_failures_are_one_line(hub: HubServer, pushed: Path, tmp_path: Path) -> None:
    ours = hub.files("me/tiny")
    config = {"adapter_config.json": ours["adapter_config.json"]}
    homeless = json.loads(ours["adapter_config.json"]) | {"base_model_name_or_path": "base/absent"}
    hub.add_repo("me/empty", {"README.md": "nothing"})
    hub.add_repo("me/bare", config)
    hub.add_repo("me/pickle", {**config, "adapter_model.bin": b"\x80\x04."})
    hub.add_repo("me/homeless", {**ours, "adapter_config.json": json.dumps(homeless)})
    found = json.loads(call(hub, in_failures, tmp_path))
    told = textwrap.indent(json.dumps(found, indent=1), "  ")
    kinds = {name: kind for name, (kind, _) in found.items()}
    assert kinds == {**dict.fromkeys(found, "AdapterError"), "base": "BaseModelError"}, told
    assert all("\n" not in message for _, message in found.values()), told
    named = {"config": "me/absent", "model": "me/absent", "auto": "me/absent", "config file": "me/empty"}
    named |= {"weights": "me/bare", "pickle": "me/pickle", "subfolder": "me/tiny", "base": "base/absent"}
    assert all(name in found[case][1] for case, name in named.items()), told
    assert "adapter_config.json" in found["config file"][1]
    assert "no weights" in found["weights"][1]
    assert "safe_serialization" in found["pickle"][1]


def test_no_network_is_said_in_one_line(tmp_path: Path) -> None:
    with HubServer() as server:
        server.close()
        kind, message = json.loads(call(server, in_absence, tmp_path, pauses=False))
    assert kind == "AdapterError"
    assert "\n" not in message
    assert "me/tiny" in message
    assert "Hub" in message
