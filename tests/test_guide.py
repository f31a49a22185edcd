"""The guide's job, with PEFT and with softprompt in one process: the same losses, the same answers.

Once as our own short version of it; once as its own code, taken at test time from the text of the guide where
that lies beside the repository (it is not part of it); and once as ``examples/guide.py``.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import random
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator, get_linear_schedule_with_warmup

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT.parent / "shared" / "guide.txt"
INSTRUCTION = "Classify if the tweet is a complaint or not:"
COLUMN, LENGTH, TOKENS, EPOCHS = "Tweet text", 64, 8, 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: threads that wait for each other cost more than they bring, by far on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tweets(count: int, seed: int) -> Dataset:
    """Rows with the columns of RAFT's ``twitter_complaints``."""
    draw = random.Random(seed)
    bad = ["the parcel is broken", "no water since monday", "the train is late again", "the app does not open"]
    good = ["what a lovely day", "thank you for the quick help", "when do you open on sunday", "a photo of my dog"]
    labels = [draw.randint(1, 2) for _ in range(count)]
    texts = [f"@{draw.choice(['shop', 'rail', 'bank'])} {draw.choice(bad if n == 1 else good)}" for n in labels]
    label = ClassLabel(names=["Unlabeled", "complaint", "no complaint"])
    features = Features({COLUMN: Value("string"), "ID": Value("int32"), "Label": label})
    return Dataset.from_dict({COLUMN: texts, "ID": list(range(count)), "Label": labels}, features=features)


@pytest.fixture(scope="module")
def data() -> DatasetDict:
    return DatasetDict({"train": tweets(20, 0), "test": tweets(12, 1)})


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory, data: DatasetDict) -> Path:
    """A random BLOOM with BLOOM's special tokens, padding and end included (3 and 2)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "bloom"
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=[*special.values()], show_progress=False
    )
    tokenizer.train_from_iterator([*data["train"][COLUMN], INSTRUCTION, "no complaint Label : Tweet text"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = BloomConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **ids
    )
    BloomForCausalLM(config).save_pretrained(folder)
    return folder


# --- our own short version ------------------------------------------------------------------------


def batches_of(rows: Dataset, tokenizer: Any, shuffle: bool) -> DataLoader[Any]:
    """Text, label and a pad token, filled up on the left; the loss is on label and pad token."""
    names = rows.features["Label"].names
    examples = []
    for row in rows:
        text = tokenizer(f"{COLUMN} : {row[COLUMN]} Label : ")["input_ids"]
        label = tokenizer(names[row["Label"]])["input_ids"] + [tokenizer.pad_token_id]
        fill, count = LENGTH - len(text) - len(label), len(text) + len(label)
        ids, labels = [tokenizer.pad_token_id] * fill + text + label, [-100] * (fill + len(text)) + label
        examples.append({"input_ids": ids, "labels": labels, "attention_mask": [0] * fill + [1] * count})
    order = torch.Generator().manual_seed(5)
    return DataLoader(
        examples,  # type: ignore[arg-type]
        batch_size=8,
        shuffle=shuffle,
        generator=order,
        collate_fn=default_data_collator,
    )


def tune(library: str, folder: Path, data: DatasetDict, output: Path) -> tuple[list[list[float]], list[Any], str]:
    """Train and evaluate, save, load and generate; losses of each epoch, label guesses, and the text."""
    peft = importlib.import_module(library)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = peft.PromptTuningConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        prompt_tuning_init=peft.PromptTuningInit.TEXT,
        num_virtual_tokens=TOKENS,
        prompt_tuning_init_text=INSTRUCTION,
        tokenizer_name_or_path=str(folder),
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    train, test = batches_of(data["train"], tokenizer, True), batches_of(data["test"], tokenizer, False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(train) * EPOCHS)
    losses, guesses = [], []
    for _ in range(EPOCHS):
        model.train()
        train_losses, test_losses = [], []
        for batch in train:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            train_losses.append(loss.item())
        model.eval()
        for batch in test:
            with torch.no_grad():
                output_of = model(**batch)
            test_losses.append(output_of.loss.item())
            there = batch["labels"][:, 1:] != -100
            guesses.append(tokenizer.decode(output_of.logits[:, TOKENS:-1].argmax(-1)[there]))
        losses.append([sum(train_losses) / len(train), sum(test_losses) / len(test)])

    model.save_pretrained(output)
    saved = peft.PeftConfig.from_pretrained(output)
    assert saved.base_model_name_or_path == str(folder)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), output)
    inputs = tokenizer(f"{COLUMN} : @rail why is it late Label : ", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=10, eos_token_id=3
        )
    return losses, guesses, tokenizer.batch_decode(ids, skip_special_tokens=False)[0]


def test_our_version_gives_the_same_numbers(bloom: Path, data: DatasetDict, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    losses, guesses, text = tune("peft", bloom, data, tmp_path / "peft")
    ours = tune("softprompt", bloom, data, tmp_path / "softprompt")
    assert len(losses) >= 5
    assert losses[-1][0] < losses[0][0]
    for mine, theirs in zip(ours[0], losses, strict=True):
        assert mine == pytest.approx(theirs, rel=5e-5)
    assert ours[1] == guesses
    assert ours[2] == text
    assert len(text) > len(f"{COLUMN} : @rail why is it late Label : ")


# --- the guide's own code -------------------------------------------------------------------------


def parses(lines: list[str]) -> bool:
    try:
        ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    return True


def code_blocks(text: str) -> list[str]:
    """The code of a guide saved as plain text: what stands behind "Copied", as far as it is Python.

    A heading of a single word is Python as well, and goes.
    """
    blocks = []
    for part in re.split(r"(?m)^\s*Copied[ \t]*$", text)[1:]:
        lines = ["" if line.startswith(("!", "%")) else line for line in part.strip("\n").splitlines()]
        end = next(n for n in range(len(lines), -1, -1) if parses(lines[:n]))
        tree = ast.parse("\n".join(lines[:end]))
        tree.body = [s for s in tree.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Name))]
        blocks.append(ast.unparse(tree))
    return blocks


def adapted(code: str, library: str, model: str) -> str:
    """The guide's code for this machine and this library; a change that no longer applies is an error."""
    changes = {
        r"^from peft import": f"from {library} import",
        r"(['\"])cuda\1": "'cpu'",
        r"(['\"])bigscience/bloomz-560m\1": repr(model),
        r"^num_epochs = \d+": "num_epochs = 5",
        r"^(from huggingface_hub import )?notebook_login.*$": "",
        r"^model\.push_to_hub\(.*$": "model.save_pretrained(peft_model_id)",
        r"(['\"])stevhliu/": r"\1your-name/",
    }
    for pattern, replacement in changes.items():
        code, count = re.subn(pattern, replacement, code, flags=re.MULTILINE)
        assert count, f"the guide has nothing like {pattern} any more"
    return code


