"""A second preparation reads only what is new or changed, and gives what a first one would."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_from_disk
from made_structures import mutated, pdb_text, random_sequence
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.data.prepare import Filters, PrepareResult, PrepareSettings, cache, run_prepare
from protfold_peft.data.prepare.cache import ReadingCache, cache_folder, key_of
from protfold_peft.data.prepare.inputs import Source
from protfold_peft.data.prepare.records import read_source


def protfold(*arguments: object):
    return CliRunner().invoke(app, ["prepare", *[str(argument) for argument in arguments]])


def run(tmp_path: Path, name: str = "out", **options) -> PrepareResult:
    defaults = {"search": "builtin", "processes": 1, "validation": 0.25, "overwrite": True}
    structures = options.pop("structures", (tmp_path / "in",))
    return run_prepare(PrepareSettings(structures=structures, out=tmp_path / name, **{**defaults, **options}))


def counts(result: PrepareResult) -> tuple[int, int]:
    """Files read, files unchanged."""
    return result.history["files_read"], result.history["files_unchanged"]


def write(tmp_path: Path, name: str, *sequences: str, **options) -> Path:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(pdb_text(*sequences, **options))
    return path


def family(tmp_path: Path) -> None:
    """Twelve files: of one chain and of two, relatives, a duplicate, coarse, dated, and unreadable ones."""
    for number in range(6):
        parent = random_sequence(60, number)
        write(tmp_path, f"f{number}.pdb", parent, missing=[3, 4], resolution=1.5 + number / 2, date="01-JAN-10")
    write(tmp_path, "relative.pdb", mutated(random_sequence(60, 0), 0.7, 1), resolution=2.0)
    write(tmp_path, "copy.pdb", random_sequence(60, 1))
    write(tmp_path, "two.pdb", random_sequence(50, 10), random_sequence(50, 11), seqres=False, missing=[9])
    write(tmp_path, "short.pdb", random_sequence(25, 12))
    write(tmp_path, "sub/f0.pdb", random_sequence(45, 13), date="01-JAN-20")
    (tmp_path / "in" / "broken.pdb").write_text("<html>404</html>")


def content(out: Path) -> tuple[object, ...]:
    """All that a dataset says, but how long it took."""
    splits = load_from_disk(str(out))
    files = [(out / name).read_bytes() for name in ("report.json", "chains.csv", "rejected.csv")]
    return (*files, {name: split.to_list() for name, split in splits.items()}, splits["train"].features)


def add(tmp_path: Path) -> None:
    write(tmp_path, "a_new_one.pdb", random_sequence(70, 20))


def remove(tmp_path: Path) -> None:
    (tmp_path / "in" / "f2.pdb").unlink()


def change(tmp_path: Path) -> None:
    write(tmp_path, "f3.pdb", random_sequence(61, 30))


def change_unseen(tmp_path: Path) -> None:
    """Another content of the same size at the same time."""
    path = tmp_path / "in" / "f3.pdb"
    before = path.stat()
    path.write_text(path.read_text().replace("   0.100", "   0.200"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def mend(tmp_path: Path) -> None:
    write(tmp_path, "broken.pdb", random_sequence(60, 40))


def touch(tmp_path: Path) -> None:
    for path in (tmp_path / "in").glob("*.pdb"):
        os.utime(path, (1, 1))


def nothing(tmp_path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("happens", "options", "expected"),
    [
        (nothing, {}, (0, 12)),
        (nothing, {"processes": 2}, (0, 12)),
        (touch, {}, (0, 12)),
        (add, {}, (1, 12)),
        (remove, {}, (0, 11)),
        (change, {}, (1, 11)),
        (change_unseen, {}, (1, 11)),
        (mend, {"processes": 2}, (1, 11)),
        (nothing, {"seed": 3}, (0, 12)),
        (nothing, {"filters": Filters(max_resolution=2.0, keep_unknown_resolution=True)}, (0, 12)),
        (nothing, {"filters": Filters(min_length=30)}, (0, 12)),
        (change, {"filters": Filters(released_before="2015-01-01", keep_undated=True), "seed": 1}, (1, 11)),
    ],
)
def test_a_second_run_gives_what_a_first_one_would(
    tmp_path: Path, happens: Callable[[Path], None], options: dict, expected: tuple[int, int]
) -> None:
    family(tmp_path)
    first = run(tmp_path, filters=Filters(min_length=40, max_resolution=3.0, keep_unknown_resolution=True))
    assert counts(first) == (12, 0)
    happens(tmp_path)
    second = run(tmp_path, **options)
    assert counts(second) == expected
    fresh = run(tmp_path, "fresh", **options)
    assert counts(fresh) == (sum(expected), 0)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_rows_of_a_table_are_read_again_only_where_they_changed(tmp_path: Path) -> None:
    family(tmp_path)
    table = tmp_path / "in" / "table.csv"
    rows = ["file,chain,name", "two.pdb,A,", "two.pdb,B,", "two.pdb,B,", "f1.pdb,,mine", "absent.pdb,,"]
    table.write_text("\n".join(rows))
    assert counts(run(tmp_path, structures=(table,))) == (5, 0)
    # A row that stands twice is one entry; a file that is not there is looked for again.
    assert counts(run(tmp_path, structures=(table,))) == (1, 4)
    table.write_text("\n".join([*rows, "f2.pdb,,"]).replace("mine", "yours"))
    assert counts(run(tmp_path, structures=(table,))) == (3, 4 - 1)
    run(tmp_path, "fresh", structures=(table,))
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_what_the_cache_gives_back_is_what_was_read(tmp_path: Path, structures: Path) -> None:
    paths = sorted(path for path in structures.iterdir() if path.name.lower().split(".")[1] in ("pdb", "cif"))
    with ReadingCache(tmp_path / "cache") as kept:
        for path in paths:
            kept.add(str(key_of(Source(path))), read_source(Source(path)))
    again = ReadingCache(tmp_path / "cache")
    assert len(again.keys()) == len(paths) > 3
    for path in paths:
        for got, wanted in zip(again.get(str(key_of(Source(path)))), read_source(Source(path)), strict=True):
            assert (got.file, got.chain_id, got.resolution, got.date) == (
                wanted.file,
                wanted.chain_id,
                wanted.resolution,
                wanted.date,
            )
            assert (got.chain.name, got.chain.sequence) == (wanted.chain.name, wanted.chain.sequence)
            for field in ("aatype", "residue_index", "atom_positions", "atom_mask"):
                one, other = getattr(got.chain, field), getattr(wanted.chain, field)
                assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed", "gone"])
def test_a_damaged_cache_is_read_anew(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PART_FILES", 5)
    family(tmp_path)
    run(tmp_path)
    parts = sorted(cache_folder(tmp_path / "out").iterdir())
    assert len(parts) == 3
    data = parts[0].read_bytes()
    lost = len(set(cache._open(parts[0]).column("key").to_pylist()))
    if damage == "cut":
        parts[0].write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        # One bit of a coordinate, which Arrow itself would not notice.
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        parts[0].write_bytes(bytes(flipped))
    elif damage == "empty":
        parts[0].write_bytes(b"")
    elif damage == "renamed":
        parts[0].rename(parts[0].with_name(f"{'0' * 64}.arrow"))
    else:
        parts[0].unlink()
    (cache_folder(tmp_path / "out") / "mine.txt").write_text("precious")
    assert counts(run(tmp_path)) == (lost, 12 - lost)
    assert (cache_folder(tmp_path / "out") / "mine.txt").read_text() == "precious"
    run(tmp_path, "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert counts(run(tmp_path)) == (0, 12)


def test_the_cache_of_another_program_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "__version__", "0.0.9")
        cache._schema.cache_clear()
        run(tmp_path)
    cache._schema.cache_clear()
    assert counts(run(tmp_path)) == (12, 0)
    assert counts(run(tmp_path)) == (0, 12)
    assert len(list(cache_folder(tmp_path / "out").iterdir())) == 1


def test_parts_in_little_use_are_put_together(tmp_path: Path) -> None:
    family(tmp_path)
    for number in range(4):
        write(tmp_path, "f1.pdb", random_sequence(60, 50 + number))
        run(tmp_path)
        assert len(list(cache_folder(tmp_path / "out").iterdir())) == 1
    assert counts(run(tmp_path)) == (0, 12)
    (path,) = cache_folder(tmp_path / "out").iterdir()
    assert len(set(cache._open(path).column("key").to_pylist())) == 12


def test_the_same_command_refreshes_and_another_asks(tmp_path: Path) -> None:
    family(tmp_path)
    (tmp_path / "in" / "broken.pdb").unlink()
    arguments = (tmp_path / "in", "--out", tmp_path / "out", "--processes", 1, "--search", "builtin")
    assert "unchanged" not in protfold(*arguments).stdout
    add(tmp_path)
    result = protfold(*arguments)
    assert result.exit_code == 0, result.output
    assert "1 files read, 11 unchanged" in result.stdout
    before = content(tmp_path / "out")
    result = protfold(*arguments, "--seed", 1, "--max-length", 500)
    assert result.exit_code == 2
    assert "made with other --max-length, --seed: name another folder with --out, or replace it with" in result.stderr
    assert content(tmp_path / "out") == before
    result = protfold(*arguments, "--seed", 1, "--max-length", 500, "--overwrite")
    assert "0 files read, 12 unchanged" in result.stdout
    (tmp_path / "out" / "report.json").write_text("{")
    assert "report.json is damaged" in protfold(*arguments).stderr
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    # The cache outlives the dataset.
    assert "0 files read, 12 unchanged" in protfold(*arguments).stdout
    shutil.rmtree(tmp_path / "out.parsed")
    (tmp_path / "out.parsed").write_text("mine")
    assert "out.parsed is a file where a folder is needed" in protfold(*arguments).stderr


def test_a_killed_run_loses_the_part_in_work(tmp_path: Path) -> None:
    """Killed while reading: the dataset from before is whole, and the next run goes on."""
    sequences = [random_sequence(60, seed) for seed in range(20)]
    for number, sequence in enumerate(sequences):
        write(tmp_path, f"s{number:02d}.pdb", sequence)
    run(tmp_path, structures=(tmp_path / "in" / "s00.pdb", tmp_path / "in" / "s01.pdb"))
    before = content(tmp_path / "out")
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from protfold_peft.data.prepare import PrepareSettings, cache, reading, run_prepare\n"
        "cache.PART_FILES = 5\n"
        "read = reading.read_source\n"
        "def slow(source):\n"
        "    if source.path.name == 's14.pdb':\n"
        "        print('here', flush=True)\n"
        "        time.sleep(600)\n"
        "    return read(source)\n"
        "reading.read_source = slow\n"
        "folder, out = map(Path, sys.argv[1:])\n"
        "run_prepare(PrepareSettings((folder,), out, search='builtin', processes=1, overwrite=True))\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "out")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert content(tmp_path / "out") == before
    # Two were known, ten stand in two parts, two were in work.
    assert counts(run(tmp_path)) == (8, 12)
    run(tmp_path, "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.slow
def test_thousands_of_real_chains_are_not_read_again(tmp_path: Path, test_data: Path) -> None:
    """An eighth of the files first, then a stretch of them, of which some have changed in between."""
    shutil.copytree(test_data / "structures" / "train", tmp_path / "in")
    files = sorted((tmp_path / "in").iterdir())
    chosen = files[::8]
    assert counts(run(tmp_path, structures=tuple(chosen))) == (len(chosen), 0)
    for path in random.Random(0).sample(chosen, 10):
        path.write_bytes(files[1].read_bytes())
    some = tuple(files[:400])
    known = len([path for path in chosen if path in some and path.read_bytes() != files[1].read_bytes()])
    assert counts(run(tmp_path, structures=some)) == (400 - known, known)
    run(tmp_path, "fresh", structures=some)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
