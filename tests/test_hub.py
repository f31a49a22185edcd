"""Sharing adapters: the genuine client of the Hub, against a stand-in for the Hub on this machine.

The client learns the Hub's address when it is imported, so everything that talks to the Hub runs in a process
of its own: the functions ``in_...`` below. Most of them share one process, since starting it is what costs.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer, run_with_hub

TESTS = Path(__file__).resolve().parent
IDS = [[7, 8, 9, 10, 11], [3, 4, 5, 6, 2]]
GUIDE = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "is it a complaint"}


CONFIG = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}


def call(hub: HubServer, home: Path, *functions: Any, **options: Any) -> dict[str, Any]:
    """Run functions of this file in a process whose Hub is ``hub``; what each returned, or how it failed."""
    names = [function.__name__ for function in functions]
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_hub; test_hub.in_turn({names!r})"
    run_with_hub(hub, code, home, env={"OMP_NUM_THREADS": "1", **options.pop("env", {})}, **options)
    results: dict[str, Any] = json.loads((home / "results.json").read_text())
    return results


def in_turn(names: list[str]) -> None:
    results = {}
    for name in names:
        try:
            results[name] = globals()[name]()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    Path("results.json").write_text(json.dumps(results))


def passed(result: Any) -> None:
    if isinstance(result, dict) and "error" in result:
        pytest.fail(result["error"], pytrace=False)


@pytest.fixture(scope="module")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a random Llama with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    words = ["<pad>", "</s>", "<unk>", "is", "it", "a", "complaint", "no", "text", "label", ":", "how", "are", "you"]
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
    config = {"adapter_config.json": json.dumps(CONFIG)}
    homeless = {"adapter_config.json": json.dumps({**CONFIG, "base_model_name_or_path": "base/absent"})}
    with HubServer(user="me", read_only=["elsewhere"]) as server:
        server.add_repo("base/tiny", base_files)
        server.add_repo("me/empty", {"README.md": "nothing"})
        server.add_repo("me/bare", config)
        server.add_repo("me/pickle", {**config, "adapter_model.bin": b"\x80\x04."})
        server.add_repo("me/homeless", homeless)
        yield server
        assert server.errors == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def results(hub: HubServer, home: Path) -> dict[str, Any]:
    """What the one process did that does most of the work."""
    last = [in_peft] if importlib.util.find_spec("peft") else []
    return call(hub, home, in_push, in_push_private, in_load, in_failures, in_trainer, *last)


@pytest.fixture
def pushed(results: dict[str, Any]) -> None:
    """``me/tiny`` is on the Hub."""
    passed(results["in_push"])


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
    for name in ("readout.safetensors", "ensemble.safetensors"):  # of another prompt, which this one replaces
        HfApi().upload_file(path_or_fileobj=b"of an older prompt", path_in_repo=name, repo_id="me/tiny")
    torch.nn.init.normal_(model.prompt)
    model.push_to_hub("me/tiny", commit_message="better", commit_description="by luck")
    torch.save(logits(model), "second.pt")
    left = HfApi().list_repo_files("me/tiny")
    assert "adapter_model.safetensors" in left
    assert not {"readout.safetensors", "ensemble.safetensors"} & set(left)

    torch.nn.init.normal_(model.prompt)
    model.push_to_hub("me/tiny", revision="third")
    torch.save(logits(model), "third.pt")
    assert model.push_to_hub("me/tiny", create_pr=True).pr_revision == "refs/pr/1"


def in_push_private() -> None:
    """A private repository with two adapters in it, there and back."""
    import torch

    from softprompt import PeftConfig, PeftModel, PromptTuningConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(base(), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4))
    model.add_adapter("other", PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3))
    model.push_to_hub("me/hidden", private=True, token="hf_test")
    default = logits(model)
    model.set_adapter("other")
    other = logits(model)

    assert PeftConfig.from_pretrained("me/hidden", subfolder="other").num_virtual_tokens == 3
    model = PeftModel.from_pretrained(base(), "me/hidden", subfolder="other", token="hf_test")
    assert logits(model).equal(other)
    model.load_adapter("me/hidden", "first")
    model.set_adapter("first")
    assert logits(model).equal(default)


def in_load() -> None:
    import torch

    from softprompt import AutoPeftModelForCausalLM, PeftConfig, PeftModel, PromptTuningConfig
    from softprompt.config.options import ModelOptions
    from softprompt.inference.load_adapter import load_adapter

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
    whole = load_adapter("me/tiny", ModelOptions())
    assert (whole.saved_task, whole.linear_probe, whole.ensemble) == (None, None, None)


def in_trainer() -> None:
    """``Trainer`` uploads what it has saved, and its card under ours."""
    import torch
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    from softprompt import AutoPeftModelForCausalLM, PromptTuningConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(base(), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4))
    rows = [{"input_ids": ids, "labels": ids} for ids in IDS]
    options = {"report_to": "none", "use_cpu": True, "max_steps": 2, "save_strategy": "no", "disable_tqdm": True}
    args = TrainingArguments(output_dir="trained", hub_model_id="me/trained", **options)
    tokenizer = AutoTokenizer.from_pretrained("base/tiny")
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub(tags=["weather"])
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained("me/trained")), logits(model))


def in_load_without_network() -> None:
    """What is in the cache serves; nothing can be pushed."""
    import torch

    from softprompt import PeftConfig, PeftModel
    from softprompt.config.options import ModelOptions
    from softprompt.inference.load_adapter import load_adapter

    assert PeftConfig.from_pretrained("me/tiny").num_virtual_tokens == 4
    model = PeftModel.from_pretrained(base(), "me/tiny")
    assert logits(model).equal(torch.load("second.pt"))
    whole = load_adapter("me/tiny", ModelOptions())  # the Hub has said what is absent
    assert (whole.saved_task, whole.linear_probe, whole.ensemble) == (None, None, None)
    kind, message = failure(model.push_to_hub, "me/tiny")
    assert (kind, "\n" in message) == ("AdapterError", False), (kind, message)
    assert "me/tiny" in message


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
    """What kind of ours a call raises, and what it says."""
    from softprompt import AdapterError, BaseModelError

    try:
        function(*args, **kwargs)
    except (AdapterError, BaseModelError) as error:
        return "AdapterError" if isinstance(error, AdapterError) else "BaseModelError", str(error)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def in_failures() -> dict[str, tuple[str, str]]:
    from softprompt import AutoPeftModelForCausalLM, PeftConfig, PeftModel

    model = base()
    ours = PeftModel.from_pretrained(model, "me/tiny")
    return {
        "push": failure(ours.push_to_hub, "elsewhere/tiny"),
        "push name": failure(ours.push_to_hub, "not a name!"),
        "config": failure(PeftConfig.from_pretrained, "me/absent"),
        "model": failure(PeftModel.from_pretrained, model, "me/absent"),
        "auto": failure(AutoPeftModelForCausalLM.from_pretrained, "me/absent"),
        "config file": failure(PeftModel.from_pretrained, model, "me/empty"),
        "weights": failure(PeftModel.from_pretrained, model, "me/bare"),
        "pickle": failure(PeftModel.from_pretrained, model, "me/pickle"),
        "revision": failure(PeftModel.from_pretrained, model, "me/tiny", revision="nowhere"),
        "subfolder": failure(PeftModel.from_pretrained, model, "me/tiny", subfolder="nowhere"),
        "base": failure(AutoPeftModelForCausalLM.from_pretrained, "me/homeless"),
        "name": failure(PeftConfig.from_pretrained, "not/a name!"),
        "bare name": failure(PeftConfig.from_pretrained, "nowhere"),
    }


COMMANDS = {
    "bare name": "inspect nowhere",
    "name": "predict --adapter no/such --text good",
    "evaluate": "evaluate --adapter no/such --test_file nowhere.csv",
    "base": "train --dataset_name complaints --model_name_or_path no/such --output_dir new",
}


def in_typos() -> dict[str, Any]:
    """What names that are nobody's come to, and how often the client of the Hub waited to ask again."""
    import contextlib
    import io

    from huggingface_hub.utils import _http

    from softprompt import AutoPeftModelForCausalLM, PeftConfig
    from softprompt.cli import main

    waits: list[float] = []
    _http.time = type("", (), {"sleep": staticmethod(waits.append)})
    said: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.suppress(SystemExit):
            main(command.split())
        said[name] = err.getvalue().splitlines()
    for name in ("nowhere", "no/such"):
        for function in (PeftConfig.from_pretrained, AutoPeftModelForCausalLM.from_pretrained):
            said[f"{function.__qualname__} {name}"] = failure(function, name)[1].splitlines()
    return {"waits": waits, "said": said}


