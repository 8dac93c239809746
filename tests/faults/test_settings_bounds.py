"""Settings from files and from the command line: each that cannot be used is one line, and none costs more than its
text.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("yaml", reason="the extra [train] is not installed")

from lt_kernels import cli
from lt_kernels.train.config import make_config
from lt_kernels.train.errors import ConfigError
from lt_kernels.train.recipes import apply_overrides, read_config, read_settings

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(10))}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
ODD = {
    "aliases of aliases": (LAUGHS, "at most 20,000 values, nested at most 20 deep, got more in line 5"),
    "an alias of itself": ("a: &a [*a]", r"an alias must not be within its own value, got \*a in line 1"),
    "deep lists": ("a: " + "[" * 5000, "nested at most 20 deep"),
    "deep mappings": ("a: " + "{a: " * 5000, "nested at most 20 deep"),
    "many values": ("a: [" + "1, " * 30_000 + "]", "at most 20,000 values"),
    "a large file": ("# " + "x" * 300_000, "is larger than 262,144 bytes"),
    "an object": ("a: !!python/object/apply:os.getcwd []", "values must be plain, without tags"),
    "a name of Python": ("a: !!python/name:os.system", "values must be plain, without tags"),
    "a tag": ("a: !mine 3", "values must be plain, without tags, got '!mine' in line 1"),
    "a number by force": ("a: !!int x", "values must be plain, without tags"),
    "a date that is none": ("a: 2001-13-45", "month must be in 1..12"),
    "a number of no digits": ("a: 0x_", "is not YAML"),
    "a very long number": ("a: " + "9" * 5000, "values without quotes must have at most 1000 letters, got 5000"),
    "a sum of sixties": ("a: " + ":".join(["1"] + ["59"] * 300) + ".5", "is not YAML"),
    "two documents": ("a: 1\n---\nb: 2", "is not YAML: but found another document in line 2"),
    "an open list": ("a: [1", "is not YAML: .* in line 1"),
    "an unknown alias": ("a: *b", "is not YAML: found undefined alias"),
    "a zero byte": ("a: \0", "is not YAML"),
    "a list for a key": ("? [1, 2]\n: 3", "is not YAML: found unhashable key"),
    "no text": (b"a: \xff", "is not YAML: byte 3 is not UTF-8"),
    "a list": ("[1]", "must hold `key: value` lines, got list"),
    "nothing": ("", "must hold `key: value` lines, got NoneType"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_a_line_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text, message = ODD[name]
    path = tmp_path / "odd.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    with pytest.raises(ConfigError, match=message):
        read_settings(path)
    assert time.process_time() - began < 5
    assert cli.main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"lt-kernels train: config {str(path)!r} ")
    assert line.count("\n") == 1
    assert len(line) < 1000
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["/dev/zero", "/"])
def test_what_is_no_file_of_settings(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", path]) == 2
    assert f"lt-kernels train: config {path!r} " in capsys.readouterr().err


def test_plain_yaml_is_read_as_ever(tmp_path: Path) -> None:
    """Anchors that people use, a byte order mark, numbers of every kind."""
    path = tmp_path / "a.yaml"
    text = "own: &own {hidden: [64, 0x10]}\nnetwork_options:\n  <<: *own\nlr: 5e-4\nmomentum: .5\nimbalance: 1_00\n"
    path.write_text("\ufeff" + text, encoding="utf-8")
    settings = read_settings(path)
    assert settings.pop("own") == {"hidden": [64, 16]}
    config = make_config(settings)
    assert (config.network_options, config.lr, config.momentum, config.imbalance) == (
        {"hidden": [64, 16]},
        5e-4,
        0.5,
        100,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr=[1", r"--set 'lr=\[1' is not YAML"),
        ("lr=*a", r"--set 'lr=\*a' is not YAML: found undefined alias"),
        ("lr=!!python/name:os.system", "without tags"),
        ("network_options.hidden=" + "[" * 2000, "nested at most 20 deep"),
    ],
)
def test_an_odd_change_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({}, [change])


LARGE = 2**63
BOUNDS = [
    (
        {"seed": LARGE},
        r"seed must be an integer of at least 0 and at most 9223372036854775807, got 9223372036854775808",
    ),
    ({"seed": 10**30}, r"seed must be .* and at most 9223372036854775807"),
    ({"seed": -LARGE}, r"seed must be an integer of at least 0"),
    ({"epochs": LARGE}, r"epochs must be .* at most 9223372036854775807"),
    ({"batch_size": LARGE}, r"batch_size must be .* at most 9223372036854775807"),
    ({"threads": 10**9}, r"threads must be an integer of at least 0 and at most 4096, got 1000000000"),
    ({"lr": 10**400}, r"lr must be a finite number above 0"),
    ({"method_options": {"queue": LARGE}}, r"method_options\.queue must be .* at most 9223372036854775807"),
    ({"data_options": {"seed": [LARGE]}}, r"data_options\.seed\[0\] must be .* at most 9223372036854775807"),
]


@pytest.mark.parametrize(("settings", "message"), BOUNDS, ids=[str(case[0])[:40] for case in BOUNDS])
def test_numbers_beyond_what_torch_takes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


def test_the_largest_seed_trains(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra [train] is not installed")
    (tmp_path / "a.yaml").write_text("data: digits-lt\nepochs: 1\nthreads: 1\n")
    words = ["train", "--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert cli.main([*words, "--set", f"seed={LARGE - 1}"]) == 0
    assert read_config(tmp_path / "run" / "config.yaml").seed == LARGE - 1


def test_what_json_and_checkpoints_do_not_hold_is_named() -> None:
    """At once, and not when the result of a long run is written."""
    for text in ("2020-01-01", "2020-01-01 10:00:00"):
        settings = apply_overrides({}, [f"data_options.since={text}"])
        with pytest.raises(ConfigError, match=r"data_options\.since must be a number, a word, true or false, a list"):
            make_config(settings)


def test_too_many_seeds_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--data", "digits-lt", "--methods", "ce", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--seeds", str(10**12)]) == 2
    assert "--seeds must be at most 10000, got 1000000000000" in capsys.readouterr().err
