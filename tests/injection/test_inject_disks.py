"""A disk that is full, files that may not grow, folders that may not be written: a line, and nothing lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.injection.runs import bits, left_over, same
from tests.nursery import Nursery


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Room for one checkpoint, and not for a second beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    words = ["mount", "-t", "tmpfs", "-o", "size=340k", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)


def words_of(whole: Path, out: Path) -> list[str | Path]:
    return ["train", "--config", whole.parent / "recipe.yaml", "--out", out, "--quiet"]


def test_a_full_disk_keeps_the_checkpoint_before(nursery: Nursery, whole: Path, disk: Disk) -> None:
    out = disk.folder / "run"
    status, text = nursery.run(*words_of(whole, out))
    assert status == 1
    assert text == (
        f"lt-kernels train: '{out}/last.ckpt': No space left on device; '{out}/last.ckpt' is kept; "
        f"go on with: lt-kernels train --resume --out {out}\n"
    )
    assert left_over(out) == []
    disk.remount("size=10m")
    assert nursery.run(*words_of(whole, out), "--resume")[0] == 0
    assert same(bits(out), bits(whole))


def test_a_full_disk_from_the_first_file_on(nursery: Nursery, whole: Path, disk: Disk) -> None:
    (disk.folder / "fill").write_bytes(bytes(340 * 1024))
    out = disk.folder / "run"
    for words in (words_of(whole, out), ["analyze", whole, "--out", out]):
        status, text = nursery.run(*words)
        assert status in (1, 2)
        assert "No space left on device" in text
        assert text.count("\n") == 1
    (disk.folder / "fill").unlink()
    disk.remount("size=10m")
    assert nursery.run(*words_of(whole, out))[0] == 0, "nothing blocks the same command"


def test_a_full_disk_for_tables(nursery: Nursery, whole: Path, disk: Disk) -> None:
    """Pictures of an analysis do not fit: those that are there are whole."""
    status, text = nursery.run("analyze", whole, "--out", disk.folder / "analysis")
    assert status == 1
    assert text.startswith(f"lt-kernels analyze: '{disk.folder}/analysis/")
    assert text.endswith("No space left on device; the same command writes all of it anew\n")
    for picture in (disk.folder / "analysis").glob("*.png"):
        assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_files_that_may_not_grow(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    status, text = nursery.run(*words_of(whole, out), before=limit)
    assert status == 1
    assert text == (
        f"lt-kernels train: '{out}/last.ckpt': File too large; "
        "there was no checkpoint yet: the same command starts anew\n"
    )
    assert left_over(out) == []
    assert nursery.run(*words_of(whole, out))[0] == 0
    assert same(bits(out), bits(whole))


@pytest.mark.parametrize("inside", ["", "new/folder"])
def test_a_read_only_folder_is_named_before_anything_runs(
    nursery: Nursery, whole: Path, disk: Disk, inside: str
) -> None:
    disk.remount("ro")
    out = disk.folder / inside
    compare = ["compare", "--data", "digits-lt", "--methods", "ce", "--seeds", "1", "--epochs", "1", "--out", out]
    for words in (words_of(whole, out), compare, ["analyze", whole, "--out", out], ["shift", whole, "--out", out]):
        status, text = nursery.run(*words)
        assert status == 2
        assert text == f"lt-kernels {words[0]}: --out '{out}' cannot be written: Read-only file system\n"


def test_a_disk_that_becomes_read_only(nursery: Nursery, whole: Path, disk: Disk) -> None:
    disk.remount("size=10m")
    out = disk.folder / "run"
    # a disk with files that are open for writing cannot become read-only; a folder mounted over itself can
    bind = f"__import__('subprocess').run(['mount', '--bind', {str(out)!r}, {str(out)!r}])"
    shut = f"__import__('subprocess').run(['mount', '-o', 'remount,bind,ro', {str(out)!r}])"
    before = f"moments.at_step(15, lambda: ({bind}, {shut}))"
    status, text = nursery.run(*words_of(whole, out), before=before)
    subprocess.run(["umount", str(out)], check=True)
    assert status == 1
    assert "Read-only file system" in text
    assert f"go on with: lt-kernels train --resume --out {out}" in text
    assert nursery.run(*words_of(whole, out), "--resume")[0] == 0
    assert same(bits(out), bits(whole))
    assert left_over(out) == []


@pytest.mark.parametrize("out", ["/proc/run", "/dev/null", "/dev/null/run"])
def test_a_path_that_cannot_be_a_folder_is_named(nursery: Nursery, whole: Path, out: str) -> None:
    planar = ["planar", "--data", "digits-lt", "--methods", "ce", "--out", out]
    compare = ["compare", "--data", "digits-lt", "--methods", "ce", "--out", out]
    for words in (words_of(whole, Path(out)), compare, planar, ["analyze", whole, "--out", out]):
        status, text = nursery.run(*words)
        assert status == 2
        assert text.startswith(f"lt-kernels {words[0]}: --out '{out}' cannot be written: ")
        assert text.count("\n") == 1


def test_a_path_that_is_no_text_is_named(nursery: Nursery, whole: Path, tmp_path: Path) -> None:
    status, text = nursery.run(*words_of(whole, tmp_path / "run\udcff"))
    assert status == 2
    assert text == f"lt-kernels train: --out must be a path in UTF-8, got '{tmp_path}/run\\udcff'\n"


def test_a_run_on_a_read_only_disk_can_be_analysed(nursery: Nursery, whole: Path, disk: Disk, tmp_path: Path) -> None:
    disk.remount("size=10m")
    shutil.copytree(whole, disk.folder / "run")
    disk.remount("ro")
    assert nursery.run("analyze", disk.folder / "run", "--out", tmp_path / "analysis")[0] == 0
