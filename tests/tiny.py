"""Tiny random models and tokenizers, and the independent reference: a plain forward of each row alone.

Nothing of softprompt is used here. Weights are N(0, 0.2), so that attention, positions and windows
matter; windows are shorter than the rows.
"""

import copy
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.overrides import TorchFunctionMode

VOCAB = 97
WIDTH = 32
WINDOW = 6

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TYPES = ["sliding_attention", "full_attention"]
_GQA = {"num_key_value_heads": 2}
_GPT = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64} | {
    k: v for k, v in _SIZES.items() if k.endswith("token_id")
}
_IDS = {k: v for k, v in _SIZES.items() if k.endswith("token_id")}

CONFIGS = {
    "llama": lambda: t.LlamaConfig(**_SIZES, **_GQA),
    "mistral": lambda: t.MistralConfig(**_SIZES, **_GQA, sliding_window=WINDOW),
    "qwen2": lambda: t.Qwen2Config(
        **_SIZES, **_GQA, use_sliding_window=True, sliding_window=WINDOW, layer_types=_TYPES
    ),
    "qwen3": lambda: t.Qwen3Config(
        **_SIZES, **_GQA, head_dim=8, use_sliding_window=True, sliding_window=WINDOW, layer_types=_TYPES
    ),
    "gemma": lambda: t.GemmaConfig(**_SIZES, **_GQA, head_dim=8),
    "gemma2": lambda: t.Gemma2Config(**_SIZES, **_GQA, head_dim=8, sliding_window=WINDOW, layer_types=_TYPES),
    "gemma3": lambda: t.Gemma3TextConfig(**_SIZES, **_GQA, head_dim=8, sliding_window=WINDOW, layer_types=_TYPES),
    "bloom": lambda: t.BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=2, n_head=4, **_IDS),
    "gpt2": lambda: t.GPT2Config(**_GPT),
    "opt": lambda: t.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=WIDTH,
        max_position_embeddings=64,
        **_IDS,
    ),
    "opt350": lambda: t.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        do_layer_norm_before=False,
        **_IDS,
    ),
    "gpt_neox": lambda: t.GPTNeoXConfig(**_SIZES),
    "phi": lambda: t.PhiConfig(**_SIZES),
    "phi3": lambda: t.Phi3Config(**_SIZES, sliding_window=WINDOW),
    "gptj": lambda: t.GPTJConfig(**_GPT, rotary_dim=4),
    "gpt_neo": lambda: t.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=64,
        **_IDS,
    ),
    "falcon": lambda: t.FalconConfig(**_SIZES, alibi=False),
    "falcon_alibi": lambda: t.FalconConfig(**_SIZES, alibi=True),
    "mpt": lambda: t.MptConfig(vocab_size=VOCAB, d_model=WIDTH, n_layers=2, n_heads=4, max_seq_len=64, **_IDS),
    "cohere": lambda: t.CohereConfig(**_SIZES),
    "granite": lambda: t.GraniteConfig(**_SIZES, logits_scaling=3.0, embedding_multiplier=2.0),
    "stablelm": lambda: t.StableLmConfig(**_SIZES, num_key_value_heads=4),
    "olmo2": lambda: t.Olmo2Config(**_SIZES),
    "smollm3": lambda: t.SmolLM3Config(
        **_SIZES, **_GQA, use_sliding_window=True, sliding_window=WINDOW, layer_types=_TYPES
    ),
    "gpt_bigcode": lambda: t.GPTBigCodeConfig(**_GPT),
}
FAMILIES = list(CONFIGS)

VARIANTS = {
    "falcon_40b": lambda: t.FalconConfig(**_SIZES, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "gpt_bigcode_heads": lambda: t.GPTBigCodeConfig(**_GPT, multi_query=False),
    "gpt_neox_serial": lambda: t.GPTNeoXConfig(**_SIZES, use_parallel_residual=False),
    "gemma3_images": lambda: t.Gemma3Config(
        text_config=CONFIGS["gemma3"]().to_dict(),
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 4,
        },
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=4,
        eoi_token_index=4,
    ),
}
"""More shapes of these families, for ``test_architectures.py`` alone."""

_LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16}
_LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_PLAIN = (
    "arcee biogpt bitnet codegen cohere2 ctrl ernie4_5 exaone4 glm glm4 gpt_oss helium hunyuan_v1_dense jais2 "
    "ministral ministral3 mixtral modernbert-decoder nemotron olmo olmo3 olmoe persimmon phimoe qwen3_moe seed_oss "
    "starcoder2 vaultgemma xglm"
)
PASSING = {kind: {} for kind in _PLAIN.split()} | dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3"), _LATENT)
"""Decoders that are not verified and pass the self-check, with what their configs need beside ``_SMALL``."""
FAILING = {
    "cpmant": "does not accept `inputs_embeds`",
    "git": "attention is not causal",
    "openai-gpt": "has no KV cache",
    "trocr": "positions include padding",
}
"""Decoders that fail it, and why."""
_SMALL = _SIZES | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4096,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "rotary_dim": 4,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
PEFT_FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "mistral", "bloom", "gpt2", "opt", "gpt_neox", "phi"]
"""Those that the issue asks to compare with PEFT."""


