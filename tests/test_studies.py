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
    from benchmarks import merging_digits, merging_optimizers, merging_real
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
            test = dict.fromkeys(merging_real.TASKS, level)
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

    from benchmarks.merging_real import patches

    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    layer = nn.Conv(5, (3, 3), strides=strides, use_bias=False)
    params = layer.init(jax.random.key(1), x)
    rows = patches(x, (3, 3), strides) @ params["params"]["kernel"].reshape(-1, 5)
    np.testing.assert_allclose(rows, layer.apply(params, x).reshape(-1, 5), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_all_of_the_eight_tasks_part_runs_on_made_up_images(study, tmp_path, monkeypatch):
    from benchmarks import merging_real
    from benchmarks.cells import record, result
    from benchmarks.merging_plan import tiny

    tasks = merging_real.TUNING_TASKS[:2]
    monkeypatch.setenv("SINEWICH_DATA", str(tmp_path))
    monkeypatch.setattr(merging_real, "TASKS", tasks)
    monkeypatch.setattr(merging_real, "TUNING_TASKS", tasks[:1])
    merging_real.load.cache_clear()
    (tmp_path / "cls").mkdir()
    rng = np.random.default_rng(0)
    for channels, task in zip((1, 3), tasks, strict=True):
        arrays = {}
        for split, count in (("train", 40), ("val", 20), ("test", 20)):
            arrays[f"{split}_x"] = rng.integers(256, size=(count, 32, 32, channels), dtype="uint8")
            arrays[f"{split}_y"] = (np.arange(count) % 3).astype(np.int16)
        np.savez(tmp_path / "cls" / f"{task}.npz", **arrays)
    one = tiny(tmp_path / "root")
    for stage in one.stages("c"):
        for cell in one.cells(stage, "c"):
            record(cell, one.root, one.call(cell))
    merging_real.load.cache_clear()
    best = one.merge_rates()[-1]
    found = result(one.merge_cell(0, best), one.root)
    assert set(found) == set(merging_real.ROWS)
    for name, row in merging_real.ROWS.items():
        assert found[name]["options"] in row.grid and set(found[name]["test"]) == set(tasks)
        assert len(found[name]["val"]) == (len(row.grid) if row.tuned else 0)
    facts = result(one.expert_cells(0, best)["gtsrb"], one.root)
    assert -1 <= facts["saliency"] <= 1 and facts["fisher_mean"] > 0 and facts["distance"] > 0
