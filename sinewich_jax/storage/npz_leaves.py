"""``.npz`` files leaf by leaf: a zip archive with one array in each member."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from sinewich_jax.errors import CheckpointError
from sinewich_jax.storage.leaves import LeafSource, LeafSpec

_SUFFIX = ".npy"
_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class NpzLeaves(LeafSource):
    """See :func:`sinewich_jax.storage.opening.open_leaves`; the archive's checksums are checked."""

    def __init__(self, path: Path) -> None:
        """Reads the header of every member.

        Raises:
          CheckpointError: not a whole archive, or it holds pickled objects.
        """
        self._archive = None
        try:
            self._archive = zipfile.ZipFile(path)
            members = self._archive.namelist()
            specs = {member.removesuffix(_SUFFIX): self._header(member) for member in members}
        except _DAMAGE as error:
            self.close()
            raise CheckpointError(
                f"{path} is not a whole .npz file of plain arrays ({error}); fetch or write it "
                "again"
            ) from error
        super().__init__(path, specs)
        objects = [name for name, spec in specs.items() if spec.dtype.hasobject]
        if objects or len(specs) != len(members):
            self.close()
            what = f"pickled objects in {objects[0]!r}" if objects else "a name twice"
            raise CheckpointError(f"{path} holds {what}; expected plain arrays, write it again")

    def _header(self, member: str) -> LeafSpec:
        with self._archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise ValueError(f"{member} has the unknown version {version}")
            shape, _, dtype = read(file)
        return LeafSpec(tuple(shape), dtype)

    def read(self, name: str) -> np.ndarray:
        """See :meth:`LeafSource.read`."""
        self.spec(name)
        try:
            with self._archive.open(name + _SUFFIX) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except _DAMAGE as error:
            raise CheckpointError(
                f"the leaf {name!r} of {self.path} cannot be read ({error}); fetch or write the "
                "file again"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        if self._archive is not None:
            self._archive.close()
