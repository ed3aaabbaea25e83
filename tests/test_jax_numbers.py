"""The installed jax computes what it should: the reproducer of an excluded version's defect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.core
@pytest.mark.parametrize(("dtype", "rows"), [("float64", 16_385), ("float32", 32_769)])
def test_batched_matvec_then_reduce(dtype, rows):
    """jit(vmap(matvec -> reduce)) on CPU was silently wrong from this many rows in jax 0.10.2.

    https://github.com/jax-ml/jax/issues/39103; met at n = 3, not at 2, 4, 8 or 16.
    """
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 3)).astype(dtype)
    x = rng.standard_normal((rows, 3)).astype(dtype)
    got = jax.jit(jax.vmap(lambda x: jnp.sum(jnp.asarray(w) @ x)))(x)
    want = (x.astype(float) @ w.T.astype(float)).sum(axis=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=50 * np.finfo(dtype).eps)