@cache
def base(family, dtype=torch.float32):
    """A model to share between tests: frozen, in eval(). Do not change it; take a ``fresh`` one for that."""
    return random_model(CONFIGS[family](), FAMILIES.index(family) + 1, dtype)


def random_model(config, seed=0, dtype=torch.float32):
    """A model of any config, with weights that matter: frozen, in eval()."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = t.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.2)
    return model.requires_grad_(False).to(dtype)


def small(kind):
    """A random model of a type from ``PASSING`` or ``FAILING``."""
    known = t.AutoConfig.for_model(kind)
    sizes = {name: value for name, value in _SMALL.items() if hasattr(known, name)}
    return random_model(t.AutoConfig.for_model(kind, **sizes | PASSING.get(kind, {})))


def fresh(family, dtype=torch.float32):
    """A copy of ``base(family)`` of one's own, with gradients on, as a user gets it."""
    return copy.deepcopy(base(family, dtype)).requires_grad_(True)


def width(model):
    """Width of a model's input embeddings."""
    return model.get_input_embeddings().weight.shape[1]


def prompt_for(model, rows=5, *, seed=7, scale=0.5):
    """A prompt ``[rows, D]`` to train, in the model's number type."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width(model), generator=generator, dtype=torch.float64) * scale
    return values.to(model.dtype).requires_grad_(True)


def ids(*lengths, seed=3):
    """Rows of random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (length,), generator=generator) for length in lengths]


def pad(rows, lefts=None, total=None, fill=0):
    """Rows with ``lefts[i]`` pads on the left and the rest on the right: ``[B, T]`` values and mask."""
    lefts = lefts or [0] * len(rows)
    total = total or max(left + len(row) for left, row in zip(lefts, rows, strict=True))
    values = torch.full((len(rows), total), fill)
    mask = torch.zeros(len(rows), total, dtype=torch.long)
    for i, (left, row) in enumerate(zip(lefts, rows, strict=True)):
        values[i, left : left + len(row)] = row
        mask[i, left : left + len(row)] = 1
    return values, mask


def left_pad(rows, fill=0):
    """Rows padded on the left: ``[B, T]`` values and mask."""
    longest = max(map(len, rows))
    return pad(rows, [longest - len(row) for row in rows], longest, fill)


# -- the reference: every row alone, no padding, no cache --------------------------------------------


def plain_logits(model, prompt, row):
    """Logits ``[P + L, V]`` of prompt and row, by one plain call of the model."""
    embeds = torch.cat([prompt.to(model.dtype), model.get_input_embeddings()(row)])
    return model(inputs_embeds=embeds[None], use_cache=False).logits[0]


def plain_losses(model, prompt, row, labels):
    """Negative log-likelihood of each supervised token of one row; every token is predicted by the one before."""
    logits = plain_logits(model, prompt, row)[len(prompt) - 1 : -1]
    kept = labels != -100
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="none")


def plain_score(model, prompt, text, label):
    """Log-probability of a label behind a text."""
    row = torch.tensor([*text, *label])
    logp = plain_logits(model, prompt, row).float().log_softmax(-1)
    start = len(prompt) + len(text) - 1
    return sum(logp[start + i, token] for i, token in enumerate(label))


@torch.no_grad()
def plain_greedy(model, prompt, row, steps):
    """Greedy continuation of one row, everything computed anew for each token."""
    for _ in range(steps):
        row = torch.cat([row, plain_logits(model, prompt, row)[-1].argmax()[None]])
    return row


# -- watching ---------------------------------------------------------------------------------------


@contextmanager
def watched(module, note):
    """Calls of a module, or of a copy with the same attributes: ``note(args, kwargs, output)`` after each.

    By a hook on all modules: one on the module itself would send ``forward`` another way.
    """
    module.__dict__["_watched"] = True
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda called, args, kwargs, output: note(args, kwargs, output) if "_watched" in called.__dict__ else None,
        with_kwargs=True,
    )
    try:
        yield
    finally:
        hook.remove()
        del module.__dict__["_watched"]


# -- float64 all the way ---------------------------------------------------------------------------


class _NoFloat32(TorchFunctionMode):
    """Every request for float32 becomes one for float64.

    RMSNorm, rotary embeddings, eager softmax and our loss compute in float32 whatever the weights' type;
    without this, equal results differ by 1e-6 even in float64 models.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.float:
            return args[0].double()
        if function in (torch.Tensor.to, torch.Tensor.type):
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


@contextmanager
def float64():
    """Inside, float32 does not happen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _NoFloat32():
            yield
    finally:
        torch.set_default_dtype(before)


# -- tokenizers ------------------------------------------------------------------------------------


def tokenizer(*, bos=True, extra=()):
    """One token a word: ``w5 w6 ...``; ``<s>`` in front when ``bos``."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    words = [*special, *(f"w{i}" for i in range(len(special), VOCAB)), *extra]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
