"""template.py: what a field may be, what a value can do (nothing but be inserted), and the messages."""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.data.template import DEFAULT_TEMPLATE, Template, listed, resolve_template, to_text
from softprompt.errors import DataError

TEXT = ["Tweet text"]


def render(template, values, text_columns=TEXT):
    return Template(template, text_columns).render(values, "A.csv, row 3")


def refused(function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_default_is_the_guides():
    assert render(DEFAULT_TEMPLATE, {"Tweet text": "No"}) == "Tweet text : No Label : "
    stored = resolve_template(None, TEXT)
    assert stored == "Tweet text : {Tweet text} Label : "
    assert render(stored, {"Tweet text": "No"}) == "Tweet text : No Label : "


def test_default_repeats_name_and_value_for_several_columns():
    stored = resolve_template(None, ["title", "body"])
    assert stored == "title : {title} body : {body} Label : "
    assert render(stored, {"title": "a", "body": "b"}, ["title", "body"]) == "title : a body : b Label : "


def test_default_does_not_take_another_column_called_text():
    stored = resolve_template(None, ["body"], ["body", "text"])
    assert render(stored, {"body": "right", "text": "wrong"}, ["body"]) == "body : right Label : "


def test_short_forms_are_stored_as_plain_names():
    assert resolve_template("{text_column}: {text}!", TEXT, ["Tweet text", "ID"]) == "Tweet text: {Tweet text}!"


def test_a_column_named_like_a_short_form_wins():
    values = {"body": "b", "text": "t", "text_column": "c"}
    stored = resolve_template("{text_column} {text} {body}", ["body"], list(values))
    assert stored == "{text_column} {text} {body}"
    assert render(stored, values, ["body"]) == "c t b"
    assert "no column 'text'" in refused(render, "{body} {text}", {"body": "b"}, ["body"])


def test_text_column_called_text_needs_no_short_form():
    assert resolve_template("{text}", ["text"], ["text", "label"]) == "{text}"
    assert Template("{text}", ["text"]).fields == ("text",)


def test_short_form_with_several_columns_is_refused_by_name():
    message = refused(resolve_template, "{text} Label : ", ["title", "body"])
    assert message.startswith("{text} in a template stands for the only text column, but there are 2")
    assert message.endswith("name the columns instead: {title} {body}")


def test_fields_are_in_order_and_once():
    assert Template("{b} {text} {b} {a}", TEXT).fields == ("b", "Tweet text", "a")


def test_braces_are_written_twice():
    assert render("{{{text}}} {{}}", {"Tweet text": "x"}) == "{x} {}"
    stored = resolve_template("{{{text}}} {{}}", TEXT)
    assert stored == "{{{Tweet text}}} {{}}"
    assert render(stored, {"Tweet text": "x"}) == "{x} {}"


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{text} }", "single '}' at character 8; write '}}' for a brace"),
        ("{text", "single '{' at character 1; write '{{' for a brace"),
        ("{text} {}", "empty field '{}'; name a column in it"),
        ("{text} { }", "empty field '{ }'"),
        ("no field", "never reads the text column 'Tweet text'; add {Tweet text} to it"),
        ("{ID}", "never reads the text column"),
    ],
)
def test_malformed_templates(template, part):
    assert part in refused(Template, template, TEXT)
    assert part in refused(resolve_template, template, TEXT)


@pytest.mark.parametrize("field", ["text.upper", "text[0]", "text!r", "text:>9", "text.__class__.__mro__"])
def test_only_plain_names_are_fields(field):
    template = f"{{text}} {{{field}}}"
    for message in (
        refused(resolve_template, template, ["text"], ["text", "label"]),
        refused(render, template, {"text": "x"}, ["text"]),
    ):
        assert f"there is no column {field!r}" in message
        assert "no attribute, index, conversion or format" in message


@pytest.mark.parametrize("name", ["a.b", "a[0]", "a!r", "a:>9", "Wie alt?", "naïve 列"])
def test_a_column_may_be_called_anything_without_braces(name):
    template = f"<{{{name}}}>"
    assert resolve_template(template, [name], [name]) == template
    assert render(template, {name: "x"}, [name]) == "<x>"


