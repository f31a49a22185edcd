"""The page at ``/`` in a headless Chromium, with a real server."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from browser_tools import NARROW, WIDE, Page, chromium
from http_tools import LONG_CONTEXT, make_library, serving, wait_until
from serving_tools import make_adapters
from softprompt import PromptLibrary
from softprompt.inference.continuous import Sampling
from softprompt.serving.jobs import TextJob

FILES = Path(__file__).parents[1] / "src/softprompt/serving/page"
EARLIER = Path(__file__).parent / "earlier/default"
QUESTION = "why is the phone awful"
"""A text that all tasks continue."""
VIEWS = ("classify", "file", "complete", "details")
MARKUP = "<img src=x onerror=alert(1)> <b>good</b>"
METRICS = {
    "num_examples": 20,
    "accuracy": 0.75,
    "macro_f1": 0.7,
    "confusion_matrix": [[9, 3], [2, 6]],
    "labels": ["yes", "no"],
    "per_class": [
        {"label": "yes", "precision": 0.8, "recall": 0.75, "f1": 0.78, "support": 12},
        {"label": "no", "precision": 0.6, "recall": 0.75, "f1": 0.67, "support": 8},
    ],
    "baselines": {"majority class": {"accuracy": 0.6, "macro_f1": 0.375, "eval_loss": None}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def library(folder):
    made = make_library(folder, context=4096)
    joint = folder / "adapters/joint"
    shutil.copy(EARLIER / "log.jsonl", joint)
    (joint / "metrics.json").write_text(json.dumps(METRICS))
    return made


@pytest.fixture(scope="module")
def server(library):
    with serving(library) as found:
        yield found


@pytest.fixture(scope="module")
def driver(folder):
    (folder / "downloads").mkdir()
    with chromium(folder / "downloads") as found:
        yield found


@pytest.fixture
def page(driver, server):
    found = Page(driver, server.url)
    found.console()
    yield found
    assert found.console() == []


def probabilities(server, model, given):
    """Of each label, as the page shows them: largest first."""
    [model_info] = [each for each in server.call("GET", "/v1/models").json["data"] if each["id"] == model]
    [item] = server.post("/v1/classify", model=model, input=given).json["data"]
    ranked = sorted(zip(model_info["task"]["labels"], item["probs"], strict=True), key=lambda pair: -pair[1])
    return [(label, f"{100 * prob:.1f}%") for label, prob in ranked]


def answered(server, model):
    """Number of requests to classify."""
    return server.measurement("requests_total", route="/v1/classify", model=model, status="200")


def shown(page, number=0):
    """Labels and probabilities of the result of that number."""
    rows = page.js(
        "[...document.querySelectorAll('#classify-results .result')[arguments[0]].querySelectorAll('tbody tr')]"
        ".map((row) => [row.cells[0].textContent, row.cells[2].textContent])",
        number,
    )
    return [tuple(row) for row in rows]


def classify(page, text):
    page.write("#classify-fields textarea", text)
    page.click("#classify-run")
    page.wait("document.querySelector('#classify-results .result')")


# --- one text ---------------------------------------------------------------------------------------


def test_a_text_gets_a_label_and_probabilities_from_each_task(page, server):
    page.open().ready().choose("front", "joint")
    classify(page, "good service")
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
    classify(page, "why is the phone awful")
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
    classify(page, "good " * 5000)
    assert page.text(".result .warning") == "The text is longer than this task reads; its end was cut off."


def test_texts_never_become_markup(page):
    page.open("file").ready().choose("front")
    content = io.StringIO()
    csv.writer(content).writerows([[MARKUP], [MARKUP]])
    drop(page, "<i>.csv", content.getvalue())
    page.click("#file-run")
    page.wait("document.querySelector('#file-run')?.textContent === 'Classify again'")
    assert MARKUP in page.texts("#file-results td div")
    assert page.texts("#file-setup h2") == ["<i>.csv"]
    page.click("a[href='#complete']")
    page.choose("base")
    page.write("#complete-fields textarea", MARKUP)
    page.click("#complete-run")
    page.wait("document.querySelector('#complete-result [aria-busy=false]')")
    assert page.text(".prompt") == MARKUP
    assert not page.js("document.querySelectorAll('main :is(img, b, i)').length")


# --- a file -----------------------------------------------------------------------------------------


def drop(page, name, content):
    """Drop a file on the page; ``content`` is text or bytes."""
    data = list(content.encode() if isinstance(content, str) else content)
    page.driver.execute_script(
        "const transfer = new DataTransfer();"
        "transfer.items.add(new File([new Uint8Array(arguments[1])], arguments[0]));"
        "document.getElementById('file-drop').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}))",
        name,
        data,
    )
    page.wait("document.querySelector('#file-run, #file-notice .error')")


def downloaded(folder, name):
    path = folder / "downloads" / name
    wait_until(path.exists)
    found = path.read_bytes()
    path.unlink()
    return found


def test_a_file_is_classified_in_batches_and_saved(page, server, folder):
    texts = [f'good {i} "phone";\nawful' for i in range(70)]
    texts[5] = ""
    table = [["id", "message", "probability"], *([str(i), text, "é"] for i, text in enumerate(texts))]
    content = io.StringIO()
    csv.writer(content, delimiter=";").writerows(table)
    page.open("file").ready().choose("front", "joint")
    requests = answered(server, "front")
    drop(page, "reviews.csv", "\ufeff" + content.getvalue())
    assert page.text("#file-setup .hint") == "70 rows, 3 columns, separated by semicolons"
    assert not page.find("#file-run").is_enabled()
    page.set("#file-column-0", 1)
    page.click("#file-run")
    page.wait_text("#file-status", "Done: 70 rows")
    assert answered(server, "front") == requests + 3  # batches of 32 rows
    assert len(page.texts("#file-results .numbered tbody tr")) == 50
    assert page.texts("#file-results .warning") == ["Rows without a text, which got no label: 1"]

    page.click("#file-save")
    saved = downloaded(folder, "reviews-labelled.csv").decode("utf-8")
    assert saved[0] == "\ufeff"
    head, *rows = csv.reader(io.StringIO(saved[1:], newline=""), delimiter=";")
    assert head == [*table[0], "front", "front_probability", "joint", "joint_probability"]
    assert [row[:3] for row in rows] == table[1:]
    assert rows[5][3:] == ["", "", "", ""]
    items = server.post("/v1/classify", model=["front", "joint"], input=[text or "good" for text in texts]).json["data"]
    for item in items:
        if item["index"] != 5:
            label, probability = rows[item["index"]][3 if item["model"] == "front" else 5 :][:2]
            assert label == item["label"]
            assert float(probability) == pytest.approx(max(item["probs"]), rel=1e-4)
    counts = dict(
        zip(
            page.texts(".result:first-child .bars tbody th"),
            page.texts(".result:first-child .bars .number"),
            strict=True,
        )
    )
    assert counts["good"] == str(sum(row[3] == "good" for row in rows))


def test_one_task_names_its_columns_as_softprompt_predict_does(page, folder):
    page.open("file").ready().choose("front")
    drop(page, "a.tsv", "text\tprobability\ngood\tx\n")
    page.click("#file-run")
    page.wait("document.querySelector('#file-save')")
    page.set("#file-threshold", 100)
    page.wait_text("#file-status", "Done")
    page.click("#file-save")
    head, row = downloaded(folder, "a-labelled.csv").decode().splitlines()
    assert head == "text\tprobability\tpredicted_label\tprobability_2"
    assert row.startswith("good\tx\t\t0.")


def test_a_run_can_be_cancelled_and_started_again(page, server):
    page.open("file").ready().choose("front")
    drop(page, "rows.csv", "text\n" + "good\n" * 40)
    with server.held():
        page.click("#file-run")
        assert page.text("#file-progress-text") == "0 of 40 rows"
        assert page.js("document.activeElement.id") == "file-cancel"
        page.click("#file-cancel")
        page.wait_text("#file-notice", "Cancelled after 0 of 40 rows.")
    page.click("#file-run")
    page.wait_text("#file-status", "Done: 40 rows")
    assert page.text("#file-notice") == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "The file is empty. Its first line must name the columns."),
        ('a,b\n1,"2', "Row 1: a quoted field does not end."),
        ('a,b\n"1"x,2', "Row 1: there is text after a closing quote. Write a quote within quotes twice."),
        ("a,b\n1,2\n1,2,3", "Row 2 has 3 fields, but the first line names 2 columns."),
        ("a,,b\n1,2,3", "Column 2 has no name in the first line."),
        ("a,a\n1,2", 'Two columns are named "a".'),
        (b"text\n\xe9", "The file is not in UTF-8. Save it again as CSV UTF-8."),
    ],
)
def test_a_file_that_cannot_be_read(page, content, message):
    page.open("file").ready()
    drop(page, "bad.csv", content)
    assert page.text("#file-notice [role=alert]") == f"bad.csv: {message}"


# --- CSV and server-sent events ---------------------------------------------------------------------


def random_table(draw, columns, characters):
    rows = [["".join(draw.choices(characters, k=draw.randrange(6))) for _ in range(columns)] for _ in range(8)]
    return [[f"c{i}" for i in range(columns)], *rows]


def test_csv_is_read_as_python_reads_it(page):
    page.open()
    draw, cases = random.Random(0), []
    for case in range(200):
        delimiter = ",;\t"[case % 3]
        table = random_table(draw, 2 + case % 3, 'ab"\n\r ' + delimiter + "é😀")
        content = io.StringIO()
        quoting = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        if any("\r" in cell for row in table for cell in row):
            quoting = csv.QUOTE_ALL  # Python leaves a lone \r unquoted
        csv.writer(content, delimiter=delimiter, quoting=quoting, lineterminator=draw.choice(("\n", "\r\n"))).writerows(
            table
        )
        cases.append([table, delimiter, content.getvalue()])
    found = page.modules(
        "const {readTable, writeTable} = await load('csv');"
        "const bytes = (text) => new TextEncoder().encode(text);"
        "return arg.map(([, , text]) => { const t = readTable(bytes(text)); return [t, writeTable(t)]; })",
        cases,
    )
    for (table, delimiter, _), (read, written) in zip(cases, found, strict=True):
        assert [read["columns"], *read["rows"]] == table
        assert read["delimiter"] == delimiter
        assert list(csv.reader(io.StringIO(written, newline=""), delimiter=delimiter)) == table


@pytest.mark.parametrize(
    ("content", "table"),
    [
        (b"\xef\xbb\xbfa,b\r\n1,2", [["a", "b"], ["1", "2"]]),
        ("a\tb\n1\té\n".encode("utf-16"), [["a", "b"], ["1", "é"]]),
        (b"a;b\n1,5;2,5\n", [["a", "b"], ["1,5", "2,5"]]),
        (b"text\n\nplain; text\n", [["text"], ["plain; text"]]),
        (b"a,b,,\n1,2,,\n,,,,,\n", [["a", "b"], ["1", "2"], ["", ""]]),
        (b'a\tb\n"ugh\t5" pipe\n', [["a", "b"], ['"ugh', '5" pipe']]),
        (b'"a,b",c\n"x;y",z\n', [["a,b", "c"], ["x;y", "z"]]),
        (b'only\n""\n', [["only"], [""]]),
    ],
)
def test_csv_files_of_other_programs(page, content, table):
    page.open()
    script = "const t = (await load('csv')).readTable(new Uint8Array(arg)); return [t.columns, ...t.rows]"
    assert page.modules(script, list(content)) == table


def test_events_arrive_whole_however_the_bytes_are_split(page):
    page.open()
    stream = 'data: {"a": "é"}\n\n: comment\r\ndata:b\r\ndata:c\r\n\r\nevent: x\rdata: 😀\r\rdata: cut off'.encode()
    cuts = [[i] for i in range(len(stream) + 1)] + [list(range(len(stream)))]
    found = page.modules(
        "const {events} = await load('sse'); const all = [];"
        "for (const cuts of arg.cuts) {"
        "  const edges = [0, ...cuts, arg.stream.length];"
        "  const parts = edges.slice(1).map((end, i) => new Uint8Array(arg.stream.slice(edges[i], end)));"
        "  const body = new ReadableStream({start(c) { parts.forEach((p) => c.enqueue(p)); c.close(); }});"
        "  const some = []; for await (const data of events(body)) some.push(data); all.push(some);"
        "} return all",
        {"stream": list(stream), "cuts": cuts},
    )
    assert all(each == ['{"a": "é"}', "b\nc", "😀"] for each in found)


# --- completion -------------------------------------------------------------------------------------


def complete(page, text):
    page.write("#complete-fields textarea", text)
    page.click("#complete-run")
    page.wait("document.querySelector('#complete-result [aria-busy=false]')")
    return page.js("document.getElementById('complete-text').textContent")


@pytest.mark.parametrize(
    ("model", "request_"),
    [("base", {}), ("writer", {"template": True}), ("back", {"raw": True})],
)
def test_a_completion_is_streamed(page, server, model, request_):
    page.open("complete").ready().choose(model)
    page.set("#complete-max", 12)
    text = complete(page, QUESTION)
    answer = server.post("/v1/completions", model=model, prompt=QUESTION, max_tokens=12, **request_).json
    [choice], tokens = answer["choices"], answer["usage"]["completion_tokens"]
    assert text == (choice["text"].lstrip() if "template" in request_ else choice["text"])
    assert page.text("#complete-facts").startswith(f"{tokens} token")
    assert ("ended by max. tokens" in page.text("#complete-facts")) == (choice["finish_reason"] == "length")
    assert page.text("#complete-result .prompt") == ("" if "template" in request_ else QUESTION)


def test_a_generation_task_continues_a_text_as_written(page, server):
    page.open("complete").ready().choose("writer")
    page.click("input[value=text]")
    text = complete(page, QUESTION)
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


def test_a_completion_can_be_stopped(driver, tmp_path):
    with serving(make_endless_library(tmp_path), max_completion_tokens=LONG_CONTEXT) as endless:
        page = Page(driver, endless.url).open("complete").ready()
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


def test_a_busy_server_is_asked_again(library, driver):
    with serving(library, max_queue=1) as busy:
        page = Page(driver, busy.url).open().ready()
        page.choose("front")
        with busy.held():
            [waiting] = busy.state.scheduler.submit([TextJob(None, (5,), Sampling(max_new_tokens=1), None)])
            page.write("#classify-fields textarea", "good")
            page.click("#classify-run")
            page.wait_text("#classify-notice [role=status]", "The server is busy; trying again in 1 second")
        waiting.result(60)
        page.wait("document.querySelector('#classify-results .result')")
        assert page.text("#classify-notice") == ""
    page.console()  # the browser reports the status 429


def test_the_page_asks_for_the_key(library, driver, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("open-sesame")
    with serving(library, api_key_file=key_file) as closed:
        page = Page(driver, closed.url).open()
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
        classify(page, "good")
        page.click("#forget-key")
        assert page.js("sessionStorage.length") == 0
        page.click("#reload")
        page.wait("document.getElementById('key-dialog').open")
        page.click("#key-cancel")
        assert page.wait_text("#page-notice [role=alert]", "API key").startswith("This server needs an API key.")
    page.console()  # the browser reports the status 401


def test_a_server_that_is_gone(library, driver):
    with serving(library) as gone:
        page = Page(driver, gone.url).open().ready()
        page.choose("front")
    page.write("#classify-fields textarea", "good")
    page.click("#classify-run")
    page.wait_text("#classify-notice [role=alert]", "The server does not answer. Is it still running?")
    page.console()  # the browser reports that the connection was refused


def test_a_text_that_is_too_large(library, driver):
    with serving(library, max_body_bytes=1000) as small:
        page = Page(driver, small.url).open().ready()
        page.choose("front")
        page.write("#classify-fields textarea", "good " * 400)
        page.click("#classify-run")
        page.wait_text("#classify-notice [role=alert]", "The text is larger than this server accepts.")
        page.click("a[href='#file']")
        drop(page, "many.csv", "text\n" + f"{'good ' * 20}\n" * 40)  # a batch is larger, its parts are not
        page.click("#file-run")
        page.wait_text("#file-status", "Done: 40 rows")
    page.console()  # the browser reports the status 413


# --- tasks and their details ------------------------------------------------------------------------


def problem_of(server, model):
    return server.call("GET", f"/v1/models/{model}").json["problem"]


def test_problems_are_shown(page, server, library, tmp_path):
    page.open().ready()
    assert page.texts("#tasks .problem") == []
    weights = Path(library.get("probed").loaded.name, "adapter_model.safetensors")
    kept = weights.read_bytes()
    weights.write_bytes(b"damaged")
    try:
        wait_until(lambda: problem_of(server, "probed"))
        page.click("#reload")
        [problem] = page.wait(
            "((all) => all.length && all.map((e) => e.textContent))(document.querySelectorAll('.problem'))"
        )
        assert problem.startswith("Problem: ")
        page.choose("probed")
        classify(page, "good")  # the version read before answers
    finally:
        weights.write_bytes(kept)
        wait_until(lambda: not problem_of(server, "probed"))


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
    cells = "[...document.querySelectorAll('.confusion tbody tr')].map((r) => [...r.cells].slice(1).map((c) => +c.textContent))"
    assert page.js(cells) == METRICS["confusion_matrix"]
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


# --- for everyone -----------------------------------------------------------------------------------

CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const over = (top, under) => top.map((c, i) => (i < 3 ? (c * top[3] + under[i] * (255 - top[3])) / 255 : 255));
const background = (e) => e ? over(rgba(getComputedStyle(e).backgroundColor), background(e.parentElement)) : [255, 255, 255, 255];
const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
  const s = c[i] / 255;
  return sum + weight * (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4);
}, 0);
const low = [];
for (const e of document.querySelectorAll('body *')) {
  const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join('');
  if (!text || !e.checkVisibility() || e.closest('.hidden, :disabled, svg, option')) continue;
  const under = background(e);
  const [a, b] = [light(over(rgba(getComputedStyle(e).color), under)), light(under)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push(`${e.tagName} ${e.className}: ${text.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return low;
"""
STRUCTURE = """
const faults = [];
const fault = (selector, isWrong, what) => document.querySelectorAll(selector).forEach(
  (e) => e.checkVisibility() && isWrong(e) && faults.push(`${what}: ${e.outerHTML.slice(0, 100)}`));
fault('input, select, textarea', (e) => !e.labels.length && !e.ariaLabel, 'no label');
fault('button, a', (e) => !e.textContent.trim(), 'no name');
fault('table', (e) => !e.caption?.textContent, 'no caption');
fault('th', (e) => !e.scope, 'no scope');
fault('svg', (e) => e.getAttribute('aria-hidden') !== 'true' && !e.getAttribute('aria-label'), 'no alternative');
fault('[style]', (e) => ![...e.style].every((n) => n === 'width' || n.startsWith('--')), 'style');
fault('[id]', (e) => document.querySelectorAll(`[id="${e.id}"]`).length > 1, 'id twice');
const headings = [...document.querySelectorAll('main h1')].filter((e) => e.checkVisibility());
if (headings.length !== 1) faults.push(`${headings.length} h1`);
return faults;
"""


