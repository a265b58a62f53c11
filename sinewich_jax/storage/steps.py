"""The step folders of a checkpoint directory: which are there, which whole, which in the way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jax

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.agree import barrier, from_main_process
from sinewich_jax.storage.manifest import MANIFEST, Manifest, verify

_STEP = re.compile(r"\d+")


@dataclass(frozen=True)
class StepFolders:
    """The names in one checkpoint directory: ``10`` is a step, anything else is not.

    Attributes:
      directory: need not exist.
    """

    directory: Path

    def present(self) -> list[int]:
        """Every step that has a folder, damaged or not, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self.directory.iterdir()
            if _STEP.fullmatch(path.name) and path.is_dir()
        )

    def committed(self) -> list[int]:
        """The steps whose save finished, oldest first; their checksums are not looked at."""
        return [step for step in self.present() if (self.folder(step) / MANIFEST).is_file()]

    def folder(self, step: int) -> Path:
        """Where a step lies or would lie."""
        return self.directory / str(step)

    def temporary(self, step: int) -> list[Path]:
        """Folders of saves of this step that are under way or were killed."""
        return sorted(self.directory.glob(f"{step}.orbax-checkpoint-tmp*"))

    def existing(self, step: int) -> Path:
        """The folder of a step that has to be there."""
        if step not in self.present():
            raise CheckpointError(
                f"there is no step {step} in {self.directory}; found "
                f"{', '.join(map(str, self.committed())) or 'none'}"
            )
        return self.folder(step)


def newest_whole(steps: StepFolders) -> tuple[Manifest | None, list[tuple[int, str]]]:
    """The newest step that verifies.

    On several processes the main one reads the checksums and all take its word.

    Returns:
      ``(manifest or None, [(skipped step, reason), ...])``, newest first.
    """
    step: int | None = None
    skipped: list[tuple[int, str]] = []
    if jax.process_index() == 0:
        for candidate in reversed(steps.present()):
            reason = damage(steps.folder(candidate))
            if reason is None:
                step = candidate
                break
            skipped.append((candidate, reason))
    step, skipped = from_main_process([step, skipped])
    manifest = None if step is None else verify(steps.folder(step), under=MANIFEST)
    return manifest, [(number, reason) for number, reason in skipped]


def damage(folder: Path) -> str | None:
    """What is wrong with the step in ``folder``, in one sentence, or None when it is whole."""
    try:
        verify(folder)
    except CheckpointError as error:
        return str(error)
    return None


def clear_the_way(steps: StepFolders, step: int) -> bool:
    """Makes room for ``step``: damaged steps of this number or later are set aside.

    They are renamed to ``<step>.damaged``, never deleted, so that one may still look into them.

    Returns:
      Whether anything was renamed.

    Raises:
      CheckpointError: a whole step of this number or later is there.
    """
    later = [found for found in steps.present() if found >= step]
    for found in later:
        if damage(steps.folder(found)) is None:
            raise CheckpointError(
                f"step {step} cannot be saved in {steps.directory} because step {found} is already "
                "there; go on from that step or choose another directory"
            )
    if later:
        barrier("before setting damaged steps aside")
        if jax.process_index() == 0:
            for found in later:
                _set_aside(steps.folder(found))
        barrier("after setting damaged steps aside")
    return bool(later)


def _set_aside(folder: Path) -> None:
    place = folder.with_name(f"{folder.name}.damaged")
    number = 1
    while place.exists():
        number += 1
        place = folder.with_name(f"{folder.name}.damaged-{number}")
    folder.rename(place)
