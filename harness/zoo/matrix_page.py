"""The matrix as a table for the console, as a page, and as a picture."""

import html
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kdbench.kd.methods import METHODS

STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --shade: rgb(27 31 36 / .16); --bad: #b42318 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4af; --line: #30363d; --back: #0d1117; --shade: rgb(0 0 0 / .6); --bad: #f87171 }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { font: .95rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--back);
  max-width: 90rem; margin: 1.6rem auto 3rem; padding: 0 1.25rem }
h1 { font-size: clamp(1.3rem, 1rem + 1.6vw, 1.9rem); line-height: 1.28; margin: 0 0 .6rem }
p, ul { max-width: 52rem; margin: .5rem 0 } ul { padding-left: 1.2rem } li { overflow-wrap: anywhere }
code { overflow-wrap: anywhere } .soft { color: var(--soft) }
.key { display: flex; flex-wrap: wrap; gap: .4rem; list-style: none; padding: 0; max-width: none; font-size: .84rem }
.key li { padding: .1rem .5rem; border-radius: .25rem }
td.escape { white-space: normal; padding-left: .5rem; border-radius: .2rem }
.scroll { overflow-x: auto; margin: .6rem 0; background:
  linear-gradient(to left, var(--back) 30%, transparent) right / 2.4rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll }
.hint { display: none; font-size: .8rem; color: var(--soft); margin: .6rem 0 -.4rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .82rem }
th, td { padding: .15rem .25rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
th { vertical-align: bottom } td.n { text-align: center; min-width: 1.75rem }
th.id { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: 500; text-align: left }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); padding-left: 0 }
td small, th small { display: block; color: var(--soft); line-height: 1.2 }
td.why { white-space: normal; min-width: 15rem }
.no { color: var(--bad); font-weight: 600 } .none { color: var(--soft) }
@media screen and (max-width: 44rem) {
  body { padding: 0 1rem; margin-top: 1rem } .hint { display: block }
  th:first-child, td:first-child { min-width: 8rem; max-width: 9.5rem; white-space: normal }
}
@media print { .hint { display: none } .scroll { overflow: visible; background: none } table { font-size: .6rem } }
"""
# By kind of cell: background and ink.
_COLOURS = {
    "hit": ("#14532d", "#ffffff"),
    "follow": ("#bbd7c3", "#1b1f24"),
    "escape": ("#cbd5e1", "#1b1f24"),
    "miss": ("#f2b8b5", "#1b1f24"),
    "wrong": ("#b42318", "#ffffff"),
    "alone": ("#d98324", "#1b1f24"),
}
STYLE += "".join(f".{kind} {{ background: {back}; color: {ink} }}\n" for kind, (back, ink) in _COLOURS.items())
_WORDS = {
    "hit": "caught in every run",
    "follow": "failed as a declared consequence",
    "escape": "escapes, as declared",
    "miss": "missed in some run",
    "wrong": "failed and is not declared",
    "alone": "noticed without audits (stronger: more often)",
}


def command_of(matrix: dict[str, Any]) -> str:
    """Return the command that makes this matrix again; DIR stands for its folder."""
    parts = ["kdbench audits matrix", f"--seeds {_range(matrix['seeds'])}"]
    if "zoo_seeds" in matrix:  # matrices made before this key do not say it
        parts.append(f"--zoo-seeds {_range(matrix['zoo_seeds']) if matrix['zoo_seeds'] else 'none'}")
    parts += [f"--fault {name}" for name in matrix.get("named_faults", ())]
    parts += [f"--method {name}" for name in matrix["methods"] if set(matrix["methods"]) != set(METHODS)]
    return " ".join([*parts, "--output DIR"])


def _range(seeds: list[int]) -> str:
    whole = len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if whole else ",".join(map(str, seeds))


def rows_of(matrix: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the faults by what they replace, those of a language model's training last."""
    by_seam = [sorted(matrix.get(key, []), key=lambda r: (r["seam"], r["name"])) for key in ("faults", "tokens")]
    return [*by_seam[0], *by_seam[1]]


def ids_of(matrix: dict[str, Any]) -> list[str]:
    """Return the audits that any fault names or that spoke, in order."""
    found = {id for row in rows_of(matrix) for id in (*row["caught_by"], *row["follows"], *row["detected"])}
    return sorted(found | set(matrix["clean"]["by_audit"]))


def kind_of(row: dict[str, Any], id: str) -> str:
    """Say what a cell of the picture is: hit, miss, follow, escape, wrong or none."""
    k, n = row["detected"].get(id, [0, row["runs"]])
    if id in row["caught_by"]:
        return "hit" if k == n else "miss"
    if not k:
        return "escape" if escapes(row) else "none"
    return "follow" if id in row["follows"] else "wrong"


