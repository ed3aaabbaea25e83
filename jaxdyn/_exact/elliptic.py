"""Complete elliptic integrals as functions of the energy H, with parameter m = 1 - exp(-2H).

K(m) and B(m) = (E(m) - (1 - m) K(m)) / m = dK/dH are all that the closed forms need:
K - E = m (K - B) and E/K - (1 - m) = m B/K, neither of which then loses digits at either end.
Reference: NIST Digital Library of Mathematical Functions, 19.8 (arithmetic-geometric mean) and
19.12 (expansion at m = 1).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# Above this energy 1 - m < 9e-7 and three terms of the expansion at m = 1 reach 1e-17; below it
# six arithmetic-geometric means do.
_SWITCH = 7.0
_MEANS = 6


def _expansion(
    energy: Float[Array, "*s"], complement: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """K and dK/dH by sum_n (1/2)_n^2 / n!^2 c^n (H + d_n), c = complement = exp(-2H)."""
    weights = (1.0, 1 / 4, 9 / 64)
    shifts = (2 * math.log(2.0), 2 * math.log(2.0) - 1, 2 * math.log(2.0) - 7 / 6)
    first, slope = jnp.zeros_like(energy), jnp.zeros_like(energy)
    for n, (weight, shift) in reversed(list(enumerate(zip(weights, shifts, strict=True)))):
        first = first * complement + weight * (energy + shift)
        slope = slope * complement + weight * (1 - 2 * n * (energy + shift))
    return first, slope


def _means(
    root: Float[Array, "*s"], parameter: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """K and B from a_0 = 1, g_0 = root = sqrt(1 - m); parameter = m.

    With c_n = (a_{n-1} - g_{n-1})/2 = m r_n, K = pi/(2 a), B = K (1/2 - m sum_n 2^(n-1) r_n^2).
    The recurrence r_{n+1} = m r_n^2/(4 a_{n+1}) subtracts nothing.
    """
    ratio = 1 / (2 * (1 + root))
    a, g = (1 + root) / 2, jnp.sqrt(root)
    total = ratio * ratio
    for n in range(1, _MEANS):
        a, g = (a + g) / 2, jnp.sqrt(a * g)
        ratio = parameter * ratio * ratio / (4 * a)
        total = total + 2.0**n * ratio * ratio
    first = math.pi / (a + g)
    return first, first * (0.5 - parameter * total)


def integrals(energy: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """K(m) and B(m) = dK/dH at m = 1 - exp(-2 energy), for any energy >= 0."""
    far = energy > _SWITCH
    near_energy = jnp.where(far, _SWITCH, energy)
    near = _means(jnp.exp(-near_energy), -jnp.expm1(-2 * near_energy))
    away = _expansion(energy, jnp.exp(-2 * energy))
    return jnp.where(far, away[0], near[0]), jnp.where(far, away[1], near[1])


def complementary(energy: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """K(1 - m) at m = 1 - exp(-2 energy), for any energy > 0; it grows like log(4/sqrt m) at 0."""
    parameter = -jnp.expm1(-2 * energy)
    root = jnp.sqrt(parameter)
    far = root < math.exp(-_SWITCH)
    near, _ = _means(jnp.where(far, math.exp(-_SWITCH), root), 1 - parameter)
    away, _ = _expansion(-jnp.log(root), parameter)
    return jnp.where(far, away, near)
