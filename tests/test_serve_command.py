"""``softprompt serve`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_tools import PATIENCE, SOFTPROMPT, environment, forked
from serving_tools import make_adapters
from softprompt.cli.serve import command
from softprompt.errors import MissingExtraError
from softprompt.serving.server import bind


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_adapters(tmp_path_factory.mktemp("serve"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_accepted_requests_are_finished(made, number):
    """One line, at a stream of which the signal arrives; the stream is complete, and the exit status 0."""
    front, back = made[1]["front"], made[1]["back"]
    arguments = ["serve", front, "--adapter", f"second={back}", "--port", "0"]
    process = subprocess.Popen(
        [SOFTPROMPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    line = process.stdout.readline()
    found = re.fullmatch(r"serving base with front, second at http://(127\.0\.0\.1:\d+)\n", line)
    connection = http.client.HTTPConnection(found[1], timeout=PATIENCE)
    body = {"model": "base", "prompt": "good", "max_tokens": 50, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    process.send_signal(number)
    assert response.read().endswith(b"data: [DONE]\n\n")
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serve nowhere/adapter", "nowhere/adapter"),
        ("serve --adapter_dir nowhere", "the folder of adapters nowhere does not exist"),
        ("serve {front} --adapter front={back}", "two adapters are named 'front'"),
        ("serve {front} --port 70000", "invalid port=70000: must be <= 65535"),
        ("serve {front} --api_key_file nowhere", "nowhere"),
        ("serve {front} --port {taken}", "choose another --port"),
        ("serve --adapter x={front} --model_name_or_path {back}", "is an adapter, not a base model"),
    ],
)
def test_mistakes_are_one_line(made, arguments, message, tmp_path):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        given = arguments.format(**made[1], taken=taken.getsockname()[1])
        process = forked(*given.split(), cwd=tmp_path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert re.fullmatch(r"softprompt: .*\n", process.stderr)
    assert message in process.stderr


def test_it_needs_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"needs uvicorn; install it with: pip install 'softprompt\[serve\]'"):
        command(folder=str(Path("somewhere")))
