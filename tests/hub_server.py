"""A stand-in for the Hugging Face Hub: a real HTTP server on 127.0.0.1 that keeps repositories in memory.

It speaks the routes of the Hub as ``huggingface_hub`` calls them; push and pull run the genuine client::

    with HubServer(token="hf_test") as hub:
        hub.add_repo("owner/name", {"config.json": b"{}"})
        HfApi(endpoint=hub.endpoint, token=hub.token).upload_file(...)  # code that can name an endpoint
        run_with_hub(hub, "from softprompt import ...", tmp_path)  # code that cannot: in its own process
        assert hub.files("owner/name")["config.json"] == b"{}"

Simpler than the Hub: large files come from their ``resolve`` address, not from a content network; the token
may write in every namespace not in ``read_only``; ``.gitignore`` and the text of ``README.md`` are not looked
at; listings have one page. There is no Xet, and ``huggingface_hub`` 2.x decides for Xet by itself wherever
``hf_xet`` is installed: uploads need ``HF_HUB_DISABLE_XET=1`` (:func:`run_with_hub` sets it) or
``HubServer(lfs=False)``, which takes every file as a regular one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cli_tools import PATIENCE

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".parquet", ".arrow", ".zip", ".gz")
LFS_SIZE = 10_000_000  # files above are large files whatever their name
HARNESSES = "/api/agent-harnesses"  # the client asks this of its own accord: neither logged nor failed

#: Code that makes the client of a process try again without the pauses in between.
NO_PAUSES = "from huggingface_hub.utils import _http; _http.time = type('', (), {'sleep': lambda seconds: None})"


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether it is stored as a large file (LFS)."""

    data: bytes
    lfs: bool

    @property
    def stored(self) -> bytes:
        """What git stores: the content, or the pointer to a large file."""
        digest, size = hashlib.sha256(self.data).hexdigest(), len(self.data)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n"
        return pointer.encode() if self.lfs else self.data

    @property
    def oid(self) -> str:
        """The git object id."""
        return hashlib.sha1(b"blob %d\0" % len(self.stored) + self.stored).hexdigest()

    @property
    def etag(self) -> str:
        """What the client names its cache files by: the sha256 of a large file, else the git object id."""
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit, with the whole content of the repository."""

    oid: str
    title: str
    message: str
    date: str
    parent: Commit | None
    files: Mapping[str, Blob]

    def under(self, path: str) -> dict[str, Blob]:
        """The file ``path``, or the files in the folder ``path`` (all of them for the empty one)."""
        return {n: b for n, b in self.files.items() if not path or n == path or n.startswith(path + "/")}

    def entry(self, path: str) -> dict[str, Any]:
        """How listings describe a file or a folder."""
        if (blob := self.files.get(path)) is None:
            digest = hashlib.sha1(repr([(n, b.oid) for n, b in self.under(path).items()]).encode())
            return {"type": "directory", "oid": digest.hexdigest(), "size": 0, "path": path}
        file = {"type": "file", "oid": blob.oid, "size": len(blob.data), "path": path}
        lfs = {"oid": blob.etag, "size": len(blob.data), "pointerSize": len(blob.stored)}
        return {**file, "lfs": lfs} if blob.lfs else file


@dataclass
class Repo:
    """A repository: commits by id, and references by full name (``refs/heads/main``)."""

    kind: str  # "models", "datasets" or "spaces", as in addresses
    repo_id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, a full reference or a commit id."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return self.commits.get(next((self.refs[name] for name in names if name in self.refs), revision))

    def commit(self, ref: str, files: Mapping[str, Blob], title: str, message: str, parent: Any) -> Commit:
        """Record a commit and move ``ref`` to it."""
        content = sorted((name, blob.oid) for name, blob in files.items())
        oid = hashlib.sha1(f"{self.repo_id} {len(self.commits)} {title} {content}".encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[oid] = Commit(oid, title, message, date, parent, dict(files))
        self.refs[ref] = oid
        return self.commits[oid]


class HubError(Exception):
    """An error answer; ``code`` (``X-Error-Code``) is what the client chooses its exception by."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


