"""Activations: s, its potential S, and what the solvers need of them."""

from .base import AbstractActivation as AbstractActivation
from .function import FunctionActivation as FunctionActivation
from .piecewise import ELU as ELU
from .piecewise import AsymmetricTanh as AsymmetricTanh
from .piecewise import HardTanh as HardTanh
from .piecewise import LeakyReLU as LeakyReLU
from .piecewise import RectifiedTanh as RectifiedTanh
from .piecewise import ReLU as ReLU
from .piecewise import Softsign as Softsign
from .smooth import ISRU as ISRU
from .smooth import Arctan as Arctan
from .smooth import Erf as Erf
from .smooth import Identity as Identity
from .smooth import Sigmoid as Sigmoid
from .smooth import Softplus as Softplus
from .smooth import Tanh as Tanh
