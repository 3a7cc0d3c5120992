"""Every kind of file gives the same records, and what is wrong with one is named with its line."""

from __future__ import annotations

import json
import pickle

import pytest

from protfold_peft.errors import DataError
from protfold_peft.language.glue import TASKS
from protfold_peft.language.records import read_records

ROWS = [{"sentence": 'he said "no"', "label": 1}, {"sentence": "it's a, b; c", "label": 0}]


def text_of(kind: str) -> str:
    return {
        "tsv": 'sentence\tlabel\nhe said "no"\t1\nit\'s a, b; c\t0\n',
        "csv": 'sentence,label\r\n"he said ""no""",1\r\n"it\'s a, b; c",0\r\n',
        "json": json.dumps(ROWS),
        "jsonl": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    }[kind]


@pytest.mark.parametrize("kind", ["tsv", "csv", "json", "jsonl", "parquet"])
def test_all_kinds_of_files_hold_the_same(write, tmp_path, kind):
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        path = tmp_path / "data.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path = write(f"data.{kind}", "\ufeff" + text_of(kind))
    found = read_records(str(path), wanted=("sentence", "label"))
    assert [record["sentence"] for record in found] == [row["sentence"] for row in ROWS]
    assert [str(record["label"]) for record in found] == ["1", "0"]


def test_places_are_lines_even_where_a_csv_field_has_several(write):
    path = write("data.csv", 'text,label\n"one\ntwo",1\nthree,0\n')
    assert [record.place for record in read_records(str(path))] == [f"{path}, line 2", f"{path}, line 4"]


def test_lines_of_a_text_and_several_files_and_a_limit(write):
    one, two = write("a.txt", "x\x0cy\n\nz\n"), write("b.txt", "1\n2\n3\n")
    found = read_records([str(one), str(two)], limit=2)
    assert [record["text"] for record in found] == ["x\x0cy", "z", "1", "2"]


def test_a_quote_in_tsv_is_a_letter(write):
    path = write("data.tsv", 'text\tlabel\n"unclosed\t1\nnext\t0\n')
    assert [record["text"] for record in read_records(str(path))] == ['"unclosed', "next"]


def test_glue_files_without_names_are_known_by_their_columns(write):
    task = TASKS["cola"]
    path = write("cola.tsv", "gj04\t1\t\tThey left.\ngj04\t0\t*\tThey leaves.\n")
    found = read_records(str(path), wanted=task.columns, layouts=task.layouts)
    assert [(record["label"], record["sentence"]) for record in found] == [("1", "They left."), ("0", "They leaves.")]
    named = write("sst2.tsv", "sentence\tlabel\nfine\t1\n")
    assert len(read_records(str(named), wanted=TASKS["sst2"].columns, layouts=TASKS["sst2"].layouts)) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gone.tsv", None, "no such file"),
        ("empty.jsonl", " \n", "the file is empty"),
        ("names.tsv", "text\tlabel\n", "there is no record in it"),
        ("bad.jsonl", '{"text": "a"}\n{"text": "b"\n', "line 2: not valid JSON"),
        ("bad.json", '[\n{"text": "a"},\n]', "line 3: not valid JSON"),
        ("list.jsonl", "[1]\n", "line 1: a record is an object"),
        ("one.json", '{"text": "a"}', "a list of records is expected"),
        ("short.tsv", "text\tlabel\na\n", "line 2: 1 columns where 2 are expected"),
        ("open.csv", 'text,label\n"a,1\n', "line 2: not valid CSV"),
        ("missing.csv", "sentence,label\na,1\n", "line 1: no column 'text'"),
        ("missing.jsonl", '{"text": "a", "label": 1}\n', "line 1: no column 'text_b'"),
        ("data.xlsx", "x", "files of kind '.xlsx' are not read"),
        ("latin.tsv", b"text\tlabel\ncaf\xe9\t1\n", "byte 14 is not UTF-8"),
        ("no.parquet", "PAR0", "not a Parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    wanted = ("text", "label", "text_b") if name == "missing.jsonl" else ("text", "label")
    with pytest.raises(DataError) as caught:
        read_records(str(path), wanted=wanted if name.startswith("missing") else ())
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for suffix in (".parquet", ".json", ".jsonl", ".tsv", ".csv"):
        path = tmp_path / f"trap{suffix}"
        path.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(DataError):
            read_records(str(path), wanted=("text",))
    assert not (tmp_path / "ran").exists()


def test_names_of_hub_data_are_checked():
    with pytest.raises(DataError, match=r"hub:glue:cola:train: write it as hub:OWNER/NAME"):
        read_records("hub:glue:cola:train")


def test_data_of_the_hub_come_by_name_configuration_and_split(monkeypatch):
    import datasets

    asked = []

    def load(name, config, *, split):
        asked.append((name, config, split))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_records("hub:nyu-mll/glue:sst2:validation", wanted=("sentence", "label"), limit=1)
    assert [(record["label"], record.place) for record in found] == [(1, "hub:nyu-mll/glue:sst2:validation, row 1")]
    read_records("hub:a/b")
    read_records("hub:a/b:test")
    assert asked == [("nyu-mll/glue", "sst2", "validation"), ("a/b", None, "train"), ("a/b", None, "test")]
