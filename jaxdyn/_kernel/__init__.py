from .engine import LEAST_COLUMNS as LEAST_COLUMNS
from .engine import Kernel as Kernel
from .engine import check_device as check_device