def in_absence() -> tuple[str, str]:
    from softprompt import PeftConfig

    return failure(PeftConfig.from_pretrained, "me/hidden")


# --- tests ----------------------------------------------------------------------------------------


def test_push_writes_the_adapter_alone(hub: HubServer, pushed: None) -> None:
    files = hub.files("me/tiny")
    assert files.keys() == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert len(files["adapter_model.safetensors"]) < 4 * 16 * 4 + 200
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "base/tiny"
    assert config["inference_mode"] is True
    assert not hub._repos["models", "me/tiny"].private
    assert hub.files("me/tiny", "refs/pr/1")["adapter_model.safetensors"] != files["adapter_model.safetensors"]


def test_push_says_what_it_is_told_to(hub: HubServer, pushed: None) -> None:
    repo = hub._repos["models", "me/tiny"]
    last = repo.at("main")
    assert last is not None
    assert (last.title, last.message) == ("better", "by luck")
    assert repo.refs.keys() == {"refs/heads/main", "refs/heads/third", "refs/pr/1"}
    weights = [hub.files("me/tiny", revision)["adapter_model.safetensors"] for revision in ("main", "third")]
    assert weights[0] != weights[1]


def test_the_card_names_its_repository(hub: HubServer, pushed: None) -> None:
    card = hub.files("me/tiny")["README.md"].decode()
    assert 'PeftModel.from_pretrained(base, "me/tiny")' in card
    assert "base_model: base/tiny" in card
    assert "library_name: peft" in card


