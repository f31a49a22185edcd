"""softprompt beside PEFT on tiny random models: the same numbers and the same files, where PEFT is right."""

import json
import warnings

import pytest
import torch
from safetensors import safe_open

import softprompt
import tiny
from softprompt import score_labels

peft = pytest.importorskip("peft")

P = 5
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
families = pytest.mark.parametrize("family", tiny.PEFT_FAMILIES)
KEYS = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "peft_type",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "revision",
    "task_type",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
]
OLD_KEYS = set(KEYS) - {"auto_mapping", "revision", "peft_version", "modules_to_save", "tokenizer_kwargs"}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")


def pair(family, dtype=torch.float32, seed=1, **config):
    """PEFT's model and ours over copies of the same base, made with the same seed."""
    config = {"task_type": "CAUSAL_LM", "num_virtual_tokens": P, "prompt_tuning_init": "SAMPLE_VOCAB", **config}
    torch.manual_seed(seed)
    theirs = peft.get_peft_model(tiny.fresh(family, dtype), peft.PromptTuningConfig(**config)).eval()
    torch.manual_seed(seed)
    ours = softprompt.get_peft_model(tiny.fresh(family, dtype), softprompt.PromptTuningConfig(**config)).eval()
    return theirs, ours


def prompt_of(theirs, name="default"):
    return theirs.prompt_encoder[name].embedding.weight


def batch():
    """Rows of 13, 8 and 13 tokens on the right of which padding stands; the first row's first token is supervised."""
    rows = tiny.ids(13, 8, 13)
    input_ids, mask = tiny.pad(rows)
    labels = input_ids.masked_fill(mask == 0, -100)
    labels[1:, :4] = -100
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def near(got, expected, tolerance):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-3)


# -- the start -------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB", "TEXT"])
def test_initial_prompt_is_bit_equal(family, init, tokenizer_dir):
    text = {"prompt_tuning_init_text": "w7 w9 w40", "tokenizer_name_or_path": tokenizer_dir} if init == "TEXT" else {}
    for seed in (0, 12):
        theirs, ours = pair(family, seed=seed, prompt_tuning_init=init, num_virtual_tokens=6, **text)
        assert torch.equal(ours.prompt, prompt_of(theirs))
        assert ours.prompt.dtype == torch.float32


@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB"])
def test_random_numbers_are_left_where_peft_leaves_them(init):
    after = []
    for library in (peft, softprompt):
        torch.manual_seed(4)
        config = library.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, prompt_tuning_init=init)
        library.get_peft_model(tiny.fresh("llama"), config)
        after.append(torch.rand(3))
    assert torch.equal(*after)


# -- one step --------------------------------------------------------------------------------------


def one_step(model, weight, **more):
    weight.grad = None
    output = model(**batch(), **more)
    output.loss.backward()
    return output.loss.detach(), weight.grad.clone()


@families
def test_loss_gradient_and_logits(family):
    theirs, ours = pair(family)
    their_loss, their_grad = one_step(theirs, prompt_of(theirs))
    our_loss, our_grad = one_step(ours, ours.prompt)
    near(our_loss, their_loss, 1e-5)
    near(our_grad, their_grad, 3e-5)
    inputs = batch()
    with torch.no_grad():
        expected, got = theirs(**inputs).logits, ours(**inputs).logits
    assert got.shape == expected.shape == (3, P + 13, tiny.VOCAB)
    real = torch.cat([torch.ones(3, P), inputs["attention_mask"]], dim=1).bool()
    near(got[real], expected[real], 1e-5)
    assert (got[~real] == 0).all()


@families
def test_unpadded_rows_without_a_mask(family):
    theirs, ours = pair(family)
    input_ids = torch.stack(tiny.ids(9, 9))
    with torch.no_grad():
        near(ours(input_ids=input_ids).logits, theirs(input_ids=input_ids).logits, 1e-5)
        embeds = theirs.get_input_embeddings()(input_ids)
        near(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits, 1e-5)


def test_num_items_in_batch_divides_the_sum():
    theirs, ours = pair("llama")
    for count in (7, torch.tensor(11)):
        near(
            one_step(ours, ours.prompt, num_items_in_batch=count)[1],
            one_step(theirs, prompt_of(theirs), num_items_in_batch=count)[1],
            1e-5,
        )


@families
def test_left_padded_rows_are_as_alone(family):
    """PEFT puts the padding between prompt and text, which moves most families' positions: here we are stricter."""
    _, ours = pair(family)
    rows = tiny.ids(13, 4, 7)
    input_ids, mask = tiny.left_pad(rows)
    with torch.no_grad():
        got = ours(input_ids=input_ids, attention_mask=mask).logits
        for i, row in enumerate(rows):
            near(got[i, P:][mask[i].bool()], tiny.plain_logits(ours.base_model, ours.prompt, row)[P:], 1e-5)


