"""Who may use the server, how much they may send, and which folders they can load."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from pathlib import Path

import openai
import pytest

from cli_tools import PATIENCE
from http_tools import Served, answer_of, make_library, serving, wait_until
from softprompt import PromptLibrary
from softprompt.config.options import ModelOptions
from softprompt.config.serve_options import ServeOptions
from softprompt.errors import ConfigError
from softprompt.inference import library as library_module
from softprompt.serving import page
from softprompt.serving.app import create_app
from softprompt.serving.metrics import CONTENT_SECURITY_POLICY
from softprompt.serving.security import API_KEY_VARIABLE, host_name, is_loopback, read_api_key
from softprompt.serving.server import bind, open_server

BODY = {"model": "back", "input": "good"}
SMALL = 2_000


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return make_library(tmp_path_factory.mktemp("security"))


@pytest.fixture(scope="module")
def server(library):
    with serving(library, max_body_bytes=SMALL) as found:
        yield found


# --- Host and Origin --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:8000", "127.0.0.1:"]
)
def test_names_of_this_machine(server: Served, host):
    assert server.call("GET", "/v1/models", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        ":",
        "[",
        "0",
    ],
)
def test_foreign_hosts(server: Served, host):
    """Public routes as well: a foreign page must not learn that there is a server."""
    for path in ("/v1/models", "/health", "/", "/absent"):
        answer = server.call("GET", path, headers={"Host": host})
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


def test_a_request_without_a_host(server: Served):
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 403 ")


def test_foreign_origins(server: Served):
    own = server.url.removeprefix("http://")
    foreign = ("http://evil.example", "null", "", "http://localhost", f"http://{own}.evil.example", f"ftp://{own}")
    for origin in foreign:
        answer = server.call("POST", "/v1/classify", BODY, {"Origin": origin})
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed"), origin
    for origin in (server.url, f"https://{own}"):
        answer = server.call("POST", "/v1/classify", BODY, {"Origin": origin})
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_names_that_are_allowed(library):
    options = {"allowed_host": ["GPU.example"], "allowed_origin": ["https://App.example/"]}
    with serving(library, **options) as server:
        assert server.call("GET", "/health", headers={"Host": "gpu.example:80"}).status == 200
        assert server.call("GET", "/health", headers={"Origin": "https://app.example"}).status == 200
        assert server.call("GET", "/health", headers={"Origin": "http://app.example"}).status == 403
        assert server.call("GET", "/health", headers={"Host": "app.example"}).status == 403


def test_parts_of_a_host_header():
    assert [host_name(header) for header in ("a", "a:1", "[::1]:1", "[::1]")] == ["a", "a", "::1", "::1"]
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")


# --- the API key ------------------------------------------------------------------------------------


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


@pytest.mark.usefixtures("no_key")
def test_an_api_key(library, tmp_path):
    file = tmp_path / "key"
    file.write_text("sesame-1\n")
    with serving(library, api_key_file=file) as server:
        for path in ("/", "/health", "/ready", "/static/app.js"):
            assert server.call("GET", path).status in (200, 404)
        for header in (
            {},
            {"Authorization": "Bearer sesame"},
            {"Authorization": "sesame-1"},
            {"Authorization": "Basic sesame-1"},
            {"Authorization": "Bearer sesame-12"},
            {"Authorization": "Bearer \xff"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/static", "/health/", "/absent", "//"):
                answer = server.call("GET", path, headers=header)
                assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            server.openai.models.list()
        client = server.openai.with_options(api_key="sesame-1")
        assert len(client.models.list().data) > 1
        answer = server.call("GET", "/openapi.json", headers={"Authorization": "bearer sesame-1"})
        assert answer.json["security"] == [{"api_key": []}]


def test_where_a_key_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv(API_KEY_VARIABLE, "one")
    assert read_api_key(None) == b"one"
    file = tmp_path / "key"
    file.write_text(" two \n")
    assert read_api_key(file) == b"two"
    for wrong in ("", " \n", "two words", "schlüssel", "a\x00b"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="must be one word of printable ASCII characters"):
            read_api_key(file)
    monkeypatch.setenv(API_KEY_VARIABLE, "")
    with pytest.raises(ConfigError, match=API_KEY_VARIABLE):
        read_api_key(None)


# --- size and time of a body ------------------------------------------------------------------------


def test_a_body_at_its_limit(server: Served):
    """Counted in bytes of the body."""
    body = json.dumps(BODY).encode()
    exact = body + b" " * (SMALL - len(body))
    json_type = {"Content-Type": "application/json"}
    assert server.call("POST", "/v1/classify", exact, json_type).status == 200
    answer = server.call("POST", "/v1/classify", exact + b" ", json_type)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("size", [SMALL + 1, 10 << 20])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(server: Served, size, announced):
    """Also one whose size is not announced; the client reads the answer after it has sent everything."""
    connection = server.connection()
    headers = {"Content-Type": "application/json"} | ({"Content-Length": str(size)} if announced else {})
    pieces = (b" " * min(65536, size - start) for start in range(0, size, 65536))
    connection.request("POST", "/v1/classify", pieces, headers, encode_chunked=not announced)
    answer = answer_of(connection)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_client_that_asks_before_it_sends(server: Served):
    with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
        head = (
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head)
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_arrive(library):
    """The time is short, and the rest of the body is never sent."""
    with serving(library, body_timeout=0.01) as server:
        with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer


def test_a_client_that_leaves_while_it_sends(server: Served, caplog):
    with caplog.at_level(logging.WARNING):
        with socket.create_connection(server.url.removeprefix("http://").split(":")) as connection:
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
        wait_until(lambda: server.measurement("requests_total", route="other", model="", status="0") == 1)
    assert not caplog.records


def test_idle_connections(server: Served, monkeypatch):
    """They do not keep others from being served, and are closed in the end."""
    monkeypatch.setattr(server.server.config, "timeout_keep_alive", 0.01)
    address = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection(address, PATIENCE) for _ in range(100)]
    assert server.call("POST", "/v1/classify", BODY).status == 200
    assert {connection.recv(1) for connection in idle} == {b""}
    for connection in idle:
        connection.close()


def test_headers_that_do_not_arrive(server: Served, monkeypatch):
    """The beginning of a request does not keep a connection open, whether or not there was a request before it."""
    monkeypatch.setattr(server.server.config, "timeout_keep_alive", 0.5)
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for begun in (b"GET /hea", whole + b"GET /hea"):
        with socket.create_connection(server.url.removeprefix("http://").split(":"), PATIENCE) as connection:
            connection.sendall(begun)
            answers = connection.makefile("rb").read()
        assert answers.count(b"HTTP/1.1 200 OK") == begun.count(whole)


# --- the page and headers ---------------------------------------------------------------------------


def test_headers_of_every_response(server: Served):
    for path in ("/", "/v1/models", "/absent", "/static/app.js"):
        headers = server.call("GET", path).headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_the_files_of_the_page(library, tmp_path, monkeypatch):
    """Exactly those of its folder."""
    for name in ("index.html", "app.js", "style.css", "secret.txt"):
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "folder.js").mkdir()
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    with serving(library) as server:
        types = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
        for name, kind in types.items():
            answer = server.call("GET", f"/static/{name}")
            assert answer.content.decode() == f"content of {name}"
            assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert server.call("GET", "/").content == b"content of index.html"
        for name in ("secret.txt", "folder.js", "..", "%2e%2e/page.py", "..%2fpage.py", ""):
            assert server.call("GET", f"/static/{name}").status == 404


# --- loading while the server runs ------------------------------------------------------------------


@pytest.fixture
def root(library, tmp_path, monkeypatch):
    monkeypatch.setattr(library_module, "SETTLE_SECONDS", 0.0)
    shutil.copytree(library.get("back").loaded.name, tmp_path / "root" / "new")
    shutil.copytree(library.get("back").loaded.name, tmp_path / "outside")
    os.symlink(tmp_path / "outside", tmp_path / "root" / "link")
    (tmp_path / "root" / "damaged").mkdir()
    return tmp_path / "root"


def test_loading_needs_permission(server: Served):
    for answer in (
        server.post("/v1/adapters/load", name="x", path="new"),
        server.post("/v1/adapters/unload", name="back"),
    ):
        assert (answer.status, answer.error["code"]) == (403, "runtime_loading_not_allowed")
    assert "back" in server.state.library.names


def test_loading_and_unloading(library, root):
    with serving(library, allow_runtime_loading=root) as server:
        before = server.post("/v1/classify", **BODY).json["data"][0]["probs"]
        answer = server.post("/v1/adapters/load", name="mine", path="new")
        assert (answer.json["id"], answer.json["parent"]) == ("mine", "base")
        assert answer.json["task"]["labels"] == ["yes", "no"]
        found = server.post("/v1/classify", model="mine", input="good").json["data"][0]["probs"]
        assert found == pytest.approx(before, rel=1e-4)
        assert server.post("/v1/adapters/load", name="mine", path=str(root / "new")).status == 200
        assert server.post("/v1/adapters/unload", name="mine").json == {"status": "ok"}
        assert server.post("/v1/classify", model="mine", input="good").error["code"] == "model_not_found"
        assert server.post("/v1/adapters/unload", name="mine").error["code"] == "model_not_found"
        assert server.post("/v1/adapters/load", name="base", path="new").status == 400
        assert "damaged" in server.post("/v1/adapters/load", name="x", path="damaged").error["message"]
        assert "x" not in library.names


@pytest.mark.parametrize(
    "path", ["..", ".", "../outside", "new/../../outside", "/", "/etc", "link", "link/../../outside"]
)
def test_folders_that_are_not_below_the_root(library, root, path):
    with serving(library, allow_runtime_loading=root) as server:
        for given in {path, str(root / path)}:
            answer = server.post("/v1/adapters/load", name="x", path=given)
            assert (answer.status, answer.error["code"]) == (403, "path_not_allowed")


def test_folders_that_do_not_exist(library, root):
    os.symlink(root / "circle", root / "circle")
    with serving(library, allow_runtime_loading=root) as server:
        for path in ("absent", "a\0b", "\ud800", "a" * 5000, "circle", "new/task.json"):
            assert server.post("/v1/adapters/load", name="x", path=path).status == 400, path


def test_a_damaged_adapter_keeps_the_others_serving(library, root):
    """An old version stays in use; one that never was sound is reported."""
    with serving(library, allow_runtime_loading=root) as server:
        server.post("/v1/adapters/load", name="mine", path="new")
        (root / "new" / "adapter_model.safetensors").write_bytes(b"damaged")
        assert server.post("/v1/classify", model="mine", input="good").status == 200
        found = {each["id"]: each for each in server.call("GET", "/v1/models").json["data"]}
        assert "not a valid safetensors file" in found["mine"]["problem"]
        assert found["mine"]["task"]["labels"] == ["yes", "no"]
        assert server.post("/v1/classify", **BODY).status == 200
        library.remove("mine")


def test_an_adapter_that_never_was_sound(library, tmp_path):
    folder = tmp_path / "all" / "broken"
    shutil.copytree(library.get("back").loaded.name, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    base = library.base_name
    with serving(PromptLibrary(adapter_dir=tmp_path / "all", model_name_or_path=base)) as server:
        answer = server.post("/v1/classify", model="broken", input="good")
        assert (answer.status, answer.error["code"]) == (503, "adapter_unavailable")
        [_, found] = server.call("GET", "/v1/models").json["data"]
        assert (found["task"], "safetensors" in found["problem"]) == (None, True)


# --- addresses --------------------------------------------------------------------------------------


def test_an_address_that_is_taken():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port}: .*choose another --port"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"cannot listen on 203\.0\.113\.5"):
        bind("203.0.113.5", 0)


@pytest.mark.usefixtures("no_key")
def test_other_machines_without_a_key(library, tmp_path):
    """A warning; the address is checked before the base model is loaded."""
    model, adapter = ModelOptions(model_name_or_path=library.base_name), library.get("back").loaded.name
    (tmp_path / "key").write_text("sesame")
    warnings = []
    for options in ({"host": "0.0.0.0"}, {}, {"host": "0.0.0.0", "api_key_file": tmp_path / "key"}):
        server = open_server(model, ServeOptions(adapter=[adapter], port=0, **options), warnings.append)
        assert server.url.startswith("http://")
        server._bound.close()
    assert len(warnings) == 1
    assert "without an API key" in warnings[0]


def test_an_adapter_with_the_name_of_the_base_model(library, tmp_path):
    """Clients see the last part of the base model's path as its name."""
    shutil.copytree(library.get("back").loaded.name, tmp_path / "base")
    with pytest.raises(ConfigError, match="an adapter has the name of the base model, 'base'"):
        create_app(PromptLibrary([tmp_path / "base"]), ServeOptions())
    assert Path(library.base_name).name == "base"
