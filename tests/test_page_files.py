"""The page's view of files in a headless Chromium, with a real server, and its readers of CSV and streams."""

from __future__ import annotations

import csv
import io
import random

import pytest

from browser_tools import answered, open_site
from http_tools import wait_until


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


# --- a file -----------------------------------------------------------------------------------------


def downloaded(site, name):
    path = site.downloads / name
    wait_until(path.exists)
    found = path.read_bytes()
    path.unlink()
    return found


def test_a_file_is_classified_in_batches_and_saved(page, server, site):
    texts = [f'good {i} "phone";\nawful' for i in range(70)]
    texts[5] = ""
    table = [["id", "message", "probability"], *([str(i), text, "é"] for i, text in enumerate(texts))]
    content = io.StringIO()
    csv.writer(content, delimiter=";").writerows(table)
    page.open("file").ready().choose("front", "joint")
    requests = answered(server, "front")
    page.drop("reviews.csv", "\ufeff" + content.getvalue())
    assert page.text("#file-setup .hint") == "70 rows, 3 columns, separated by semicolons"
    assert not page.find("#file-run").is_enabled()
    page.set("#file-column-0", 1)
    page.click("#file-run")
    page.wait_text("#file-status", "Done: 70 rows")
    assert answered(server, "front") == requests + 3  # batches of 32 rows
    assert len(page.texts("#file-results .numbered tbody tr")) == 50
    assert page.texts("#file-results .warning") == ["Rows without a text, which got no label: 1"]

    page.click("#file-save")
    saved = downloaded(site, "reviews-labelled.csv").decode("utf-8")
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


def test_one_task_names_its_columns_as_softprompt_predict_does(page, site):
    page.open("file").ready().choose("front")
    page.drop("a.tsv", "text\tprobability\ngood\tx\n")
    page.click("#file-run")
    page.wait("document.querySelector('#file-save')")
    page.set("#file-threshold", 100)
    page.wait_text("#file-status", "Done")
    page.click("#file-save")
    head, row = downloaded(site, "a-labelled.csv").decode().splitlines()
    assert head == "text\tprobability\tpredicted_label\tprobability_2"
    assert row.startswith("good\tx\t\t0.")


def test_a_run_can_be_cancelled_and_started_again(page, server):
    page.open("file").ready().choose("front")
    page.drop("rows.csv", "text\n" + "good\n" * 40)
    with server.held():
        page.click("#file-run")
        assert page.text("#file-progress-text") == "0 of 40 rows"
        assert page.js("document.activeElement.id") == "file-cancel"
        page.click("#file-cancel")
        page.wait_text("#file-notice", "Cancelled after 0 of 40 rows.")
    page.click("#file-run")
    page.wait_text("#file-status", "Done: 40 rows")
    assert page.text("#file-notice") == ""


UNREADABLE = [
    ("", "The file is empty. Its first line must name the columns."),
    ('a,b\n1,"2', "Row 1: a quoted field does not end."),
    ('a,b\n"1"x,2', "Row 1: there is text after a closing quote. Write a quote within quotes twice."),
    ("a,b\n1,2\n1,2,3", "Row 2 has 3 fields, but the first line names 2 columns."),
    ("a,,b\n1,2,3", "Column 2 has no name in the first line."),
    ("a,a\n1,2", 'Two columns are named "a".'),
    (b"text\n\xe9", "The file is not in UTF-8. Save it again as CSV UTF-8."),
]


def test_a_file_that_cannot_be_read(page):
    page.open("file").ready()
    for content, message in UNREADABLE:
        page.drop("bad.csv", content)
        page.wait_text("#file-notice [role=alert]", f"bad.csv: {message}")


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


OTHER_PROGRAMS = [
    (b"\xef\xbb\xbfa,b\r\n1,2", [["a", "b"], ["1", "2"]]),
    ("a\tb\n1\té\n".encode("utf-16"), [["a", "b"], ["1", "é"]]),
    (b"a;b\n1,5;2,5\n", [["a", "b"], ["1,5", "2,5"]]),
    (b"text\n\nplain; text\n", [["text"], ["plain; text"]]),
    (b"a,b,,\n1,2,,\n,,,,,\n", [["a", "b"], ["1", "2"], ["", ""]]),
    (b'a\tb\n"ugh\t5" pipe\n', [["a", "b"], ['"ugh', '5" pipe']]),
    (b'"a,b",c\n"x;y",z\n', [["a,b", "c"], ["x;y", "z"]]),
    (b'only\n""\n', [["only"], [""]]),
]


def test_csv_files_of_other_programs(page):
    page.open()
    script = (
        "const {readTable} = await load('csv');"
        "return arg.map((bytes) => { const t = readTable(new Uint8Array(bytes)); return [t.columns, ...t.rows]; })"
    )
    assert page.modules(script, [list(content) for content, _ in OTHER_PROGRAMS]) == [t for _, t in OTHER_PROGRAMS]


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
