"""Dynamics of recurrent neural networks with skew-symmetric weights, in JAX."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

# First, and from here: deeper down a stack of imports, calls of JAX's own import straddle the end
# of a chunk of CPython's frame stack and map memory each time (a seventh of it all on Python 3.12).
import jax as _jax  # noqa: F401

from . import plot as plot
from ._activation import ELU as ELU
from ._activation import ISRU as ISRU
from ._activation import AbstractActivation as AbstractActivation
from ._activation import Arctan as Arctan
from ._activation import AsymmetricTanh as AsymmetricTanh
from ._activation import Erf as Erf
from ._activation import FunctionActivation as FunctionActivation
from ._activation import HardTanh as HardTanh
from ._activation import Identity as Identity
from ._activation import LeakyReLU as LeakyReLU
from ._activation import RectifiedTanh as RectifiedTanh
from ._activation import ReLU as ReLU
from ._activation import Sigmoid as Sigmoid
from ._activation import Softplus as Softplus
from ._activation import Softsign as Softsign
from ._activation import Tanh as Tanh
from ._cell import AbstractCell as AbstractCell
from ._cell import AntisymmetricCell as AntisymmetricCell
from ._cell import EnergyShell as EnergyShell
from ._cell import PoissonCell as PoissonCell
from ._exact import backbone as backbone
from ._exact import energy_of_period as energy_of_period
from ._exact import equilibrium_frequency as equilibrium_frequency
from ._exact import euler_energy as euler_energy
from ._exact import euler_energy_linear as euler_energy_linear
from ._exact import euler_max_step as euler_max_step
from ._exact import harmonics as harmonics
from ._exact import monodromy as monodromy
from ._exact import orbit as orbit
from ._exact import period as period
from ._exact import shell_multiplier as shell_multiplier
from ._invariants import casimir_drift as casimir_drift
from ._invariants import energy_drift as energy_drift
from ._invariants import poisson_defect as poisson_defect
from ._invariants import reversibility_error as reversibility_error
from ._kernel import Kernel as Kernel
from ._model_file import load_module as load_module
from ._model_file import save_module as save_module
from ._simulate import ReversibleAdjoint as ReversibleAdjoint
from ._simulate import Threads as Threads
from ._simulate import reversal_interval as reversal_interval
from ._simulate import simulate as simulate
from ._skew import AbstractSkewOperator as AbstractSkewOperator
from ._skew import BandedSkew as BandedSkew
from ._skew import BipartiteSkew as BipartiteSkew
from ._skew import BlockSkew as BlockSkew
from ._skew import CirculantSkew as CirculantSkew
from ._skew import DenseSkew as DenseSkew
from ._skew import LowRankSkew as LowRankSkew
from ._skew import SparseSkew as SparseSkew
from ._skew import SpectralSkew as SpectralSkew
from ._solver import RK4 as RK4
from ._solver import BlanesMoan4 as BlanesMoan4
from ._solver import DiscreteGradient as DiscreteGradient
from ._solver import ExactLinear as ExactLinear
from ._solver import ImplicitMidpoint as ImplicitMidpoint
from ._solver import Strang as Strang
from ._solver import Suzuki4 as Suzuki4
from ._solver import Taylor as Taylor
from ._solver import Yoshida4 as Yoshida4
from ._solver import Yoshida6 as Yoshida6

if _TYPE_CHECKING:
    from ._analysis import Bifurcation as Bifurcation
    from ._analysis import CycleFamily as CycleFamily
    from ._analysis import FixedPoints as FixedPoints
    from ._analysis import FloquetMultipliers as FloquetMultipliers
    from ._analysis import Frequencies as Frequencies
    from ._analysis import FrequencyMap as FrequencyMap
    from ._analysis import Indicator as Indicator
    from ._analysis import LyapunovSpectrum as LyapunovSpectrum
    from ._analysis import OrbitFamily as OrbitFamily
    from ._analysis import PeriodicOrbit as PeriodicOrbit
    from ._analysis import PoincareSection as PoincareSection
    from ._analysis import PowerSpectrum as PowerSpectrum
    from ._analysis import cycle_family as cycle_family
    from ._analysis import fixed_points as fixed_points
    from ._analysis import floquet as floquet
    from ._analysis import frequencies as frequencies
    from ._analysis import frequency_map as frequency_map
    from ._analysis import gali as gali
    from ._analysis import lyapunov_spectrum as lyapunov_spectrum
    from ._analysis import max_lyapunov as max_lyapunov
    from ._analysis import orbit_family as orbit_family
    from ._analysis import periodic_orbit as periodic_orbit
    from ._analysis import poincare_section as poincare_section
    from ._analysis import power_spectrum as power_spectrum
    from ._analysis import sali as sali
    from ._analysis import verdict as verdict
    from ._ensemble import Sweep as Sweep
    from ._ensemble import reductions as reductions
    from ._ensemble import sweep as sweep
    from ._train import EncodedOscillator as EncodedOscillator
    from ._train import Fit as Fit
    from ._train import Oscillator as Oscillator
    from ._train import Progress as Progress
    from ._train import Readout as Readout
    from ._train import fit as fit
    from ._train import fit_encoder as fit_encoder
    from ._train import initialisers as initialisers
    from ._train import losses as losses
    from ._train import signals as signals

__version__ = "0.1.0"

# Rooms that are opened when something of theirs is first asked for: not everybody needs them, and
# they are a tenth of what `import jaxdyn` would take.
_ROOMS = {
    "_analysis": (
        "Bifurcation",
        "cycle_family",
        "CycleFamily",
        "fixed_points",
        "FixedPoints",
        "floquet",
        "FloquetMultipliers",
        "Frequencies",
        "frequencies",
        "frequency_map",
        "FrequencyMap",
        "gali",
        "Indicator",
        "lyapunov_spectrum",
        "LyapunovSpectrum",
        "max_lyapunov",
        "orbit_family",
        "OrbitFamily",
        "periodic_orbit",
        "PeriodicOrbit",
        "poincare_section",
        "PoincareSection",
        "power_spectrum",
        "PowerSpectrum",
        "sali",
        "verdict",
    ),
    "_ensemble": (
        "reductions",
        "Sweep",
        "sweep",
    ),
    "_train": (
        "EncodedOscillator",
        "Fit",
        "fit",
        "fit_encoder",
        "initialisers",
        "losses",
        "Oscillator",
        "Progress",
        "Readout",
        "signals",
    ),
}


def __getattr__(name: str) -> object:
    for room, names in _ROOMS.items():
        if name in names:
            module = _importlib.import_module(f".{room}", __name__)
            globals().update({each: getattr(module, each) for each in names})
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _ROOMS.values() for name in names)})
