"""The studies: a cell counts as run only if it has run as its command says today."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

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