def escapes(row: dict[str, Any]) -> bool:
    """Say whether a fault declares that no audit catches it, and none did."""
    return bool(row["escapes"]) and not row["caught_by"] and row["exact"]


def _judged(row: dict[str, Any]) -> str:
    """Return the last column in words: yes, NO, or that the fault escapes as it declares."""
    return "escapes, as declared" if escapes(row) else "yes" if row["exact"] else "NO"


def summary_lines(matrix: dict[str, Any]) -> list[str]:
    """Return the whole in a few sentences."""
    faults, clean, base = matrix["faults"], matrix["clean"], matrix["baseline"]
    caught = [row for row in faults if row["caught_by"]]
    whole = sum(row["caught"][0] == row["caught"][1] for row in caught)
    noticed = sum(row["noticed_without"] == row["runs"] for row in caught)
    away = [row for row in faults if escapes(row)]
    runs, exact = sum(row["runs"] for row in faults), sum(row["exact"] for row in faults)
    lines = [
        f"{len(faults)} faults in {runs:,} runs: {whole} of the {len(caught)} faults that name audits are caught by "
        f"them in every run. {exact} of {len(faults)} are exactly as declared.",
        *(f"{row['name']} escapes, as declared: {row['escapes']}." for row in away),
        f"A user without audits, who sees whether the loss falls and is a number, notices {noticed} of these "
        f"{len(caught)} faults in every run, and suspects {base['clean'][0]} of {base['clean'][1]} correct trainings.",
    ]
    if tokens := matrix.get("tokens"):
        whole, runs = sum(row["caught"][0] == row["caught"][1] for row in tokens), sum(row["runs"] for row in tokens)
        lines.append(
            f"{len(tokens)} faults of a language model's training, token by token, in {runs} runs: {whole} are caught "
            f"by the audits that they name in every run, {sum(row['exact'] for row in tokens)} are as declared."
        )
    if clean["runs"]:
        lines.append(
            f"{len(clean['members'])} correct programs in {clean['runs']:,} runs: {clean['alarms']} were accused, or "
            "not proven clean. "
            f"The true share is at most {clean['upper_bound_95']:.2%} (one-sided 95% Clopper-Pearson bound; the seeds "
            "of one program are not independent programs)."
        )
    return lines


_WIDE = 120
"Columns of a terminal from which on every column of the table has room."


def show(console: Console, matrix: dict[str, Any]) -> None:
    """Print the matrix, a line a fault; below it what is not as declared, and the whole in sentences."""
    wide = console.width >= _WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fault", no_wrap=True)
    for title in ("caught by", "caught", "as declared"):
        table.add_column(title, overflow="fold")
    for title in ("methods", "at least", "followed by", "noticed without audits", "changed nothing") if wide else ():
        table.add_column(title, overflow="fold")
    for row in rows_of(matrix):
        k, n = row["caught"]
        follows = [f"{id} {row['detected'][id][0]}" for id in row["follows"] if id in row["detected"]]
        more = (
            ", ".join(row["applies_to"]),
            f"{row['lower_bound_95']:.0%}" if row["lower_bound_95"] is not None else "-",
            ", ".join(follows) or "-",
            "-" if row["noticed_without"] is None else f"{row['noticed_without']}/{n}",
            f"{row['dormant']}/{n}" if row["dormant"] else "-",
        )
        table.add_row(
            row["name"],
            ", ".join(row["caught_by"]) or "-",
            f"{k}/{n}" if row["caught_by"] else "-",
            _judged(row),
            *(more if wide else ()),
        )
    console.print(table)
    console.print()
    for row in rows_of(matrix):
        for line in row["inexact"][:2]:
            console.print(f"NO: {row['name']} with {line}", markup=False, soft_wrap=True)
    for line in matrix["clean"]["alarmed"]:
        what = "accused a correct training" if "failed" in line else "did not prove a correct training clean"
        console.print(f"NO: {what}: {line}", markup=False, soft_wrap=True)
    for line in summary_lines(matrix):
        console.print(line, markup=False, soft_wrap=True)


