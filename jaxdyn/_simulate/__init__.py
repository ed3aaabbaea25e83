from .adjoint import ReversibleAdjoint as ReversibleAdjoint
from .checks import check_number as check_number
from .checks import check_x0 as check_x0
from .reversible import reversal_interval as reversal_interval
from .simulate import default_solver as default_solver
from .simulate import simulate as simulate
from .threads import Threads as Threads
