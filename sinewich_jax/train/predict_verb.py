"""``sinewich predict WORKDIR IMAGE... --out DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="a run's work directory")
    parser.add_argument(
        "images",
        metavar="IMAGE",
        type=Path,
        nargs="+",
        help="JPEG or PNG files, or folders of them",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to write")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="predict only these")
    parser.add_argument(
        "--side",
        type=_positive,
        metavar="PIXELS",
        help="shorter side at which the network looks; by default that of its training images",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help='JSON with class names for the legends, {"semseg": ["road", "car"]}',
    )


def run(arguments: argparse.Namespace) -> int:
    """Predicts every image; writes a picture and one file a task for each."""
    from sinewich_jax import report, storage
    from sinewich_jax.data.files import read_image
    from sinewich_jax.train import cache, predict
    from sinewich_jax.train.progress import progress_bar

    paths = find_images(arguments.images)
    cache.enable_compilation_cache()
    predictor = predict.Predictor(arguments.workdir, arguments.tasks, arguments.side)
    names = _class_names(arguments.classes)
    shown = predict.with_class_names(predictor.tasks, names)
    with progress_bar("predicting", len(paths)) as advance:
        for number, (name, path) in enumerate(paths.items(), start=1):
            image = read_image(path)
            predictions = predictor(image)
            for task in predictor.tasks:
                predict.save_prediction(arguments.out, task, name, predictions[task.name])
            report.write_predictions(
                arguments.out / "panels" / f"{name}.png", shown, image, predictions, path.name
            )
            advance(number, note=path.name)
    named = {task.name: list(task.class_names) for task in shown if task.class_names}
    if named:
        storage.write_json(arguments.out / "classes.json", named)
    looked = "their own size" if predictor.side is None else f"a shorter side of {predictor.side}"
    print(f"{len(paths)} images at {looked} pixels, step {predictor.step}")
    print(f"written: {arguments.out / 'panels'} and a folder a task beside it")
    return 0


def find_images(given: list[Path]) -> dict[str, Path]:
    """The image files by the name of what is written for them; folders are looked through.

    Raises:
      DataError: a path that is not there, a folder without images, two images of one name.
    """
    from sinewich_jax.data.files import IMAGE_SUFFIXES
    from sinewich_jax.errors import DataError

    found: dict[str, Path] = {}
    for path in given:
        if not path.exists():
            raise DataError(f"{path} does not exist, expected an image or a folder of images")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise DataError(
                    f"{path} holds no image, expected files ending in {', '.join(IMAGE_SUFFIXES)}"
                )
        for file in files:
            if file.stem in found:
                raise DataError(
                    f"{file} and {found[file.stem]} would both be written as {file.stem!r}; rename "
                    "one, or predict them into two folders"
                )
            found[file.stem] = file
    return found


def _class_names(path: Path | None) -> dict[str, list[str]]:
    from sinewich_jax.errors import DataError
    from sinewich_jax.train import workdir

    if path is None:
        return {}
    if not path.is_file():
        raise DataError(f"{path} does not exist, expected JSON with class names")
    names = workdir.read_json(path)
    if not isinstance(names, dict) or not all(isinstance(row, list) for row in names.values()):
        raise DataError(f'{path} holds no class names, expected {{"semseg": ["road", "car"]}}')
    return names


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is no number of pixels, expected at least 1")
    return value
