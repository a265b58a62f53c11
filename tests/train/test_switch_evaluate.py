"""``sinewich switch evaluate``: protocols side by side, each number as another command makes it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from sinewich_jax import storage
from sinewich_jax.cli import main
from sinewich_jax.data import scenes
from sinewich_jax.switches.bank import SwitchBank
from sinewich_jax.switches.router import Router
from sinewich_jax.train.evaluate_weights import evaluate_weights
from tests.train.runs import CONFIG, save_run

pytestmark = pytest.mark.slow

LIGHT = {"day": (1.0, 1.0, 1.0), "night": (0.15, 0.2, 0.4)}
HEADS = ("true_head", "chosen_head")
RIGHT = {"day": {"day": 5, "night": 0}, "night": {"day": 0, "night": 5}}


def draw(folder: pathlib.Path, light: tuple[float, ...]) -> None:
    """Six rooms to train on and five to look at, as a folder of images and labels."""
    for name in ("images", "semseg", "depth", "splits"):
        (folder / name).mkdir(parents=True)
    for number in range(11):
        room = scenes.render(scenes.sample_scene(number), 32, 32)
        image = (room["image"] * light).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(room["labels"]["semseg"]).save(folder / "semseg" / f"{number:02}.png")
        np.save(folder / "depth" / f"{number:02}.npy", room["labels"]["depth"])
    classes = {"semseg": [f"class {number}" for number in range(21)]}
    (folder / "classes.json").write_text(json.dumps(classes))
    for split, part in {"train": range(6), "val": range(6, 11)}.items():
        lines = "".join(f"{number:02}\n" for number in part)
        (folder / "splits" / f"{split}.txt").write_text(lines)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs of one start on rooms by day and by night, their bank, and its router."""
    folder = tmp_path_factory.mktemp("places")
    for noise, (name, light) in enumerate(LIGHT.items()):
        draw(folder / name, light)
        config = dataclasses.replace(
            CONFIG,
            data="folder",
            data_dir=str(folder / name),
            tasks=("semseg", "depth"),
            method="full_ft",
            backbone="tiny",
            backbone_weights="shipped",
            batch_size=4,
        )
        save_run(folder / "runs" / name, config, noise=noise)
    base, bank = folder / "runs" / "day", folder / "tasks.swb"
    words = [f"--expert={name}={folder / 'runs' / name}" for name in LIGHT]
    assert main(["switch", "pack", f"--base={base}", *words, f"--out={bank}"]) == 0
    words = [f"--queries={name}={folder / 'runs' / name}" for name in LIGHT]
    words += ["--k=3", "--save"]
    assert main(["switch", "route", str(bank), f"--base={base}", *words]) == 0
    return folder


@pytest.fixture
def call(made, capsys):
    """The command on a bank beside the made one, as its exit code and what it printed."""

    def run(*words, bank="tasks.swb", runs=tuple(LIGHT)):
        capsys.readouterr()
        named = [f"{name}={made / 'runs' / name}" for name in runs]
        code = main(["switch", "evaluate", str(made / bank), *named, *words])
        return code, *capsys.readouterr()

    return run


def score(made, run: str, weights) -> float:
    found = evaluate_weights(made / "runs" / run, weights)
    return found["tasks"]["depth"]["value"]


def test_protocols_are_what_the_other_commands_say(made, call):
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}
    code, out, err = call("--json", "--batch=4")
    assert code == 0 and err == ""
    found = json.loads(out)
    rows, bank = found["protocols"], made / "tasks.swb"
    assert list(rows) == ["oracle", "per_sample", "top1", "batch_mean", "batch_top1"]
    for head in HEADS:
        for name in LIGHT:
            expected = score(made, name, f"{bank}@{name}")
            assert rows["oracle"][head][name]["depth"] == pytest.approx(expected, rel=1e-5)
    assert rows["oracle"]["task_found"] == 1 and rows["oracle"]["trees"] == 2
    assert rows["oracle"]["confusion"] == RIGHT
    # Day and night are told apart by their light alone.
    single = rows["per_sample"]
    assert single["task_found"] == 1 and single["confusion"] == RIGHT
    assert single["true_head"] == single["chosen_head"] == rows["oracle"]["true_head"]
    # Features, then four samples and one: no group has to be filled up.
    assert single["passes"] == 2 and rows["oracle"]["passes"] == 1
    assert found["runs"]["day"]["tasks"]["depth"]["own"] is None  # it was never evaluated
    assert before == {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}


def test_a_router_that_is_always_wrong(made, call):
    """The backbone is that of the other task; the head is, where it is the chosen one."""
    bank = made / "wrong.swb"
    bank.write_bytes((made / "tasks.swb").read_bytes())
    with SwitchBank.open(bank, mode="a") as opened:
        router = opened.router()
        # The same examples under the names of the other task, which also turns their order.
        swapped = router.queries._replace(names=router.queries.names[::-1])
        opened.set_router(router._replace(queries=swapped))
    code, out, _ = call("--json", "--protocols", "top1", bank="wrong.swb")
    assert code == 0
    (row,) = json.loads(out)["protocols"].values()
    assert row["task_found"] == 0 and row["confusion"] == {
        "night": {"night": 0, "day": 5},
        "day": {"night": 5, "day": 0},
    }
    for name, other in (("day", "night"), ("night", "day")):
        whole = score(made, name, f"{bank}@{other}")
        assert row["chosen_head"][name]["depth"] == pytest.approx(whole, rel=1e-5)
        with storage.open_leaves(made / "runs" / "day", "start") as base:
            shared = base.names
        words = ["switch", "apply", str(bank), other, f"--base={made / 'runs' / 'day'}"]
        file = made / f"{other}.safetensors"
        assert main([*words, f"--out={file}", "--overwrite"]) == 0
        leaves, _ = storage.load_safetensors(file)
        storage.save_safetensors(file, {path: leaves[path] for path in shared})
        backbone = score(made, name, file)
        file.unlink()
        assert row["true_head"][name]["depth"] == pytest.approx(backbone, rel=1e-5)
        assert backbone != pytest.approx(whole, rel=1e-3)


