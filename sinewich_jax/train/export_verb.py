"""``sinewich export WORKDIR --task NAME --out FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

# Folding is exact but for the order of float32 sums; a difference beyond these is no rounding. Of
# the features (in units of the largest), and of the task's output.
_TOLERANCE = 1e-4
_OUTPUT_TOLERANCE = 2e-5
_CHECKED_SIZE = (64, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="a run's work directory")
    parser.add_argument("--task", metavar="NAME", required=True, help="the task to export")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="FILE.safetensors gets the task's backbone as plain weights, FILE.stablehlo the whole "
        "predictor as a jax.export artefact",
    )
    parser.add_argument(
        "--names",
        metavar="LIBRARY",
        default="official",
        help="names of the weights: official, timm, hf4 (what transformers reads) or hf5",
    )
    parser.add_argument(
        "--image-size",
        metavar=("H", "W"),
        type=int,
        nargs=2,
        help="size of the artefact's images; that of the run when left out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Makes the weights or the program of a task, checks them against the model, writes the file.

    Adapters are folded where a plain Swin can hold them; a program computes the whole model where
    it cannot.
    """
    from sinewich_jax.convert.names import FAMILIES
    from sinewich_jax.errors import ConfigError, did_you_mean
    from sinewich_jax.train import cache, trained, writers

    kinds = {".safetensors": _weights, ".stablehlo": _artifact}
    out = arguments.out
    if out.suffix not in kinds:
        raise ConfigError(
            f"--out {out} ends in {out.suffix!r}, expected .safetensors (weights) or .stablehlo "
            "(artefact)"
        )
    if arguments.names not in FAMILIES:
        raise ConfigError(
            f"unknown names {arguments.names!r}{did_you_mean(arguments.names, FAMILIES)}"
        )
    if min(arguments.image_size or (1, 1)) < 1:
        raise ConfigError(f"--image-size is {arguments.image_size}, expected two positive numbers")
    cache.enable_compilation_cache()
    made = trained.read_trained(arguments.workdir)
    trained.check_images(made.experiment, "'sinewich export'")
    for step, reason in made.skipped:
        writers.announce(f"checkpoint of step {step} cannot be read and is skipped: {reason}")
    kinds[out.suffix](made, arguments)
    return 0


def _source(made: Any, workdir: Path) -> str:
    return f"{workdir.absolute().name}, step {made.step}"


def _weights(made: Any, arguments: argparse.Namespace) -> None:
    import numpy as np

    from sinewich_jax.convert import export, fold
    from sinewich_jax.errors import CheckpointError

    model = made.experiment.model
    folded = fold.fold_task(model, made.variables, arguments.task)
    image = np.random.default_rng(0).standard_normal((1, *_CHECKED_SIZE, 3)).astype(np.float32)
    gap = fold.difference(folded, model, made.variables, image)
    if not gap <= _TOLERANCE:
        raise CheckpointError(
            f"the folded backbone differs from the adapter model by {gap:.1e} of its largest "
            f"feature, expected at most {_TOLERANCE:.0e}; nothing was written"
        )
    source = _source(made, arguments.workdir)
    export.save_folded(arguments.out, folded, arguments.names, source)
    frequencies = sorted({f"{value:.4f}" for value in folded.frequencies.values()})
    text = f", frequency {', '.join(frequencies)}" if frequencies else ""
    print(f"{source}: task {folded.task}, {arguments.names} names{text}")
    if folded.branches:
        stages = sorted({path.split("/")[0] for path in folded.branches})
        print(
            f"{', '.join(stages)}: the task's own MLP is kept beside the plain network, as "
            "...blocks.<last>.task_mlp: its feature leaves there, the shared one goes on"
        )
    print(f"largest difference to the adapter model: {gap:.1e} of the largest feature")
    print(f"written: {arguments.out}")


def _artifact(made: Any, arguments: argparse.Namespace) -> None:
    import numpy as np

    from sinewich_jax.convert import artifact, task_weights
    from sinewich_jax.errors import CheckpointError, ConfigError

    size = arguments.image_size or made.config.image_size
    if size is None:
        raise ConfigError(
            "the run takes images in the size of its data set, and an artefact needs a fixed one; "
            "give --image-size H W"
        )
    model, task = made.experiment.model, arguments.task
    function = artifact.predictor(model, made.variables, task)
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    gap = artifact.difference(function, model, made.variables, task, image)
    if not gap <= _OUTPUT_TOLERANCE:
        raise CheckpointError(
            f"the program of task {task!r} differs from the adapter model by {gap:.1e} of its "
            f"largest output, expected at most {_OUTPUT_TOLERANCE:.0e}; nothing was written"
        )
    heads = [name for name, _ in model.heads]
    frequencies = model.apply(made.variables, method="frequencies")
    (unit,) = [one.unit for one in made.experiment.tasks if one.name == task]
    facts = {
        "source": _source(made, arguments.workdir),
        "task": task,
        "metric_unit": unit,
        "frequencies": {
            layer: float(values[heads.index(task)]) for layer, values in frequencies.items()
        },
    }
    artifact.save_artifact(arguments.out, function, tuple(size), facts)
    print(f"{facts['source']}: task {task}, images of {size[0]} x {size[1]} pixels, any batch")
    if reason := task_weights.obstacle(model):
        print(f"{reason}: the program computes the whole model")
    print(f"largest difference to the adapter model: {gap:.1e} of the largest output")
    print(f"written: {arguments.out} and {arguments.out}.json")
