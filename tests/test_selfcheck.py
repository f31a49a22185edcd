"""The self-check of decoders that nobody verified: it lets good ones pass, and broken ones fail."""

import warnings
from pathlib import Path

import pytest
import torch
import transformers as t
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel

import tiny
from softprompt import BaseModelError, PromptTuningConfig, get_peft_model
from softprompt.engine import selfcheck
from softprompt.models.families import is_verified


def check(model, name="toy"):
    """The warnings of a self-check that this process has not announced yet."""
    selfcheck._announced.discard(type(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        selfcheck.check_unlisted(model, name)
    return [str(warning.message) for warning in caught if "softprompt" in str(warning.message)]


@pytest.mark.parametrize("kind", tiny.PASSING)
def test_unlisted_decoders_pass(kind):
    (line,) = check(tiny.small(kind))
    assert line.startswith(f"toy ({kind}) is not among the architectures that softprompt is tested on; it passed")


@pytest.mark.parametrize("kind", tiny.FAILING)
def test_unlisted_decoders_fail(kind):
    with pytest.raises(BaseModelError) as caught:
        check(tiny.small(kind))
    line = str(caught.value)
    assert line.startswith(f"toy ({kind}) is not among the architectures that softprompt is tested on, and fails its")
    assert "; take a model that docs/architectures.md lists" in line
    assert "\n" not in line


class OddConfig(t.LlamaConfig):
    model_type = "odd"


class OddMistral(t.MistralConfig):
    model_type = "odd"


class IgnoresPositions(LlamaModel):
    def forward(self, *args, position_ids=None, **kwargs):
        if position_ids is not None:
            position_ids = position_ids - position_ids[:, :1]
        return super().forward(*args, position_ids=position_ids, **kwargs)


class MixesRows(LlamaModel):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + 0.01 * output.last_hidden_state.mean(0, keepdim=True)
        return output


class ForgetsPadding(LlamaModel):
    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, **kwargs)


class CutsTheGradient(LlamaModel):
    def forward(self, *args, past_key_values=None, **kwargs):
        for layer in past_key_values.layers if past_key_values else []:
            layer.keys = layer.keys if layer.keys is None else layer.keys.detach()
        return super().forward(*args, past_key_values=past_key_values, **kwargs)


class ReadsTokenIds(LlamaModel):
    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.last_hidden_state = output.last_hidden_state * (1 + input_ids[..., None] % 2)
        return output


class ForgetsTheWindow(MistralModel):
    def forward(self, *args, past_key_values=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length():
            kwargs["attention_mask"] = (
                kwargs["attention_mask"]
                .bool()[:, None, None, :]
                .expand(-1, -1, kwargs["inputs_embeds"].shape[1], -1)
                .tril(past_key_values.get_seq_length())
            )
        return super().forward(*args, past_key_values=past_key_values, **kwargs)


def odd(backbone, config=OddConfig, **more):
    """A model whose type nobody knows, with a backbone of ours."""
    kind = t.MistralForCausalLM if config is OddMistral else t.LlamaForCausalLM
    code = {"AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}  # as models have that bring their own code
    model = kind(config(**tiny._SIZES, **tiny._GQA, auto_map=code, **more)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    model.model.__class__ = backbone
    return model


@pytest.mark.parametrize(
    ("backbone", "what"),
    [
        (IgnoresPositions, "hidden states differ"),
        (MixesRows, "hidden states differ"),
        (ForgetsPadding, "hidden states differ"),
        (CutsTheGradient, "gradients of the prompt differ"),
        (ReadsTokenIds, "logits of embeddings in place of token ids differ"),
    ],
)
def test_broken_models_fail(backbone, what):
    assert check(odd(LlamaModel))
    with pytest.raises(BaseModelError, match=rf"{what} by .* of their size .*, 0.001 is allowed; take a model"):
        check(odd(backbone))


def test_a_window_wider_than_the_rows_is_checked_too():
    model = odd(MistralModel, OddMistral, sliding_window=4096)
    assert check(model)
    assert model.config.sliding_window == 4096
    with pytest.raises(BaseModelError, match="beyond a sliding window differ"):
        check(odd(ForgetsTheWindow, OddMistral, sliding_window=4096))


def test_a_class_of_its_own_is_checked_whatever_its_type():
    kind = type("MyLlama", (t.LlamaForCausalLM,), {"__module__": "somewhere"})
    model = kind(tiny.CONFIGS["llama"]())
    assert not is_verified(model)
    assert len(check(model)) == 1
    sharded = type("FSDPLlamaForCausalLM", (t.LlamaForCausalLM,), {"__module__": "torch.distributed.fsdp"})
    assert is_verified(sharded(tiny.CONFIGS["llama"]()))


def test_a_listed_model_costs_nothing(monkeypatch):
    monkeypatch.setattr(selfcheck, "differences", lambda base: pytest.fail("checked"))
    assert check(tiny.base("llama")) == []


def test_it_runs_once_per_model_and_speaks_once_per_class(monkeypatch):
    ran = []
    real = selfcheck.differences
    monkeypatch.setattr(selfcheck, "differences", lambda base: ran.append(base) or real(base))
    first, second = odd(LlamaModel), odd(LlamaModel)
    assert len(check(first)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selfcheck.check_unlisted(first, "toy")
        selfcheck.check_unlisted(second, "toy")
    assert ran == [first, second]


def test_all_is_left_as_found():
    model = odd(MistralModel, OddMistral, sliding_window=4096).train()
    model.lm_head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state, random = [m.training for m in model.modules()], model.config.to_dict(), torch.get_rng_state()
    with torch.inference_mode():
        check(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert model.config.to_dict() == state
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes(dtype):
    assert check(odd(LlamaModel).to(dtype))
    with pytest.raises(BaseModelError, match="or load it in float32"):
        check(odd(IgnoresPositions).to(dtype))


def test_a_model_without_weights_is_not_checked():
    with torch.device("meta"):
        model = odd(LlamaModel)
    (line,) = check(model)
    assert "has no weights yet to be checked with" in line
    assert model not in selfcheck._passed


def test_wrapping_checks():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    selfcheck._announced.discard(t.LlamaForCausalLM)
    with pytest.warns(UserWarning, match="it passed a self-check") as caught:
        get_peft_model(odd(LlamaModel), config)
    assert Path(caught[0].filename).name == Path(__file__).name, "the warning points at the caller"
    with pytest.raises(BaseModelError, match="fails its self-check"):
        get_peft_model(odd(IgnoresPositions), config)