def test_votes_mix_weights_and_what_is_far_goes_to_the_base(made, call):
    """Against trees that are merged here, sample by sample."""
    bank = made / "far.swb"
    bank.write_bytes((made / "tasks.swb").read_bytes())
    with SwitchBank.open(bank, mode="a") as opened:
        queries = opened.router().queries
        # All examples vote, so that every sample's weights are one half.
        opened.set_router(
            Router.fit(queries, k=12, extractor=opened.router().extractor, quantile=None)
        )
    code, out, _ = call("--json", "--protocols", "per_sample", bank="far.swb")
    (row,) = json.loads(out)["protocols"].values()
    assert code == 0 and row["trees"] == 1
    file, base = made / "half.safetensors", made / "runs" / "day"
    words = ["switch", "apply", str(bank), "day=.5", "night=.5", f"--base={base}"]
    assert main([*words, f"--out={file}"]) == 0
    expected = {name: score(made, name, file) for name in LIGHT}
    file.unlink()
    for name in LIGHT:
        assert row["true_head"][name]["depth"] == pytest.approx(expected[name], rel=1e-5)

    with SwitchBank.open(bank, mode="a") as opened:
        opened.set_router(opened.router()._replace(threshold=0.0))
    code, out, _ = call("--json", "--protocols", "per_sample", "--abstain", bank="far.swb")
    (row,) = json.loads(out)["protocols"].values()
    assert code == 0 and row["unknown"] == 1 and row["to_base"] == {"day": 5, "night": 5}
    assert all(count == 0 for true in row["confusion"].values() for count in true.values())
    with storage.open_leaves(base, "start") as source:
        start = {name: source.read(name) for name in source.names}
    storage.save_safetensors(file, start)
    assert row["true_head"]["day"]["depth"] == pytest.approx(score(made, "day", file), rel=1e-5)
    file.unlink()


def test_the_table(call, made):
    out = made / "routing.json"
    code, text, err = call("--protocols", "oracle", "per_sample", f"--out={out}")
    assert code == 0 and err == f"note: written: {out}\n"
    assert json.loads(out.read_text())["protocols"].keys() == {"oracle", "per_sample"}
    out.unlink()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line]
    head, _, itself, oracle, true, chosen, confusion, _, day, night = cells
    titles = [f"{name}: {task}" for name in LIGHT for task in ("semseg, miou", "depth, rmse")]
    assert head[:6] == ["protocol", "head", *titles]
    assert itself[:6] == ["each run itself", *[""] * 5]
    assert oracle[:2] == ["oracle", "either"] and true[:2] == ["per_sample", "true"]
    assert true[6:] == ["100.0 %", "0.0 %", "2", "2.60"] and chosen[6:] == [""] * 4
    assert confusion[0] == "per_sample: true, by chosen"
    assert day == ["day", "5", "0"] and night == ["night", "0", "5"]


def test_another_run_than_the_packed_one_is_said(made, call):
    code, _, err = call(f"night={made / 'runs' / 'day'}", "--protocols", "oracle", runs=["day"])
    assert code == 0 and "is not the one packed as 'night'; it is scored with the packed" in err


def test_what_cannot_be_scored_is_said(made, call):
    shutil.copy(made / "tasks.swb", made / "never.swb")
    with SwitchBank.open(made / "never.swb", mode="a") as opened:
        opened.set_router(opened.router()._replace(threshold=None))

    def refused(words, *arguments, **options):
        code, out, err = call(*arguments, **options)
        (line,) = err.splitlines()
        assert code == 2 and out == "" and words in line

    refused("no run is named for night, where the router", runs=["day"])
    refused("has no task 'nigth' (did you mean 'night'?)", "nigth=x")
    refused("no protocol is 'per-sample' (did you mean 'per_sample'?)", "--protocols", "per-sample")
    refused("these are by 'tiny, mean of the last stage at 64 x 64 pixels'", "--side=64")
    refused("no distance from which on it abstains", "--abstain", bank="never.swb")
    refused("tasks.swb would replace the bank", f"--out={made / 'tasks.swb'}", "--overwrite")
    refused("which is the run 'day'", f"--out={made / 'runs' / 'day' / 'results.json'}")
    refused("is a folder, expected a file", f"--out={made}")
    taken = made / "taken.json"
    taken.write_text("mine")
    refused("exists already; choose another --out", f"--out={taken}")
    assert taken.read_text() == "mine"
    taken.unlink()
    bank = made / "none.swb"
    words = [f"--base={made / 'runs' / 'day'}", f"--expert=day={made / 'runs' / 'day'}"]
    assert main(["switch", "pack", *words, f"--out={bank}"]) == 0
    refused("has no router; make one with 'sinewich switch route", bank="none.swb")


def test_heads_of_other_tasks_are_not_measured(made, call):
    """Classes that are called otherwise: the head of that run answers another question."""
    classes = made / "night" / "classes.json"
    before = classes.read_text()
    classes.write_text(before.replace("class 7", "a lamp"))
    code, out, err = call("--protocols", "per_sample")
    classes.write_text(before)
    assert code == 0 and err == (
        "note: day and night have other tasks or classes, or images of another size, so that only "
        "the head of the true task is scored\n"
    )
    heads = [line.split("|")[2].strip() for line in out.splitlines() if "per_sample  " in line]
    assert heads == ["true"]
