"""Kicks of whole classes of uncoupled units at once."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .flows import AbstractFlows, Part


class ClassFlows(AbstractFlows):
    """y of the antisymmetric form is a tuple of the classes' own parts."""

    def __init__(self, step, batch, grid):
        super().__init__(step, batch, grid)
        self.classes = self.cell.operator.coloring()
        self.kicks = len(self.classes)
        self.names += range(self.kicks)

    def begin(self, x, t):
        if not self.antisymmetric:
            return x, None
        return self.preactivation(x, t), tuple(x[c] for c in self.classes)

    def end(self, state):
        z, y = state
        if not self.antisymmetric:
            return z
        order = np.concatenate([np.arange(self.cell.size)[c] for c in self.classes])
        return jnp.concatenate(y)[np.argsort(order)]

    def kick(self, part: Part, state):
        c = part.name
        assert isinstance(c, int)

        def kicked(u, state):
            z, y = state
            units = self.classes[c]
            h = part.coefficient * self.dt
            own = None if y is None else y[c]
            pulse = self.scale(h) * self.kick_of(h, z[units], own, self._damping_of(units))
            if y is not None:
                y = (*y[:c], y[c] + pulse, *y[c + 1 :])
            return z + self.snapped(self.cell.operator.color_mv(c, pulse)), y

        return self.each(kicked, state)

    def _damping_of(self, units) -> Array | None:
        if self.cell.damping is None or self.cell.damping.ndim == 0:
            return self.cell.damping
        return self.cell.damping[units]
