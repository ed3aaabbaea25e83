"""A measured signal that comes with the package."""

from importlib import resources

from .readers import read
from .signal import Signal


def sunspots() -> Signal:
    """Yearly mean sunspot numbers, 1700 to 2008: 309 samples, a cycle of about 11 years.

    The international sunspot numbers of WDC-SILSO, version 1 (before the recalibration of 2015), as
    the National Geophysical Data Center published them and statsmodels and R bundle them. Public
    domain.

    **Returns:** a `Signal` of one channel, `"sunspot number"`, at `ts` 1700, 1701, ... in years.

    ??? cite "Reference"

        Tong: Non-linear Time Series: a Dynamical System Approach, Oxford University Press, 1996.
    """
    with resources.as_file(resources.files("jaxdyn._train.signals") / "sunspots.csv") as path:
        return read(path)
