"""``make bench``: all speed measurements, into ``benchmarks/results.json`` and ``results.md``.

Each measurement is a ``softprompt benchmark speed ... --json`` in a process of its own. Results are stored by command
line, so an interrupted run resumes and only missing results are measured, unless ``--fresh`` is given.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ...errors import SoftPromptError
from ...storage.atomic import expand, read_json, write_json, write_text
from .tables import BLOOM, GEMMA, SMOLLM2, as_markdown

GEMMA_VARIABLE = "SOFTPROMPT_BENCH_GEMMA"
RESULTS, PAGE, NOTES = "results.json", "results.md", "notes.md"
RENAMED_KEYS = {
    "subject": "workload",
    "gemm_bound_fraction": "roofline_fraction",
    "torch_gemm_bound_fraction": "torch_roofline_fraction",
    "bound_seconds": "roofline_seconds",
}
"""Keys of results in version 0.1, still read: old key -> new key."""
IN_FLIGHT = (("--concurrency", "1"), ("--concurrency", "8"), ("--concurrency", "32"))
SCALES = ((8, 64), (8, 256), (8, 1024), (32, 64), (32, 256), (128, 64), (32, 1024), (128, 256))


@dataclass(frozen=True)
class Measurement:
    """One call of ``softprompt benchmark speed``.

    Attributes:
        model: name of the model in the tables.
        arguments: arguments of the command, without those of ``Rows``.
    """

    model: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Arguments that select the rows; none for the packaged rows."""

    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the rows on the page."""
        return display(self.arguments[1:2]) or "the packaged complaints"


def all_measurements(gemma: str | None) -> list[Measurement]:
    """All measurements, the longest last."""
    bases = {SMOLLM2: ("--model", "smollm2-135m"), BLOOM: ("--shape", "bloomz-560m")}
    if gemma:
        bases = {SMOLLM2: bases[SMOLLM2], GEMMA: ("--model", gemma), BLOOM: bases[BLOOM]}
    found = []
    for model, base in bases.items():
        rounds = ("--rounds", "3" if model == BLOOM else "8")
        found += [Measurement(model, ("train", *base, *_virtual(number), *rounds)) for number in (8, 100)]
    few = ("--rounds", "3", "--no_memory")
    for model, base in bases.items():
        found.append(Measurement(model, ("evaluate", *base, *_virtual(8), *few)))
        if model != BLOOM:  # slow with 2 GiB of weights, and with nothing new to show
            stream = ("--per_device_train_batch_size", "4")
            found.append(Measurement(model, ("suffix", *base, *_virtual(8), "--rounds", "8", "--no_memory")))
            found.append(Measurement(model, ("classes", *base, *_virtual(8), "--rounds", "8", "--no_memory")))
            found.append(Measurement(model, ("tasks", *base, *_virtual(8), *stream, *few)))
            found += [Measurement(model, ("serve", *base, *_virtual(8), *in_flight, *few)) for in_flight in IN_FLIGHT]
    for batch, tokens in sorted(SCALES, key=lambda scale: scale[0] * scale[1]):
        size = ("--per_device_train_batch_size", str(batch), "--text_tokens", str(tokens))
        rounds = ("--rounds", "3" if batch * tokens <= 8192 else "1")
        found.append(Measurement(SMOLLM2, ("train", *bases[SMOLLM2], "--against", "none", *size, *rounds)))
    for model, base in bases.items():
        if model != BLOOM:
            found.append(Measurement(model, ("evaluate", *base, *_virtual(100), *few)))
            found.append(Measurement(model, ("generate", *base, *_virtual(8), *few)))
    return found


def _virtual(number: int) -> tuple[str, str]:
    return "--num_virtual_tokens", str(number)


def command_of(measurement: Measurement, rows: Rows) -> list[str]:
    """Arguments of ``softprompt``."""
    return ["benchmark", "speed", *measurement.arguments, *rows.arguments, "--json"]


def display(arguments: Sequence[str]) -> str:
    """A command line for display, also the key of its result: paths are shortened to their last two parts."""
    return " ".join(
        "/".join(Path(each).parts[-2:]) if os.path.isabs(each) or ".." in each else each for each in arguments
    )


def run(measurement: Measurement, rows: Rows) -> dict[str, Any]:
    """Run a measurement in a process of its own.

    Raises:
        SoftPromptError: it failed; the message is the last line of its error output.
    """
    program = [sys.executable, "-c", "from softprompt.cli import main; main()"]
    done = subprocess.run([*program, *command_of(measurement, rows)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SoftPromptError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**result, "model": measurement.model}


def machine() -> dict[str, Any]:
    """Hardware and versions, on which the results depend."""
    packages = ("torch", "transformers", "peft", "softprompt")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {name: metadata.version(name) for name in packages},
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if platform.system() == "Linux" else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def read_stored(path: Path) -> dict[str, Any]:
    """The content of ``results.json``: machine, rows and measurements by command. Names of version 0.1 are updated."""
    stored = read_json(path, max_bytes=1 << 24)
    measurements = {
        re.sub(r"^bench ", "benchmark speed ", command): {
            **entry,
            "result": {RENAMED_KEYS.get(key, key): value for key, value in entry.get("result", {}).items()},
        }
        for command, entry in stored["measurements"].items()
    }
    return {**stored, "measurements": measurements}


def reusable(path: Path, here: dict[str, Any]) -> dict[str, Any]:
    """Results of earlier runs by command; none from another machine or other versions."""
    if not path.exists():
        return {}
    stored = read_stored(path)
    if stored.get("machine") != here:
        print(f"{path} is from another machine or other versions; all results are measured again", flush=True)
        return {}
    measurements: dict[str, Any] = stored["measurements"]
    return measurements


def measure_missing(
    measurements: Sequence[Measurement], rows: Rows, folder: Path, *, fresh: bool = False, only: Sequence[str] = ()
) -> int:
    """Run the missing measurements; both files are written after each of them.

    Args:
        only: run only commands that contain one of these words; all by default.

    Returns:
        How many measurements failed.
    """
    here = machine()
    stored = reusable(folder / RESULTS, here)
    failed = 0
    for number, each in enumerate(measurements, start=1):
        name = display(command_of(each, rows))
        if (name in stored and not fresh) or (only and not any(word in name for word in only)):
            continue
        print(f"{number} of {len(measurements)}: softprompt {name}", flush=True)
        started = time.perf_counter()
        try:
            result = run(each, rows)
        except SoftPromptError as error:
            failed += 1
            print(f"  failed: {error}", flush=True)
            continue
        today = datetime.date.today().isoformat()
        stored[name] = {"date": today, "seconds": round(time.perf_counter() - started), "result": result}
        write_json(folder / RESULTS, {"machine": here, "rows": rows.name, "measurements": stored})
        write_page(folder)
    return failed


def write_page(folder: Path) -> None:
    """Write ``results.md`` from ``results.json``, with the text of ``notes.md`` at its end."""
    notes = folder / NOTES
    stored = read_stored(folder / RESULTS)
    text = as_markdown(stored, notes.read_text(encoding="utf-8") if notes.exists() else "")
    write_text(folder / PAGE, text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of ``make bench``."""
    parser = argparse.ArgumentParser(
        prog="softprompt.benchmarks.speed.suite", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--fresh", action="store_true", help="measure all results again")
    parser.add_argument("--only", action="append", default=[], help="only commands with this word; may be repeated")
    parser.add_argument(
        "--gemma", type=expand, default=os.environ.get(GEMMA_VARIABLE), help=f"Gemma 3 270M [${GEMMA_VARIABLE}]"
    )
    parser.add_argument("--train_file", type=expand, help="rows [default: the packaged rows]")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--folder", type=lambda name: Path(expand(name)), default=Path("benchmarks"))
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE} again")
    given = parser.parse_args(argv)
    if given.page:
        write_page(given.folder)
        return 0
    if not given.gemma or not Path(given.gemma).exists():
        why = f"{given.gemma} does not exist" if given.gemma else f"set --gemma or {GEMMA_VARIABLE} to its .gguf file"
        print(f"skipping {GEMMA}: {why}", flush=True)
        given.gemma = None
    columns = ("--text_column", given.text_column, "--label_column", given.label_column)
    rows = Rows(("--train_file", given.train_file, *columns) if given.train_file else ())
    failed = measure_missing(all_measurements(given.gemma), rows, given.folder, fresh=given.fresh, only=given.only)
    print(f"{given.folder / PAGE}" + (f"; {failed} measurements failed" if failed else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
