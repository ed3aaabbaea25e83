"""What a user says of kernels, and what is refused before anything is computed."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from .._types import is_traced

# Trajectories of a program, one for each thread of four warps.
DEFAULT_TILE = 128
LARGEST_TILE = 1024
WARP = 32
# Triton's oldest GPU (Ampere).
LEAST_CAPABILITY = 8.0


class Kernel(eqx.Module):
    """Does all steps of a fixed-step solve in one GPU program, for `jaxdyn.simulate(..., engine=)`.

    The step of one trajectory is taken apart into operations on single numbers, each done for a
    tile of trajectories at once, one per thread; the states stay in registers from the first step
    to the last, and only x0 and what is saved goes through memory. For few units (up to some 32,
    less for long formulas: the program grows with the operations of a step) and many trajectories,
    with [`jaxdyn.RK4`][], [`jaxdyn.Taylor`][], [`jaxdyn.Strang`][] or another splitting. Under
    `jax.vmap` over cells every trajectory has weights of its own.

    Products and sums are in the precision of x0, never less. The functions are those of CUDA's
    libdevice, so that results differ from the plain solve by rounding.

    Gradients, in forward and reverse mode, are those of the plain solve, which is run again for
    them without a kernel (with a [`jaxdyn.ReversibleAdjoint`][], its solve). What `saveat.fn`
    makes of a state is worked out after the solve, from states which are all kept until then.

    Speed on a GPU: not measured, hence never chosen by default. It is written in Pallas, through
    Triton, which JAX deprecates from 0.11.2 on; NVIDIA GPUs of compute capability 8.0 or higher.

    **Arguments:**

    - `tile`: trajectories per program, a power of two up to 1024; None takes 128, or as many as
      hold the batch.
    - `interpret`: run the program through Pallas' interpreter, on any device: for tests, slow.

    **Raises:** TypeError or ValueError when `tile` is no such number or `interpret` no bool.
    """

    tile: int | None = eqx.field(static=True)
    interpret: bool = eqx.field(static=True)

    def __init__(self, tile: int | None = None, interpret: bool = False):
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
        self.tile = tile
        self.interpret = interpret

    def lanes(self, batch: int) -> int:
        """The tile of a solve of `batch` trajectories."""
        if self.tile is not None:
            return self.tile
        return min(DEFAULT_TILE, max(WARP, 1 << (batch - 1).bit_length()))

    def warps(self, batch: int) -> int:
        return max(1, self.lanes(batch) // WARP)


def check_device(kernel: Kernel, x0: Array) -> None:
    """Refuses to run where there is no GPU, or one too old.

    **Raises:** ValueError.
    """
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
