"""The page at ``/`` in a headless Chromium, with a real server: one text, completion, tasks, a server that is busy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from browser_tools import METRICS, Page, answered, open_site
from http_tools import LONG_CONTEXT, serving, wait_until
from serving_tools import make_adapters
from softprompt import PromptLibrary
from softprompt.inference.continuous import Sampling
from softprompt.serving.jobs import TextJob

QUESTION = "why is the phone awful"
"""A text that all tasks continue."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with open_site(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture
def server(site):
    return site.server


@pytest.fixture
def page(site):
    with site.page() as found:
        yield found


def probabilities(server, model, given):
    """Of each label, as the page shows them: largest first."""
    [model_info] = [each for each in server.call("GET", "/v1/models").json["data"] if each["id"] == model]
    [item] = server.post("/v1/classify", model=model, input=given).json["data"]
    ranked = sorted(zip(model_info["task"]["labels"], item["probs"], strict=True), key=lambda pair: -pair[1])
    return [(label, f"{100 * prob:.1f}%") for label, prob in ranked]


def shown(page, number=0):
    """Labels and probabilities of the result of that number."""
    rows = page.js(
        "[...document.querySelectorAll('#classify-results .result')[arguments[0]].querySelectorAll('tbody tr')]"
        ".map((row) => [row.cells[0].textContent, row.cells[2].textContent])",
        number,
    )
    return [tuple(row) for row in rows]


# --- one text ---------------------------------------------------------------------------------------


def test_a_text_gets_a_label_and_probabilities_from_each_task(page, server):
    page.open().ready().choose("front", "joint")
    page.classify("good service")
    assert page.texts("#classify-results h2") == ["front", "joint"]
    for number, name in enumerate(("front", "joint")):
        expected = probabilities(server, name, "good service")
        assert shown(page, number) == expected
        assert page.texts(".answer")[number] == expected[0][0]
        assert expected[0][0] in page.text("#classify-status")
        assert page.texts("#classify-results caption")[number] == f"Label probabilities of {name}"
    widths = page.js(
        "[...document.querySelectorAll('.result:first-child .bar-fill')].map((e) => parseFloat(e.style.width))"
    )
    assert widths == pytest.approx([float(share.rstrip("%")) for _, share in shown(page)], abs=0.06)
    page.choose("joint")
    assert page.texts("#classify-results h2") == ["joint"]


def test_the_threshold_withholds_labels_without_a_request(page, server):
    page.open().ready().choose("back")
    page.classify("why is the phone awful")
    requests = answered(server, "back")
    page.set("#classify-threshold", 100)
    assert page.text("#classify-threshold-value") == "100%"
    assert page.text(".answer") == "No label"
    page.set("#classify-threshold", 0)
    assert page.text(".answer") == shown(page)[0][0]
    assert answered(server, "back") == requests > 0


def test_every_column_has_a_field(page, server):
    page.open().ready().choose("pairs", "probed")
    assert page.texts("#classify-fields label") == ["text pairs, probed", "help pairs"]
    page.write("#classify-fields .field:nth-child(1) textarea", "good phone")
    page.write("#classify-fields .field:nth-child(2) textarea", "thanks sir")
    page.click("#classify-run")
    page.wait("document.querySelectorAll('#classify-results .result').length === 2")
    answers = dict(zip(page.texts("#classify-results h2"), (shown(page, 0), shown(page, 1)), strict=True))
    assert answers["pairs"] == probabilities(server, "pairs", {"text": "good phone", "help": "thanks sir"})
    assert answers["probed"] == probabilities(server, "probed", "good phone")
    page.choose("front")
    assert page.texts("#classify-fields label") == ["Text "]


def test_no_text(page):
    page.open().ready().choose("front")
    page.write("#classify-fields textarea", " \n ")
    page.click("#classify-run")
    assert page.text("#classify-notice [role=alert]") == "There is no text yet."
    assert page.js("document.activeElement.tagName") == "TEXTAREA"
    page.choose()
    assert page.text("#classify-lead") == "Choose at least one classification task."
    assert not page.find("#classify-run").is_enabled()


def test_a_text_that_is_too_long(page):
    page.open().ready().choose("front")
    page.classify("good " * 5000)
    assert page.text(".result .warning") == "The text is longer than this task reads; its end was cut off."


