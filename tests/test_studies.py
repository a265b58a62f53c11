"""The studies: a cell counts as run only if it has run as its command says today."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from sinewich_jax import config as configs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study

    return study


def leave(cell, root: Path, config: configs.Config, steps: int | None = None, **files: str) -> None:
    """Writes what a run of ``cell`` leaves; ``steps`` done when it has results."""
    directory = cell.directory(root)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(configs.to_dict(config)))
    if steps is not None:
        (directory / "results.json").write_text(json.dumps({"steps": steps, "tasks": {}}))
    for name, text in files.items():
        (directory / f"{name}.json").write_text(text)


def test_a_cell_is_done_when_its_own_config_has_trained_all_steps(study, tmp_path):
    cell = study.Cell("configs/scenes.py:debug", (("seed", 3), ("task_lr_mult", 2.0)))
    config = study._config(cell)
    assert (config.seed, config.task_lr_mult) == (3, 2.0)
    assert not study.is_done(cell, tmp_path)
    leave(cell, tmp_path, config)
    assert not study.is_done(cell, tmp_path)
    leave(cell, tmp_path, config, steps=config.steps - 1)
    assert not study.is_done(cell, tmp_path)
    leave(cell, tmp_path, config, steps=config.steps)
    assert study.result(cell, tmp_path)["steps"] == config.steps
    # The file behind the command has changed since.
    other = configs.from_dict({**configs.to_dict(config), "learning_rate": 0.5})
    leave(cell, tmp_path, other, steps=config.steps)
    assert study.result(cell, tmp_path) is None and not study.is_done(cell, tmp_path)


def test_a_diverged_cell_is_done_and_is_not_chosen(study, tmp_path, monkeypatch):
    from benchmarks import study_scenes

    cells = study_scenes.tuning_cells("zero")
    for number, (rate, cell) in enumerate(cells.items()):
        config = study._config(cell)
        if rate == 3.0:
            leave(cell, tmp_path, config, nan_step_00000229="{}")
            assert study.diverged(cell, tmp_path) == 229 and study.is_done(cell, tmp_path)
        else:
            leave(cell, tmp_path, config, steps=config.steps)
            path = cell.directory(tmp_path) / "results.json"
            path.write_text(json.dumps({"steps": config.steps, "tasks": {}, "score": number}))
    monkeypatch.setattr(study_scenes, "score", lambda results: results["score"])
    assert study_scenes.tuned("zero", tmp_path) == 1.0
    table = study_scenes.tuning_table(tmp_path)
    assert "diverged at step 229" in table and "1 (chosen)" in table
    (final, *_) = study_scenes.final_cells("zero", tmp_path)
    assert ("task_lr_mult", 1.0) in final.overrides


def test_commands_of_a_cell_are_what_a_user_would_type(study):
    cell = study.Cell("configs/scenes.py:lora", (("seed", 1),))
    assert cell.command == "python train.py --config=configs/scenes.py:lora --config.seed=1"
    cell = study.Cell("configs/scenes.py:single_task", (("tasks", ("depth",)), ("seed", 1)))
    assert shlex.split(cell.command)[3] == "--config.tasks=('depth',)"
    assert cell.directory(Path("runs")).name == "tasks=depth_seed=1"


def test_the_dense_page_says_not_run_and_compares_with_single_tasks(study, tmp_path):
    from benchmarks import study_dense

    assert "not run" in study_dense.page(tmp_path)[0].render()
    facts = {"trainable": 10, "train_seconds": 60.0}
    for method, factor in (("single_task", 1.0), ("lora", 1.1)):
        for seed in study_dense.SEEDS:
            for task, cell in study_dense.cells("scenes", method, seed, tmp_path).items():
                config = study._config(cell)
                names = study_dense.SETS["scenes"] if task is None else (task,)
                rows = {name: {"value": factor * 0.5, "higher_is_better": True} for name in names}
                leave(cell, tmp_path, config)
                results = {"steps": config.steps, "tasks": rows, **facts}
                (cell.directory(tmp_path) / "results.json").write_text(json.dumps(results))
    made, gains = study_dense.page(tmp_path)
    assert gains["scenes"]["shared LoRA"] == pytest.approx([10.0] * 3) and not gains["ccp"]
    study_dense.write(made, gains, tmp_path / "docs")
    assert (tmp_path / "docs" / "dense.png").is_file()
    lines = (tmp_path / "docs" / "dense.md").read_text(encoding="utf-8").splitlines()
    assert any("shared LoRA (+10.00 with 10); single task" in line for line in lines)
    (lora,) = [line for line in lines if line.startswith("| shared LoRA") and "0.550" in line]
    assert "10.00 ± 0.00" in lora and "0.17 ± 0.00" in lora
    (single,) = [line for line in lines if line.startswith("| single task") and "0.500" in line]
    assert "| 60 |" in " ".join(single.split()) and "0.00 ± 0.00" in single


def test_the_dense_study_takes_the_best_rate_for_a_method_and_what_ablates_it(
    study, tmp_path, monkeypatch
):
    from benchmarks import study_dense, study_scenes

    def finish(method: str, best: float) -> None:
        for rate, cell in study_dense.tuning_cells(method).items():
            config = study._config(cell)
            leave(cell, tmp_path, config)
            results = {"steps": config.steps, "tasks": {}, "score": -abs(rate - best)}
            (cell.directory(tmp_path) / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(study_scenes, "score", lambda results: results["score"])
    assert study_dense.rate_text("scenes", "mtlora", tmp_path) == "config"
    finish("full_ft", 1e-2)
    finish("sinewich_paper", 0.3)
    assert study_dense.rate_text("ccp", "full_ft", tmp_path) == "config"
    cells = study_dense.cells("scenes", "single_task", 2, tmp_path)
    assert list(cells) == list(study_dense.SETS["scenes"])
    assert cells["depth"].overrides == (
        ("tasks", ("depth",)),
        *study_dense.GRIDS["full_ft"][1e-2],
        ("eval_split", "test"),
        ("seed", 2),
    )
    (borrowed,) = study_dense.cells("scenes", "lora,independent_decoder", 1, tmp_path).values()
    assert borrowed.overrides == (("eval_split", "test"), ("seed", 1))  # lora is not tuned here
    (ablation,) = study_dense.cells("scenes", "sinewich_paper,no_clock", 1, tmp_path).values()
    assert ablation.config == "configs/scenes.py:sinewich_paper,no_clock"
    assert ("adapter_lr_mult", 0.3) in ablation.overrides
    table = study_dense.page(tmp_path)[0].render()
    assert "(chosen)" in table


def test_the_page_of_added_tasks_reads_runs_whose_config_is_their_bases(study, tmp_path):
    from benchmarks import study_add_task

    assert "not run" in study_add_task.page(tmp_path).render()
    cell = study_add_task.base_cell("edge", 1)
    leave(cell, tmp_path, study._config(cell), steps=study._config(cell).steps)
    added = study_add_task.added_cell("edge", 1, tmp_path)
    assert study._config(added).base_run == str(cell.directory(tmp_path))
    row = {"metric": "f", "value": 0.75, "higher_is_better": True}
    facts = {"trainable": 1234, "train_seconds": 90.0, "tasks": {"edge": row}}
    directory = added.directory(tmp_path)
    directory.mkdir(parents=True)
    for steps, shown in ((study._config(cell).steps - 1, 0), (study._config(cell).steps, 1)):
        (directory / "results.json").write_text(json.dumps({"steps": steps, **facts}))
        assert study_add_task.page(tmp_path).render().count("1,234") == shown


# --- merging ------------------------------------------------------------------------------------


def fake_merging(study, gain: float = 0.1) -> None:
    """Leaves results in every cell of a merging study; rules differ by their place in the list."""
    from benchmarks import merging_digits, merging_optimizers, merging_real, real_tasks
    from benchmarks.cells import record

    for steps, cells in study.digits_cells().items():
        for cell in cells:
            base = {"saliency": 0.9 + steps / 1e4, "live": 0.88, "overlap": 0.8}
            both = {**base, "curvature": 0.7}
            agreement = {
                name: base if name in ("trajectory", "magnitude") else both
                for name in merging_digits.ESTIMATES
            }
            curve = [0.5 + density / 2 for density in merging_digits.DENSITIES]
            task = {
                "accuracy": 0.97,
                "agreement": agreement,
                "pruning": {name: curve for name in merging_digits.PRUNED_BY},
            }
            merged = {name: 0.7 for name in merging_digits.MERGED_BY}
            record(cell, study.root, {"tasks": {"upright": task}, "merging": merged})
    for rate, cells in study.tuning_cells().items():
        for cell in cells:
            record(cell, study.root, {"expert": {"val": 0.5 + rate}})
    for seed in study.seeds:
        facts = {"turn": 0.6, "error": 0.1, "variance": 0.3, "parameters": 10, "seconds": 5.0}
        record(study.base_cell(seed), study.root, facts)
        numbers = {"saliency": 0.8, "curvature": 0.7, "curvature_mean": 1e-4, "fisher_mean": 2e-3}
        numbers |= {"distance": 3.0, "seconds": 40.0, "fisher_seconds": 4.0}
        rows = {}
        for place, (name, row) in enumerate(merging_real.ROWS.items()):
            level = 0.4 + place / 100 + seed / 1000
            level = 0.4 + gain if name == "curvature_average" else level
            test = dict.fromkeys(real_tasks.TASKS, level)
            rows[name] = {"options": row.grid[-1], "val": [], "test": test}
        for rate in study.merge_rates():
            for cell in study.expert_cells(seed, rate).values():
                scores = {"expert": {"test": 0.9}, "probe": {"test": 0.595}}
                record(cell, study.root, scores | numbers)
            record(study.merge_cell(seed, rate), study.root, rows)
    names = list(merging_optimizers.OPTIMIZERS)
    for place, name in enumerate(names):
        for cell in study.sweep_cells(name):
            losses = [(0.1 + i + place / 10) for i in range(len(study.sweep["rates"]) - 1)]
            values = {"loss": [*losses, None], "accuracy": [0.9 for _ in losses] + [None]}
            record(cell, study.root, values)
    counts = {"parameters": 100, **dict.fromkeys(names, 200)}
    record(study.bytes_cell(), study.root, {"digits": counts})
    ones = dict.fromkeys(names, 1.0)
    record(study.time_cell(), study.root, {"ratio": ones, "seconds": ones})


@pytest.fixture
def merging_page(study):
    """Writes the page of a study and gives the text of its lines without padding."""
    from benchmarks import merging_page

    def render(one, folder: Path) -> list[str]:
        merging_page.write(one, folder)
        lines = (folder / "merging.md").read_text().splitlines()
        return [" ".join(line.split()) for line in lines]

    return render


def test_the_merging_page_says_not_run_and_draws_nothing(study, tmp_path, merging_page):
    from benchmarks.merging_plan import full

    text = "\n".join(merging_page(full(tmp_path / "root"), tmp_path))
    assert text.count("not run") > 100 and "nan" not in text and "None" not in text
    assert not list(tmp_path.glob("*.png"))


def test_the_merging_page_compares_seed_by_seed(study, tmp_path, merging_page):
    from benchmarks.merging_plan import full

    whole = full(tmp_path / "root")
    fake_merging(whole)
    lines = merging_page(whole, tmp_path)
    text = "\n".join(lines)
    assert "not run" not in text and "nan" not in text and "None" not in text
    row, _ = [line for line in lines if line.startswith("| curvature_average less average ")]
    assert "9.90 ± 0.10 (+10.00, +9.90, +9.80)" in row
    assert "`curvature_average` beats `average`: +9.90 points, above it in 3 of 3 seeds." in text
    assert "`curvature_average` does not beat `fisher`" in text
    assert "0.503 (chosen)" in text
    assert "3 of 3 diverged" in text and "scale 0.03, 0.05, 0.075, 0.1, 0.15, 0.2" in text
    assert text.count("has 0.595, and `adamerging by leaf` of them is above that.") == 2
    assert "| emr ‡ |" in text and "| tall † ‡ |" in text and "| adamerging by task † § |" in text
    names = {path.name for path in tmp_path.glob("*.png")}
    words = ("agreement", "pruning", "rates", "rules", "rules_gentle")
    assert names == {f"merging_{word}.png" for word in words}
    fake_merging(whole, gain=-0.1)
    text = "\n".join(merging_page(whole, tmp_path))
    assert "`curvature_average` does not beat `average`" in text


def test_changed_settings_make_other_merging_cells(study, tmp_path):
    import dataclasses

    from benchmarks.cells import Cell, load_arrays, record, result, save_arrays
    from benchmarks.merging_plan import full

    cell = Cell.of("base", seed=1, steps=10)
    assert result(cell, tmp_path) is None
    record(cell, tmp_path, {"turn": 0.5})
    assert result(Cell.of("base", steps=10, seed=1), tmp_path) == {"turn": 0.5}
    assert result(Cell.of("base", seed=1, steps=11), tmp_path) is None
    one = full(tmp_path)
    other = dataclasses.replace(one, base={**one.base, "steps": 7})
    assert one.expert_cell(0, "mnist", 1e-3) != other.expert_cell(0, "mnist", 1e-3)
    assert one.merge_rates() == []
    fake_merging(one)
    assert one.merge_rates() == [3e-3, 1e-3] and other.merge_rates() == []
    tree = {"a": {"b": np.arange(3)}, "c": np.ones(2)}
    save_arrays(cell.arrays(tmp_path), tree)
    assert load_arrays(cell.arrays(tmp_path))["a"]["b"].tolist() == [0, 1, 2]


def test_stages_wait_for_what_they_need(study, tmp_path, monkeypatch):
    from benchmarks.cells import record
    from benchmarks.merging_plan import TUNING_SEED, full

    monkeypatch.delenv("SINEWICH_DATA", raising=False)
    one = full(tmp_path)
    assert {cell.kind for cell in one.cells("first", "abcd")} == {"digits", "bytes", "sweep"}
    assert {cell.kind for cell in one.cells("first", "a")} == {"digits"}
    assert [cell.kind for cell in one.cells("time", "d")] == ["time"]
    assert "time" not in one.stages("abc")
    monkeypatch.setenv("SINEWICH_DATA", str(tmp_path))
    assert {cell.kind for cell in one.cells("first", "c")} == {"base"}
    assert not one.cells("tuning", "c") and not one.cells("experts", "c")
    record(one.base_cell(TUNING_SEED), tmp_path, {})
    record(one.base_cell(1), tmp_path, {})
    assert len(one.cells("tuning", "c")) == 9 and not one.cells("experts", "c")
    for rate, cells in one.tuning_cells().items():
        for cell in cells:
            record(cell, tmp_path, {"expert": {"val": rate}})
    experts = one.cells("experts", "c")
    assert len(experts) == 16 and not one.cells("merges", "c")
    for cell in experts:
        record(cell, tmp_path, {})
    merges = [cell.settings for cell in one.cells("merges", "c")]
    assert [(merge["seed"], merge["rate"]) for merge in merges] == [(1, 3e-3), (1, 1e-3)]


def test_a_cell_that_fails_or_has_no_time_is_not_run(study, tmp_path):
    import time

    from benchmarks.cells import Cell, result, run

    assert result(Cell.of("base", seed=0), tmp_path) is None
    run(["no_such_module"], [Cell.of("base", seed=0)], tmp_path, time.monotonic() + 60, jobs=1)
    assert result(Cell.of("base", seed=0), tmp_path) is None
    (log,) = tmp_path.rglob("*.log")
    assert "No module named no_such_module" in log.read_text()
    run(["no_such_module"], [Cell.of("base", seed=1)], tmp_path, time.monotonic(), jobs=1)
    assert len(list(tmp_path.rglob("*.log"))) == 1  # no time left: not begun


def test_rank_correlation_and_overlap(study):
    from benchmarks.merging_agreement import rank_correlation, top_overlap

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200))
    assert rank_correlation(a, np.exp(3 * a)) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
    from scipy import stats

    tied = np.round(b)
    assert rank_correlation(a, tied) == pytest.approx(stats.spearmanr(a, tied).statistic)
    assert top_overlap(a, a) == 1 and top_overlap(a, -a) == 0
    assert top_overlap(np.arange(10), np.arange(10)[[0, 1, 2, 3, 4, 5, 6, 7, 9, 8]], 0.1) == 0


@pytest.mark.parametrize("strides", [1, 2])
def test_patches_are_what_a_convolution_multiplies(study, strides):
    import flax.linen as nn
    import jax

    from benchmarks.real_experts import patches

    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    layer = nn.Conv(5, (3, 3), strides=strides, use_bias=False)
    params = layer.init(jax.random.key(1), x)
    rows = patches(x, (3, 3), strides) @ params["params"]["kernel"].reshape(-1, 5)
    np.testing.assert_allclose(rows, layer.apply(params, x).reshape(-1, 5), rtol=1e-4, atol=1e-5)


@pytest.fixture
def made_up_tasks(tmp_path, monkeypatch, study):
    """Two small tasks of random images in the place of the eight real ones."""
    from benchmarks import real_experts, real_tasks

    tasks = real_experts.TUNING_TASKS[:2]
    monkeypatch.setenv("SINEWICH_DATA", str(tmp_path))
    for module in (real_tasks, real_experts):
        monkeypatch.setattr(module, "TASKS", tasks)
    monkeypatch.setattr(real_experts, "TUNING_TASKS", tasks[:1])
    real_tasks.load.cache_clear()
    (tmp_path / "cls").mkdir()
    rng = np.random.default_rng(0)
    for channels, task in zip((1, 3), tasks, strict=True):
        arrays = {}
        for split, count in (("train", 40), ("val", 20), ("test", 20)):
            arrays[f"{split}_x"] = rng.integers(256, size=(count, 32, 32, channels), dtype="uint8")
            arrays[f"{split}_y"] = (np.arange(count) % 3).astype(np.int16)
        np.savez(tmp_path / "cls" / f"{task}.npz", **arrays)
    yield tasks
    real_tasks.load.cache_clear()


@pytest.mark.slow
def test_all_of_the_eight_tasks_part_runs_on_made_up_images(study, tmp_path, made_up_tasks):
    from benchmarks import merging_real
    from benchmarks.cells import record, result
    from benchmarks.merging_plan import tiny

    one = tiny(tmp_path / "root")
    for stage in one.stages("c"):
        for cell in one.cells(stage, "c"):
            record(cell, one.root, one.call(cell))
    best = one.merge_rates()[-1]
    found = result(one.merge_cell(0, best), one.root)
    assert set(found) == set(merging_real.ROWS)
    for name, row in merging_real.ROWS.items():
        assert found[name]["options"] in row.grid and set(found[name]["test"]) == set(made_up_tasks)
        assert len(found[name]["val"]) == (len(row.grid) if row.tuned else 0)
    facts = result(one.expert_cells(0, best)["gtsrb"], one.root)
    assert -1 <= facts["saliency"] <= 1 and facts["fisher_mean"] > 0 and facts["distance"] > 0


# --- switches -----------------------------------------------------------------------------------


def fake_point(level: float, bits: float, tasks) -> dict:
    """What a switch at one alpha leaves."""
    same = dict.fromkeys(tasks, level)
    return {
        "test": same,
        "cosine": same,
        "bits": bits,
        "coded": bits,
        "bound": bits / 1.01,
        "density": 0.4,
    }


def fake_front(tasks, alphas, lift: float = 0.0) -> dict:
    """Accuracy and bits fall with alpha."""
    numbers = {alpha: 0.6 if alpha == "auto" else alpha for alpha in alphas}
    return {
        str(a): fake_point(0.9 + lift - x / 10, 1.6 - 1.4 * x, tasks) for a, x in numbers.items()
    }


def fake_router(tasks, seed: int) -> dict:
    """What Auto-Switch leaves."""
    from benchmarks.switching_tables import ROUTES

    row = {"accuracy": 0.8 + seed / 100, "routed_accuracy": 0.7, "task_accuracy": 0.75}
    row |= {"trees": 9, "multiplier": 2.0, "confusion": np.eye(len(tasks)).tolist()}
    return {"names": list(tasks), "rows": dict.fromkeys(ROUTES, row)}


def fake_switches(study, lift: float = 0.0) -> None:
    """Leaves results in every cell of a switching study."""
    from benchmarks import real_tasks, switching_digits, switching_real
    from benchmarks.cells import record
    from benchmarks.switching import WAYS

    tasks = switching_digits.TASKS
    for seed, cell in enumerate(study.digits_cells()):
        scores = {"test": dict.fromkeys(tasks, 0.8)}
        found = {
            "individual": dict.fromkeys(tasks, 0.85 + seed / 100),
            "base": dict.fromkeys(tasks, 0.5),
            "rules": {name: scores for name in ("average", "task_arithmetic", "emr")},
            "fronts": {way: fake_front(tasks, study.alphas, lift) for way in WAYS},
            "router": fake_router(tasks, seed),
        }
        record(cell, study.root, found)
    for cell in (cell for cells in study.digits_flex_cells().values() for cell in cells):
        record(cell, study.root, fake_point(0.8, 0.5, tasks))
    for place, name in enumerate(study.recipes):
        for cell in study.recipe_cells(name):
            found = {"probe": 0.4, "expert": 0.7 + place / 100, "moved": 0.1}
            for way in switching_real.TRIED:
                for alpha in switching_real.ALPHAS:
                    found[f"{way}, {alpha}"] = {"val": 0.6 - place / 100, "bits": 1.4}
            record(cell, study.root, found)
    tasks = real_tasks.TASKS
    for seed in study.seeds:
        for recipe in study.chosen():
            for cell in study.expert_cells(seed, recipe).values():
                found = {"expert": {"test": 0.84, "val": 0.8}, "probe": {"test": 0.6}}
                record(cell, study.root, found)
            for cell in study.front_cells(seed, recipe).values():
                front = fake_front(tasks, cell.settings["alphas"], lift)
                record(cell, study.root, front)
            rules = {name: {"test": dict.fromkeys(tasks, 0.5)} for name in switching_real.RULES}
            record(study.rules_cell(seed, recipe), study.root, rules)
            record(study.router_cell(seed, recipe), study.root, fake_router(tasks, seed))
            row = {f"{strength:g}": 0.79 for strength in study.strengths}
            for cell in study.strengths_cells(seed, recipe).values():
                record(cell, study.root, {f"{switching_real.REFIT}, 0.6": row})
        for cell in study.flex_cells(seed, study.chosen()[0]).values():
            record(cell, study.root, fake_point(0.8, 0.5, tasks))


@pytest.fixture
def switches_page(study):
    """Writes the page of a study and gives its text without padding."""
    from benchmarks import switching_page

    def render(one, folder: Path) -> str:
        switching_page.write(one, folder)
        lines = (folder / "switches.md").read_text().splitlines()
        return "\n".join(" ".join(line.split()) for line in lines)

    return render


def test_the_switches_page_says_not_run_and_draws_nothing(study, tmp_path, switches_page):
    from benchmarks.switching_plan import full

    text = switches_page(full(tmp_path / "root"), tmp_path)
    assert text.count("not run") > 100 and "nan" not in text and "None" not in text
    assert not list(tmp_path.glob("*.png"))
    assert "| visual tower | 87.5 M | 0.68 | 114 | 167 | 417 |" in text  # arithmetic needs no cell


def test_the_switches_page_is_made_from_what_there_is(study, tmp_path, switches_page):
    from benchmarks.switching_plan import full

    one = full(tmp_path / "root")
    fake_switches(one)
    first, second = one.chosen()
    assert (first, second) == tuple(one.recipes)[:: len(one.recipes) - 1]
    text = switches_page(one, tmp_path)
    assert "not run" not in text and "nan" not in text and "None" not in text
    assert f"## (b1) The recipe whose plain switch is best: {first}" in text
    assert "| rate 0.003 (chosen) | 0.400 | 0.700 | 0.100 | -10.00 (1.400) |" in text
    gap = "| T-Switch at 0.6 less each expert alone | -2.00 ± 1.00 (-1.00, -2.00, -3.00) |"
    assert gap in text
    verdict = "T-Switch at alpha 0.6: +0.00 points, within 1 point of the experts; 0.760 bits"
    assert verdict in text
    halves = ("digits", "switched", "alone")
    pictures = {
        f"switches_{half}{kind}.png" for half in halves for kind in ("", "_methods", "_router")
    }
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    fake_switches(one, lift=-0.02)
    text = switches_page(one, tmp_path)
    assert "| -1.00 ± 0.00 | -1.00 ± 0.00 |" in text  # refitted heads
    assert "T-Switch at alpha 0.6: -2.00 points, not within 1 point of the experts" in text
    # One seed of one way is missing: the rest stays, and no difference is made up.
    cell = one.front_cells(1, first)["T-Switch"]
    cell.path(one.root).unlink()
    text = switches_page(one, tmp_path)
    assert "-2.00 ± 0.00 (-2.00, -2.00) |" in text


def test_stages_of_switches_wait_and_share_the_experts_of_merging(study, tmp_path, monkeypatch):
    from benchmarks import merging_plan
    from benchmarks.cells import record
    from benchmarks.merging_plan import TUNING_SEED
    from benchmarks.switching_plan import full, owner

    one = full(tmp_path)
    monkeypatch.delenv("SINEWICH_DATA", raising=False)
    assert [cell.kind for stage in one.stages("ab") for cell in one.cells(stage, "ab")] == [
        "digits"
    ] * 3
    monkeypatch.setenv("SINEWICH_DATA", str(tmp_path))
    merging = merging_plan.full(tmp_path)
    assert set(one.cells("bases", "b")) == set(merging.cells("first", "c"))
    assert not one.cells("recipes", "b") and not one.cells("experts", "b")
    record(one.merging.base_cell(TUNING_SEED), tmp_path, {})
    assert len(one.cells("recipes", "b")) == 3 * len(one.recipes)
    plain = one.expert_cells(0, "rate 0.001")
    assert plain == merging.expert_cells(0, 1e-3)
    pulled = one.expert_cells(0, "rate 0.001, pulled")
    assert not set(plain.values()) & set(pulled.values())
    assert owner("expert") == "merging" and owner("front") == "switches"


@pytest.mark.parametrize("strength", [np.inf, 1.0])
def test_heads_are_corrected_from_training_images(study, strength, monkeypatch):
    """Features that are shifted by the trunk, which is a number here."""
    from benchmarks import switching_real
    from benchmarks.real_tasks import Images

    x = np.random.default_rng(0).random((20, 4)).astype(np.float32)
    head = {"kernel": np.float32(np.arange(8).reshape(4, 2)), "bias": np.ones(2, np.float32)}
    monkeypatch.setattr(switching_real, "features", lambda shift, x: x + shift)
    splits = {"train": Images(x, None), "test": Images(x[:5], None)}
    monkeypatch.setattr(switching_real, "load", lambda _, split: splits[split])
    monkeypatch.setattr(
        switching_real,
        "score",
        lambda trunk, head, on: (on.x + trunk) @ head["kernel"] + head["bias"],
    )
    experts = {"a": {"trunk": 0.0, "head": head}}
    setting = switching_real.setting_of({}, experts, "test", 10, strength)
    np.testing.assert_allclose(setting.corrected("a", 0.5), setting.score("a", 0.0), rtol=1e-5)


@pytest.mark.slow
def test_the_whole_of_the_switches_study_runs(study, tmp_path, made_up_tasks, monkeypatch):
    from benchmarks import switching_page
    from benchmarks.cells import record, result
    from benchmarks.switching_plan import PARTS, tiny

    one = tiny(tmp_path / "root")
    parts = list(PARTS)
    for stage in one.stages(parts):
        cells = one.cells(stage, parts)
        assert cells, stage
        for cell in cells:
            record(cell, one.root, one.call(cell))
    monkeypatch.setattr(switching_page.real_tasks, "TASKS", made_up_tasks)
    switching_page.write(one, tmp_path)
    text = (tmp_path / "switches.md").read_text()
    assert "nan" not in text and "None" not in text
    seed, recipe = one.seeds[0], one.chosen()[0]
    for name, cell in one.front_cells(seed, recipe).items():
        for point in result(cell, one.root).values():
            assert set(point["test"]) == set(made_up_tasks) and point["bits"] > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_digits_reproduce_the_first_study(study, seed):
    from benchmarks import switching_digits
    from benchmarks.switching import T_SWITCH, VALUES, WAYS, point

    one = switching_digits.setting(seed, switching_digits.SETTINGS)
    mean = lambda found: float(np.mean(list(found.values())))  # noqa: E731
    alone = mean({task: one.score(task, tree) for task, tree in one.experts.items()})
    at = {alpha: point(one, WAYS[T_SWITCH], alpha) for alpha in (0.6, 0.7, "auto")}
    assert mean(at[0.6]["test"]) >= alone - 0.01 and at[0.6]["bits"] <= 1.42
    assert mean(at["auto"]["test"]) >= alone - 0.015
    values = mean(point(one, WAYS[VALUES], 0.7)["test"])
    assert mean(at[0.7]["test"]) >= values
    assert mean(at[0.6]["test"]) >= mean(switching_digits.rules(one)["emr"]["test"]) + 0.03
    routes = switching_digits.auto_switch(one, examples=100, neighbours=10, alpha=0.6)["rows"]
    sample, batch = (routes[name]["accuracy"] for name in ("per_sample", "batch_mean"))
    assert sample >= 0.915 and 0 <= batch - sample <= 0.03


# --- language -------------------------------------------------------------------------------------


def test_a_cell_may_set_a_key_of_a_group_and_name_folders(study):
    sources = ("runs/a/b", "runs/a/c")
    cell = study.Cell("configs/glue_fusion.py:rte", (("adapters.sources", sources),))
    assert study._config(cell).adapters.sources == sources
    assert shlex.split(cell.command)[3] == "--config.adapters.sources=('runs/a/b','runs/a/c',)"
    name = cell.directory(Path("runs")).name
    other = study.Cell("configs/glue_fusion.py:rte", (("adapters.sources", sources[::-1]),))
    assert name.startswith("adapters.sources=2-paths-") and other.directory(Path()).name != name


def finish_language(study, plan, cell, value: float, attention: bool = False) -> None:
    """Writes what a run of the language study leaves."""
    config = study._config(cell)
    leave(cell, plan.root, config)
    rows = {task: {"value": value} for task in config.tasks}
    results = {"steps": config.steps, "tasks": rows, "trainable": 1234}
    (cell.directory(plan.root) / "results.json").write_text(json.dumps(results))
    if attention:
        found = {
            "target": config.tasks[0],
            "adapters": ["cola", "rte"],
            "places": {"layer0_output": [0.25, 0.75]},
        }
        (cell.directory(plan.root) / "attention.json").write_text(json.dumps(found))


def test_the_language_study_names_each_stage_when_those_before_have_run(study, tmp_path):
    from benchmarks import language_page, language_plan

    plan = language_plan.Plan(tmp_path / "root")
    language_page.write(plan, tmp_path)
    text = (tmp_path / "language.md").read_text(encoding="utf-8")
    assert "not run with all seeds" in text and "Not drawn: not run" in text

    rate, other = language_plan.GRIDS["adapters"]
    assert plan.rate("adapters") is None and plan.cell("fusion", "rte", 0) is None
    for one, score in ((rate, 0.7), (other, 0.8)):
        for cell in plan.grid("adapters")[one]:
            finish_language(study, plan, cell, score)
    assert plan.rate("adapters") == other and plan.sources(0) is None
    for seed in language_plan.SEEDS:
        for task in language_plan.TASKS:
            finish_language(study, plan, plan.cell("adapters", task, seed), 0.6 + 0.01 * seed)
    for method in ("fusion", "single_task"):
        best = language_plan.GRIDS[method][1]
        for one, cells in plan.grid(method).items():
            for cell in cells:
                finish_language(study, plan, cell, 0.9 if one == best else 0.1)
        assert plan.rate(method) == best
    for seed in language_plan.SEEDS:
        for task in language_plan.TARGETS:
            finish_language(study, plan, plan.cell("fusion", task, seed), 0.62, attention=True)
    joint = language_plan.FUSION_OF_JOINT
    assert plan.cell(joint, "rte", 1) is None
    finish_language(study, plan, plan.cell("multi_adapters", "rte", 1), 0.6)
    assert plan.cell(joint, "rte", 0) is None and plan.cell(joint, "sick", 1) is None
    finish_language(study, plan, plan.cell(joint, "rte", 1), 0.63)

    every = [cell for stage in plan.stages(language_plan.SEEDS) for cell in stage()]
    for cell in every:
        study._config(cell)  # each is a run that a config knows
    language_page.write(plan, tmp_path)
    text = " ".join((tmp_path / "language.md").read_text(encoding="utf-8").split())
    of_joint = "3.00 (1 seed) (+3.00)"
    assert f"| rte | 1.00 ± 1.00 (+2.00, +1.00, +0.00) | not run | {of_joint} |" in text
    assert "mean difference is 1.00 ± 1.00 points: fusion is no worse than" in text
    assert (tmp_path / "language_attention.png").is_file() and "1,234" in text
    kinds = {cell.kind for cell in plan.measurements(language_plan.SEEDS)}
    assert plan.experts(0) is None and kinds == {"attended"}


def test_the_language_page_compares_equal_seeds():
    from benchmarks.language_plan import common

    assert common({0: 0.1, 2: 0.3}, {0: 0.2, 1: 0.9, 2: 0.4}) == [[0.1, 0.3], [0.2, 0.4]]
    assert common({0: 0.1}, {1: 0.2}) == [[], []]
