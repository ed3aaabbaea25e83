from .results import RESULTS as RESULTS
from .simulate import simulate as simulate
