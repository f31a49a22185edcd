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

#: A module imports from lower layers; modules of a folder may know each other, and so may those of one
#: layer in ``SAME``. A folder is given as a whole.
LAYERS = {
    "__init__.py": 10,  # names of everything, loaded when they are used
    "__main__.py": 10,
    "absent.py": 0,
    "errors.py": 0,
    "types.py": 0,
    "files.py": 0,
    "version.py": 0,
    "config.py": 1,
    "options.py": 1,
    "template.py": 1,
    "metrics.py": 1,
    "record.py": 1,
    "task.py": 1,
    "hubfiles.py": 1,
    "families.py": 2,
    "libraries.py": 2,
    "device.py": 2,
    "prompt.py": 2,
    "initialize.py": 2,
    "encode.py": 2,
    "plain.py": 2,
    "tensors.py": 2,
    "adapter.py": 3,
    "checkpoint.py": 3,
    "inspection.py": 3,
    "status.py": 3,
    "data": 3,
    "engine": 4,
    "base.py": 4,
    "output.py": 4,
    "report": 4,
    "forward.py": 5,
    "fused.py": 5,
    "model.py": 5,
    "peft_model.py": 5,
    "generate.py": 5,
    "ensemble.py": 5,
    "readout.py": 5,
    "score.py": 5,
    "vocabulary.py": 5,
    "suffix.py": 5,
    "evaluate.py": 6,
    "loading.py": 6,
    "wrap.py": 6,
    "state.py": 6,
    "saving.py": 6,
    "predict.py": 7,
    "train": 7,
    "serve": 8,
    "bench": 8,
    "quality": 8,
    "cli": 9,
}
#: Siblings of one layer that work as one folder would.
SAME = {
    ("files.py", "errors.py"),
    ("checkpoint.py", "adapter.py"),
    ("template.py", "options.py"),
    ("task.py", "template.py"),
    ("encode.py", "plain.py"),
    ("config.py", "hubfiles.py"),
    ("prompt.py", "initialize.py"),
    ("forward.py", "generate.py"),
    ("fused.py", "forward.py"),
    ("model.py", "forward.py"),
    ("model.py", "fused.py"),
    ("model.py", "generate.py"),
    ("model.py", "peft_model.py"),
    ("peft_model.py", "model.py"),  # for type checkers: from_pretrained gives its subclass
    ("model.py", "suffix.py"),
    ("saving.py", "state.py"),
    ("loading.py", "evaluate.py"),
    ("suffix.py", "forward.py"),
    ("suffix.py", "score.py"),
}
#: Methods of ``PeftModel`` that only hand on to a function of a higher layer, when they are called.
DELEGATES = {("peft_model.py", "saving.py"), ("peft_model.py", "state.py")}
#: The branches *learn* and *speak* meet only in the command line; cards and plots are made from records.
APART = [
    ("serve", {"data", "evaluate.py", "train"}),
    ("report", {"model.py", "engine", "base.py", "adapter.py", "data"}),
    ("engine", {"base.py", "output.py", "report"}),
]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def key(path: Path) -> str:
    """The entry of ``LAYERS`` that a module belongs to."""
    return path.relative_to(SOURCE).parts[0]


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def target(parts: list[str]) -> str | None:
    """The entry that a module of ours belongs to, by its name's parts; ``None`` for a name inside a module."""
    if parts and (SOURCE / parts[0]).is_dir():
        return parts[0]
    return f"{parts[0]}.py" if parts and (SOURCE / f"{parts[0]}.py").is_file() else None


def layer(entry: str) -> int:
    assert entry in LAYERS, f"{entry} has no layer: decide on one and write it into LAYERS"
    return LAYERS[entry]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Entries that a module imports, with whether it does so when it is itself imported."""
    package = list(path.relative_to(SOURCE).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node, eager in walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                prefix = package[: len(package) - node.level + 1]
            elif (node.module or "").split(".")[0] == "softprompt":
                prefix = []
            else:
                continue
            own = (node.module or "").removeprefix("softprompt").strip(".") if not node.level else node.module or ""
            parts = [*prefix, *filter(None, own.split("."))]
            for found in [target(parts)] if parts else [target([alias.name]) for alias in node.names]:
                if found:
                    yield found, eager
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "softprompt" and (found := target(parts[1:])):
                    yield found, eager


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


# --- layers ---------------------------------------------------------------------------------------


def test_every_module_has_a_layer() -> None:
    assert {key(path) for path in modules()} <= LAYERS.keys()


@pytest.mark.parametrize("path", modules(), ids=name)
def test_a_module_imports_from_lower_layers(path: Path) -> None:
    own, wrong = key(path), []
    for other, eager in imports(path):
        lower = other == own or layer(other) < layer(own)
        delegated = not eager and (own, other) in DELEGATES
        if not (lower or (own, other) in SAME or delegated):
            wrong.append(f"{name(path)} (layer {layer(own)}) imports {other} (layer {layer(other)})")
    assert not wrong


@pytest.mark.parametrize(("own", "others"), APART, ids=lambda value: value if isinstance(value, str) else "")
def test_branches_stay_apart(own: str, others: set[str]) -> None:
    assert not {other for path in modules() if key(path) == own for other, _ in imports(path)} & others


def test_layers_0_and_1_do_without_torch() -> None:
    low = [path for path in modules() if layer(key(path)) <= 1]
    assert len(low) > 8
    heavy = {"torch", "transformers", "datasets", "numpy", "accelerate", "peft", "safetensors", "huggingface_hub"}
    assert {name(path): foreign(path, eager=True) & heavy for path in low} == {name(path): set() for path in low}


def test_peft_is_never_imported() -> None:
    apart = {"bench", "quality"}  # these compare with it
    assert [name(path) for path in modules() if "peft" in foreign(path, eager=False) and key(path) not in apart] == []


def test_the_table_has_no_cycle() -> None:
    """Loading any module first works: what runs at import makes no circle."""
    edges = {path: {found for found, eager in imports(path) if eager} for path in modules()}
    graph: dict[str, set[str]] = {}
    for path, found in edges.items():
        if key(path) != "__init__.py":
            graph.setdefault(key(path), set()).update(found - {key(path)})
    while graph:
        free = [node for node, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for node in free:
            del graph[node]


@pytest.mark.parametrize("folder", sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()))
def test_modules_of_a_folder_make_no_circle(folder: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in (SOURCE / folder).glob("*.py"):
        found = [
            name
            for node, eager in walk(ast.parse(path.read_text(encoding="utf-8")))
            if eager and isinstance(node, ast.ImportFrom) and node.level == 1
            for name in ([node.module] if node.module else [alias.name for alias in node.names])
        ]
        graph[path.stem] = set(found) - {path.stem}
    while graph:
        free = [node for node, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for node in free:
            del graph[node]


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
