from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sinewich_jax
from sinewich_jax import cli
from sinewich_jax.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)


def error_line(result: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_version_by_module_and_without_loading_jax():
    code = "import sys; from sinewich_jax import cli; print('jax' in sys.modules)"
    assert run("-c", code).stdout.strip() == "False"
    out = run("-m", "sinewich_jax", "--version").stdout
    assert out.strip() == f"sinewich {sinewich_jax.__version__}"


def test_no_verb_lists_all_of_them(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    for verb, (_, text) in cli.VERBS.items():
        assert verb in out and text in out


def test_unknown_verb_offers_the_nearest(capsys):
    assert cli.main(["evalaute", "x"]) == 2
    assert "unknown verb 'evalaute' (did you mean 'evaluate'?)" in capsys.readouterr().err


def test_every_verb_has_its_module(capsys):
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as leave:
            cli.main([verb, "--help"])
        assert leave.value.code == 0
        assert f"sinewich {verb}" in capsys.readouterr().out


def test_a_verb_is_one_row_of_the_table(monkeypatch, tmp_path, capsys):
    (tmp_path / "greet_verb.py").write_text(
        "def add_arguments(parser):\n    parser.add_argument('--name')\n"
        "def run(arguments):\n    print('hello', arguments.name)\n    return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "greet", ("greet_verb", "says hello"))
    assert cli.main(["greet", "--name", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("image 3 is\nno image"), 2, "error: image 3 is no image"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "no space left on the disk"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line_and_a_code(error, code, words, capsys):
    def command():
        raise error

    assert cli.guarded(command) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_other_errors_are_not_hidden():
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.guarded(command)

    def missing():
        raise FileNotFoundError(errno.ENOENT, "no such file")

    with pytest.raises(FileNotFoundError):
        cli.guarded(missing)


def test_evaluate_of_no_run_is_one_line(tmp_path):
    line = error_line(run("-m", "sinewich_jax", "evaluate", str(tmp_path)))
    assert "has no config.json; expected the work directory of a training run" in line


CONFIG = """
from configs.common import choose, make_config

def get_config(arg=""):
    return make_config(steps=4, **choose(arg, {"debug": {"rank": 6}}))
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "mine.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.rnak=3", "unknown config key 'rnak' (did you mean 'rank'?)"),
        ("--config.mesh.dta=3", "unknown config key 'dta' (did you mean 'data'?)"),
        ("--config.loss_weights.dept=3", "unknown config key 'dept' (did you mean 'depth'?)"),
        ("--config.qqq=3", "unknown config key 'qqq' (the config file has none that is near)"),
        ("--config.rank=many", "--config.rank=many"),
        ("--config.method=sinwich", "config key 'method' is 'sinwich'"),
        ("stray", "unexpected argument 'stray'"),
        ("--wrokdir=x", "wrokdir"),
    ],
)
def test_bad_command_lines_of_train(flag, words, config_file, tmp_path):
    workdir = tmp_path / "run"
    result = run("train.py", f"--config={config_file}", f"--workdir={workdir}", flag)
    assert words in error_line(result)
    assert not workdir.exists()


def test_help_of_train_is_no_failure():
    result = run("train.py", "--help")
    assert result.returncode == 0, result.stderr
    assert "--config" in result.stdout and "--workdir" in result.stdout


def test_bad_config_files_of_train(config_file):
    assert "no config" in error_line(run("train.py"))
    line = error_line(run("train.py", f"--config={config_file.with_name('mien.py')}"))
    assert "mien.py does not exist (did you mean 'mine.py'?)" in line
    line = error_line(run("train.py", f"--config={config_file}:debgu"))
    assert line == "error: unknown config variant 'debgu' (did you mean 'debug'?)"
    nothing = config_file.with_name("nothing.py")
    nothing.write_text("def get_config(arg=''):\n    pass\n")
    result = run("train.py", f"--config={nothing}")  # absl's own warning comes first
    assert result.returncode == 2
    wanted = f"error: get_config of {nothing} returned a NoneType, expected a ConfigDict"
    assert result.stderr.splitlines()[-1] == wanted


def test_a_fault_in_a_config_file_keeps_its_traceback(config_file):
    broken = config_file.with_name("broken.py")
    broken.write_text("import math\n\ndef get_config(arg=''):\n    return math.flor(3.5)\n")
    result = run("train.py", f"--config={broken}")
    assert result.returncode == 1
    assert f'{broken}", line 4' in result.stderr and "'math' has no attribute" in result.stderr


@pytest.mark.slow
def test_dry_run_prints_counts_as_the_last_line(config_file, tmp_path):
    flags = [f"--config={config_file}:debug", "--dry_run", "--config.data_dir=/nowhere"]
    result = run("train.py", *flags, "--config.loss_weights.depth=2", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert 0 < counts["trainable"] < counts["total"]
    bigger = run("train.py", *flags, "--config.rank=12")
    assert json.loads(bigger.stdout.splitlines()[-1])["trainable"] > counts["trainable"]


def test_make_config_lets_commands_set_what_is_none_by_default(monkeypatch):
    pytest.importorskip("ml_collections")
    monkeypatch.syspath_prepend(ROOT)
    from configs.common import make_config
    from sinewich_jax import config as configs

    assert configs.from_config_dict(make_config()) == configs.Config()
    config = make_config(mesh={"model": 2})
    config.data_dir = "there"
    config.train_size = 7
    config.augment.crop = (4, 4)
    config.loss_weights.depth = 2.0
    made = configs.from_config_dict(config)
    assert (made.data_dir, made.train_size, made.mesh.model) == ("there", 7, 2)
    assert made.augment.crop == (4, 4) and made.loss_weights == (("depth", 2.0),)


def test_a_reader_that_has_seen_enough_is_no_error():
    """``sinewich merge --list | head -1``, and a reader that is gone before anything is written."""
    command = f"{shlex.quote(sys.executable)} -m sinewich_jax merge --list | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