def follow(library: str, model: Path, data: DatasetDict, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the guide's code in an empty folder; what it prints."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: {"twitter_complaints": data}[config])
    code = adapted("\n".join(code_blocks(GUIDE.read_text(encoding="utf-8", errors="replace"))), library, str(model))
    printed = io.StringIO()
    torch.manual_seed(3)
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"<the guide with {library}>", "exec"), {"__name__": "guide"})
    assert (folder / "your-name" / "bloomz-560m_PROMPT_TUNING_CAUSAL_LM" / "adapter_model.safetensors").is_file()
    return printed.getvalue()


NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_guides_code_gives_the_same_numbers(
    bloom: Path, data: DatasetDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not GUIDE.is_file():
        pytest.skip(f"the guide's text is not at {GUIDE}; it is not part of the repository")
    pytest.importorskip("peft")
    theirs = follow("peft", bloom, data, tmp_path / "peft", monkeypatch)
    ours = follow("softprompt", bloom, data, tmp_path / "softprompt", monkeypatch)
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)  # the same lines, up to numbers
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (ours, theirs)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4, abs=1e-4)
    losses = [float(n) for n in re.findall(r"train_epoch_loss=tensor\(([\d.]+)\)", ours)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert "trainable params: 256 || all params: " in ours
    assert ours.splitlines()[-1].startswith("['Tweet text : @nationalgridus")


# --- our example ----------------------------------------------------------------------------------


def run_example(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["guide.py", *args])
    runpy.run_path(str(ROOT / "examples" / "guide.py"), run_name="__main__")


def test_the_example_runs(
    bloom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--offline", "--model", str(bloom), "--epochs", "3", "--limit", "16", "--max_length", "96"]
    run_example(monkeypatch, *options, "--output_dir", str(tmp_path / "prompt"))
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"train loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert "trainable params: 256 ||" in printed
    assert "\n-> " in printed
    assert (tmp_path / "prompt" / "adapter_model.safetensors").stat().st_size < 2000


def test_the_example_says_that_the_hub_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^guide\.py: .*bloomz-560m.*--offline") as end:
        run_example(monkeypatch, "--output_dir", str(tmp_path / "prompt"))
    assert "\n" not in str(end.value)
    assert not (tmp_path / "prompt").exists()