# --- completion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "request_"),
    [("base", {}), ("writer", {"template": True}), ("back", {"raw": True})],
)
def test_a_completion_is_streamed(page, server, model, request_):
    page.open("complete").ready().choose(model)
    page.set("#complete-max", 12)
    text = page.complete(QUESTION)
    answer = server.post("/v1/completions", model=model, prompt=QUESTION, max_tokens=12, **request_).json
    [choice], tokens = answer["choices"], answer["usage"]["completion_tokens"]
    assert text == (choice["text"].lstrip() if "template" in request_ else choice["text"])
    assert page.text("#complete-facts").startswith(f"{tokens} token")
    assert ("ended by max. tokens" in page.text("#complete-facts")) == (choice["finish_reason"] == "length")
    assert page.text("#complete-result .prompt") == ("" if "template" in request_ else QUESTION)


def test_a_generation_task_continues_a_text_as_written(page, server):
    page.open("complete").ready().choose("writer")
    page.click("input[value=text]")
    text = page.complete(QUESTION)
    [choice] = server.post("/v1/completions", model="writer", prompt=QUESTION).json["choices"]
    assert text == choice["text"]


def make_endless_library(folder):
    """A base model whose end token has logit 0, so that another token is always more probable."""
    base, adapters = make_adapters(folder)
    weights = Path(base, "model.safetensors")
    tensors = load_file(weights)
    tensors["lm_head.weight"][2] = 0
    save_file(tensors, weights, {"format": "pt"})
    config = Path(base, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": LONG_CONTEXT}))
    return PromptLibrary(adapters)


def test_a_completion_can_be_stopped(site, tmp_path):
    with serving(make_endless_library(tmp_path), max_completion_tokens=LONG_CONTEXT) as endless:
        page = Page(site.driver, endless.url).open("complete").ready()
        page.choose("base")
        page.set("#complete-max", LONG_CONTEXT // 2)
        page.write("#complete-fields textarea", QUESTION)
        page.click("#complete-run")
        page.wait("document.getElementById('complete-text')?.textContent.length > 100")
        assert page.text("#complete-facts") == "Writing …"
        assert page.js("document.activeElement.id") == "complete-stop"
        page.click("#complete-stop")
        assert page.wait_text("#complete-facts", "stopped") == "stopped"
        assert page.js("document.activeElement.id") == "complete-run"
        written = page.js("document.getElementById('complete-text').textContent")
        assert page.texts("#complete-status") == [f"Completion: {written}"]
        wait_until(lambda: endless.state.scheduler.num_running == 0)
        assert page.console() == []


# --- the server is busy, closed or gone -------------------------------------------------------------


def test_a_busy_server_is_asked_again(site):
    with serving(site.library, max_queue=1) as busy:
        page = Page(site.driver, busy.url).open().ready()
        page.choose("front")
        with busy.held():
            [waiting] = busy.state.scheduler.submit([TextJob(None, (5,), Sampling(max_new_tokens=1), None)])
            page.write("#classify-fields textarea", "good")
            page.click("#classify-run")
            page.wait_text("#classify-notice [role=status]", "The server is busy; trying again in 1 second")
            page.click("a[href='#file']")
            page.drop("rows.csv", "text\ngood\n")
            page.click("#file-run")
            page.wait_text("#file-progress-text", "The server is busy; trying again in 1 second")
            page.click("#file-cancel")
            page.wait_text("#file-notice", "Cancelled after 0 of 1 row.")
        waiting.result(60)
        page.wait("document.querySelector('#classify-results .result')")
        assert page.text("#classify-notice") == ""
    page.console()  # the browser reports the status 429


def test_the_page_asks_for_the_key(site, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("open-sesame")
    with serving(site.library, api_key_file=key_file) as closed:
        page = Page(site.driver, closed.url).open()
        page.wait("document.getElementById('key-dialog').open")
        assert page.text("#key-text") == "This server needs an API key."
        for key, message in (("wrong", "The server refused this key."), ("open-sesame", "")):
            page.write("#key-input", key)
            page.click("#key-form .primary")
            if message:
                page.wait_text("#key-text", message)
        page.ready()
        assert page.js("Object.values(sessionStorage)") == ["open-sesame"]
        assert "open-sesame" not in page.js("JSON.stringify(localStorage) + document.cookie + document.body.outerHTML")
        page.classify("good")
        page.click("#forget-key")
        assert page.js("sessionStorage.length") == 0
        page.click("#reload")
        page.wait("document.getElementById('key-dialog').open")
        page.click("#key-cancel")
        assert page.wait_text("#page-notice [role=alert]", "API key").startswith("This server needs an API key.")
    page.console()  # the browser reports the status 401


def test_a_server_that_is_gone(site):
    with serving(site.library) as gone:
        page = Page(site.driver, gone.url).open().ready()
        page.choose("front")
    page.write("#classify-fields textarea", "good")
    page.click("#classify-run")
    page.wait_text("#classify-notice [role=alert]", "The server does not answer. Is it still running?")
    page.console()  # the browser reports that the connection was refused


def test_a_text_that_is_too_large(site):
    with serving(site.library, max_body_bytes=1000) as small:
        page = Page(site.driver, small.url).open().ready()
        page.choose("front")
        page.write("#classify-fields textarea", "good " * 400)
        page.click("#classify-run")
        page.wait_text("#classify-notice [role=alert]", "The text is larger than this server accepts.")
        page.click("a[href='#file']")
        page.drop("many.csv", "text\n" + f"{'good ' * 20}\n" * 40)  # a batch is larger, its parts are not
        page.click("#file-run")
        page.wait_text("#file-status", "Done: 40 rows")
    page.console()  # the browser reports the status 413


# --- tasks and their details ------------------------------------------------------------------------


def problem_of(server, model):
    return server.call("GET", f"/v1/models/{model}").json["problem"]


def test_problems_are_shown(page, server, site):
    page.open().ready()
    assert page.texts("#tasks .problem") == []
    weights = Path(site.library.get("probed").loaded.name, "adapter_model.safetensors")
    kept = weights.read_bytes()
    weights.write_bytes(b"damaged")
    try:
        wait_until(lambda: problem_of(server, "probed"))
        page.click("#reload")
        page.wait("document.querySelector('#tasks .problem')")
        [problem] = page.texts("#tasks .problem")
        assert problem.startswith("Problem: ")
        page.choose("probed")
        page.classify("good")  # the version read before answers
    finally:
        weights.write_bytes(kept)
        wait_until(lambda: not problem_of(server, "probed"))


def test_a_task_that_was_replaced(page, server, site):
    page.open().ready().choose("probed")
    path = Path(site.library.get("back").loaded.name, "task.json")
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"labels": ["yes", "no", "maybe"]}))
    try:
        wait_until(lambda: len(labels_of(server, "back")) == 3)
        page.choose("back")
        page.write("#classify-fields textarea", "good")
        page.click("#classify-run")
        page.wait_text("#classify-notice [role=alert]", "The task back has changed. Reload the tasks.")
        page.click("#reload")
        page.wait_text("#tasks", "yes, no, maybe")
        page.classify("good")
        assert len(shown(page)) == 3
    finally:
        path.write_text(kept)
        wait_until(lambda: len(labels_of(server, "back")) == 2)


