"""The weights of one task without adapters, leaf by leaf.

Shared LoRA, its sine at a fixed frequency, and task kernels of size 1 are linear maps that are
added to a frozen one, so each sum is a plain kernel (T-merge). :mod:`~sinewich_jax.convert.fold`
makes a network of them, merging reads them one at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinewich_jax.convert.geometry import parameter_shapes
from sinewich_jax.core import trees
from sinewich_jax.errors import CheckpointError, ConfigError, did_you_mean
from sinewich_jax.nn.layers import Dense
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.nn.swin import Swin
from sinewich_jax.nn.task_kernel import TaskSpec

_PARAMS = "params/backbone/"
_LORA = re.compile(r"(.*)/lora_(up|down)")
_TASK = re.compile(r"stage\d+_block\d+/(fc1|fc2)/task/(up|down|gain)")
_LAYERS = ("fc1", "fc2")


class TaskWeights:
    """One task's backbone as plain weights in float32, each computed when it is asked for.

    Attributes:
      task: its name.
      index: its place among the heads.
      swin: the plain network.
      params: path -> shape, every parameter of ``swin``.
      branches: path -> shape, the task's MLPs beside it, see
        :class:`~sinewich_jax.convert.fold.Folded`.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        names: Iterable[str],
        read: Callable[[str], Any],
        task: str,
    ) -> None:
        """Reads nothing yet.

        Args:
          model: a trained multi-task model with a Swin.
          names: paths of its variables, ``params/...`` and, with an anchored start, ``anchor/...``.
          read: path -> array.
          task: one of its heads.

        Raises:
          ConfigError: no such task, or a backbone that is no Swin.
          CheckpointError: a parameter that is no linear map of single tokens.
        """
        heads = [name for name, _ in model.heads]
        if task not in heads:
            raise ConfigError(f"the model has no task {task!r}{did_you_mean(task, heads)}")
        if reason := obstacle(model):
            raise ConfigError(
                f"{reason}, so no plain Swin computes what task {task!r} does; export the whole "
                "model as a program, FILE.stablehlo"
            )
        backbone = model.backbone
        self.task = task
        self.swin = backbone.clone(
            parent=None, lora_rank=0, lora_merging=False, task=None, dtype=jnp.float32
        )
        self.params = parameter_shapes(self.swin)
        self.branches: dict[str, tuple[int, ...]] = {}
        self._model, self._names, self._read = model, frozenset(names), read
        self.index = heads.index(task)
        # Paths that the task has for itself: its kernels by layer, the biases of its branches.
        self._kernels: dict[str, tuple[str, str]] = {}
        self._biases: dict[str, str] = {}
        _check_names(
            [n.removeprefix(_PARAMS) for n in self._names if n.startswith(_PARAMS)], self.params
        )
        if backbone.task is None:
            return
        last = len(backbone.depths) - 1
        for stage, depth in enumerate(backbone.depths):
            for layer in _LAYERS:
                module = f"stage{stage}_block{depth - 1}/{layer}"
                own = module if stage == last else f"stage{stage}/{layer}"
                self._kernels[f"{own}/kernel"] = (module, f"stage{stage}/{layer}")
                if stage != last:
                    self._biases[f"{own}/bias"] = f"{module}/bias"
                    for leaf in ("kernel", "bias"):
                        self.branches[f"{own}/{leaf}"] = self.params[f"{module}/{leaf}"]

    @functools.cached_property
    def frequencies(self) -> dict[str, np.ndarray]:
        """Those of all tasks (T,) by layer, ``decoder`` too."""
        own = trees.unflatten_paths(self._read_all("params/(clock|tokens)/.*"))
        frequencies = self._model.apply(own, method="frequencies")
        return {layer: np.asarray(values) for layer, values in frequencies.items()}

    def leaf(self, path: str) -> np.ndarray:
        """One of :attr:`params` or :attr:`branches`: what is frozen, with what adapters add."""
        if path in self._kernels:
            return self._task_kernel(*self._kernels[path])
        path = self._biases.get(path, path)
        leaf = np.asarray(self._read(f"{_PARAMS}{path}")).astype(np.float32)
        module = path.removesuffix("/kernel")
        if f"{_PARAMS}{module}/lora_down" in self._names:
            leaf = leaf + self._low_rank_update(module, leaf)
        return leaf

    def _low_rank_update(self, module: str, kernel: np.ndarray) -> np.ndarray:
        """What the shared LoRA adds to a linear map, (in, out).

        ``Dense.low_rank`` is linear in its input, plain or under a sine, so what it makes of the
        unit vectors is the update itself, and the formula stays in one place.
        """
        backbone = self._model.backbone
        own = {
            name: np.asarray(self._read(f"{_PARAMS}{module}/{name}"))
            for name in ("lora_down", "lora_up")
        }
        dense = Dense(
            *kernel.shape,
            use_bias=False,
            lora_rank=own["lora_down"].shape[-1],
            lora_scale=backbone.lora_scale,
            # Patch merging carries a plain LoRA whatever the blocks have.
            lora_frequency=None if module.startswith("merge") else backbone.lora_frequency,
        )
        with jax.default_matmul_precision("highest"):
            return np.asarray(_unit_response(dense, {"params": {"kernel": kernel, **own}}))

    def _task_kernel(self, module: str, layer: str) -> np.ndarray:
        """The task's kernel (in, out) of a linear map, by the model's rule."""
        place = f"backbone/{module}/"
        own = self._read_all(rf"(params|anchor)/{place}(kernel|task/.*)")
        own = {path.replace(place, ""): leaf for path, leaf in own.items()}
        dense = Dense(*own["params/kernel"].shape, use_bias=False, task=self._model.backbone.task)
        kernels = dense.apply(
            trees.unflatten_paths(own), self.frequencies.get(layer), method="task_kernels"
        )
        return np.asarray(kernels[self.index if len(kernels) > 1 else 0])

    def _read_all(self, pattern: str) -> dict[str, np.ndarray]:
        names = sorted(name for name in self._names if re.fullmatch(pattern, name))
        return {name: np.asarray(self._read(name)) for name in names}