@families
def test_five_optimiser_steps(family):
    """AdamW on a changing batch, in float64, where steps of nearly equal gradients stay equal."""
    with tiny.float64():
        theirs, ours = (model.double() for model in pair(family, torch.float64))
        start = ours.prompt.detach().clone()
        for model, weight in ((theirs, prompt_of(theirs)), (ours, ours.prompt)):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
            assert [p is weight for group in optimizer.param_groups for p in group["params"]] == [True]
            for step in range(5):
                inputs = batch()
                inputs["input_ids"] = inputs["input_ids"].roll(step, dims=0)
                inputs["attention_mask"] = inputs["attention_mask"].roll(step, dims=0)
                inputs["labels"] = inputs["labels"].roll(step, dims=0)
                optimizer.zero_grad()
                model(**inputs).loss.backward()
                optimizer.step()
        assert (ours.prompt - start).abs().mean() > 0.05, "five steps moved the prompt"
        near(ours.prompt.detach(), prompt_of(theirs).detach(), 1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "gpt2"])
def test_hidden_states_attentions_and_cache(family):
    theirs, ours = pair(family)
    for model in (theirs, ours):
        model.base_model.set_attn_implementation("eager")  # sdpa gives no attentions
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    input_ids = torch.stack(tiny.ids(9, 9))
    with torch.no_grad():
        expected, got = (model(input_ids=input_ids, **asked) for model in (theirs, ours))
    for name in ("hidden_states", "attentions"):
        assert len(got[name]) == len(expected[name]) > 0
        for a, b in zip(got[name], expected[name], strict=True):
            near(a, b, 1e-5)
    near(got.logits, expected.logits, 1e-5)
    assert got.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == P + 9
    for a, b in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        near(a.keys, b.keys, 1e-5)
        near(a.values, b.values, 1e-5)


def test_tuple_instead_of_output():
    theirs, ours = pair("llama")
    inputs = batch()
    with torch.no_grad():
        expected, got = (model(**inputs, return_dict=False, use_cache=False) for model in (theirs, ours))
    assert isinstance(got, tuple)
    assert len(got) == len(expected) == 2
    near(got[0], expected[0], 1e-5)
    assert got[1].shape == expected[1].shape


# -- generation ------------------------------------------------------------------------------------


@families
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 0.9, "top_k": 20, "num_return_sequences": 3},
        {"repetition_penalty": 1.7},
    ],
    ids=["greedy", "beams", "sampling", "penalty"],
)
def test_generation(family, more):
    theirs, ours = pair(family)
    input_ids = torch.stack(tiny.ids(9, 9))
    results = []
    for model in (theirs, ours):
        torch.manual_seed(3)
        results.append(model.generate(input_ids=input_ids, **{**GREEDY, **more}))
    assert results[1].shape == (2 * more.get("num_return_sequences", 1), 15)
    assert torch.equal(*results)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_generation_scores(family):
    theirs, ours = pair(family)
    asked = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    (row,) = tiny.ids(9)
    expected, got = (model.generate(row[None], **asked) for model in (theirs, ours))
    assert torch.equal(got.sequences, expected.sequences)
    near(torch.stack(got.scores), torch.stack(expected.scores), 1e-5)


# -- files -----------------------------------------------------------------------------------------


def saved(model, folder):
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    return config, tensors, metadata


@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB", "TEXT"])
def test_saved_files_are_the_same(init, tmp_path, tokenizer_dir):
    text = {"prompt_tuning_init_text": "w7 w9", "tokenizer_name_or_path": tokenizer_dir} if init == "TEXT" else {}
    theirs, ours = pair("llama", prompt_tuning_init=init, **text)
    expected, their_tensors, their_metadata = saved(theirs, tmp_path / "theirs")
    got, our_tensors, our_metadata = saved(ours, tmp_path / "ours")
    assert sorted(got) == sorted(expected) == KEYS
    assert list(got) == KEYS, "keys are sorted in the file"
    version = got.pop("peft_version")
    assert version.startswith("0.21")
    assert "softprompt" in version
    assert got == {key: value for key, value in expected.items() if key != "peft_version"}
    assert list(our_tensors) == list(their_tensors) == ["prompt_embeddings"]
    assert our_tensors["prompt_embeddings"].dtype == their_tensors["prompt_embeddings"].dtype == torch.float32
    assert torch.equal(our_tensors["prompt_embeddings"], their_tensors["prompt_embeddings"])
    assert our_metadata == their_metadata == {"format": "pt"}
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_base_keeps_a_float32_prompt(dtype, tmp_path):
    theirs, ours = pair("llama", dtype)
    assert ours.prompt.dtype == prompt_of(theirs).dtype == torch.float32
    assert saved(ours, tmp_path)[1]["prompt_embeddings"].dtype == torch.float32
    their_loss, their_grad = one_step(theirs, prompt_of(theirs))
    our_loss, our_grad = one_step(ours, ours.prompt)
    assert our_loss.dtype == our_grad.dtype == torch.float32
    near(our_loss, their_loss, 2e-2)
    assert torch.cosine_similarity(our_grad.flatten(), their_grad.flatten(), dim=0) > 0.99
    with torch.no_grad():
        assert ours(**batch()).logits.dtype == theirs(**batch()).logits.dtype == dtype


