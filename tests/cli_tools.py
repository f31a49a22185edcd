"""A tiny base model with a tokenizer of words, rows for it, and the installed command line in a process of its own."""

from __future__ import annotations

import csv
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 1800  # seconds before a process counts as hanging; nothing else may depend on it
SOFTPROMPT = Path(sys.executable).with_name("softprompt")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = [
    "text",
    ":",
    "Label",
    "yes",
    "no",
    "maybe",
    "good",
    "bad",
    "fine",
    "awful",
    "service",
    "phone",
    "help",
    "thanks",
    "sir",
    "is",
    "are",
    "it",
    "the",
    "a",
    "why",
    "when",
]
CONTEXT = 64
WIDTH = 16

GOOD = ("good", "fine", "thanks", "help")
BAD = ("awful", "bad", "why", "when")


def make_base(folder: Path, *, width: int = WIDTH, seed: int = 0, words: Sequence[str] = ()) -> str:
    """Write a random Llama with a tokenizer of words, ``words`` among them; ``~`` is no token at all."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = list(dict.fromkeys((*SPECIAL, *WORDS, *words)))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Replace("~", "")
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=CONTEXT, **sizes, **ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return str(folder)


def rows(number: int, start: int = 0) -> list[dict[str, str]]:
    """Short texts with the label ``yes`` (a complaint) or ``no``, and a column that nobody asked for."""
    made = []
    for i in range(start, start + number):
        mood = (BAD, GOOD)[i % 2]
        words = [WORDS[(7 * i + 3 * k) % len(WORDS)] for k in range(i % 5)]
        made.append({"id": str(i), "text": " ".join([mood[i // 2 % 4], *words]), "label": ("yes", "no")[i % 2]})
    return made


def write_rows(path: Path, values: Sequence[Mapping[str, Any]]) -> str:
    """Write a .csv or .jsonl; the plainest code there is, not softprompt's."""
    with open(path, "w", encoding="utf-8", newline="") as handle:
        if path.suffix == ".jsonl":
            handle.writelines(json.dumps(value) + "\n" for value in values)
        else:
            writer = csv.DictWriter(handle, list(values[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(values)
    return str(path)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with one thread and no network."""
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}
    return {**os.environ, **fixed, **changes}


def softprompt(
    *args: Any, cwd: Path | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the installed ``softprompt``; ``check``: a process that fails is an ``AssertionError`` with its output."""
    env = environment(**options.pop("env", {}))
    command = [str(SOFTPROMPT), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=cwd, env=env, check=False, **options
    )
    assert not check or done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n--- stderr\n{done.stderr}"
    return done


_STRUCK = """
import os, signal, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook

def strike(*_):
    if {when}:
        os.kill(os.getpid(), {number})

signal.signal(signal.SIGINT, signal.default_int_handler)  # off in what was started in the background
register_optimizer_step_post_hook(strike)
from softprompt.cli import main
main(sys.argv[1:])
"""


def struck(number: int, when: str, *args: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``softprompt``, which gets the signal ``number`` at the first optimiser step after which ``when`` is true.

    Args:
        when: a Python expression, which may use ``Path``.
    """
    command = [sys.executable, "-c", _STRUCK.format(when=when, number=int(number)), *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=cwd, env=environment(), check=False
    )


def forked(
    *args: Any, cwd: Path | None = None, check: bool = False, file_size: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``softprompt`` in a process forked from one that has imported torch: half a second instead of five.

    Use ``softprompt`` where the start of the program, or its environment, is what is tested.

    Args:
        check: a process that fails is an ``AssertionError`` with its output.
        file_size: maximum size of a file in bytes.
    """
    _FORKS.set_forkserver_preload(
        ["softprompt.training.pipeline", "softprompt.inference.predict", "softprompt.peft.push"]
    )
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name, "out"), Path(name, "err")
        process = _FORKS.Process(target=_main, args=(list(map(str, args)), cwd, file_size, out, err))
        with _ONE_AT_A_TIME:
            process.start()
        if not multiprocessing.connection.wait([process.sentinel], PATIENCE):
            process.kill()
            raise subprocess.TimeoutExpired(args, PATIENCE, out.read_text(), err.read_text())
        with _ONE_AT_A_TIME:
            process.join()
        done = subprocess.CompletedProcess(args, process.exitcode, out.read_text(), err.read_text())
    assert not check or done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n--- stderr\n{done.stderr}"
    return done


def _main(args: list[str], cwd: Path | None, file_size: int | None, out: Path, err: Path) -> None:
    import torch

    from softprompt.cli import main

    if cwd is not None:
        os.chdir(cwd)
    os.environ.update(environment())
    torch.set_num_threads(1)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    main(args)


_FORKS = multiprocessing.get_context("forkserver")
# start() reads the exit status of every child that has ended; a join() that runs meanwhile would find it gone.
_ONE_AT_A_TIME = threading.Lock()
