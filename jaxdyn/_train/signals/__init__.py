"""Signals to learn from: made up, measured, or read from a file. Arrays on the host, in NumPy."""

from .generators import amplitude_modulated as amplitude_modulated
from .generators import lissajous as lissajous
from .generators import quasi_periodic as quasi_periodic
from .generators import stuart_landau as stuart_landau
from .generators import tones as tones
from .limit_cycle import fitzhugh_nagumo as fitzhugh_nagumo
from .limit_cycle import van_der_pol as van_der_pol
from .readers import read as read
from .readers import write as write
from .signal import Signal as Signal
from .sunspots import sunspots as sunspots
