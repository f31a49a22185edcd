"""Adapters of a base whose vocabulary was enlarged, against PEFT, both ways."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import softprompt
from cli_tools import make_base
from softprompt.config.options import ModelOptions
from softprompt.errors import AdapterMismatchError
from softprompt.inference.load_adapter import load_adapter

WEIGHTS = "adapter_model.safetensors"
ROWS, MORE = 26, 2
IDS = torch.tensor([[5, 26, 9, 27, 8]])
"""With both new tokens."""


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vocabulary")
    make_base(place / "base")
    if request.param:
        base = AutoModelForCausalLM.from_pretrained(place / "base")
        base.config.tie_word_embeddings = True
        base.tie_weights()
        base.save_pretrained(place / "base")
    return place


def base_of(place: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(place / "base")


def enlarged(place: Path) -> tuple[Any, Any]:
    """The base with two more rows, and the tokenizer with two more tokens."""
    base, tokenizer = base_of(place), AutoTokenizer.from_pretrained(place / "base")
    tokenizer.add_tokens(["<one>", "<two>"])
    base.resize_token_embeddings(len(tokenizer))
    return base, tokenizer


def trained(place: Path, library: Any, folder: Path) -> torch.Tensor:
    """Save an adapter and its tokenizer by a library; returns the logits."""
    base, tokenizer = enlarged(place)
    config = library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = library.get_peft_model(base, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("saver", ["peft", "softprompt"])
@pytest.mark.parametrize("loader", ["peft", "softprompt"])
def test_the_embeddings_of_new_tokens_travel_with_the_adapter(
    place: Path, tmp_path: Path, saver: str, loader: str
) -> None:
    pytest.importorskip("peft")
    libraries = {name: __import__(name) for name in (saver, loader)}
    expected = trained(place, libraries[saver], tmp_path)
    model = libraries[loader].AutoPeftModelForCausalLM.from_pretrained(str(tmp_path))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_a_base_is_enlarged_by_hand_too(place: Path, tmp_path: Path) -> None:
    expected = trained(place, softprompt, tmp_path)
    with pytest.raises(
        AdapterMismatchError, match=r"size mismatch: its embeddings are .* call base.resize_token_embeddings\(28\)"
    ):
        softprompt.PeftModel.from_pretrained(base_of(place), tmp_path)
    base = base_of(place)
    base.resize_token_embeddings(ROWS + MORE)
    assert torch.equal(logits(softprompt.PeftModel.from_pretrained(base, tmp_path)), expected)


def test_other_adapters_of_the_base_are_not_changed(place: Path, tmp_path: Path) -> None:
    trained(place, softprompt, tmp_path)
    base, _ = enlarged(place)  # with other random rows
    config = softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = softprompt.get_peft_model(base, config)
    before = logits(model)
    with pytest.raises(AdapterMismatchError, match="embeddings with which the other adapters were not trained"):
        model.load_adapter(tmp_path, "other")
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path / "own")
    model.load_adapter(tmp_path / "own", "again")  # these are the base's own
    model.set_adapter("again")
    assert torch.equal(logits(model), before)


def test_a_tokenizer_with_more_tokens_enlarges_the_base(place: Path, tmp_path: Path) -> None:
    """An adapter trained before the tokens were added: PEFT draws their rows anew each time, we draw the same."""
    _, tokenizer = enlarged(place)
    config = softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = softprompt.get_peft_model(base_of(place), config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == {"prompt_embeddings"}
    with pytest.warns(
        UserWarning,
        match="28 tokens, the base model 26 embeddings; the embeddings of the added tokens are untrained",
    ):
        loaded = [softprompt.AutoPeftModelForCausalLM.from_pretrained(tmp_path) for _ in range(2)]
    found = [logits(each) for each in loaded]
    assert found[0].shape == (1, 4 + IDS.shape[1], ROWS + MORE)
    assert torch.equal(*found)
    old = torch.tensor([[5, 7, 9]])
    with torch.no_grad():
        pair = [each(input_ids=old).logits[..., :ROWS] for each in (loaded[0], model)]
    torch.testing.assert_close(*pair, rtol=0, atol=1e-5)


def test_the_command_line_reads_with_the_adapters_tokenizer(place: Path, tmp_path: Path) -> None:
    expected = trained(place, softprompt, tmp_path)
    loaded = load_adapter(str(tmp_path), ModelOptions())
    assert loaded.tokenizer("<two>", add_special_tokens=False).input_ids == [27]
    base, prompt = loaded.model.base, loaded.model.prompt
    with torch.no_grad():
        tokens = base.get_input_embeddings()(IDS)
        found = base(inputs_embeds=torch.cat([prompt.expand(len(IDS), -1, -1), tokens], dim=1)).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_base_as_it_came_is_not_saved(place: Path, tmp_path: Path) -> None:
    """Nor is anything about one that is not on this machine."""
    for name in (str(place / "base"), "no/such", ""):
        base = base_of(place)
        base.name_or_path = name
        config = softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        softprompt.get_peft_model(base, config).save_pretrained(tmp_path)
        assert load_file(tmp_path / WEIGHTS).keys() == {"prompt_embeddings"}


def test_a_file_that_brings_more_rows_than_the_tokenizer_has(place: Path, tmp_path: Path) -> None:
    """As after ``resize_token_embeddings(..., pad_to_multiple_of=8)``."""
    base, tokenizer = enlarged(place)
    base.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=8)
    config = softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = softprompt.get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits(softprompt.AutoPeftModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_embeddings_of_another_width(place: Path, tmp_path: Path) -> None:
    trained(place, softprompt, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = next(name for name in tensors if "embed" in name and name != "prompt_embeddings")
    save_file({**tensors, name: torch.zeros(ROWS + MORE, 8)}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterMismatchError, match="size mismatch"):
        softprompt.AutoPeftModelForCausalLM.from_pretrained(tmp_path)