def labels_of(server, model):
    return server.call("GET", f"/v1/models/{model}").json["task"]["labels"]


def test_generation_tasks_lead_to_the_completion(page):
    page.open().ready()
    assert page.texts("#tasks legend") == ["Classification", "Generation"]
    page.click("#tasks a.task")
    page.wait("location.hash === '#complete'")
    assert page.js("document.querySelector('#tasks input:checked').value") == "writer"
    assert page.js("document.activeElement.id") == "main"
    assert page.js("document.title") == "Complete · softprompt"
    page.driver.back()
    page.wait("!document.getElementById('view-classify').hidden")


def test_details_of_a_task(page, server):
    page.open("details").ready().choose("joint")
    page.wait_text("#details-status", "Details of joint are shown.")
    details = server.call("GET", "/v1/adapters/joint").json
    words = page.texts("#details-body .word")
    expected = [each for nearest in details["nearest"] for each in nearest]
    assert words == [f"{each['token'].replace(' ', '␣')}{each['similarity']:.2f}" for each in expected]
    counts = page.texts(".confusion tbody td")
    assert [[*map(int, counts[:2])], [*map(int, counts[2:])]] == METRICS["confusion_matrix"]
    assert page.texts(".confusion thead th") == ["True label", "yes", "no"]
    epochs = [row for row in details["log"] if "train_loss" in row]
    assert len(page.texts("#details-body details tbody tr")) == len(epochs)
    assert len(page.js("[...document.querySelectorAll('.chart .eval-loss circle')]")) == len(epochs)
    alternative = page.find(".chart").get_attribute("aria-label")
    assert f"Validation: {epochs[0]['eval_loss']:.3f} at step {epochs[0]['step']}" in alternative
    page.choose("front")
    page.wait_text("#details-status", "Details of front are shown.")
    assert "This task has not been evaluated." in page.text("#details-body")
    assert "There is no training log." in page.text("#details-body")