def page(matrix: dict[str, Any]) -> str:
    """Return the matrix as an HTML page that needs nothing else."""
    ids = ids_of(matrix)
    head = "".join(f'<th class="id">{id}</th>' for id in ids)
    rows = "".join(_page_row(row, ids) for row in rows_of(matrix))
    clean, base = matrix["clean"], matrix["baseline"]["clean"]
    alarms = [clean["by_audit"].get(id, 0) for id in ids]
    rows += (
        f"<tr><td><b>correct trainings</b><small>{len(clean['members'])} programs</small></td><td>{clean['runs']}</td>"
        + "".join(f'<td class="n {"wrong" if k else "none"}">{k}</td>' for k in alarms)
        + f'<td class="n">{base[0]}<small>of {base[1]}</small></td><td></td><td></td></tr>'
    )
    alarmed = [f"Accused a correct training: {line}" for line in clean["alarmed"]]
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in (*summary_lines(matrix), *alarmed))
    key = "".join(f'<li class="{kind}">{word}</li>' for kind, word in _WORDS.items())
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Faults and audits</title>
<style>{STYLE}</style>
<h1>Faults and audits</h1>
<p>Each row is a fault, a deliberate bug, and each column an audit. A cell counts the runs in which the audit failed.
The last row does the same for correct trainings.</p>
<ul>{lines}</ul>
<p class="soft">Made by <code>{html.escape(command_of(matrix))}</code>. Methods: {", ".join(matrix["methods"])}.</p>
<ul class="key">{key}</ul>
<p class="hint">Swipe the table sideways for more columns \N{RIGHTWARDS ARROW}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Faults and audits"><table>
<thead><tr><th>fault<small>what it replaces</small></th><th>runs</th>{head}<th class="id">noticed without audits</th>\
<th class="id">changed no weight</th><th>as declared</th></tr></thead>
<tbody>{rows}</tbody></table></div>
</html>
"""


def _page_row(row: dict[str, Any], ids: list[str]) -> str:
    """Return a fault's row of the page."""
    cells = []
    if escapes(row):  # no audit failed, so there is room for the reason
        text = f"escapes, as declared: {html.escape(row['escapes'])}"
        cells.append(f'<td class="escape" colspan="{len(ids)}">{text}</td>' if ids else "")
    for id in () if escapes(row) else ids:
        k, kind = row["detected"].get(id, [0])[0], kind_of(row, id)
        said = "\N{MIDDLE DOT}" if kind == "none" else str(k)
        cells.append(f'<td class="n {kind}">{said}</td>')
    k, n = row["noticed_without"], row["runs"]
    alone = f'n" style="background: rgb(217 131 36 / {0.25 + 0.75 * k / n:.2f})' if k else "n none"
    counts = ["-" if count is None else count for count in (k, row["dormant"])]
    cells.append(f'<td class="{alone}">{counts[0]}</td><td class="n">{counts[1]}</td>')
    why = "; ".join(row["inexact"][:2])
    word = "yes" if row["exact"] else f'<span class="no">NO</span>: {html.escape(why)}'
    cells.append(f"<td{' class=why' if why else ''}>{word}</td>")
    return f"<tr><td>{row['name']}<small>{row['seam']}</small></td><td>{n}</td>{''.join(cells)}</tr>"


def draw(matrix: dict[str, Any], path: Path) -> None:
    """Write the matrix as a picture: faults down, audits across, what was caught dark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    colours = {kind: back for kind, (back, _) in _COLOURS.items()} | {"none": "#f4f5f7"}
    ids = ids_of(matrix)
    rows = rows_of(matrix)
    last = len(ids) + 0.5
    figure, axes = plt.subplots(figsize=(3.6 + 0.25 * len(ids), 1.9 + 0.22 * len(rows)), layout="constrained")

    def cell(x: float, y: float, kind: str, alpha: float = 1.0) -> None:
        axes.add_patch(plt.Rectangle((x, y), 0.94, 0.9, color=colours[kind], alpha=alpha))

    for y, row in enumerate(rows):
        for x, id in enumerate(ids):
            cell(x, y, kind_of(row, id))
        if escapes(row):
            axes.text(len(ids) / 2, y + 0.47, "escapes, as declared", ha="center", va="center", fontsize=8.5)
        cell(last, y, "none")
        cell(last, y, "alone", (row["noticed_without"] or 0) / row["runs"])
    clean = matrix["clean"]
    for x, id in enumerate(ids):
        cell(x, len(rows) + 0.5, "wrong" if clean["by_audit"].get(id) else "none")
    axes.set_xlim(0, last + 1)
    axes.set_ylim(len(rows) + 1.5, 0)
    columns = [*((x, id) for x, id in enumerate(ids)), (last, "without audits")]
    axes.set_xticks([x + 0.47 for x, _ in columns], [name for _, name in columns], rotation=90, fontsize=9)
    lines = [row["name"] for row in rows] + [f"{clean['runs']:,} correct trainings"]
    places = [*range(len(rows)), len(rows) + 0.5]
    axes.set_yticks([y + 0.45 for y in places], lines, fontsize=9.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=colours[kind], label=word) for kind, word in _WORDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    figure.savefig(path, dpi=110)
    plt.close(figure)
