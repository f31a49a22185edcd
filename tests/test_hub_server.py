"""The stand-in for the Hub, held against the genuine clients: huggingface_hub, transformers and datasets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path

import numpy
import pytest
from huggingface_hub import CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http
from huggingface_hub.utils.sha import git_hash
from safetensors.numpy import save

from hub_server import NO_PAUSES, HubServer, run_with_hub


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(token="hf_test", read_only=("elsewhere",)) as server:
        yield server
        assert server.errors == []


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of this process: online, without Xet (read at each call) and without its own questions."""
    for name, value in (("OFFLINE", False), ("DISABLE_XET", True), ("DISABLE_TELEMETRY", True)):
        monkeypatch.setattr(constants, f"HF_HUB_{name}", value)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def api(hub: HubServer, client: None) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small text, a text in a subfolder and a safetensors file of 100 kB."""
    path = tmp_path / "upload"
    (path / "sub dir").mkdir(parents=True)
    (path / "prompt.json").write_text('{"length": 8}')
    (path / "sub dir" / "é.txt").write_text("nested")
    weights = numpy.random.default_rng(0).standard_normal(25_000, dtype=numpy.float32)
    (path / "prompt.safetensors").write_bytes(save({"embedding": weights}))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_upload_folder_comes_back_bit_equal(hub: HubServer, api: HfApi, folder: Path, tmp_path: Path) -> None:
    assert api.whoami()["name"] == "owner"
    url = api.create_repo("prompt")
    assert url.repo_id == "owner/prompt"
    assert api.create_repo("owner/prompt", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("owner/prompt")

    first = api.upload_folder(repo_id="owner/prompt", folder_path=folder, commit_message="first")
    sent = contents(folder)
    assert hub.files("owner/prompt").keys() == {".gitattributes", *sent}
    assert ("POST", "/owner/prompt.git/info/lfs/objects/batch") in hub.requests
    assert [method for method, path in hub.requests if path.startswith("/lfs/")] == ["PUT", "POST"]
    for name, data in sent.items():
        path = api.hf_hub_download("owner/prompt", name, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == data
        assert first.oid in path
    nested = api.hf_hub_download("owner/prompt", "é.txt", subfolder="sub dir", cache_dir=tmp_path / "cache")
    assert Path(nested).read_text() == "nested"
    snapshot = api.snapshot_download("owner/prompt", ignore_patterns=".git*", cache_dir=tmp_path / "c2")
    assert contents(Path(snapshot)) == sent

    info = api.model_info("owner/prompt", files_metadata=True)
    assert info.sha == first.oid
    large = {s.rfilename: s.lfs for s in info.siblings}["prompt.safetensors"]
    assert (large.size, large.pointer_size) == (len(sent["prompt.safetensors"]), 131)
    tree = {entry.path: entry for entry in api.list_repo_tree("owner/prompt")}
    assert tree.keys() == {".gitattributes", "prompt.json", "prompt.safetensors", "sub dir"}
    assert set(api.list_repo_files("owner/prompt")) == hub.files("owner/prompt").keys()
    assert [e.path for e in api.list_repo_tree("owner/prompt", "sub dir")] == ["sub dir/é.txt"]
    assert api.file_exists("owner/prompt", "prompt.json")
    assert not api.file_exists("owner/prompt", "no.json")
    found = api.get_paths_info("owner/prompt", ["prompt.safetensors", "sub dir", "no.json"])
    assert [entry.path for entry in found] == ["prompt.safetensors", "sub dir"]


def test_revisions(hub: HubServer, api: HfApi, folder: Path, tmp_path: Path) -> None:
    def read(revision: str | None) -> str:
        path = api.hf_hub_download("owner/p", "prompt.json", revision=revision, cache_dir=tmp_path / "cache")
        return Path(path).read_text()

    api.create_repo("owner/p")
    first = api.upload_folder(repo_id="owner/p", folder_path=folder)
    again = api.upload_folder(repo_id="owner/p", folder_path=folder)
    assert again.oid == first.oid  # nothing changed: the client makes no commit
    api.create_tag("owner/p", tag="v1")
    second = api.upload_file(repo_id="owner/p", path_in_repo="prompt.json", path_or_fileobj=b"2", revision="main")
    assert [read(None), read("main"), read(second.oid)] == ["2", "2", "2"]
    assert read(first.oid) == read("v1") == '{"length": 8}'
    assert hub.files("owner/p", first.oid)["prompt.json"] == b'{"length": 8}'

    api.create_branch("owner/p", branch="long/name", revision=first.oid)
    api.upload_file(repo_id="owner/p", path_in_repo="prompt.json", path_or_fileobj=b"3", revision="long/name")
    pull = api.upload_file(repo_id="owner/p", path_in_repo="new.txt", path_or_fileobj=b"4", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert [read("long/name"), read("main"), read("refs/pr/1")] == ["3", "2", "2"]
    assert hub.files("owner/p", "refs/pr/1")["new.txt"] == b"4"
    refs = api.list_repo_refs("owner/p", include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["main", "long/name"]
    assert [ref.target_commit for ref in refs.tags] == [first.oid]

    gone = [CommitOperationDelete("sub dir/"), CommitOperationDelete("prompt.safetensors")]
    api.create_commit("owner/p", gone, commit_message="less", parent_commit=second.oid)
    assert hub.files("owner/p").keys() == {".gitattributes", "prompt.json"}
    assert api.list_repo_commits("owner/p")[0].title == "less"
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("owner/p", gone, commit_message="late", parent_commit=second.oid)


def test_missing_things_raise_the_errors_of_the_client(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    hub.add_repo("owner/there", {"config.json": "{}"})
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("owner/there", "no.json", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("owner/there", "config.json", revision="nope", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id="owner/there", path_in_repo="a", path_or_fileobj=b"", revision="nope")
    with pytest.raises(EntryNotFoundError):
        api.delete_file("no.json", "owner/there")
    for token in (hub.token, False):
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download("owner/absent", "config.json", cache_dir=tmp_path, token=token)
        assert not api.repo_exists("owner/absent", token=token)
    with pytest.raises(RepositoryNotFoundError):
        api.snapshot_download("gpt2", cache_dir=tmp_path)
    assert not api.repo_exists("owner/there", repo_type="dataset")


def test_private_repositories_and_tokens(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("owner/secret", private=True)
    api.upload_file(repo_id="owner/secret", path_in_repo="a.txt", path_or_fileobj=b"a")
    hub.add_repo("elsewhere/public", {"a.txt": "a"})
    assert api.model_info("owner/secret").private
    assert Path(api.hf_hub_download("owner/secret", "a.txt", cache_dir=tmp_path)).read_bytes() == b"a"
    nobody, stranger = (HfApi(endpoint=hub.endpoint, token=token) for token in (False, "hf_wrong"))
    with pytest.raises(RepositoryNotFoundError, match="401"):
        nobody.hf_hub_download("owner/secret", "a.txt", cache_dir=tmp_path / "other")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        stranger.hf_hub_download("owner/secret", "a.txt", cache_dir=tmp_path / "other")
    for other in (nobody, stranger):
        for repo_id in ("owner/secret", "elsewhere/public"):
            with pytest.raises(HfHubHTTPError, match="401"):
                other.upload_file(repo_id=repo_id, path_in_repo="b.txt", path_or_fileobj=b"b")
        with pytest.raises(HfHubHTTPError, match="401"):
            other.create_repo("owner/new")
    assert Path(nobody.hf_hub_download("elsewhere/public", "a.txt", cache_dir=tmp_path)).read_bytes() == b"a"
    for write in (
        api.create_repo,
        lambda name: api.upload_file(repo_id=name, path_in_repo="b", path_or_fileobj=b"b"),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            write("elsewhere/public")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        stranger.whoami()
    assert hub.files("owner/secret").keys() == {".gitattributes", "a.txt"}


def test_failures_and_no_connection(
    hub: HubServer, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "time", _http.time)  # so that NO_PAUSES is undone
    hub.add_repo("owner/p", {"a.txt": "a", "b.txt": "b", "c.txt": "c"})
    hub.fail_next(status=501, times=2, path="/resolve/")
    for _ in range(2):
        assert api.repo_exists("owner/p")  # not the path that fails
        with pytest.raises(LocalEntryNotFoundError) as raised:
            api.hf_hub_download("owner/p", "a.txt", cache_dir=tmp_path)
        assert "501" in str(raised.value.__cause__)
    path = api.hf_hub_download("owner/p", "a.txt", cache_dir=tmp_path)
    hub.fail_next()
    assert api.hf_hub_download("owner/p", "a.txt", cache_dir=tmp_path) == path  # from the cache
    assert hub.requests[-1] == ("HEAD", "/owner/p/resolve/main/a.txt")
    hub.fail_next(429)
    with pytest.raises(HfHubHTTPError, match="429"):
        api.model_info("owner/p")
    exec(NO_PAUSES)
    hub.fail_next(times=2)
    assert api.hf_hub_download("owner/p", "c.txt", cache_dir=tmp_path).endswith("c.txt")  # tried again
    hub.close()
    hub.close()
    seen = len(hub.requests)
    assert api.hf_hub_download("owner/p", "a.txt", cache_dir=tmp_path) == path
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download("owner/p", "b.txt", cache_dir=tmp_path)
    with pytest.raises(Exception, match="refused"):
        api.model_info("owner/p")
    assert len(hub.requests) == seen


def test_closing_leaves_no_thread_even_with_connections_held_open() -> None:
    before = set(threading.enumerate())
    with HubServer() as hub:
        held = [HTTPConnection(hub.endpoint.removeprefix("http://")) for _ in range(3)]
        for connection in held:
            connection.request("GET", "/api/whoami-v2", headers={"Authorization": f"Bearer {hub.token}"})
            assert connection.getresponse().read()
    assert set(threading.enumerate()) == before
    for connection in held:
        assert connection.sock.recv(1) == b""  # cut by the server
        connection.close()


def test_ranges_and_headers(hub: HubServer) -> None:
    data = bytes(range(256)) * 4
    oid = hub.add_repo("owner/p", {"w.bin": data, "t.txt": "text"})
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"))

    def ask(method: str, path: str, **headers: str) -> tuple[int, bytes, HTTPMessage]:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers

    large, text = "/owner/p/resolve/main/w.bin", f"/owner/p/resolve/{oid}/t.txt"
    for wanted, part in {"0-9": data[:10], "1000-": data[1000:], "-5": data[-5:], "9-9999": data[9:]}.items():
        assert ask("GET", large, Range=f"bytes={wanted}")[:2] == (206, part)
    assert ask("GET", large, Range="bytes=9-10")[2]["Content-Range"] == "bytes 9-10/1024"
    assert ask("GET", large, Range="bytes=1024-")[0] == 416
    _, body, head = ask("HEAD", large)
    assert (body, head["Content-Length"], head["X-Linked-Size"]) == (b"", "1024", "1024")
    assert head["ETag"] == head["X-Linked-Etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    head = ask("HEAD", text)[2]
    assert (head["ETag"], head["X-Repo-Commit"]) == (f'"{git_hash(b"text")}"', oid)
    assert "X-Linked-Etag" not in head
    assert ask("GET", text)[1] == b"text"
    assert ask("GET", "/api/unheard-of")[0] == 404
    assert hub.errors.pop() == "no route for GET /api/unheard-of"
    connection.close()


def test_without_large_files_xet_is_never_asked(folder: Path, tmp_path: Path) -> None:
    code = """
        from huggingface_hub import HfApi, constants
        assert not constants.HF_HUB_DISABLE_XET
        HfApi().create_repo("owner/p")
        HfApi().upload_folder(repo_id="owner/p", folder_path="upload")
    """
    with HubServer(lfs=False) as hub:
        run_with_hub(hub, code, tmp_path, env={"HF_HUB_DISABLE_XET": "0"})
        assert hub.files("owner/p")["prompt.safetensors"] == (folder / "prompt.safetensors").read_bytes()
        assert hub.errors == []


def test_processes_see_the_server_and_nothing_of_the_caller(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.add_repo("owner/p", {"a.txt": "a"}, private=True)
    code = """
        import os
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import RepositoryNotFoundError
        try:
            print(open(hf_hub_download("owner/p", "a.txt")).read(), constants.HF_HOME == os.getcwd())
        except RepositoryNotFoundError:
            print("not found", os.environ["EXTRA"])
    """
    assert run_with_hub(hub, code, tmp_path).stdout == "a True\n"
    other_home = tmp_path / "other"
    other_home.mkdir()
    other = run_with_hub(hub, code, other_home, token=None, env={"EXTRA": "1"})
    assert other.stdout == "not found 1\n"
    hub.fail_next(503, times=3)
    assert run_with_hub(hub, code, other_home, pauses=False).stdout == "a True\n"
    with pytest.raises(AssertionError, match="exit status 3"):
        run_with_hub(hub, "import sys; sys.exit(3)", tmp_path)
    assert run_with_hub(hub, ["false"], tmp_path, check=False).returncode == 1


def test_transformers(hub: HubServer, tmp_path: Path) -> None:
    """Pushing a tiny random Llama with its tokenizer, and loading it again from an empty cache."""
    code = """
        import sys, torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        torch.manual_seed(0)
        words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "soft", "prompt"])}
        raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        named = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
        size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=5, **size)).eval()
        model.push_to_hub("owner/tiny", commit_message="model", private=True)
        tokenizer.push_to_hub("owner/tiny")
        model.push_to_hub("owner/tiny", revision="branch")

        assert AutoConfig.from_pretrained("owner/tiny").hidden_size == 16
        tokens = AutoTokenizer.from_pretrained("owner/tiny")("soft prompt", return_tensors="pt")
        assert tokens["input_ids"].tolist() == [[3, 4]], tokens
        again = AutoModelForCausalLM.from_pretrained("owner/tiny", revision="branch").eval()
        ids = tokens["input_ids"]
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    """
    run_with_hub(hub, code, tmp_path)
    files = hub.files("owner/tiny")
    assert files.keys() >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert json.loads(files["config.json"])["model_type"] == "llama"
    assert hub.files("owner/tiny", "branch")["model.safetensors"] == files["model.safetensors"]


def test_datasets(hub: HubServer, tmp_path: Path) -> None:
    """Loading a repository of CSV files, pushing it as Parquet and loading that."""
    hub.add_repo(
        "owner/rows",
        {
            "train.csv": "text,label\na,0\nb,1\n",
            "data/test.csv": "text,label\nc,1\n",
            "README.md": "# Rows\n",
        },
        repo_type="dataset",
        private=True,
    )
    code = """
        from datasets import load_dataset

        files = {"train": "train.csv", "test": "data/test.csv"}
        rows = load_dataset("owner/rows", data_files=files)
        assert rows["train"]["text"][:] == ["a", "b"] and rows["test"]["label"][:] == [1]
        assert load_dataset("owner/rows", split="train")["text"][:] == ["a", "b"]
        rows["train"].push_to_hub("owner/pushed")
        again = load_dataset("owner/pushed", split="train")
        assert again.to_list() == [{"text": "a", "label": 0}, {"text": "b", "label": 1}], again.to_list()
    """
    run_with_hub(hub, code, tmp_path)
    files = hub.files("owner/pushed", repo_type="dataset")
    assert [name for name in files if name.endswith(".parquet")] == ["data/train-00000-of-00001.parquet"]
