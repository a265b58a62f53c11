"""``sinewich predict WORKDIR FILE... --out DIR``: images, or files of texts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="a run's work directory")
    parser.add_argument(
        "files",
        metavar="FILE",
        type=Path,
        nargs="+",
        help='JPEG or PNG images; for a run on texts .txt, a text a line, or .jsonl, a line {"a": '
        'text, "b": second text of a pair}; or folders of them',
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to write")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="predict only these")
    parser.add_argument(
        "--side",
        type=_positive,
        metavar="PIXELS",
        help="shorter side at which the network looks at images; by default that of its training "
        "images",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help='JSON with class names, {"semseg": ["road", "car"]}',
    )


def run(arguments: argparse.Namespace) -> int:
    """Predicts every image, or answers about every text; writes one file a task for each file."""
    from sinewich_jax.train import cache, texts, workdir

    about_texts = texts.is_text(workdir.read_config(arguments.workdir))
    cache.enable_compilation_cache()
    return (_answer if about_texts else _look)(arguments)


def _answer(arguments: argparse.Namespace) -> int:
    from sinewich_jax import tasks
    from sinewich_jax.data.text import lines
    from sinewich_jax.errors import ConfigError, DataError
    from sinewich_jax.train import predict_texts
    from sinewich_jax.train.progress import progress_bar

    if arguments.side is not None:
        raise ConfigError("--side is about images, and the tasks of the run read texts")
    paths = find_texts(arguments.files)
    found = {name: lines.read_texts(path) for name, path in paths.items()}
    predictor = predict_texts.TextPredictor(arguments.workdir, arguments.tasks)
    shown = tasks.with_class_names(predictor.tasks, _class_names(arguments.classes))
    given_files = {path.resolve() for path in paths.values()}
    for name in paths:
        for task in shown:
            written = predict_texts.answers_path(arguments.out, task.name, name)
            if written.resolve() in given_files:
                raise DataError(f"the answers would replace {written}; choose another --out")
    count, cut = sum(map(len, found.values())), 0
    with progress_bar("answering", count) as advance:
        before = 0
        for name, given in found.items():
            place, start = paths[name], before
            answers = predictor(
                given,
                lambda number, place=place: f"line {number + 1} of {place}",
                lambda done, start=start, note=place.name: advance(start + done, note=note),
            )
            for task in shown:
                predict_texts.save_answers(arguments.out, name, task, given, answers)
            before, cut = before + len(given), cut + answers.cut
    short = f", {cut} cut at {predictor.max_tokens} tokens" if cut else ""
    print(f"{count} texts{short}, step {predictor.step}")
    print(f"written: {', '.join(f'{arguments.out / task.name}' for task in shown)}")
    return 0


def _look(arguments: argparse.Namespace) -> int:
    from sinewich_jax import report, storage, tasks
    from sinewich_jax.data.files import read_image
    from sinewich_jax.train import predict
    from sinewich_jax.train.progress import progress_bar

    paths = find_images(arguments.files)
    predictor = predict.Predictor(arguments.workdir, arguments.tasks, arguments.side)
    names = _class_names(arguments.classes)
    shown = tasks.with_class_names(predictor.tasks, names)
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

    return _find(given, IMAGE_SUFFIXES, "image")


def find_texts(given: list[Path]) -> dict[str, Path]:
    """The files of texts by the name of what is written for them; as :func:`find_images`."""
    from sinewich_jax.data.text.lines import ENDINGS

    return _find(given, ENDINGS, "text file")


def _find(given: list[Path], endings: Sequence[str], what: str) -> dict[str, Path]:
    from sinewich_jax.errors import DataError

    found: dict[str, Path] = {}
    for path in given:
        if not path.exists():
            raise DataError(f"{path} does not exist, expected {what}s or folders of them")
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.name.lower().endswith(tuple(endings)))
            if not files:
                raise DataError(f"{path} holds no {what}, expected names in {', '.join(endings)}")
        for file in files:
            name = file.name.removesuffix(".gz")
            name = name.removesuffix(Path(name).suffix)
            if name in found:
                raise DataError(
                    f"{file} and {found[name]} would both be written as {name!r}; rename "
                    "one, or predict them into two folders"
                )
            found[name] = file
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
