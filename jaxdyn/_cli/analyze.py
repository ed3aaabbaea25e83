"""`jaxdyn analyze`."""

import base64
import contextlib
import dataclasses
import html
import json
import math
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from .._files import replacing
from .common import UsageError, caching, in_options, print_table, reason, require, unwritable

EXAMPLES = ("pair", "chaos", "cycle")
RESULTS = (
    "analysis.json",
    "portrait.png",
    "energy.png",
    "spectrum.png",
    "section.png",
    "exponents.png",
    "report.html",
)
CAPTIONS = {
    "portrait.png": "Two units against each other, and over time.",
    "energy.png": "The energy along the orbit.",
    "spectrum.png": "What the unit that moves most is made of.",
    "section.png": "Where the orbit crosses the plane at that unit's mean, upwards.",
    "exponents.png": "The Lyapunov exponents as they converge, and their errors.",
}
# Exponents that the table has room for.
MOST_EXPONENTS = 8


@dataclasses.dataclass(frozen=True)
class Analyze:
    """Say whether an orbit is regular or chaotic, and what it is made of.

    Measures the Lyapunov exponents and their errors, the alignment index, the tones, a Poincare
    section and the points of rest; prints a table and writes into a folder: report.html, which
    needs nothing but itself, analysis.json and the figures. Exit status 0 when done, 1 if the orbit
    diverges, 2 for a wrong option or a file that cannot be read or written.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL|pair|chaos|cycle")]]
    """A saved oscillator or cell (`jaxdyn fit` writes model.eqx), or an example: pair, two units at
    energy 2; chaos, eight units at energy 4; cycle, two units with an attracting energy."""
    out: Path = Path("analysis")
    """Folder for the results, made if need be; other files in it are kept."""
    energy: float | None = None
    """Start at this energy, for an oscillator along its own state; by default where it starts, and
    for a cell at 1."""
    t1: float | None = None
    """How long, in time units of the model; by default 2000 / |W|."""
    seed: int = 0
    """Seed of the direction in which a cell starts."""
    cache: Path | None = None
    """Folder, made if need be, that keeps compiled programs for later runs; none by default."""

    def __call__(self) -> int:
        for name in ("energy", "t1"):
            value = getattr(self, name)
            ok = value is None or (math.isfinite(value) and value > 0)
            require(ok, name, value, "give a finite number > 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "give a whole number >= 0")
        import jax

        with caching(self.cache), jax.enable_x64(True):
            return self.run()

    def run(self) -> int:
        from .._analysis.report import analyse, figures

        oscillator = self.load()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            found = analyse(oscillator.cell, oscillator.x0, self.t1)
            record = {"model": self.model, **found.record()}
            pictures = figures(found)
            with contextlib.ExitStack() as stack:
                files = {
                    "report.html": _page(record, pictures).encode(),
                    "analysis.json": (
                        json.dumps(record, indent=2, allow_nan=False) + "\n"
                    ).encode(),
                    **pictures,
                }
                for name, content in files.items():
                    stack.enter_context(replacing(self.out / name)).write(content)
        except OSError as error:
            raise UsageError(unwritable("--out", self.out, error, "a folder")) from error
        except ValueError as error:
            raise UsageError(in_options(error, {"t1": f"--t1 {self.t1}"})) from error
        except RuntimeError as error:
            if "diverged" not in str(error):
                raise
            raise SystemExit(f"jaxdyn analyze: {self.model}: {error}") from error
        print_table(_rows(record))
        print(f"wrote {self.out}: {', '.join(RESULTS)}")
        return 0

    def load(self) -> Any:
        """The cell and the state to start from, as an oscillator."""
        import jax.random as jr

        import jaxdyn as jd

        if self.model in EXAMPLES and not Path(self.model).is_file():
            cell, energy = _example(self.model)
        else:
            try:
                cell = jd.load_module(self.model)
            except (ValueError, TypeError) as error:
                raise UsageError(in_options(error, {})) from error
            except OSError as error:
                cure = f"give a saved model, or one of {', '.join(EXAMPLES)}"
                raise UsageError(f"{self.model}: {reason(error)}; {cure}.") from error
            energy = 1.0
        if isinstance(cell, jd.Oscillator):
            if not float(cell.energy()) > 0:
                raise UsageError(f"{self.model}: starts at rest; nothing of it moves.")
            return cell if self.energy is None else self.at_energy(cell, self.energy)
        if isinstance(cell, jd.EncodedOscillator):
            cell = cell.cell
        if not isinstance(cell, jd.AbstractCell):
            raise UsageError(f"{self.model}: holds no oscillator and no cell.")
        if cell.input_matrix is not None:
            raise UsageError(f"{self.model}: a driven cell; analyze needs one without input.")
        direction = jr.normal(jr.key(self.seed), (cell.size,))
        return self.at_energy(jd.Oscillator(direction, cell), self.energy or energy)

    def at_energy(self, oscillator: Any, energy: float) -> Any:
        try:
            return oscillator.at_energy(energy)
        except ValueError as error:
            raise UsageError(in_options(error, {"energy": f"--energy {energy:g}"})) from error


def _example(name: str) -> tuple[Any, float]:
    import jax.random as jr

    import jaxdyn as jd

    if name == "chaos":
        return jd.PoissonCell(jd.DenseSkew.random(8, key=jr.key(0)), jd.Tanh()), 4.0
    pair = jd.BlockSkew([1.0])
    if name == "pair":
        return jd.PoissonCell(pair, jd.Tanh()), 2.0
    return jd.PoissonCell(pair, jd.Tanh(), regulator=jd.EnergyShell(1.5, 0.1)), 0.5


def _rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = list(zip(record["exponents"], record["exponent_errors"], strict=True))
    rows = [
        ("model", f"{record['model']}, {record['units']} units"),
        ("energy", f"{record['energy']:.6g}, changes by {record['energy_drift']:.1e}"),
        ("verdict", f"{record['verdict']} over t = {record['t1']:.6g}"),
    ]
    for i, (exponent, error) in enumerate(pairs[:MOST_EXPONENTS]):
        rows.append(("Lyapunov exponents" if i == 0 else "", f"{exponent:+.5f} +- {error:.5f}"))
    if len(pairs) > MOST_EXPONENTS:
        rows.append(("", f"and {len(pairs) - MOST_EXPONENTS} more"))
    rows += [
        ("their sum", f"{record['exponent_sum']:.1e}"),
        ("GALI_2", f"{record['gali_2']:.2e}"),
    ]
    for i, (w, a) in enumerate(zip(record["frequencies"], record["amplitudes"], strict=True)):
        name = f"tones of unit {record['unit'] + 1}" if i == 0 else ""
        rows.append((name, f"{w:.8g} rad, amplitude {a:.3g}"))
    rows += [
        ("section", f"{record['section_crossings']} crossings"),
        ("points of rest", record["fixed_points"]),
    ]
    return rows


def _page(record: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """report.html: the table and the figures, in one file."""
    rows = "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in _rows(record)
    )
    images = "\n".join(
        f'<figure><img alt="{CAPTIONS[name]}" src="data:image/png;base64,'
        f'{base64.b64encode(data).decode()}"><figcaption>{CAPTIONS[name]}</figcaption></figure>'
        for name, data in pictures.items()
    )
    title = html.escape(f"{record['model']}: {record['verdict']}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }}
img {{ max-width: 100%; height: auto; }} figure {{ margin: 1.5rem 0; }}
figcaption {{ color: #555; font-size: .9rem; }}
th {{ text-align: left; font-weight: 600; padding-right: 1rem; vertical-align: top; }}
td {{ font-variant-numeric: tabular-nums; }}
</style></head><body><h1>{title}</h1><table>
{rows}
</table>
{images}
</body></html>
"""
