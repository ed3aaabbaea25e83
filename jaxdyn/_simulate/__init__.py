from .adjoint import ReversibleAdjoint as ReversibleAdjoint
from .checks import check_number as check_number
from .reversible import reversal_interval as reversal_interval
from .simulate import simulate as simulate
from .threads import Threads as Threads
