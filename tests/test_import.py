"""What importing the package costs, what it offers, and which module may import which."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest

import softprompt
from cli_tools import PATIENCE

SOURCE = Path(softprompt.__file__).parent

#: A package imports only from those before it; nothing imports upwards, at import or later.
ORDER = (
    *("types", "errors", "version", "metrics", "storage", "config", "data", "models", "engine", "inference"),
    *("reporting", "peft", "training", "export", "serving", "benchmarks", "cli"),
)
WITHOUT_TORCH = ("types", "errors", "version", "metrics", "config")
MOST_PACKAGES, MOST_MODULES = 14, 6


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def dotted(path: Path) -> str:
    """``engine.tree`` for ``engine/tree.py``; a package's name for its ``__init__``."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def room(module: str) -> str:
    """The entry of ``ORDER`` that a module belongs to."""
    return module.split(".")[0]


def imports(path: Path) -> set[str]:
    """Modules of ours that a module imports: at import, inside functions, and for type checkers."""
    known = {dotted(each) for each in modules()}
    package = list(path.relative_to(SOURCE).parts[:-1])
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "softprompt"):
            above = package[: len(package) - node.level + 1] if node.level else []
            own = (node.module or "").split(".") if node.level else (node.module or "").split(".")[1:]
            home = ".".join([*above, *filter(None, own)])
            inside = {".".join(filter(None, [home, alias.name])) for alias in node.names}
            found |= {each if each in known else home for each in inside}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {".".join(parts[1:]) for parts in names if parts[0] == "softprompt"}
    return found - {"", dotted(path)}


def walk(node: ast.AST, eager: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, with whether they run at import: not in functions, not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        runs = eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            runs = False
        yield child, runs
        yield from walk(child, runs)


def foreign(path: Path, *, eager: bool) -> set[str]:
    """Top-level names of other packages that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node, runs in walk(tree):
        if runs or not eager:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
    return found


# --- the package ----------------------------------------------------------------------------------


def test_importing_the_package_is_cheap() -> None:
    code = [sys.executable, "-X", "importtime", "-c", "import softprompt, sys; print(*sys.modules)"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=PATIENCE, check=True)
    timed = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    loaded = {module.split(".")[0] for module in done.stdout.split()} | timed
    assert "softprompt" in loaded
    heavy = {"torch", "transformers", "numpy", "datasets", "huggingface_hub", "pydantic", "peft", "accelerate"}
    assert not loaded & heavy


def test_public_names() -> None:
    assert list(softprompt.__all__) == sorted(softprompt.__all__)
    assert len(set(softprompt.__all__)) == len(softprompt.__all__)
    assert dir(softprompt) == list(softprompt.__all__)
    assert set(softprompt._MODULE_OF) | {"__version__"} == set(softprompt.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = softprompt.no_such_name  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    """The imports under ``TYPE_CHECKING`` and the table for loading say the same."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == softprompt._MODULE_OF


@pytest.mark.parametrize("public", softprompt.__all__)
def test_a_public_name_resolves_and_is_documented(public: str) -> None:
    value = getattr(softprompt, public)
    if public == "__version__":
        assert isinstance(value, str)
        return
    assert value.__module__.startswith("softprompt.")
    assert value.__name__ == public
    assert inspect.cleandoc(value.__doc__ or "").strip()
    if inspect.isclass(value):
        assert not (value.__doc__ or "").startswith(f"{public}("), "only the line that dataclass writes"
    if inspect.isclass(value) and not issubclass(value, Enum | Exception):
        bare = [n for n, f in vars(value).items() if inspect.isfunction(f) and n[0] != "_" and not inspect.getdoc(f)]
        assert not [n for n in bare if n != "forward"], bare


def test_every_module_imports_and_is_documented() -> None:
    for path in modules():
        module = ".".join(["softprompt", *path.relative_to(SOURCE).with_suffix("").parts])
        module = module.removesuffix(".__init__")
        if path.name != "__main__.py":
            assert importlib.import_module(module).__doc__, module


# --- packages -------------------------------------------------------------------------------------


def test_few_entries_at_the_top() -> None:
    entries = [path for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert sum(path.is_dir() for path in entries) <= MOST_PACKAGES
    assert sum(path.is_file() for path in entries) <= MOST_MODULES


def test_every_package_has_its_place() -> None:
    assert {room(dotted(path)) for path in modules()} - {"", "__main__"} <= set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_package_imports_from_those_before_it(path: Path) -> None:
    own = room(dotted(path))
    if own in ("", "__main__"):  # names of everything, loaded when they are used
        return
    later = ORDER[ORDER.index(own) + 1 :]
    assert {module for module in imports(path) if room(module) in later} == set()


def test_modules_make_no_circle() -> None:
    """No module reaches itself through its imports, inside functions or not."""
    graph = {dotted(path): imports(path) for path in modules() if path.parent != SOURCE or path.stem[0] != "_"}
    while graph:
        free = [module for module, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_serving_and_training_stay_apart() -> None:
    for path in modules():
        rooms = {room(module) for module in imports(path)}
        if room(dotted(path)) in ("training", "serving"):
            assert not ({"training", "serving"} - {room(dotted(path))}) & rooms, name(path)


@pytest.mark.parametrize("path", [p for p in modules() if room(dotted(p)) in WITHOUT_TORCH], ids=name)
def test_low_packages_do_without_torch(path: Path) -> None:
    heavy = {"torch", "transformers", "datasets", "numpy", "accelerate", "peft", "safetensors", "huggingface_hub"}
    assert not foreign(path, eager=True) & heavy


def test_peft_is_never_imported() -> None:
    """Only benchmarks do, which compare with it."""
    others = [path for path in modules() if room(dotted(path)) != "benchmarks"]
    assert [name(path) for path in others if "peft" in foreign(path, eager=False)] == []


CLOCKS = re.compile(
    r"^\s*(?:import|from) (?:.*\W)?time(?:it)?\b|\b(?:sleep|perf_counter|monotonic|process_time)\(|"
    r"\btimeout\s*=\s*(?!PATIENCE)\S|\bdeadline\s*=\s*(?!None)\S",
    re.MULTILINE,
)


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_depends_on_time(path: Path) -> None:
    """A busy machine is no error: tests count, they do not measure. Only a process that hangs is stopped."""
    if path != Path(__file__):
        assert not CLOCKS.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    ["import time", "    import sys, time", "from time import sleep", "x = time.perf_counter()", "run(timeout=9)"],
)
def test_clocks_are_found(line: str) -> None:
    assert CLOCKS.search(f"import os\n{line}\n")