def fill_view(page, view):
    """Show results in a view."""
    page.open(view, WIDE).ready()
    if view == "classify":
        page.choose("front", "joint", "pairs")
        page.set("#classify-threshold", 90)
        classify(page, "good " * 5000)
    elif view == "file":
        page.choose("front", "joint")
        drop(page, "a.csv", "text\ngood\n,\nawful service\n")
        page.click("#file-run")
        page.wait_text("#file-status", "Done")
    elif view == "complete":
        page.choose("base")
        complete(page, "good service " * 30)
    else:
        page.choose("joint")
        page.wait_text("#details-status", "joint")
        page.click("summary")


@pytest.mark.parametrize("view", VIEWS)
def test_names_contrast_and_width(page, view):
    fill_view(page, view)
    assert page.driver.execute_script(STRUCTURE) == []
    for theme in ("light", "dark"):
        page.driver.execute_script(f"document.documentElement.dataset.theme = {theme!r}")
        assert page.driver.execute_script(CONTRAST) == []
    for width, height in (WIDE, (700, 800), NARROW):
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == NARROW[0]}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        page.wait(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")


def test_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.open().ready().choose("front")
    page.js("document.activeElement.blur()")
    keyboard = page.driver.switch_to
    keyboard.active_element.send_keys(Keys.TAB)
    assert page.js("document.activeElement.textContent") == "Skip to the content"
    keyboard.active_element.send_keys(Keys.ENTER)
    page.wait("document.activeElement.id === 'main'")
    keyboard.active_element.send_keys(Keys.TAB)
    assert page.js("document.activeElement.tagName") == "TEXTAREA"
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keyboard.active_element.send_keys("good", Keys.CONTROL, Keys.ENTER)
    page.wait("document.querySelector('#classify-results .result')")


def test_the_list_of_tasks_folds_on_a_narrow_screen(page):
    page.open("classify", NARROW).ready()
    assert not page.find("#tasks").is_displayed()
    page.click("#chooser-toggle")
    assert page.find("#tasks").is_displayed()
    page.choose("back", "joint")
    assert page.text("#chooser-summary") == "back, joint"


def test_the_theme_is_kept(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    colour = "getComputedStyle(document.body).backgroundColor"
    page.open().ready()
    dark = page.js(colour)
    page.click("#theme")
    light = page.js(colour)
    assert (page.text("#theme-name"), light != dark) == ("Light", True)
    page.open().ready()
    assert page.js(colour) == light
    page.click("#theme")
    assert (page.text("#theme-name"), page.js(colour)) == ("Dark", dark)
    page.click("#theme")
    assert page.text("#theme-name") == "Auto"


def test_the_files_need_nothing_else():
    names = {path.name for path in FILES.iterdir()}
    for path in FILES.iterdir():
        text = path.read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "style=",
        ):
            assert word not in text, (path.name, word)
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace(
            "https://html.spec.whatwg.org", ""
        ) or (path.suffix == ".js")
        assert all(len(line) <= 120 for line in text.splitlines() if "icon" not in line and "class=" not in line), (
            path.name
        )
    assert {"index.html", "style.css", "app.js"} <= names
