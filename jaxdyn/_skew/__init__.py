"""Real matrices W = -W^T as lineax operators, skew by construction."""

from .banded import BandedSkew as BandedSkew
from .base import AbstractSkewOperator as AbstractSkewOperator
from .bipartite import BipartiteSkew as BipartiteSkew
from .block import BlockSkew as BlockSkew
from .circulant import CirculantSkew as CirculantSkew
from .dense import DenseSkew as DenseSkew
from .formed import FormedSkew as FormedSkew
from .low_rank import LowRankSkew as LowRankSkew
from .sparse import SparseSkew as SparseSkew
from .spectral import SpectralSkew as SpectralSkew