def test_a_prompt_on_a_halved_base_is_saved_in_full(tmp_path):
    """PEFT halves the prompt too; AdamW then makes it NaN."""
    theirs, ours = (model.half() for model in pair("llama"))
    found, halved = (saved(m, tmp_path / n)[1]["prompt_embeddings"] for n, m in (("a", ours), ("b", theirs)))
    assert (found.dtype, halved.dtype) == (torch.float32, torch.float16)
    assert found.half().equal(halved)


@families
def test_peft_reads_ours(family, tmp_path):
    _, ours = pair(family)
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny.fresh(family), tmp_path)
    assert torch.equal(prompt_of(theirs), ours.prompt)
    with torch.no_grad():
        near(ours(**batch()).loss, theirs(**batch()).loss, 1e-5)


@families
def test_we_read_pefts(family, tmp_path):
    theirs, _ = pair(family)
    theirs.save_pretrained(tmp_path)
    ours = softprompt.PeftModel.from_pretrained(tiny.fresh(family), tmp_path)
    assert torch.equal(ours.prompt, prompt_of(theirs))
    with torch.no_grad():
        near(ours(**batch()).loss, theirs(**batch()).loss, 1e-5)


def test_named_adapters_travel_both_ways(tmp_path):
    theirs, ours = pair("llama")
    theirs.add_adapter("more", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    ours.add_adapter("more", softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")

    def listing(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    assert listing(tmp_path / "ours") == listing(tmp_path / "theirs")
    read = softprompt.PeftModel.from_pretrained(tiny.fresh("llama"), tmp_path / "theirs" / "more", adapter_name="more")
    assert torch.equal(read.prompt, prompt_of(theirs, "more"))
    back = peft.PeftModel.from_pretrained(tiny.fresh("llama"), tmp_path / "ours", subfolder="more")
    assert torch.equal(prompt_of(back), ours.prompt_of("more"))


@pytest.mark.parametrize("kept", ["old", "newer", "minimal"])
def test_files_of_other_releases(kept, tmp_path):
    """The 12 keys of PEFT 0.1, a key from the future, and the three keys without which nothing can be done."""
    theirs, ours = pair("llama")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    if kept == "old":
        values = {key: value for key, value in values.items() if key in OLD_KEYS}
        values["base_model_name_or_path"] = ""
        assert len(values) == 12
    elif kept == "minimal":
        values = {key: values[key] for key in ("peft_type", "task_type", "num_virtual_tokens")}
    else:
        values |= {"from_the_future": 1, "another": [2]}
    path.write_text(json.dumps(values))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = softprompt.PeftModel.from_pretrained(tiny.fresh("llama"), tmp_path)
    said = [str(w.message) for w in caught if "Unexpected keyword arguments" in str(w.message)]
    if kept == "newer":
        (line,) = said
        assert line.startswith(
            "Unexpected keyword arguments ['another', 'from_the_future'] for class PromptTuningConfig, "
            "these are ignored."
        )
    else:
        assert not said
    assert torch.equal(read.prompt, ours.prompt)
    config = read.peft_config["default"]
    assert (config.token_dim, config.num_layers, config.num_attention_heads) == (tiny.WIDTH, 2, 4)


# -- counting --------------------------------------------------------------------------------------


@families
def test_trainable_parameters(family, capsys):
    theirs, ours = pair(family)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    theirs.print_trainable_parameters()
    expected = capsys.readouterr().out
    ours.print_trainable_parameters()
    assert capsys.readouterr().out == expected


def test_trainable_parameters_line(capsys):
    ours = softprompt.get_peft_model(
        tiny.fresh("llama"), softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    )
    total = P * tiny.WIDTH + sum(p.numel() for p in tiny.base("llama").parameters())
    ours.print_trainable_parameters()
    line = f"trainable params: 160 || all params: {total:,d} || trainable%: {16000 / total:.4f}\n"
    assert capsys.readouterr().out == line


def test_several_adapters_count_as_parameters():
    """Ours trains the active prompt only; the total is PEFT's."""
    theirs, ours = pair("llama")
    theirs.add_adapter("more", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    ours.add_adapter("more", softprompt.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert ours.get_nb_trainable_parameters()[1] == theirs.get_nb_trainable_parameters()[1]


# -- TEXT is a prefix of tokens --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bloom", "opt", "gemma3"])
def test_text_start_is_as_if_the_text_stood_in_front(family, tokenizer_dir):
    words = [1, 7, 9, 40]  # <s> and three words
    _, ours = pair(
        family,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="w7 w9 w40",
        tokenizer_name_or_path=tokenizer_dir,
        num_virtual_tokens=len(words),
    )
    (row,) = tiny.ids(8)
    whole = torch.cat([torch.tensor(words), row])[None]
    with torch.no_grad():
        near(ours(input_ids=row[None]).logits, ours.base_model(input_ids=whole).logits, 1e-5)
    got = ours.generate(row[None], **GREEDY)[0, len(row) :]
    assert torch.equal(got, ours.base_model.generate(whole, **GREEDY)[0, len(whole[0]) :])


# -- the real model --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_pair(smollm2):
    """One base for both: neither changes it while it answers."""
    words = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": 8,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "Classify if the tweet is a complaint or not:",
        "tokenizer_name_or_path": "smollm2-135m",
    }
    ours = softprompt.get_peft_model(
        smollm2.model, softprompt.PromptTuningConfig(**words), tokenizer=smollm2.tokenizer
    ).eval()
    plain = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(smollm2.model, peft.PromptTuningConfig(**plain)).eval()
    with torch.no_grad():
        prompt_of(theirs).copy_(ours.prompt)
    return theirs, ours


TWEETS = (
    "Tweet text : @HMRCcustomers No this is my first job Label : ",
    "Tweet text : no answer Label : ",
)


@pytest.mark.real
def test_real_loss_gradient_and_logits(smollm2, real_pair):
    theirs, ours = real_pair
    encoded = [
        smollm2.tokenizer(text + label)["input_ids"]
        for text, label in zip(TWEETS, (" no complaint", " complaint"), strict=True)
    ]
    input_ids, mask = tiny.pad([torch.tensor(row) for row in encoded])
    inputs = {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}
    results = []
    for model, weight in ((theirs, prompt_of(theirs)), (ours, ours.prompt)):
        output = model(**inputs)
        (gradient,) = torch.autograd.grad(output.loss, weight)
        results.append((output.loss.detach(), gradient, output.logits.detach()))
    (their_loss, their_grad, their_logits), (our_loss, our_grad, our_logits) = results
    near(our_loss, their_loss, 1e-5)
    near(our_grad, their_grad, 1e-4)
    real = torch.cat([torch.ones(2, 8), mask], dim=1).bool()
    near(our_logits[real], their_logits[real], 1e-4)


@pytest.mark.real
def test_real_greedy_generation(smollm2, real_pair):
    theirs, ours = real_pair
    row = torch.tensor([smollm2.tokenizer(TWEETS[0])["input_ids"]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": smollm2.tokenizer.eos_token_id}
    expected = theirs.generate(input_ids=row, **options)
    assert torch.equal(ours.generate(input_ids=row, **options), expected)
    assert not torch.equal(smollm2.model.generate(input_ids=row, **options), expected), "the prompt matters here"


@pytest.mark.real
def test_real_left_padded_rows_are_as_alone(smollm2, real_pair):
    _, ours = real_pair
    rows = [torch.tensor(smollm2.tokenizer(text)["input_ids"]) for text in TWEETS]
    input_ids, mask = tiny.left_pad(rows)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": smollm2.tokenizer.eos_token_id}
    got = ours.generate(input_ids=input_ids, attention_mask=mask, **options)[:, input_ids.shape[1] :]
    with torch.no_grad():
        logits = ours(input_ids=input_ids, attention_mask=mask).logits
        for i, row in enumerate(rows):
            near(logits[i, 8:][mask[i].bool()], tiny.plain_logits(smollm2.model, ours.prompt, row)[8:], 1e-4)
            alone = ours.generate(input_ids=row[None], **options)[0, len(row) :]
            assert torch.equal(got[i, : len(alone)], alone)


@pytest.mark.real
def test_real_label_scores(smollm2, real_pair):
    _, ours = real_pair
    texts = [smollm2.tokenizer(text)["input_ids"] for text in TWEETS]
    labels = [smollm2.tokenizer(label)["input_ids"] for label in (" complaint", " no complaint")]
    got = score_labels(smollm2.model, ours.prompt, texts, labels)
    with torch.no_grad():
        expected = torch.stack(
            [torch.stack([tiny.plain_score(smollm2.model, ours.prompt, x, y) for y in labels]) for x in texts]
        )
    near(got, expected, 1e-4)
