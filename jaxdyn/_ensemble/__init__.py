"""Ensembles larger than memory: in chunks, reduced on the fly, into a store that can be resumed."""

from . import reductions as reductions
from .sweep import Sweep as Sweep
from .sweep import sweep as sweep
