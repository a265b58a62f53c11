"""``sinewich switch route``: examples are kept in a bank and asked; what is far is not known."""

from __future__ import annotations

import importlib.resources
import json

import numpy as np
import pytest
from PIL import Image

from sinewich_jax import storage
from sinewich_jax.cli import main
from sinewich_jax.switches.bank import SwitchBank
from tests.train.runs import CONFIG, save_run

pytestmark = pytest.mark.slow

TINY = importlib.resources.files("sinewich_jax.nn") / "weights" / "tiny.safetensors"
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bank of two tasks on the shipped backbone, and pictures of each."""
    folder = tmp_path_factory.mktemp("route")
    rng = np.random.default_rng(0)
    base, _ = storage.load_safetensors(TINY)
    words = []
    for name, colour in COLOURS.items():
        flat = {path: leaf + rng.laplace(0, 0.01, leaf.shape) for path, leaf in base.items()}
        flat = {path: leaf.astype(np.float32) for path, leaf in flat.items()}
        storage.save_safetensors(folder / f"{name}.safetensors", flat)
        words.append(f"--expert={name}={folder / name}.safetensors")
        (folder / name).mkdir()
        for number in range(14):
            picture = rng.normal(colour, 12, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{name}{number:02}.png")
    noise = rng.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    assert main(["switch", "pack", f"--base={TINY}", *words, f"--out={folder / 'tasks.swb'}"]) == 0
    return folder


@pytest.fixture
def call(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    capsys.readouterr()

    def run(*words, base=TINY):
        code = main(["switch", "route", "tasks.swb", f"--base={base}", "--side=32", *words])
        return code, *capsys.readouterr()

    return run


def test_pictures_go_to_their_tasks_and_the_unknown_to_the_base(made, call):
    code, _, err = call("noise.png")
    assert code == 2 and "the bank tasks.swb has no router" in err
    examples = [f"--queries={name}={name}" for name in COLOURS]
    before = (made / "tasks.swb").read_bytes()
    code, out, _ = call(*examples, "--json", "noise.png", "red/red13.png", "green", "--examples=9")
    assert code == 0 and (made / "tasks.swb").read_bytes() == before  # nothing was to be kept
    noise, red, *green = json.loads(out)
    assert red["task"] == "red" and red["votes"] == pytest.approx({"red": 0.9, "green": 0.1})
    assert len(green) == 14 and {one["task"] for one in green} == {"green"}
    assert noise["abstains"] and noise["task"] is None and noise["weights"]["red"] == 0
    assert noise["distance"] > noise["threshold"] > red["distance"]

    code, out, err = call(*examples, "--save", "--k=5")
    assert code == 0 and "examples kept in tasks.swb: 14 of red, 14 of green; tiny, mean of" in out
    code, out, err = call("noise.png", "red/red00.png")
    assert code == 0 and err == ""
    assert len({len(line) for line in out.splitlines()}) == 1
    header, _, noise, red = ([c.strip() for c in row.split("|")[1:-1]] for row in out.splitlines())
    assert header == ["image", "red", "green", "goes to", "distance", "threshold", "the router"]
    assert noise[0] == "noise.png" and noise[3] == "base" and noise[-1] == "does not know"
    assert red[:4] == ["red/red00.png", "1.00", "0.00", "red"] and red[-1] == ""
    _, out, _ = call("noise.png", "--never-abstain", "--mode=top1", "--json")
    (noise,) = json.loads(out)
    assert not noise["abstains"] and noise["task"] in COLOURS
    assert sorted(noise["weights"].values()) == [0, 1]
    # As was published: one batch, one route.
    _, out, _ = call("red", "--mode=batch_mean", "--json")
    assert len({json.dumps(one["weights"]) for one in json.loads(out)}) == 1
    with SwitchBank.open(made / "tasks.swb") as bank:
        assert bank.router().k == 5 and bank.names == tuple(COLOURS)
        bank.verify()
    assert main(["switch", "inspect", str(made / "tasks.swb")]) == 0


def test_what_is_refused(made, call, tmp_path):
    queries = "--queries=red=red"
    assert call(queries, "--queries=green=green", "--save")[0] == 0
    before = (made / "tasks.swb").read_bytes()
    storage.save_safetensors(tmp_path / "other.safetensors", {"w": np.ones(3, np.float32)})
    for words, message in (
        (["noise.png", "--side=64"], "the router was made of features by 'tiny, mean of the last"),
        (["gone.png"], "gone.png does not exist, expected images"),
        ([], "nothing to do: name images to route, or --queries with --save"),
        (["noise.png", "--save"], "--save keeps examples and there are none"),
        (["noise.png", "--mode=batch_men"], "'batch_men' (did you mean 'batch_mean'?)"),
        (["--save", "--queries=gren=green"], "has no task 'gren' (did you mean 'green'?)"),
        (["--save", queries, "--metric=l3"], "metric is 'l3'"),
        (["--save", "--queries=red=red.safetensors"], "red.safetensors"),
    ):
        code, _, err = call(*words)
        (line,) = err.splitlines()
        assert code == 2 and line.startswith("error: ") and message in line
        assert (made / "tasks.swb").read_bytes() == before
    code, _, err = call("noise.png", base=tmp_path / "other.safetensors")
    assert code == 2 and "holds switches of another base" in err
    code, _, err = call("--save", queries)
    assert code == 0 and "note: there are no examples of green" in err


def test_weights_of_no_known_backbone_make_no_features(tmp_path, capsys):
    flat = {"w": np.ones((8, 8), np.float32)}
    storage.save_safetensors(tmp_path / "base.safetensors", flat)
    storage.save_safetensors(tmp_path / "a.safetensors", {"w": flat["w"] + 1})
    words = [f"--base={tmp_path / 'base.safetensors'}", f"--expert=a={tmp_path / 'a.safetensors'}"]
    assert main(["switch", "pack", *words, f"--out={tmp_path / 't.swb'}"]) == 0
    capsys.readouterr()
    assert main(["switch", "route", str(tmp_path / "t.swb"), words[0], "x.png"]) == 2
    assert "has no router" in capsys.readouterr().err
    queries = f"--queries=a={tmp_path}"
    assert main(["switch", "route", str(tmp_path / "t.swb"), words[0], "x.png", queries]) == 2
    assert "holds the weights of no backbone that is known here" in capsys.readouterr().err


def test_a_run_looks_with_the_plain_backbone_that_it_started_from(made, tmp_path, capsys):
    """A Sinewich run in the place of the file: the same features, the same fingerprint."""
    save_run(tmp_path / "run", CONFIG)
    bank = tmp_path / "kernels.swb"
    packed = [f"--expert=semseg={tmp_path / 'run'}", f"--out={bank}"]
    assert main(["switch", "pack", f"--base={TINY}", *packed]) == 0
    examples = [f"--queries=semseg={made / 'red'}"]
    capsys.readouterr()
    routes = []
    for base in (TINY, tmp_path / "run"):
        words = [f"--base={base}", str(made / "noise.png"), "--side=32", "--json", *examples]
        assert main(["switch", "route", str(bank), *words]) == 0
        routes.append(json.loads(capsys.readouterr().out))
    assert routes[0] == routes[1]
