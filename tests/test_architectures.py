"""Every architecture of ``families.VERIFIED`` against plain forwards of each row, and what becomes of the others.

python tests/test_architectures.py --write      measures all of them, and writes docs/architectures.md
"""

import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers as t
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import tiny
from plan_tools import plan_of
from softprompt import BaseModelError, ConfigError
from softprompt.engine import runner as running
from softprompt.engine import selfcheck
from softprompt.engine.loss import token_losses
from softprompt.engine.runner import backends
from softprompt.inference.score import score_labels
from softprompt.models.families import VERIFIED, is_verified, refuse

DOC = Path(__file__).parent.parent / "docs" / "architectures.md"
TOLERANCE = 1e-9
LISTED = tiny.CONFIGS | tiny.VARIANTS

REFUSED = {
    "is recurrent or hybrid": (
        "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid inkling2_text inkling_text jamba kimi_linear "
        "lfm2 lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text "
        "qwen3_5_text qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya"
    ),
    "has layers that do not each keep plain keys and values": (
        "axk2 deepseek_v32 deepseek_v4 dots3_note dots3_note_text gemma3n gemma3n_text glm_moe_dsa hy_v4"
    ),
    "is an encoder-decoder model": (
        "bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 musicgen "
        "musicgen_melody mvp nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5 whisper"
    ),
    "reads in both directions": (
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert roberta "
        "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod"
    ),
}
"""Model types by the reason in the line that refuses them."""


# -- listed: exact --------------------------------------------------------------------------------------


def model_of(name, dtype=torch.float64):
    if name in tiny.CONFIGS:
        return tiny.base(name, dtype)
    return tiny.random_model(LISTED[name](), dtype=dtype)


def far(got, expected):
    """Largest difference, relative to the largest number."""
    assert got.shape == expected.shape
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def differences(model, lengths=(5, 9, 13, 1), virtual=11):
    """How far loss, gradient of the prompt and label scores are from plain forwards of each row."""
    rows = tiny.ids(*lengths)
    labels = [row.clone() for row in rows]
    for label in labels[:-1]:
        label[::2] = -100
    prompt = tiny.prompt_for(model, virtual)
    plan = plan_of(virtual, rows, labels)
    losses = token_losses(model, plan, prompt)
    plain = torch.cat([tiny.plain_losses(model, prompt, *pair) for pair in zip(rows, labels, strict=True)])
    (gradient,), (expected,) = (torch.autograd.grad(each.sum(), prompt) for each in (losses, plain))
    assert expected.norm() > 1e-3, "the reference has a gradient to compare with"
    texts, classes = [row[:-2].tolist() for row in rows], [[7, 8], [10], [7, 11]]
    prompt = prompt.detach()
    scores = score_labels(model, prompt, texts, classes)
    wanted = torch.stack([tiny.plain_score(model, prompt, text, label) for text in texts for label in classes])
    return {
        "loss": far(losses, plain),
        "gradient": far(gradient, expected),
        "scores": far(scores.flatten(), wanted.to(scores)),
    }


def measure(name, backend):
    with tiny.float64(), mock.patch.object(running, "backends", return_value=(backend,)):
        return differences(model_of(name))


def ways_of(name):
    return backends(model_of(name, torch.float32).base_model)


@pytest.mark.parametrize("backend", ["packed", "levelwise"])
@pytest.mark.parametrize("name", LISTED)
def test_listed_architectures_are_exact(name, backend):
    if backend not in ways_of(name):
        pytest.skip(f"{name} runs level by level only")
    found = measure(name, backend)
    assert max(found.values()) <= TOLERANCE, found


def test_the_list_is_what_is_tested():
    kinds = {model_of(name, torch.float32).config.model_type for name in LISTED}
    assert kinds == set(VERIFIED)
    assert list(VERIFIED) == sorted(VERIFIED)
    assert all(is_verified(model_of(name, torch.float32)) for name in LISTED)


# -- the table -------------------------------------------------------------------------------------------


def positions(config):
    if config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
        return "ALiBi"
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rotary_dim", None)
    return "rotary" if rotary else "learned"


