"""Closed forms: what the dynamics must do, to check solvers against and to plan runs with."""

from .euler import euler_energy as euler_energy
from .euler import euler_energy_linear as euler_energy_linear
from .euler import euler_max_step as euler_max_step
from .modes import backbone as backbone
from .modes import equilibrium_frequency as equilibrium_frequency
from .pair import energy_of_period as energy_of_period
from .pair import harmonics as harmonics
from .pair import monodromy as monodromy
from .pair import orbit as orbit
from .pair import period as period
from .pair import shell_multiplier as shell_multiplier
