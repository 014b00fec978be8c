"""dataset/convert.py: the source lists of stage 1 become TSV, in bounded memory and whole or not at all."""

import csv
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

DATASET = Path(__file__).parents[2] / "dataset"


@pytest.fixture(scope="module")
def convert():
    sys.path.insert(0, str(DATASET))
    try:
        import convert as module
    finally:
        sys.path.remove(str(DATASET))
    return module


def read_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))


class EndlessText:
    """A text stream: `start`, then `more` for ever. Counts the characters it gave."""

    def __init__(self, start: str, more: str):
        self.pieces = itertools.chain([start], itertools.repeat(more))
        self.pending = ""
        self.given = 0

    def read(self, size: int) -> str:
        while len(self.pending) < size:
            self.pending += next(self.pieces)
        out, self.pending = self.pending[:size], self.pending[size:]
        self.given += size
        return out


@settings(max_examples=50)
@given(
    elements=st.lists(
        st.dictionaries(st.text(max_size=3), st.text(max_size=8) | st.integers() | st.lists(st.integers())),
        min_size=1,
        max_size=5,
    ),
    chunk_chars=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 2]),
)
def test_any_chunk_size_reads_what_json_load_reads(convert, elements, chunk_chars, indent):
    text = json.dumps(elements, indent=indent, ensure_ascii=False)
    assert list(convert.iter_array(io.StringIO(text), chunk_chars=chunk_chars)) == elements


def test_elements_come_before_the_rest_is_read(convert):
    element = '{"caption": "a dog", "url": "u"}, '
    stream = EndlessText("[", element)
    first = list(itertools.islice(convert.iter_array(stream, chunk_chars=100), 1000))
    assert first == [{"caption": "a dog", "url": "u"}] * 1000
    assert stream.given <= 1000 * len(element) + 200


def test_a_damaged_element_does_not_pull_the_file_into_memory(convert, monkeypatch):
    monkeypatch.setattr(convert, "MAX_ELEMENT_CHARS", 500)
    stream = EndlessText('[{"caption": "a"}, {"caption: ', "no end ")
    elements = convert.iter_array(stream, chunk_chars=100)
    assert next(elements) == {"caption": "a"}
    with pytest.raises(convert.ConvertError, match="element 1 is damaged or cut short"):
        next(elements)
    assert stream.given <= 800


def test_rows_keep_quotes_and_lose_only_tabs_and_breaks(convert, tmp_path):
    source, target = tmp_path / "list.json", tmp_path / "list.tsv"
    source.write_text(
        json.dumps(
            [
                {"caption": 'say "hi"\tto\r\nthe \u2028dog', "url": "http://a/1.jpg\n", "extra": 1},
                {"caption": '"quoted" start, naïve 狗', "url": "http://a/2.jpg?x=1,2"},
                {"caption": "half an emoji \ud83d", "url": "http://a/3.jpg"},
            ]
        ),
        encoding="utf-8",
    )
    assert convert.convert(source, target) == 3
    assert read_rows(target) == [
        ["caption", "url"],
        ['say "hi" to the  dog', "http://a/1.jpg"],
        ['"quoted" start, naïve 狗', "http://a/2.jpg?x=1,2"],
        ["half an emoji ?", "http://a/3.jpg"],
    ]
    assert len(target.read_text(encoding="utf-8").splitlines()) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["list.json", "list.tsv"]


GOOD = '{"caption": "a", "url": "u"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; a JSON array"),
        (f"{GOOD}\n{GOOD}", "starts with '{'; a JSON array"),
        ("[]", "the array is empty"),
        (f"[{GOOD}, 12]", "element 1 starts with '1'"),
        (f"[{GOOD},]", "element 1 starts with ']'"),
        (f"[{GOOD},", "ends before element 1"),
        (f'[{GOOD}, {{"caption": "cut', "element 1 is damaged or cut short"),
        (f"[{GOOD}", "must follow element 0, not the end of the file"),
        (f"[{GOOD} {GOOD}]", "must follow element 0, not '{'"),
        (f"[{GOOD}] [", "text after the array, starting with '['"),
        (f'[{GOOD}, {GOOD}, {{"caption": "a"}}]', "element 2 has no key 'url'; its keys are ['caption']"),
        ('[{"caption": null, "url": "u"}]', "element 0: 'caption' is None; a string is needed"),
    ],
)
@pytest.mark.parametrize("chunk_chars", [3, 1 << 20])
def test_a_bad_list_is_named_and_the_old_output_stays(convert, tmp_path, text, message, chunk_chars):
    source, target = tmp_path / "list.json", tmp_path / "list.tsv"
    source.write_text(text)
    target.write_text("old")
    with pytest.raises(convert.ConvertError) as caught:
        convert.convert(source, target, chunk_chars=chunk_chars)
    assert str(caught.value).startswith(f"{source}: ")
    assert message in str(caught.value)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["list.json", "list.tsv"]


def test_bytes_that_are_not_utf8_are_named(convert, tmp_path):
    source = tmp_path / "list.json"
    source.write_bytes(b'[{"caption": "caf\xe9", "url": "u"}]')
    with pytest.raises(convert.ConvertError, match="not UTF-8"):
        convert.convert(source, tmp_path / "list.tsv")
    assert [p.name for p in tmp_path.iterdir()] == ["list.json"]


def test_the_input_is_never_the_output(convert, tmp_path):
    source = tmp_path / "list.json"
    source.write_text(f"[{GOOD}]")
    with pytest.raises(convert.ConvertError, match="is also the input"):
        convert.convert(source, source)
    assert source.read_text() == f"[{GOOD}]"


@pytest.mark.parametrize(
    ("script", "stem"),
    [
        ("convert_laion.py", "laion_synthetic_filtered_large"),
        ("convert_cc_sbu.py", "ccs_synthetic_filtered_large"),
    ],
)
def test_the_scripts_work_on_their_list_in_the_working_directory(tmp_path, script, stem):
    command = [sys.executable, str(DATASET / script)]
    missing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"error: {stem}.json: no such file")
    (tmp_path / f"{stem}.json").write_text(f"[{GOOD}]")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{stem}.tsv: 1 rows\n")
    assert read_rows(tmp_path / f"{stem}.tsv") == [["caption", "url"], ["a", "u"]]
