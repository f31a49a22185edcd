"""The command line. Each command is a file here: parse, call one library function, print.

Only the command that was asked for is imported, and torch only once there is work to do.
"""

from __future__ import annotations

import errno
import functools
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from ..config.training_arguments import absent
from ..errors import ConfigError, SoftPromptError
from ..storage.atomic import expand
from ..version import __version__

COMMANDS = {
    "train": "Train a soft prompt, evaluate it, and write the adapter folder.",
    "evaluate": "Score an adapter on labelled rows.",
    "predict": "Label a text or a file of texts.",
    "inspect": "Show the vocabulary entries nearest to the virtual tokens.",
    "benchmark": "Measure speed against PEFT, or compare the quality of methods.",
    "serve": "Serve adapters over HTTP, with OpenAI's API and a page.",
    "push": "Upload an adapter folder to the Hub.",
}
GROUPS = {"benchmark": ("speed", "quality")}
"""Commands that consist of subcommands."""

_INTERRUPTED = 130


class ResumableInterrupt(Exception):
    """Ctrl-C in a training run that has written a checkpoint."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``softprompt``: exit status 0, or 2 with one line on stderr."""
    _print_safely()
    warnings.formatwarning = _warning_line
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = _current_form([argument for argument in arguments if argument != "--debug"])
    _quiet_libraries()
    words = [argument for argument in arguments if not argument.startswith("-")]
    wanted = words[0] if words else None
    if arguments == words and wanted != "train" and len(words) <= 1 + (wanted in GROUPS):
        arguments.append("--help")
    try:
        _check_command(words)
        status = build_app(wanted)(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except ResumableInterrupt:
        _leave("interrupted; go on with --resume_from_checkpoint last", _INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        _leave(*explain(error))
    if status == _INTERRUPTED:  # typer returns it, or raises Abort, depending on its version
        _leave("interrupted", status)
    sys.exit(status or 0)


def _print_safely() -> None:
    """Make stdout and stderr print characters that they cannot encode as escapes (``\\u6295``) instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quiet_libraries() -> None:
    """No log lines and progress bars of libraries, unless the environment asks for them; read at their import."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")


def _warning_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as one line, without the place in the code that ``warnings`` shows."""
    return f"softprompt: {' '.join(str(message).split())}\n"


def build_app(wanted: str | None) -> typer.Typer:
    """The application; only the command ``wanted`` has its options."""
    app = typer.Typer(
        name="softprompt",
        help="Soft prompts for causal language models: train, evaluate, share.",
        epilog="--debug shows the traceback of an error.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # the rich layout cuts long option names
        context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _underscores},
    )
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f".{name}", __name__) if name == wanted else None
        if commands := getattr(module, "SUBCOMMANDS", None):
            app.add_typer(_group(commands), name=name, help=summary)
        else:
            app.command(name, help=summary)(_nothing if module is None else _expanding(module.command))
    return app


def _group(commands: Mapping[str, Callable[..., None]]) -> typer.Typer:
    group = typer.Typer(rich_markup_mode=None)
    for name, command in commands.items():
        group.command(name)(_expanding(command))
    return group


def _current_form(arguments: list[str]) -> list[str]:
    """The command line with the commands of version 0.1 replaced by today's, with a note on stderr."""
    positions = [i for i, argument in enumerate(arguments) if not argument.startswith("-")]
    words = [arguments[i] for i in positions]
    if words[:1] == ["bench"]:
        old, new = "bench", ["benchmark", "speed"]
    elif words[:1] == ["benchmark"] and words[1:] and Path(words[1]).suffix in (".yaml", ".yml"):
        old, new = "benchmark CONFIG.yaml", ["benchmark", "quality"]
    else:
        return arguments
    warnings.warn(f"'softprompt {old}' is deprecated; use 'softprompt {' '.join(new)}'", FutureWarning, stacklevel=2)
    return [*arguments[: positions[0]], *new, *arguments[positions[0] + 1 :]]


def _expanding(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``~`` and ``~user`` expanded in its path arguments; option classes expand their own."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{k: Path(expand(str(v))) if isinstance(v, Path) else v for k, v in given.items()})

    return run


def _check_command(words: Sequence[str]) -> None:
    known: Iterable[str] = COMMANDS
    for depth, word in enumerate(words[:2]):
        if word not in known:
            from ..config.options import nearest

            parent = " ".join(["softprompt", *words[:depth]])
            raise ConfigError(f"there is no command {word!r}{nearest(word, known)} ({parent} --help lists them)")
        known = GROUPS.get(word, ())
        if not known:
            return


def explain(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit status: 2 for bad input, 1 for what should not have happened."""
    if hasattr(error, "format_message"):  # usage errors of click, which typer may bring in a copy of its own
        return _known_elsewhere(error) or error.format_message(), 2
    if isinstance(error, SoftPromptError):
        return str(error), 2
    if disk := _disk_is_full(error):
        return disk, 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return "out of memory; lower the batch size (per_device_train_batch_size) or max_length", 2
    return f"{type(error).__name__}: {error} (--debug shows where; this is likely a bug of softprompt)", 1


def _known_elsewhere(error: Any) -> str | None:
    """Advice on an option of ``TrainingArguments`` that ``train`` does not have."""
    is_unknown, command = type(error).__name__ == "NoSuchOption", getattr(error.ctx, "info_name", None)
    return absent(error.option_name.lstrip("-")) if is_unknown and command == "train" else None


def _disk_is_full(error: Exception) -> str | None:
    found = re.search(r"os error (\d+)", str(error))  # from safetensors, which is not Python
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    what = {
        errno.ENOSPC: "no space left on the disk",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than is allowed here",
    }.get(number or 0)
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    advice = "make room and run it again (train goes on from a checkpoint with --resume_from_checkpoint last)"
    return what and f"{what}{where}; {advice}"


def _leave(message: str, status: int) -> NoReturn:
    print(f"softprompt: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _underscores(token: str) -> str:
    """Options may be written with dashes as well."""
    return token.replace("-", "_")


def _nothing() -> None:
    """Stands for a command that was not asked for, in the list of commands."""


def _show_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
    ),
) -> None:
    """What can stand before a command."""
