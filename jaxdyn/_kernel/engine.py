"""What a user says of kernels, and what is refused before anything is computed."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import DotAlgorithmPreset

from .._types import is_traced

# Trajectories of a program, one for each thread of four warps; and with products of matrices.
DEFAULT_TILE, DEFAULT_COLUMNS = 128, 32
LARGEST_TILE = 1024
WARP = 32
# The least that Triton multiplies.
LEAST_COLUMNS = 16
# Of what a factor is made in products of that precision: the significant bits of a part, those of
# numbers stored as 1.f not counted, and how many parts.
PRECISIONS = {
    DotAlgorithmPreset.BF16_BF16_F32_X9: (7, 3),
    DotAlgorithmPreset.F32_F32_F32: (23, 1),
    DotAlgorithmPreset.TF32_TF32_F32_X3: (10, 2),
    DotAlgorithmPreset.TF32_TF32_F32: (10, 1),
    DotAlgorithmPreset.BF16_BF16_F32: (7, 1),
}
_PRECISIONS = f"None or a jax.lax.DotAlgorithmPreset out of {', '.join(p.name for p in PRECISIONS)}"
# Triton's oldest GPU (Ampere).
LEAST_CAPABILITY = 8.0


class Kernel(eqx.Module):
    """Does all steps of a fixed-step solve in one GPU program, for `jaxdyn.simulate(..., engine=)`.

    The states of a tile of trajectories stay on the chip from the first step to the last, and only
    x0 and what is saved goes through memory. For many trajectories, with [`jaxdyn.RK4`][] (of any
    function f(t, x, args) too), [`jaxdyn.Taylor`][], [`jaxdyn.Strang`][] or another splitting.

    Up to 16 units the step of one trajectory is taken apart into operations on single numbers, each
    done for a tile of trajectories at once, one per thread. From 17 to 128 units W x is a product
    of matrices, W and a tile, with units which all kick each other in two halves. Under `jax.vmap`
    over cells, each has tiles of its own, of 16 trajectories or more: one for each cell leaves most
    of them empty. What products cannot serve is taken apart too, up to 64 units and 10,000
    operations a step. (The first call of a program of thousands of operations can take minutes.)

    Sums are in the precision of x0, and products too unless `precision` says otherwise. The
    functions are those of CUDA's libdevice, so that results differ from the plain solve by
    rounding.

    With a [`jaxdyn.ReversibleAdjoint`][] kernels undo the steps too and sum their gradients up,
    from each save to the one before, if every save is on the grid of steps. Where state, cotangent,
    and all numbers that the cell and an input have, fit into a thread's registers (up to 9 units
    with a dense W in float32, 6 in float64), it does that; else products of matrices do, up to 128
    units in float32 (96 in float64; [`jaxdyn.Taylor`][] 64), but not on a `grid`, where products
    would have to be rounded as they were. They keep sums as large as W for every tile of 16
    trajectories: 64 KiB at 128 units. Under `jax.vmap` (of several, the innermost) they are taken
    where each member has a cell or 16 trajectories of its own. All other gradients, in forward and
    reverse mode, are those of the plain solve, which is run again for them without a kernel. What
    `saveat.fn` makes of a state is worked out after the solve, from states which are all kept until
    then.

    Speed on a GPU: not measured, hence never chosen by default. It is written in Pallas, through
    Triton, which JAX deprecates from 0.11.2 on; NVIDIA GPUs of compute capability 8.0 or higher.

    **Arguments:**

    - `tile`: trajectories per program, a power of two up to 1024; None takes 128, or as many as
      hold the batch, and for products of matrices, which take at least 16, these for a small batch
      or a gradient and else 32.
    - `precision`: of the products of matrices, for x0 in float32, as a
      `jax.lax.DotAlgorithmPreset`. None is `BF16_BF16_F32_X9`: each factor goes exactly into three
      parts of 8 bits, and of the products of parts, on tensor cores, all are summed in float32 but
      the smallest, at 2^-32. That is float32's own precision, of which `F32_F32_F32` has no more;
      without tensor cores its program spills registers. `TF32_TF32_F32_X3` leaves out more (two
      parts of 11 bits); inputs of 11 and of 8 bits are `TF32_TF32_F32` (relative error 5e-4) and
      `BF16_BF16_F32` (4e-3).
    - `interpret`: run the program through Pallas' interpreter, on any device: for tests, slow.

    **Raises:** TypeError or ValueError when `tile` is no such number, `precision` none of these or
    `interpret` no bool.
    """

    tile: int | None = eqx.field(static=True)
    interpret: bool = eqx.field(static=True)
    precision: DotAlgorithmPreset | None = eqx.field(static=True)

    def __init__(
        self,
        tile: int | None = None,
        interpret: bool = False,
        *,
        precision: Any = None,
    ):
        if tile is not None:
            if isinstance(tile, bool) or not isinstance(tile, int | np.integer):
                raise TypeError(f"`tile` must be a power of two such as 128 or None, got {tile!r}.")
            if not 1 <= tile <= LARGEST_TILE or tile & (tile - 1):
                raise ValueError(
                    f"`tile` must be a power of two from 1 to {LARGEST_TILE}, got {tile}; None "
                    f"takes {DEFAULT_TILE}."
                )
            tile = int(tile)
        if not isinstance(interpret, bool):
            raise TypeError(f"`interpret` must be True or False, got {interpret!r}.")
        if precision is not None and not isinstance(precision, DotAlgorithmPreset):
            raise TypeError(f"`precision` must be {_PRECISIONS}, got {precision!r}.")
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"`precision` must be {_PRECISIONS}, got {precision}.")
        self.tile = tile
        self.interpret = interpret
        self.precision = precision

    def lanes(self, batch: int) -> int:
        """The tile of a solve of `batch` trajectories."""
        if self.tile is not None:
            return self.tile
        return min(DEFAULT_TILE, max(WARP, 1 << (batch - 1).bit_length()))

    def warps(self, batch: int) -> int:
        return max(1, self.lanes(batch) // WARP)

    @property
    def products(self) -> DotAlgorithmPreset:
        """The precision of products of matrices in float32."""
        return next(iter(PRECISIONS)) if self.precision is None else self.precision

    def columns(self, batch: int, undone: bool = False) -> int:
        """The tile of a solve of `batch` trajectories with products of matrices, or of its undoing,
        which takes more registers: with 32 the loops over single units spill some."""
        if self.tile is not None:
            return max(self.tile, LEAST_COLUMNS)
        return LEAST_COLUMNS if undone or batch <= LEAST_COLUMNS else DEFAULT_COLUMNS


def check_device(kernel: Kernel, x0: Any) -> None:
    """Refuses to run where there is no GPU, or one too old.

    **Raises:** ValueError.
    """
    if kernel.precision is not None and x0.dtype != jnp.float32:
        raise ValueError(
            f"`precision` of jaxdyn.Kernel is for `x0` in float32, and it is in {x0.dtype}; use "
            "x0.astype(jnp.float32), or leave it out."
        )
    if kernel.interpret:
        return
    devices: Any = [jax.devices()[0]] if is_traced(x0) else x0.devices()
    for device in devices:
        if device.platform not in ("gpu", "cuda"):
            raise ValueError(
                f"`engine=jaxdyn.Kernel` is a program for an NVIDIA GPU, and `x0` is on {device}; "
                "leave `engine` out, or try it slowly with engine=jaxdyn.Kernel(interpret=True)."
            )
        capability = getattr(device, "compute_capability", None)
        if capability is None:
            raise ValueError(
                f"`engine=jaxdyn.Kernel` is a program for an NVIDIA GPU, and {device} does not say "
                "its compute capability; leave `engine` out."
            )
        if float(capability) < LEAST_CAPABILITY:
            raise ValueError(
                f"`engine=jaxdyn.Kernel` needs a GPU of compute capability {LEAST_CAPABILITY} or "
                f"higher, and {device} has {capability}; leave `engine` out."
            )
