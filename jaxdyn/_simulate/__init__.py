from .checks import check_number as check_number
from .simulate import simulate as simulate
