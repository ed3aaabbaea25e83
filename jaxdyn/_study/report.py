"""What `reproduce` writes: figures, a page that needs nothing but itself, numbers, a table."""

import base64
import html
import json
import textwrap
from pathlib import Path
from typing import Any

from .._figure import png
from .claim import Check, Claim

PAPER = "arXiv 2504.13951"
PAPER_URL = "https://arxiv.org/abs/2504.13951"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0 .25rem; }
figcaption, .how, .meta { color: #555; font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #ddd;
  vertical-align: top; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.holds { color: #00664b; font-weight: 600; } .fails { color: #b03a00; font-weight: 700; }
.paper { border-left: 3px solid #0072B2; padding-left: .8rem; }
a { color: #00558a; }
@media (max-width: 34rem) {
  table.stack thead { display: none; }
  table.stack tr { display: block; border-bottom: 1px solid #ccc; padding: .5rem 0; }
  table.stack td { display: block; border: 0; padding: .1rem 0; white-space: normal; }
  table.stack td[data-name]::before { content: attr(data-name) ": "; color: #555; }
}
"""


def draw(claim: Claim) -> bytes | None:
    """The claim's figure as a PNG, or None if it has none."""
    if claim.draw is None:
        return None
    paint = claim.draw

    def drawn(figure: Any) -> None:
        paint(figure)
        # Three axes and more in a row are small squares; less height leaves less white.
        if len(figure.axes) > 2:
            figure.set_size_inches(7.2, 2.9)

    return png(drawn)


def record(claims: list[Claim], facts: dict[str, Any]) -> str:
    """claims.json: for each claim what was measured, the bound and the verdict."""

    def one(check: Check) -> dict[str, Any]:
        return {
            "quantity": check.quantity,
            "measured": check.measured if check.measured == check.measured else None,
            "bound": check.bound,
            "basis": check.basis,
            "reference": check.reference or None,
            "passes": check.passes,
        }

    entries = [
        {
            "claim": claim.id,
            "statement": claim.statement,
            "paper": claim.paper,
            "stance": claim.stance,
            "measured": {c.quantity: one(c)["measured"] for c in claim.checks},
            "bound": {c.quantity: c.bound for c in claim.checks},
            "verdict": claim.verdict,
            "how": claim.how,
            "checks": [one(c) for c in claim.checks],
        }
        for claim in claims
    ]
    return json.dumps({**facts, "claims": entries}, indent=2, ensure_ascii=False) + "\n"


def page(claims: list[Claim], figures: dict[str, bytes], facts: dict[str, Any]) -> str:
    """report.html."""
    held = sum(c.verdict == "holds" for c in claims)
    rows = "\n".join(
        f'<tr><td><a href="#{c.id}">{c.id}</a></td><td>{_text(c.statement)}</td>'
        f'<td data-name="the paper">{_RELATION[c.stance]}</td>'
        f'<td class="{c.verdict}">{c.verdict}</td></tr>'
        for c in claims
    )
    about = " · ".join(f"{name} {value}" for name, value in facts.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxdyn: the claims, measured</title><style>{_STYLE}</style></head><body>
<h1>Skew-symmetric recurrent networks: {held} of {len(claims)} claims hold</h1>
<p>Casoni, Guidi, Betti, Melacci and Gori, “Generative System Dynamics in Recurrent Neural
Networks”, IJCNN 2025 (<a href="{PAPER_URL}">{PAPER}</a>), say that skew-symmetric weights make
networks oscillate for ever. Every number below was measured in this run. Where measurement
sharpens or corrects the paper, the section says what the paper says and what was found. A
“reference” is a value worked out separately beforehand, shown for comparison.</p>
<p class="meta">{_text(about)}</p>
<div class="wide"><table class="stack"><thead><tr><th>claim</th><th>statement</th><th>the paper</th>
<th>verdict</th></tr></thead><tbody>
{rows}
</tbody></table></div>
{"".join(_section(c, figures.get(c.id)) for c in claims)}
</body></html>
"""


_RELATION = {
    "agrees": "confirmed",
    "sharpens": "sharpened",
    "corrects": "corrected",
    "adds": "not in it",
}


def _section(claim: Claim, figure: bytes | None) -> str:
    rows = "\n".join(
        f'<tr><td>{_text(c.quantity)}</td><td class="n" data-name="measured">{_text(c.value)}</td>'
        f'<td class="n" data-name="bound">{_text(c.bound)}</td>'
        f'<td class="n" data-name="reference">{_text(c.reference or "–")}</td>'
        f'<td data-name="bound from">{_text(c.basis)}</td>'
        f'<td class="{"holds" if c.passes else "fails"}">{"yes" if c.passes else "no"}</td></tr>'
        for c in claim.checks
    )
    image = ""
    if figure is not None:
        data = base64.b64encode(figure).decode()
        image = (
            f'<figure style="margin:0"><img alt="{_text(claim.caption)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{_text(claim.caption)}</figcaption>'
            "</figure>"
        )
    return f"""
<section id="{claim.id}"><h2>{claim.id}: <span class="{claim.verdict}">{claim.verdict}</span></h2>
<p>{_text(claim.statement)}</p><p class="paper"><b>The paper:</b> {_text(claim.paper)}</p>
{image}<p class="how">{_text(claim.how)}</p>
<div class="wide"><table class="stack"><thead><tr><th>quantity</th><th>measured</th><th>bound</th>
<th>reference</th><th>bound from</th><th>within</th></tr></thead><tbody>
{rows}
</tbody></table></div></section>
"""


def _text(value: Any) -> str:
    return html.escape(str(value))


def table(claims: list[Claim], width: int = 100) -> str:
    """For the terminal: one line per claim, and every check that fails."""
    lines = [f"{'claim':<18}{'verdict':<9}{'measured':>16}  {'bound':<24}what"]
    for claim in claims:
        c = claim.headline
        room = max(20, width - 70)
        what = textwrap.shorten(c.quantity, room, placeholder="…")
        lines.append(f"{claim.id:<18}{claim.verdict:<9}{c.value:>16}  {c.bound:<24}{what}")
        lines += [
            f"    fails: {k.quantity}: {k.value}, bound {k.bound} ({k.basis})"
            for k in claim.checks
            if not k.passes
        ]
    return "\n".join(lines)


def write(folder: Path, claims: list[Claim], facts: dict[str, Any], tick: Any) -> None:
    """All files, into an existing folder. `tick()` after each figure."""
    figures = {}
    for claim in claims:
        data = draw(claim)
        if data is not None:
            figures[claim.id] = data
            (folder / f"{claim.id}.png").write_bytes(data)
            tick()
    (folder / "claims.json").write_text(record(claims, facts), encoding="utf-8")
    (folder / "report.html").write_text(page(claims, figures, facts), encoding="utf-8")