def window(config):
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
    if getattr(config, "sliding_window", None) and not kinds:
        return "all layers"
    return "some layers" if {"sliding_attention", "local"} & set(kinds) else ""


def specials(model, config):
    """What a family does beside the usual, by its config."""

    def has(name):
        return getattr(config, name, None) not in (None, False)

    own = {
        "embeddings scaled": hasattr(model.get_input_embeddings(), "embed_scale") or has("embedding_multiplier"),
        "embeddings projected": getattr(config, "word_embed_proj_dim", tiny.WIDTH) != tiny.WIDTH,
        "attention soft-capped": has("attn_logit_softcapping"),
        "logits soft-capped": has("final_logit_softcapping"),
        "logits scaled": has("logit_scale") or has("logits_scaling"),
        "multi-query attention": has("multi_query") and not has("new_decoder_architecture"),
        "new decoder architecture": has("new_decoder_architecture"),
    }
    return ", ".join(name for name, true in own.items() if true)


def table():
    lines = ["| family | `model_type` | positions | sliding window | other features | CPU backends | relative error |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in sorted(LISTED, key=lambda name: LISTED[name]().model_type):
        model = model_of(name, torch.float32)
        config = model.config.get_text_config()
        kind = model.config.model_type
        facts = [positions(config), window(config), specials(model, config), ", ".join(ways_of(name))]
        cells = [VERIFIED[kind], f"`{kind}`", *facts, "at most 1e-9"]
        lines += [f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")]
    return "\n".join(dict.fromkeys(lines))  # shapes that differ in nothing shown here are one row


def names(kinds):
    return ", ".join(f"`{kind}`" for kind in sorted(kinds))


def page():
    return PAGE.format(
        table=table(),
        refused="\n".join(f"| {reason} | {names(kinds.split())} |" for reason, kinds in REFUSED.items()),
        passing=names(tiny.PASSING),
        failing="\n".join(f"| `{kind}` | {why} |" for kind, why in tiny.FAILING.items()),
        version=".".join(t.__version__.split(".")[:2]),
    )


PAGE = """# Supported architectures

softprompt supports decoder-only transformers in which every layer has attention with a standard KV cache. This page
lists the model types that are tested and those that are refused, and explains how all others are checked on first use.

The page is generated by `python tests/test_architectures.py --write`; a test compares it with the code.

## Tested architectures

The tests build a small random model of each type in float64. They compare the loss of each token, the gradient of the
prompt and the scores of labels with a plain forward of each row alone, without batch, padding or cache. The largest
difference may be 1e-9 of the largest value, with every [backend](engine.md#backends). The rows are longer than the
sliding windows.

{table}

*Sliding window*: the layers in which a token attends only to a fixed number of tokens before it. *CPU backends*: the
first one is the default.

Rows that exceed a model's learned positions raise an error. With `dynamic` and `longrope` rotary scaling, so do rows
that are long enough to change the scaling, since it would then depend on the longest row of a batch.

## Other decoders

A model is checked when it is first wrapped if its type is not in the table or its class is not part of transformers.
The engine computes a small tree of 31 tokens, with rows of several lengths and branches below them, and the result is
compared with a plain forward of each path: hidden states, the gradient of the prompt, the logits of given hidden
states, and the logits of token ids with those of their embeddings. Sliding windows are narrowed for the check, in a
copy that shares the weights.

* **The check passes**: one `UserWarning` per class reports it. The model runs with the levelwise backend.
* **The check fails**: a `BaseModelError` says what differs, by how much, and what to do. It cannot be overridden.
* **The weights are not loaded yet** (meta device, sharded models): a warning says that the model was not checked.

Tolerances, relative to the norm of the compared tensor:

| dtype | hidden states and logits | gradient |
|---|---|---|
| float32 | 1e-3 | 1e-3 |
| float16 | 2e-2 | 2e-1 |
| bfloat16, quantized, TF32 | 6e-2 | 7e-1 |

In 16 bits, rounding can route a token of a mixture-of-experts model to another expert. Such a model may fail the check
for this reason alone, and passes it in float32.

Small random models of these types pass (transformers {version}): {passing}.

These types fail:

| `model_type` | reason |
|---|---|
{failing}

## Refused model types

| reason | `model_type` |
|---|---|
{refused}
"""


def test_the_page_is_up_to_date():
    assert DOC.read_text(encoding="utf-8") == page(), "python tests/test_architectures.py --write"


def test_the_page_states_the_tolerances():
    stated = {torch.float32: "| float32 | 1e-3 | 1e-3 |", torch.float16: "| float16 | 2e-2 | 2e-1 |"}
    for dtype, line in stated.items():
        assert tuple(float(cell) for cell in line.split("|")[2:4]) == selfcheck._TOLERANCE[dtype]
        assert line in PAGE
    assert selfcheck._COARSE == (6e-2, 7e-1)
    assert sum(selfcheck.LENGTHS) == 31


# -- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "kind"), [(reason, kind) for reason in REFUSED for kind in REFUSED[reason].split()])
def test_refused_by_name(reason, kind):
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {t.__version__} has no {kind}")
    with pytest.raises(BaseModelError) as caught:
        refuse(t.AutoConfig.for_model(kind), "the model")
    assert reason in str(caught.value)
    assert kind in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_else_is_refused_by_name():
    """Each causal type of transformers is verified, refused for a stated reason, or left to the self-check."""
    stated = {kind for kinds in REFUSED.values() for kind in kinds.split()}
    found = Counter()
    for kind in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {"gemma4_assistant"}:  # whose default config is not valid
        try:
            refuse(t.AutoConfig.for_model(kind), kind)
        except BaseModelError:
            found["refused"] += 1
            assert kind in stated
        else:
            found["let through"] += 1
            assert kind not in stated
    assert min(found["refused"], found["let through"]) > 50


def test_verified_types_are_not_refused():
    for name, config in LISTED.items():
        refuse(config(), name)
    for kind in VERIFIED:
        refuse(t.AutoConfig.for_model(kind), kind)


def test_layers_that_share_keys_are_refused_whatever_the_type():
    config = t.AutoConfig.for_model("llama", num_hidden_layers=2, layer_types=["full_attention", "indexed_attention"])
    with pytest.raises(BaseModelError, match=r"\(llama\) has layers .* \(indexed_attention\)"):
        refuse(config, "the model")


# -- rotary scaling that depends on length -------------------------------------------------------------------

_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
ROTARY = {
    "dynamic": (lambda: t.LlamaConfig(**SHORT, rope_parameters=_DYNAMIC), 16),
    "dynamic, with an original length that is not read": (
        lambda: t.LlamaConfig(**SHORT, rope_parameters=_DYNAMIC | {"original_max_position_embeddings": 8}),
        16,
    ),
    "dynamic in some layers": (
        lambda: t.Gemma3TextConfig(
            **SHORT,
            head_dim=8,
            layer_types=tiny._TYPES,
            sliding_window=tiny.WINDOW,
            rope_parameters={
                "full_attention": _DYNAMIC,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        16,
    ),
    "longrope": (
        lambda: t.Phi3Config(
            **tiny._SIZES, original_max_position_embeddings=16, max_position_embeddings=64, rope_parameters=_LONG
        ),
        16,
    ),
}
SHORT = {**tiny._SIZES, "max_position_embeddings": 16}


@pytest.mark.parametrize("name", ROTARY)
def test_length_dependent_rotary_scaling_is_exact_up_to_its_bound_and_refused_beyond(name):
    config, bound = ROTARY[name]
    with tiny.float64():
        model = tiny.random_model(config(), dtype=torch.float64)
        found = differences(model, (bound - 5, 4, 2), virtual=5)
        assert max(found.values()) <= TOLERANCE, found
        rows = tiny.ids(bound - 4, 2)
        plan = plan_of(5, rows, rows)
        with pytest.raises(
            ConfigError, match=rf"a row has {bound + 1} tokens, .* has {bound} positions; truncate texts"
        ):
            token_losses(model, plan, tiny.prompt_for(model, 5))


def main():
    """Measure all, and write the page."""
    for name in LISTED:
        for backend in ways_of(name):
            print(f"{name:20} {backend:8}", *(f"{what} {size:.1e}" for what, size in measure(name, backend).items()))
    if "--write" in sys.argv:
        DOC.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
