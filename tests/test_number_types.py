"""Number types: prompts stay exact whatever becomes of the base, and no float64 ever stands on a device."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

import tiny
from cli_tools import make_base, rows, write_rows
from plan_tools import plan_of
from softprompt import PromptTuningConfig, get_peft_model
from softprompt.config.options import TrainOptions
from softprompt.engine import selfcheck
from softprompt.engine.accumulate import mean_loss
from softprompt.training.pipeline import train

# -- the prompt ------------------------------------------------------------------------------------------------


def prompted(family="llama"):
    torch.manual_seed(0)
    return get_peft_model(tiny.fresh(family), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4))


TO_16_BITS = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to": lambda model: model.to(torch.float16),
    "to device": lambda model: model.to("cpu", torch.bfloat16),
    "type": lambda model: model.type(torch.float16),
    "twice": lambda model: model.half().bfloat16(),
}


@pytest.mark.parametrize("change", TO_16_BITS)
def test_a_prompt_stays_in_float32_when_the_model_is_made_smaller(change):
    model = prompted()
    before, parameter = model.prompt.detach().clone(), model.prompt
    parameter.grad = torch.ones_like(parameter)
    assert TO_16_BITS[change](model) is model
    assert model.base_model.dtype in (torch.float16, torch.bfloat16)
    assert model.prompt is parameter, "an optimiser that knows it goes on"
    assert torch.equal(model.prompt, before), "not rounded on the way either"
    assert model.prompt.dtype == model.prompt.grad.dtype == torch.float32
    assert model.prompt.requires_grad


@pytest.mark.parametrize("change", ["half", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt"])
def test_training_in_16_bits_is_finite(family, change):
    model = TO_16_BITS[change](prompted(family))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    (row,) = tiny.ids(9)
    before, losses = model.prompt.detach().clone(), []
    for _ in range(3):
        loss = model(input_ids=row[None], labels=row[None]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert model.prompt.isfinite().all()
    assert not torch.equal(model.prompt, before)
    assert losses[-1] < losses[0]
    assert model.generate(input_ids=row[None], max_new_tokens=3, do_sample=False).shape == (1, 12)


def test_float64_is_followed_there_and_back():
    """Nothing is lost that way, and whoever asks for it wants it exact."""
    model = prompted()
    before = model.prompt.detach().clone()
    assert model.double().prompt.dtype == torch.float64
    assert model.half().prompt.dtype == torch.float32
    assert model.double().float().prompt.dtype == torch.float32
    assert torch.equal(model.prompt, before)


def test_devices_are_followed():
    """The meta device stands for any other, with and without a change of type."""
    model = prompted()
    assert (model.to("meta").prompt.device.type, model.prompt.dtype) == ("meta", torch.float32)
    model = prompted().to("meta", torch.float16)
    assert (model.prompt.device.type, model.prompt.dtype) == ("meta", torch.float32)
    assert model.base_model.dtype == torch.float16
    assert model.to_empty(device="cpu").prompt.device.type == "cpu"


# -- float64 -----------------------------------------------------------------------------------------------------


class NoFloat64OnDevice(TorchFunctionMode):
    """Lets float64 pass only where it would be on the CPU if the model were elsewhere, such as on MPS, which has none.

    The model is on the CPU here. So this remembers which tensors would be there anyway: what is made without naming a
    device, what ``cpu()`` gives, and what is computed from nothing but these.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is torch.Tensor.cpu:
            result = result.view(result.shape)  # here it is the same tensor as before, there it would not be
        given, found = (list(tensors_in(each)) for each in ((args, kwargs), result))
        placed = any(isinstance(each, torch.device) for each in (*args, *kwargs.values()))
        home = function is torch.Tensor.cpu or (not placed and all(hasattr(each, "at_home") for each in given))
        for each in found:
            if home:
                each.at_home = True
            assert home or each.dtype != torch.float64, f"{function.__name__} makes float64 on the model's device"
        return result


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def test_the_watch_sees_float64_on_a_device_and_no_other():
    on_device = torch.ones(3)
    with NoFloat64OnDevice():
        assert (torch.zeros(2, dtype=torch.float64) + on_device.cpu().double()[:2]).sum() == 2
        for wrong in (
            lambda: on_device.double(),
            lambda: on_device.to(torch.float64),
            lambda: torch.zeros((), dtype=torch.float64, device=on_device.device),
            lambda: on_device.new_zeros(3, dtype=torch.float64),
            lambda: torch.zeros(3, dtype=torch.float64).to(device=on_device.device),
            lambda: on_device.sum(dtype=torch.float64),
        ):
            with pytest.raises(AssertionError, match="makes float64"):
                wrong()


RECIPES = {
    "guide": {"recipe": "guide", "num_virtual_tokens": 3},
    "default": {"recipe": "default"},
    "best": {"recipe": "best", "num_folds": 2, "fold_repeats": 1, "fold_epochs": 1},
    "suffix": {"recipe": "default", "prompt_placement": "suffix", "objective": "language_modeling"},
    "free text": {"recipe": "default", "task": "generation"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_makes_no_float64_on_its_device(name, tmp_path):
    """Training in packs, validation, read-out, ensemble, test figures."""
    make_base(tmp_path / "base")
    for split, (count, first) in {"train": (12, 0), "validation": (4, 12), "test": (4, 16)}.items():
        write_rows(tmp_path / f"{split}.csv", rows(count, first))
    files = {f"{split}_file": tmp_path / f"{split}.csv" for split in ("train", "validation", "test")}
    values = {"model_name_or_path": str(tmp_path / "base"), "num_train_epochs": 1, "tokens_per_pack": 20}
    with NoFloat64OnDevice():
        result = train(TrainOptions(**files, **values, **RECIPES[name], output_dir=tmp_path / "run"))
    assert result.metrics.eval_loss > 0


def test_the_drop_in_model_and_the_self_check_make_none():
    model = prompted()
    batch = torch.stack(tiny.ids(6, 6))
    plans = [plan_of(4, batch, batch) for _ in range(2)]
    with NoFloat64OnDevice():
        mean_loss(model.base_model, plans, model.prompt).backward()
        model(input_ids=batch, labels=batch).loss.backward()
        model.generate(input_ids=batch, max_new_tokens=3, do_sample=False)
        assert all(each.size < each.allowed for each in selfcheck.differences(model.base_model))