def test_a_second_push_keeps_what_a_person_wrote(hub: HubServer, pushed: None) -> None:
    card = hub.files("me/tiny")["README.md"].decode()
    assert card.endswith("\n## My notes\n\nTrained on a rainy day.\n")
    assert "\nlicense: mit\n" in card
    assert card.count("<!-- softprompt:begin -->") == 1


def test_what_was_pushed_loads(results: dict[str, Any], pushed: None) -> None:
    passed(results["in_load"])


def test_trainer_uploads_its_card_and_ours(hub: HubServer, results: dict[str, Any]) -> None:
    passed(results["in_trainer"])
    files = hub.files("me/trained")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer_config.json"} <= files.keys()
    card = files["README.md"].decode()
    for words in ("library_name: peft", "base_model: base/tiny", "- weather", "- prompt-tuning", "Training procedure"):
        assert words in card, card
    assert card.count("<!-- softprompt:begin -->") == 1


def test_without_network_the_cache_serves(hub: HubServer, home: Path, pushed: None) -> None:
    with HubServer() as other:
        other.close()
        done = call(hub, home, in_load_without_network, pauses=False, env={"HF_ENDPOINT": other.endpoint})
    passed(done["in_load_without_network"])


def test_a_private_repository_with_two_adapters(hub: HubServer, results: dict[str, Any], tmp_path: Path) -> None:
    passed(results["in_push_private"])
    assert hub._repos["models", "me/hidden"].private
    assert "other/adapter_model.safetensors" in hub.files("me/hidden")
    kind, message = call(hub, tmp_path, in_absence, token=None)["in_absence"]
    assert kind == "AdapterError"
    assert "me/hidden" in message


def test_peft_loads_ours_and_we_load_pefts(hub: HubServer, results: dict[str, Any], pushed: None) -> None:
    pytest.importorskip("peft")
    passed(results["in_peft"])
    assert len(hub.files("me/theirs")["adapter_model.safetensors"]) < 1000


@pytest.mark.parametrize(
    ("case", "words"),
    {
        "config": ["me/absent", "nor an adapter on the Hub", "private"],
        "model": ["me/absent", "nor an adapter on the Hub", "private"],
        "auto": ["me/absent", "nor an adapter on the Hub", "private"],
        "config file": ["me/empty", "adapter_config.json", "no such file"],
        "weights": ["me/bare", "adapter_model.safetensors", "no weights"],
        "pickle": ["me/pickle", "adapter_model.bin", "safe_serialization=True"],
        "revision": ["me/tiny", "nowhere", "revision"],
        "subfolder": ["me/tiny", "nowhere", "no such file"],
        "base": ["base/absent"],
        "name": ["not/a name!"],
        "bare name": ["no folder 'nowhere'", "owner/name"],
        "push": ["elsewhere/tiny", "rights"],
        "push name": ["not a name!"],
    }.items(),
)
def test_a_failure_is_one_clear_line(results: dict[str, Any], case: str, words: list[str]) -> None:
    passed(results["in_failures"])
    kind, message = results["in_failures"][case]
    assert kind == ("BaseModelError" if case == "base" else "AdapterError"), message
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert case.startswith("push") or "Client Error" not in message


@pytest.mark.parametrize("reached", [True, False])
def test_a_typo_is_told_at_once(tmp_path: Path, reached: bool) -> None:
    """A name without owner asks nothing; any other asks once, and never again after a pause."""
    with HubServer() as server:
        if not reached:
            server.close()
        result = call(server, tmp_path, in_typos)["in_typos"]
        passed(result)
        asked = [request for request in server.requests if request[1].startswith("/api/models")]
    assert result["waits"] == []
    assert all(len(lines) == 1 for lines in result["said"].values()), result["said"]
    for (line,) in result["said"].values():
        missing = "neither a folder here nor" if reached else "the Hub cannot be reached"
        assert ("no folder 'nowhere'" if "nowhere" in line else missing) in line
    with_owner = [name for name, (line,) in result["said"].items() if "no/such" in line]
    assert len(with_owner) == 5
    assert len(asked) == (len(with_owner) if reached else 0), asked


def test_no_network_is_said_in_one_line(tmp_path: Path) -> None:
    with HubServer() as server:
        server.close()
        kind, message = call(server, tmp_path, in_absence, pauses=False)["in_absence"]
    assert kind == "AdapterError"
    assert "\n" not in message
    assert "me/hidden" in message
    assert "Hub" in message


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    """It accepts connections, and that is all; the client alone would wait forever."""
    with socket.create_server(("127.0.0.1", 0)) as silent, HubServer() as server:
        port = silent.getsockname()[1]
        env = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_ETAG_TIMEOUT": "1"}
        kind, message = call(server, tmp_path, in_absence, pauses=False, env=env)["in_absence"]
    assert kind == "AdapterError"
    assert "the Hub cannot be reached" in message
