from .checks import check_number as check_number
from .results import RESULTS as RESULTS
from .simulate import simulate as simulate
