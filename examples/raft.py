"""Answers for the RAFT benchmark: for each of its tasks, train on the 50 rows and write the file to hand in.

RAFT (Alex et al. 2021, arXiv:2109.14076) gives 50 labelled rows of each of eleven tasks and wants a label for each of
some thousand others. Its files are wanted as ``FOLDER/<task>/train.csv`` and ``FOLDER/<task>/test_unlabeled.csv``; a
file ``labels.txt`` beside them, a label a line, may name classes that the 50 rows lack (banking_77 has 77).

    python examples/raft.py FOLDER OUTPUT --recipe best [--task twitter_complaints] [--model NAME] [--max_length 256]

writes ``OUTPUT/<task>/predictions.csv`` with the columns ID and Label. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

TEXT_COLUMNS = {
    "ade_corpus_v2": ["Sentence"],
    "banking_77": ["Query"],
    "neurips_impact_statement_risks": ["Paper title", "Impact statement"],
    "one_stop_english": ["Article"],
    "overruling": ["Sentence"],
    "semiconductor_org_types": ["Paper title", "Organization name"],
    "systematic_review_inclusion": ["Title", "Abstract", "Journal"],
    "tai_safety_research": ["Title", "Abstract Note", "Publication Title"],
    "terms_of_service": ["Sentence"],
    "tweet_eval_hate": ["Tweet"],
    "twitter_complaints": ["Tweet text"],
}
"""What there is to read in each task; other columns (links, authors, years) say little of the label."""


def answer(task: str, source: Path, target: Path, options: argparse.Namespace) -> None:
    """Train on a task and label its rows."""
    adapter, names = target / "adapter", source / "labels.txt"
    train = ["train", "--recipe", options.recipe, "--model_name_or_path", options.model]
    train += ["--train_file", str(source / "train.csv"), "--task", "classification", "--label_column", "Label"]
    for column in TEXT_COLUMNS[task]:
        train += ["--text_column", column]
    for label in names.read_text(encoding="utf-8").splitlines() if names.exists() else []:
        train += ["--labels", label]
    train += ["--max_length", str(options.max_length), "--output_dir", str(adapter), "--overwrite_output_dir"]
    rows = str(source / "test_unlabeled.csv")
    predict = ["predict", "--adapter", str(adapter), "--input_file", rows]
    for arguments in (train, [*predict, "--raft_output", str(target / "predictions.csv")]):
        if status := subprocess.run([sys.executable, "-m", "softprompt", *arguments], check=False).returncode:
            sys.exit(status)


def run() -> None:
    """Answer all tasks, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda name: Path(name).expanduser())
    parser.add_argument("output", type=lambda name: Path(name).expanduser())
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--task", action="append", candidates=TEXT_COLUMNS)
    options = parser.parse_args()
    for task in options.task or TEXT_COLUMNS:
        target = options.output / task
        if (target / "predictions.csv").exists():
            print(f"{task}: answered already")
            continue
        print(f"{task}:")
        answer(task, options.folder / task, target, options)


if __name__ == "__main__":
    run()