def obstacle(model: MultiTaskModel) -> str | None:
    """Why the adapters of a model do not fold into a plain Swin, or None where they do.

    Args:
      model: a multi-task model.

    Returns:
      The beginning of a sentence.
    """
    if not isinstance(model, MultiTaskModel):
        return f"the network is a {type(model).__name__}, expected one on a Swin"
    backbone = model.backbone
    if not isinstance(backbone, Swin):
        return f"the backbone is a {type(backbone).__name__}, expected a Swin"
    if backbone.prompts:
        return "task tokens take part in the attention of this model"
    if backbone.task is not None and not isinstance(backbone.task, TaskSpec):
        return f"the tasks of this model part by {type(backbone.task).__name__}"
    if backbone.task is not None and backbone.task.kernel_size > 1:
        size = backbone.task.kernel_size
        return f"the task kernels of this model are {size} x {size} convolutions"
    return None


def _check_names(names: Sequence[str], shapes: Mapping[str, Any]) -> None:
    """Refuses parameters of a backbone that are neither plain nor linear maps beside plain ones."""
    for path in names:
        if path not in shapes and not _LORA.fullmatch(path) and not _TASK.fullmatch(path):
            raise CheckpointError(
                f"the backbone parameter {path!r} cannot be folded into a plain Swin; expected "
                "shared LoRA and task kernels of size 1, which are linear maps of single tokens "
                "(kernels over neighbours and tokens in the windows are not)"
            )
    if missing := sorted(shapes.keys() - set(names)):
        raise CheckpointError(
            f"the backbone lacks {missing[0]!r}, which a plain Swin has; its adapters cannot be "
            "folded"
        )


# It runs once a shape: optimising its machine code takes longer than that saves.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def _unit_response(dense: Dense, variables: Any) -> jax.Array:
    return dense.apply(variables, jnp.eye(dense.in_features), method="low_rank")
