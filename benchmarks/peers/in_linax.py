"""LinOSS as linax has it (PyPI, Python 3.12), trained to forecast the next sample.

Two blocks without dropout. Their BatchNorm is left out: of a single sequence it would be a fixed
scale. linax computes whole sequences with a parallel scan and cannot go on from a state, which a
forecast does: here its layers' recurrence runs step by step (tested against linax's scan; of 400
samples on two cores a gradient takes 5 ms in place of 4, and compiles in 1.6 s in place of 6.7).
In float32 whatever the precision outside.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..forecast_training import Forecast, Peer, fit_and_forecast, stretches
from . import without
from .in_equinox import free_run

BLOCKS, WIDTH, STATES = 2, 16, 32


def missing() -> str | None:
    return without("linax")


def linoss(values: np.ndarray, dt: float, n_ahead: int, *, seconds: float, key: Array) -> Forecast:
    """LinOSS-IMEX with damping, which is linax's default.

    Without, forecasts of tones and of van der Pol's oscillator were worse from one window on.
    """
    with jax.enable_x64(False):
        model = LinOSS(values.shape[1], key)
        peer = Peer(model, LinOSS.predict, stretches, free=False)
        return fit_and_forecast(peer, values, n_ahead, seconds=seconds, key=key)


class LinOSS(eqx.Module):
    """The next sample is this one plus what linax's model makes of those up to it."""

    model: Any
    first: Array

    def __init__(self, m: int, key: Array):
        from linax.blocks.standard import StandardBlockConfig
        from linax.encoder.linear import LinearEncoderConfig
        from linax.heads.regression import RegressionHeadConfig
        from linax.models import LinOSSConfig
        from linax.sequence_mixers.linoss import LinOSSSequenceMixerConfig

        config = LinOSSConfig(
            num_blocks=BLOCKS,
            encoder_config=LinearEncoderConfig(in_features=m, out_features=WIDTH),
            sequence_mixer_config=LinOSSSequenceMixerConfig(state_dim=STATES),
            block_config=StandardBlockConfig(drop_rate=0.0),
            head_config=RegressionHeadConfig(out_features=m, reduce=False),
        )
        model = config.build(key=key)
        self.model = eqx.tree_at(
            lambda model: [block.norm for block in model.blocks],
            model,
            replace_fn=lambda norm: _keep,
        )
        self.first = jnp.zeros(m)

    def predict(self, values: Array, teacher: Array) -> Array:
        state = [jnp.zeros((2, STATES), complex) for _ in self.model.blocks]
        return free_run(self.step, state, self.first, values, teacher)

    def in_parallel(self, values: Array) -> Array:
        """`predict` with measured samples throughout, by linax's own modules."""
        before = jnp.concatenate([self.first[None], values[:-1]])
        x, _ = self.model.encoder(before, None)
        for block in self.model.blocks:
            x, _ = block(x, None, key=jr.key(0))
        # RegressionHead(reduce=False) of linax 0.1.0 applies its linear layer to the wrong axis.
        return before + jax.vmap(self.model.head.linear)(x)

    def step(self, state: list, last: Array) -> tuple[list, Array]:
        x, new = self.model.encoder.linear(last), []
        for block, (v, y) in zip(self.model.blocks, state, strict=True):
            mixer, skip = block.sequence_mixer, x
            h, G = jax.nn.sigmoid(mixer.steps), jax.nn.relu(mixer.G_diag)
            # Between these the recurrence is stable and oscillates.
            middle, width = (2 + h * G) / h**2, 2 * jnp.sqrt(1 + h * G) / h**2
            A = jnp.clip(mixer.A_diag, middle - width, middle + width)
            B, C = (p[..., 0] + 1j * p[..., 1] for p in (mixer.B, mixer.C))
            velocity = (v + h * (B @ x - A * y)) / (1 + h * G)
            position = y + h * velocity
            x = (C @ position).real + mixer.D * x
            x = skip + block.channel_mixer(jax.nn.gelu(x))
            new.append(jnp.stack([velocity, position]))
        return new, last + self.model.head.linear(x)


def _keep(x: Array, state: Any) -> tuple[Array, Any]:
    return x, state
