"""Prompt tuning from start to end: teach a frozen model to tell complaints from other messages.

This is the whole job of the prompt tuning guide of Hugging Face PEFT, with softprompt: eight virtual tokens
are put in front of every message, and only these are trained. The model itself never changes::

    python examples/guide.py                      # bloomz-560m and RAFT's twitter_complaints, from the Hub
    python examples/guide.py --offline            # a small model and data that are on this machine
    python examples/guide.py --push me/my-prompt  # and share the result
"""

import argparse
import json
import math
import sys
from importlib.resources import files

import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator, get_linear_schedule_with_warmup

from softprompt import PeftConfig, PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from softprompt.config.options import EMBEDDED_MODEL, ModelOptions
from softprompt.errors import BaseModelError
from softprompt.models.loading import load_base

START = "Classify if the tweet is a complaint or not:"
TRY = "@nationalgridus My lights have been off since Monday and nobody picks up the phone. When will this end?"


def load_rows(offline, limit):
    """The name of the text column, then training and evaluation rows as pairs of text and label."""
    if offline:
        folder = files("softprompt.data") / "complaints"
        lines = [
            (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in ("train", "validation")
        ]
        train, held_out = ([(row["text"], row["label"]) for row in map(json.loads, split)] for split in lines)
        return "text", train[:limit], held_out[:limit]
    from datasets import load_dataset

    # RAFT came with a script, which is not run any more; the Hub keeps its rows on this branch. The answers
    # of the test split are secret, so every fifth of the 50 training rows is kept for evaluation.
    data = load_dataset("ought/raft", "twitter_complaints", revision="refs/convert/parquet")["train"]
    names = [name.replace("_", " ") for name in data.features["Label"].names]
    rows = [(row["Tweet text"], names[row["Label"]]) for row in data]
    train = [row for number, row in enumerate(rows) if number % 5]
    return "Tweet text", train[:limit], rows[::5][:limit]


def encode(rows, column, tokenizer, max_length):
    """Text and label as one row of ``max_length`` tokens, filled up on the left; only the label has a loss."""
    examples = []
    for text, label in rows:
        # A pad token behind the label is what the model learns to stop at.
        label_ids = tokenizer(label, add_special_tokens=False)["input_ids"] + [tokenizer.pad_token_id]
        room = max_length - len(label_ids)
        text_ids = tokenizer(f"{column} : {text} Label : ")["input_ids"][-room:]  # too long: what comes first is cut
        padding = max_length - len(text_ids) - len(label_ids)
        examples.append({
            "input_ids": [tokenizer.pad_token_id] * padding + text_ids + label_ids,
            "attention_mask": [0] * padding + [1] * (len(text_ids) + len(label_ids)),
            "labels": [-100] * (padding + len(text_ids)) + label_ids,
        })  # fmt: skip
    return examples


def train_epoch(model, loader, optimizer, schedule):
    """One pass over the training rows; the mean loss."""
    model.train()
    total = 0.0
    for batch in loader:
        loss = model(**to_device(batch, model.device)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def evaluate(model, loader):
    """Mean loss, and the share of rows whose label comes out right, token by token."""
    model.eval()
    total, right, count = 0.0, 0, 0
    for batch in loader:
        batch = to_device(batch, model.device)
        output = model(**batch)
        total += output.loss.item()
        # The logits begin with those of the virtual tokens, and each predicts the token after it.
        guesses = output.logits[:, -batch["labels"].shape[1] - 1 : -1].argmax(-1)
        wrong = (guesses != batch["labels"]) & (batch["labels"] != -100)
        right += int((~wrong.any(1)).sum())
        count += len(wrong)
    return total / len(loader), right / count


def to_device(batch, device):
    return {name: value.to(device) for name, value in batch.items()}


def classify(model, tokenizer, column, text):
    """The label that the model writes behind a text."""
    inputs = tokenizer(f"{column} : {text} Label : ", return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=10, eos_token_id=tokenizer.pad_token_id, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def load_model(name):
    """A frozen base model and its tokenizer, which has a pad token."""
    base = load_base(ModelOptions(model_name_or_path=name))
    if base.tokenizer.pad_token_id is None:
        base.tokenizer.pad_token = base.tokenizer.eos_token
    return base


def main():
    args = parse_args()
    torch.manual_seed(42)
    try:
        base = load_model(args.model)
        column, train_rows, eval_rows = load_rows(args.offline, args.limit)
    except (BaseModelError, OSError) as error:
        hint = "" if args.offline else "; use --offline to do without the Hub"
        sys.exit(f"guide.py: {' '.join(str(error).split())}{hint}")

    # 1. A soft prompt that starts as the embeddings of an instruction.
    config = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        prompt_tuning_init=PromptTuningInit.TEXT,
        prompt_tuning_init_text=START,
        num_virtual_tokens=8,
        tokenizer_name_or_path=args.model,
    )
    model = get_peft_model(base.model, config, tokenizer=base.tokenizer)
    model.print_trainable_parameters()

    # 2. Batches.
    batches = {"collate_fn": default_data_collator, "batch_size": args.batch_size}
    train_set, eval_set = (encode(rows, column, base.tokenizer, args.max_length) for rows in (train_rows, eval_rows))
    train_loader, eval_loader = DataLoader(train_set, shuffle=True, **batches), DataLoader(eval_set, **batches)

    # 3. Training: an ordinary loop.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(train_loader) * args.epochs)
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(model, train_loader, optimizer, schedule)
        eval_loss, accuracy = evaluate(model, eval_loader)
        print(
            f"epoch {epoch}: train loss {loss:.4f}, perplexity {math.exp(loss):.3f}; "
            f"eval loss {eval_loss:.4f}, perplexity {math.exp(eval_loss):.3f}, labels right {accuracy:.1%}"
        )

    # 4. A few kilobytes to keep, and to share.
    model.save_pretrained(args.output_dir)
    if args.push:
        print("pushed to", model.push_to_hub(args.push).repo_url)

    # 5. Somewhere else, later: the base model that the config names, with the prompt in front.
    del model, base
    base = load_model(PeftConfig.from_pretrained(args.output_dir).base_model_name_or_path)
    model = PeftModel.from_pretrained(base.model, args.output_dir)
    print(f"{TRY}\n-> {classify(model, base.tokenizer, column, TRY)!r}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help=f"use {EMBEDDED_MODEL} and the packaged data")
    parser.add_argument("--model", help="base model [default: bigscience/bloomz-560m]")
    parser.add_argument("--epochs", type=int, help="passes over the training rows [default: 50; 8 with --offline]")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-2)
    parser.add_argument("--max_length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--limit", type=int, help="use only so many rows")
    parser.add_argument("--output_dir", default="complaints-prompt")
    parser.add_argument("--push", metavar="REPO", help="upload the prompt to this repository of the Hub")
    args = parser.parse_args()
    args.model = args.model or (EMBEDDED_MODEL if args.offline else "bigscience/bloomz-560m")
    args.epochs = args.epochs or (8 if args.offline else 50)
    return args


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
    main()
