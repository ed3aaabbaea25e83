"""The real Schur form of a skew matrix, in numpy."""

import numpy as np


def skew_schur(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q orthogonal (n, n) and omega (n // 2,) >= 0, descending, with W = Q diag(J_k, [0]) Q^T.

    J_k = [[0, omega_k], [-omega_k, 0]]. An eigenvector of W for -i omega has real and imaginary
    parts that are orthogonal and equally long, as it is orthogonal to its own conjugate. That
    fails in floating point when omega is tiny beside |W|: the pairs are therefore taken from the
    top, and what is left is projected out and diagonalised again on its own scale. What falls
    below n eps |W| counts as zero.
    """
    n = W.shape[0]
    size = np.abs(W).max()
    if size == 0:
        return np.eye(n), np.zeros(n // 2)
    # In units of the largest entry: neither overflow nor underflow.
    W = W.astype(np.float64) / size
    floor = n * np.finfo(np.float64).eps * np.abs(W).sum(axis=0).max()
    columns = np.zeros((n, 0))
    omega = np.zeros(0)
    rest = np.eye(n)
    while rest.shape[1]:
        part = rest.T @ W @ rest
        values, vectors = np.linalg.eigh(0.5j * (part - part.T))
        top = values[-1]
        if top <= floor:
            break
        # Within a factor 100 of the top the parts are orthogonal to 1e-14.
        chosen = np.flatnonzero(values > 0.01 * top)[::-1]
        u = rest @ vectors[:, chosen] * np.sqrt(2)
        pairs = np.stack([u.imag, u.real], axis=2).reshape(n, -1)
        # Orthonormal to rounding, and a complement that is orthogonal to all that was found.
        columns = np.concatenate([columns, pairs], axis=1)
        omega = np.concatenate([omega, values[chosen]])
        q, r = np.linalg.qr(columns, mode="complete")
        columns = q[:, : columns.shape[1]] * np.sign(np.diagonal(r))
        rest = q[:, columns.shape[1] :]
    Q = np.concatenate([columns, rest], axis=1)
    return Q, size * np.concatenate([omega, np.zeros(n // 2 - omega.size)])