ROUTES: list[tuple[str, re.Pattern[str], Callable[[HubServer, _Handler], Any]]] = []
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+(?:/[^/]+)?)"
WEB = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+(?:/[^/]+)?)"


def route(method: str, pattern: str) -> Callable[[Any], Any]:
    """Register a route. It returns what to answer with status 200, or (status, content, headers)."""

    def register(function: Any) -> Any:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class HubServer:
    """The stand-in Hub; a context manager. ``lfs=False``: store no file as a large file."""

    def __init__(
        self, token: str = "hf_test", user: str = "owner", read_only: Sequence[str] = (), lfs: bool = True
    ) -> None:
        self.token, self.user, self.read_only, self.lfs = token, user, tuple(read_only), lfs
        self.requests: list[tuple[str, str]] = []  # method and path, without query and percent signs
        self.errors: list[str] = []  # where this stand-in fell short: no such route, or a fault in it
        self._repos: dict[tuple[str, str], Repo] = {}
        self._objects: dict[str, bytes] = {}  # large files by their sha256
        self._failures: list[list[Any]] = []
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.hub = self
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving: live connections are cut and new ones refused. May be called twice."""
        if self._thread.is_alive():
            self._http.shutdown()
            for live in list(self._http.live):
                with suppress(OSError):
                    live.shutdown(socket.SHUT_RDWR)
            self._http.server_close()  # also waits for the threads of the connections
            self._thread.join()

    def fail_next(self, status: int = 503, times: int = 1, path: str = "") -> None:
        """Answer the next ``times`` requests (those with ``path`` in their path) with ``status``.

        In uploads, and in downloads of what it has not cached, the client tries 429, 500, 502, 503, 504 and
        refused connections five times more, which takes 23 seconds; not so 501. See :data:`NO_PAUSES`.
        """
        self._failures.append([status, times, path])

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes | str], private: bool = False, repo_type: str = "model"
    ) -> str:
        """Put a repository with exactly these files on the server; return the id of its commit."""
        repo = self._repos[f"{repo_type}s", repo_id] = Repo(f"{repo_type}s", repo_id, private)
        contents = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
        blobs = {name: Blob(data, self._is_lfs(name, len(data))) for name, data in contents.items()}
        self._objects.update({blob.etag: blob.data for blob in blobs.values() if blob.lfs})
        return repo.commit("refs/heads/main", blobs, "initial commit", "", None).oid

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """The files of a repository at a revision; a ``KeyError`` where there is none."""
        if (commit := self._repos[f"{repo_type}s", repo_id].at(revision)) is None:
            raise KeyError(revision)
        return {name: blob.data for name, blob in commit.files.items()}

    def answer(self, request: _Handler) -> tuple[int, Any, dict[str, str]]:
        """Find the route of a request and run it; every fault becomes an error answer."""
        url = urlsplit(request.path)
        path, token = unquote(url.path), request.headers.get("Authorization")
        try:
            if path == HARNESSES:
                return 200, {"standardEnvVars": [], "harnesses": {}}, {}
            self.requests.append((request.command, path))
            for failure in self._failures:
                if failure[1] > 0 and failure[2] in path:
                    failure[1] -= 1
                    raise HubError(failure[0], "The server was told to fail")
            if token not in (None, f"Bearer {self.token}"):
                raise HubError(401, "Invalid credentials in Authorization header")
            for method, pattern, function in ROUTES:
                match = pattern.fullmatch(url.path)
                if match and method == request.command.replace("HEAD", "GET"):
                    request.parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    request.query, request.signed_in = parse_qs(url.query), token is not None
                    reply = function(self, request)
                    return reply if isinstance(reply, tuple) else (200, reply, {})
            self.errors.append(f"no route for {request.command} {path}")
            raise HubError(404, self.errors[-1])
        except HubError as error:
            return error.status, {"error": str(error)}, error.headers
        except Exception:
            self.errors.append(traceback.format_exc())
            return 500, {"error": self.errors[-1]}, {}

    def _is_lfs(self, name: str, size: int) -> bool:
        return self.lfs and (name.endswith(LFS_SUFFIXES) or size > LFS_SIZE)

    def _url(self, kind: str, repo_id: str) -> str:
        return f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"

    def _may_write(self, request: _Handler, namespace: str) -> None:
        if not request.signed_in:
            raise HubError(401, "Invalid username or password.")
        if namespace in self.read_only:
            raise HubError(403, f"You don't have the rights to write in the namespace {namespace!r}")

    def _repo(self, request: _Handler, write: bool = False) -> Repo:
        """The repository of a request, if the caller may read (or write) it."""
        kind, repo_id = request.parts["kind"] or "models", request.parts["repo"]
        repo = self._repos.get((kind, repo_id))
        if not request.signed_in and (write or repo is None or repo.private):
            # A missing repository to the client: by the address on https, by the code on http.
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if repo is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(request, repo_id.partition("/")[0])
        return repo

    def _commit(self, request: _Handler, write: bool = False) -> tuple[Repo, Commit]:
        repo, revision = self._repo(request, write), request.parts.get("rev") or "main"
        if (commit := repo.at(revision)) is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: _Handler) -> Any:
        """``whoami``."""
        self._may_write(request, self.user)
        access = {"accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": access}

    @route("POST", "/api/repos/create")
    def _create_repo(self, request: _Handler) -> Any:
        """``create_repo``; as on the Hub, a new repository holds a ``.gitattributes``."""
        wanted = request.json()
        repo_type, namespace = wanted.get("type") or "model", wanted.get("organization") or self.user
        self._may_write(request, namespace)
        kind, repo_id = f"{repo_type}s", f"{namespace}/{wanted['name']}"
        answer = {"name": repo_id, "id": repo_id, "url": self._url(kind, repo_id)}
        if (kind, repo_id) in self._repos:  # with ``exist_ok`` the client reads the address from this answer
            return 409, {**answer, "error": f"You already created this {repo_type} repo"}, {}
        attributes = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS_SUFFIXES)
        private = wanted.get("visibility") == "private"
        self.add_repo(repo_id, {".gitattributes": attributes}, private, repo_type)
        return answer

    @route("GET", WEB + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
    def _resolve(self, request: _Handler) -> Any:
        """``hf_hub_download`` and all that ends in it (HEAD, then GET); ``HfFileSystem`` (ranges)."""
        commit = self._commit(request)[1]
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if (blob := commit.files.get(request.parts["path"])) is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **headers)
        headers["ETag"], size = f'"{blob.etag}"', len(blob.data)
        if blob.lfs:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(size)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
        if not wanted:
            return 200, blob.data, headers
        start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        end = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
        if start > end:
            return 416, b"", {**headers, "Content-Range": f"bytes */{size}"}
        return 206, blob.data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}

    @route("GET", API + r"/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?")
    def _tree(self, request: _Handler) -> Any:
        """``list_repo_tree``, ``list_repo_files``, ``snapshot_download``, ``HfFileSystem.ls``."""
        commit, base = self._commit(request)[1], request.parts["path"].strip("/")
        inside = [name[len(base) :].strip("/").split("/") for name in commit.under(base) if name != base]
        if base and not inside:
            raise HubError(404, f"{base} does not exist on this revision", "EntryNotFound")
        recursive = request.query.get("recursive") in (["true"], ["True"], ["1"])
        depths = {(*names[:depth],) for names in inside for depth in range(1, len(names) + 1)}
        paths = ["/".join(names) for names in sorted(depths) if recursive or len(names) == 1]
        return [commit.entry(f"{base}/{path}".lstrip("/")) for path in paths]

    @route("POST", API + r"/paths-info/(?P<rev>[^/]+)")
    def _paths_info(self, request: _Handler) -> Any:
        """``get_paths_info``, ``file_exists``, ``HfFileSystem.info``; what does not exist is left out."""
        commit = self._commit(request)[1]
        paths = [path.strip("/") for path in parse_qs(request.body.decode())["paths"]]
        return [commit.entry(path) for path in paths if commit.under(path)]

    @route("GET", API + r"/refs")
    def _refs(self, request: _Handler) -> Any:
        """``list_repo_refs``."""
        kinds = {"heads": "branches", "tags": "tags", "convert": "converts", "pr": "pullRequests"}
        answer: dict[str, list[Any]] = {kind: [] for kind in kinds.values()}
        for ref, oid in self._repo(request).refs.items():
            _, kind, name = ref.split("/", 2)
            answer[kinds[kind]].append({"name": name, "ref": ref, "targetCommit": oid})
        return answer

    @route("GET", API + r"/commits/(?P<rev>[^/]+)")
    def _commits(self, request: _Handler) -> Any:
        """``list_repo_commits``."""
        commit: Commit | None = self._commit(request)[1]
        answer: list[dict[str, Any]] = []
        while commit:
            shown = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            answer.append({**shown, "authors": [{"user": self.user}]})
            commit = commit.parent
        return answer

    @route("POST", API + r"/branch/(?P<branch>[^/]+)")
    @route("POST", API + r"/tag/(?P<rev>[^/]+)")
    def _create_ref(self, request: _Handler) -> Any:
        """``create_branch`` (its name is in the address, its start in the body), ``create_tag`` (reverse)."""
        wanted, branch = request.json(), request.parts.get("branch")
        request.parts.setdefault("rev", wanted.get("startingPoint", "main"))
        repo, commit = self._commit(request, write=True)
        name = f"refs/heads/{branch}" if branch else f"refs/tags/{wanted['tag']}"
        if name in repo.refs:
            raise HubError(409, f"Reference already exists: {name}")
        repo.refs[name] = commit.oid
        return {}

    @route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: _Handler) -> Any:
        """``create_commit``, for every ``README.md``, before it uploads anything."""
        return {"errors": [], "warnings": []}

    @route("POST", API + r"/preupload/(?P<rev>[^/]+)")
    def _preupload(self, request: _Handler) -> Any:
        """``create_commit``, for every file: is it a large one, and what is there now?"""
        now, answer = self._commit(request, write=True)[1].files, []
        for path, size in ((file["path"], file["size"]) for file in request.json()["files"]):
            known = {"path": path, "shouldIgnore": False, "oid": now[path].etag if path in now else None}
            answer.append({**known, "uploadMode": "lfs" if self._is_lfs(path, size) else "regular"})
        return {"files": answer}

    @route("POST", WEB + r"\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: _Handler) -> Any:
        """``create_commit``: where do the large files go? Those that are here already need no upload."""
        self._repo(request, write=True)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in request.json()["objects"]]
        for answer in objects:
            if answer["oid"] not in self._objects:
                href = f"{self.endpoint}/lfs/{answer['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
    def _lfs_put(self, request: _Handler) -> Any:
        """The upload of a large file: as with the signed address of a store, no token comes with it."""
        if hashlib.sha256(request.body).hexdigest() != request.parts["oid"]:
            raise HubError(400, "The content does not have the sha256 that was announced")
        self._objects[request.parts["oid"]] = request.body
        return b""

    @route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify")
    def _lfs_verify(self, request: _Handler) -> Any:
        """After an upload, with the token."""
        self._may_write(request, self.user)
        if len(self._objects.get(request.parts["oid"], b"")) != request.json()["size"]:
            raise HubError(400, "The large file is not there in full")
        return {}

    @route("POST", API + r"/commit/(?P<rev>[^/]+)")
    def _create_commit(self, request: _Handler) -> Any:
        """``create_commit`` and all that ends in it: a line of JSON for the header and each operation."""
        repo, parent = self._commit(request, write=True)
        header, files = {}, dict(parent.files)
        for line in map(json.loads, request.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                header = value
                if value.get("parentCommit", parent.oid) != parent.oid:
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile" and value["oid"] in self._objects:
                files[value["path"]] = Blob(self._objects[value["oid"]], True)
            elif key in ("deletedFile", "deletedFolder"):
                gone = parent.under(value["path"].rstrip("/"))
                if not gone or (key == "deletedFile") != (value["path"] in gone):
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                files = {name: blob for name, blob in files.items() if name not in gone}
            else:
                raise HubError(400, f"Cannot commit {key}: {value}")
        url, number = self._url(repo.kind, repo.repo_id), 1 + sum("refs/pr/" in name for name in repo.refs)
        ref, pull = f"refs/heads/{request.parts['rev']}".replace("refs/heads/refs/", "refs/"), {}
        if "create_pr" in request.query:
            ref, pull = f"refs/pr/{number}", {"pullRequestUrl": f"{url}/discussions/{number}"}
        elif ref not in repo.refs:
            raise HubError(400, f"Commits go to a branch, not to {request.parts['rev']}")
        oid = repo.commit(ref, files, header["summary"], header.get("description", ""), parent).oid
        return {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", **pull}

    @route("GET", API + r"(?:/revision/(?P<rev>[^/]+))?")
    def _info(self, request: _Handler) -> Any:
        """``model_info``, ``dataset_info``, ``repo_exists``; the last route, as it matches the most."""
        repo, commit = self._commit(request)
        info = {"id": repo.repo_id, "sha": commit.oid, "lastModified": commit.date, "private": repo.private}
        siblings: list[dict[str, Any]] = [{"rfilename": name} for name in commit.files]
        for sibling in siblings if "blobs" in request.query else []:
            entry = commit.entry(sibling["rfilename"])
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            sibling |= {"lfs": {**entry["lfs"], "sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}
        return {**info, "siblings": siblings, "tags": [], "gated": False, "downloads": 0, "likes": 0}


class _Http(ThreadingHTTPServer):
    """The listening socket; knows its live connections so that they can be cut."""

    hub: HubServer
    daemon_threads, request_queue_size = False, 64

    def server_bind(self) -> None:
        self.live: set[Any] = set()
        TCPServer.server_bind(self)  # without the look-up of a name in HTTPServer, which can take seconds

    def process_request(self, request: Any, client_address: Any) -> None:
        self.live.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.live.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, asks the hub, writes the answer."""

    server: _Http
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True  # kept alive; one packet each
    parts: dict[str, str]  # of the address
    query: dict[str, list[str]]
    signed_in: bool

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.hub._lock:
            status, content, headers = self.server.hub.answer(self)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, " ".join(value.split()))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: :attr:`HubServer.requests` is the log."""


def run_with_hub(
    server: HubServer,
    code_or_args: str | Sequence[str],
    tmp_home: str | os.PathLike[str],
    *,
    token: str | None = "",
    env: Mapping[str, str] | None = None,
    check: bool = True,
    pauses: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run Python code (a string) or a command (a list) in a process whose Hub is ``server``.

    The process sees none of the caller's ``HF_*`` and ``TRANSFORMERS_*`` variables and no proxy. ``tmp_home``
    is its Hugging Face home, cache and working directory. Xet, telemetry and progress bars are off. The token
    is the server's own unless told, ``None`` for nobody. ``check``: a process that fails is an
    ``AssertionError``, which shows what it wrote. ``pauses=False`` puts :data:`NO_PAUSES` before the code.
    """
    foreign = re.compile(r"(HF|HUGGING_?FACE|TRANSFORMERS)_|(HTTPS?|ALL)_PROXY$", re.IGNORECASE)
    full = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
    full |= {**dict.fromkeys(switches, "1"), "HF_HOME": os.path.abspath(tmp_home)}
    full |= {"HF_ENDPOINT": server.endpoint} | ({} if token is None else {"HF_TOKEN": token or server.token})
    args = list(code_or_args)
    if isinstance(code_or_args, str):
        code = textwrap.dedent(code_or_args)
        args = [sys.executable, "-c", code if pauses else f"{NO_PAUSES}\n{code}"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": PATIENCE, "check": False}
    done = subprocess.run(args, env={**full, **(env or {})}, cwd=tmp_home, **options)
    if check and done.returncode:
        raise AssertionError(f"exit status {done.returncode}\n{done.stdout}\n--- stderr\n{done.stderr}")
    return done