def test_unknown_field_names_field_columns_and_nearest():
    message = refused(resolve_template, "{text} {Tweet txt}", TEXT, ["Tweet text", "ID"])
    assert message == (
        "the template '{text} {Tweet txt}' reads {Tweet txt}, but there is no column 'Tweet txt'; "
        "the columns are 'Tweet text' and 'ID'; did you mean 'Tweet text'?"
    )


def test_missing_value_names_the_row():
    message = refused(render, "{text}", {"Tweet": "x"})
    assert message.startswith("A.csv, row 3: the template '{text}' reads {Tweet text}, but there is no column")


@pytest.mark.parametrize("columns", [[], ["a", "a"], ["a{b"]])
def test_text_columns_that_cannot_work(columns):
    refused(resolve_template, None, columns)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (1.5, "1.5"), (True, "True"), (Decimal("1.10"), "1.10"), ("{a}", "{a}"), ("", "")],
)
def test_values(value, text):
    assert to_text(value, "a", "row 1") == text
    assert render("{Tweet text}", {"Tweet text": value}) == text


@pytest.mark.parametrize("value", [["a"], ("a",), {"a": 1}, {"a"}, b"a"])
def test_cells_that_are_not_one_text(value):
    message = refused(to_text, value, "tags", "A.jsonl, line 2")
    assert message == (
        f"A.jsonl, line 2: the column 'tags' holds a {type(value).__name__}; it must be one text or number"
    )


def test_half_a_character_is_refused():
    assert "half of a character (U+D83D" in refused(to_text, "ok \ud83d", "text", "row 1")


@given(st.text(), st.text())
def test_values_are_never_templates(first, second):
    assert render("<{text}|{b}>", {"Tweet text": first, "b": second}) == f"<{first}|{second}>"


@given(st.text(alphabet="ab{} {a}{{", max_size=20), st.dictionaries(st.sampled_from("ab"), st.text(), min_size=2))
def test_resolving_changes_no_rendering(template, values):
    """Whatever is accepted renders the same from its stored form, and resolving again changes nothing."""
    try:
        stored = resolve_template(template, ["a"], ["a", "b"])
    except DataError:
        return
    assert render(stored, values, ["a"]) == render(template, values, ["a"])
    assert resolve_template(stored, ["a"], ["a", "b"]) == stored


@given(st.text())
def test_literal_text_survives(literal):
    escaped = re.sub(r"[{}]", lambda brace: brace.group() * 2, literal)
    assert render(escaped + "{text}", {"Tweet text": ""}) == literal


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (r"a\n{text}", "a\n{Tweet text}"),
        (r"\t{text}\n\n", "\t{Tweet text}\n\n"),
        (r"a\\n{text}", r"a\n{Tweet text}"),
        ("a\n{text}", "a\n{Tweet text}"),
        ("{text} \\d \\", "{Tweet text} \\d \\"),
    ],
)
def test_line_breaks_as_a_shell_passes_them_on(given, stored):
    assert resolve_template(given, TEXT) == stored


def test_only_the_templates_own_words_have_escapes():
    """Not the names of columns, nor what is in them, nor a stored template."""
    stored = resolve_template(r"{text_column}\n{text} {a\nb}", [r"c\nd"], [r"c\nd", r"a\nb"])
    assert stored == "c\\nd\n{c\\nd} {a\\nb}"
    assert Template(stored, [r"c\nd"]).render({r"c\nd": r"x\ny", r"a\nb": "z"}, "row 1") == "c\\nd\nx\\ny z"


def test_pieces_tell_what_a_row_brings():
    pieces = Template("{{<{text}|{b}> {text_column}", TEXT).pieces({"Tweet text": "x", "b": ""}, "row 1")
    assert pieces == [("{<", False), ("x", True), ("|", False), ("", True), ("> Tweet text", False)]


def test_long_lists_are_counted():
    assert listed(["a"]) == "'a'"
    assert listed(["a", "b", "c"]) == "'a', 'b' and 'c'"
    assert listed(map(str, range(25))).endswith("'19' and 5 more")


def test_encoding_and_data_need_no_torch():
    """Importing the layers under the engine loads neither torch nor the libraries that load it."""
    code = (
        "import sys, softprompt.data.template, softprompt.data.tokenize, softprompt.data\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
