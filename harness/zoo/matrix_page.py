"""The matrix as a table for the console, as a page, and as a picture."""

import html
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COMMAND = "kdbench audit --matrix"
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .35rem; border-bottom: 1px solid #e6e8eb; text-align: left; white-space: nowrap }
td.n { text-align: center; min-width: 1.9rem }
th.id { writing-mode: vertical-rl; font-weight: 500 }
.none { color: #b6bcc4 } .scroll { overflow-x: auto }
"""
# By kind of cell: background and ink.
_COLOURS = {
    "hit": ("#14532d", "#ffffff"),
    "miss": ("#f2b8b5", "#1b1f24"),
    "follow": ("#bbd7c3", "#1b1f24"),
    "wrong": ("#b42318", "#ffffff"),
    "alone": ("#b45309", "#ffffff"),
}
_STYLE += "".join(f".{kind} {{ background: {back}; color: {ink} }}\n" for kind, (back, ink) in _COLOURS.items())
_WORDS = {
    "hit": "caught in every run",
    "miss": "missed",
    "follow": "a declared consequence",
    "wrong": "not declared",
    "alone": "noticed without audits (the deeper, the oftener)",
}


def ids_of(matrix: dict[str, Any]) -> list[str]:
    """Return the audits that any fault names or that spoke, in order."""
    found = {id for row in matrix["faults"] for id in (*row["caught_by"], *row["follows"], *row["detected"])}
    return sorted(found | set(matrix["clean"]["by_audit"]))


def kind_of(row: dict[str, Any], id: str) -> str:
    """Say what a cell of the picture is: hit, miss, follow, wrong or none."""
    k, n = row["detected"].get(id, [0, row["runs"]])
    if id in row["caught_by"]:
        return "hit" if k == n else "miss"
    if not k:
        return "none"
    return "follow" if id in row["follows"] else "wrong"


def summary_lines(matrix: dict[str, Any]) -> list[str]:
    """Return the whole in a few sentences."""
    faults, clean, base = matrix["faults"], matrix["clean"], matrix["baseline"]
    caught = [row for row in faults if row["caught_by"]]
    whole = sum(row["caught"][0] == row["caught"][1] for row in caught)
    runs = sum(row["runs"] for row in faults)
    noticed = sum(row["noticed_without"] == row["runs"] for row in caught)
    lines = [
        f"{len(faults)} faults, {runs} runs: {whole} of {len(caught)} caught in every run by the audits they name, "
        f"{sum(row['exact'] for row in faults)} of {len(faults)} exactly as declared",
        *(f"escapes, as declared: {row['name']} ({row['escapes']})" for row in faults if row["escapes"]),
        f"a user without audits (the loss falls, no NaN) notices {noticed} of {len(caught)} in "
        f"every run, and is alarmed by {base['clean'][0]} of {base['clean'][1]} correct trainings of ours",
    ]
    if clean["runs"]:
        lines.append(
            f"correct trainings: {len(clean['members'])} programs, {clean['runs']} runs, {clean['alarms']} alarmed; "
            f"at most {clean['upper_bound_95']:.2%} (Clopper-Pearson, one-sided, 95%; seeds of one program are not "
            "independent programs)"
        )
    return lines


def show(console: Console, matrix: dict[str, Any]) -> None:
    """Print the matrix, a line a fault, what is not as declared last."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "fault",
        "methods",
        "caught by",
        "caught",
        "at least",
        "follows",
        "noticed without",
        "dormant",
        "exact",
    ):
        table.add_column(title)
    for row in sorted(matrix["faults"], key=lambda r: (not r["exact"], r["seam"], r["name"])):
        k, n = row["caught"]
        follows = [f"{id} {row['detected'][id][0]}" for id in row["follows"] if id in row["detected"]]
        table.add_row(
            row["name"],
            ", ".join(row["applies_to"]),
            ", ".join(row["caught_by"]) or "escapes",
            f"{k}/{n}" if row["caught_by"] else "-",
            f"{row['lower_bound_95']:.0%}" if row["lower_bound_95"] is not None else "-",
            ", ".join(follows) or "-",
            f"{row['noticed_without']}/{n}",
            f"{row['dormant']}/{n}" if row["dormant"] else "-",
            "yes" if row["exact"] else "NO: " + "; ".join(row["inexact"][:2]),
        )
    console.print(table)
    console.print()
    for line in summary_lines(matrix):
        console.print(line, markup=False, soft_wrap=True)
    for line in matrix["clean"]["alarmed"]:
        console.print(f"alarm: {line}", markup=False, soft_wrap=True)


def page(matrix: dict[str, Any]) -> str:
    """Return the matrix as an HTML page that needs nothing else."""
    ids = ids_of(matrix)
    head = "".join(f'<th class="id">{id}</th>' for id in ids)
    rows = []
    for row in sorted(matrix["faults"], key=lambda r: (r["seam"], r["name"])):
        cells = []
        for id in ids:
            k, n = row["detected"].get(id, [0, row["runs"]])
            kind = kind_of(row, id)
            cells.append(f'<td class="n {kind}">{f"{k}/{n}" if kind != "none" else "·"}</td>')
        k, n = row["noticed_without"], row["runs"]
        alone = f' alone" style="opacity:{0.25 + 0.75 * k / n:.2f}' if k else " none"
        cells.append(f'<td class="n{alone}">{k}/{n}</td><td class="n">{row["dormant"]}/{n}</td>')
        cells.append(f"<td>{'yes' if row['exact'] else html.escape('; '.join(row['inexact'][:2]))}</td>")
        rows.append(f"<tr><td>{row['name']}</td><td>{row['seam']}</td>{''.join(cells)}</tr>")
    clean, base = matrix["clean"], matrix["baseline"]["clean"]
    alarms = [clean["by_audit"].get(id, 0) for id in ids]
    rows.append(
        "<tr><td><b>correct trainings</b></td><td></td>"
        + "".join(f'<td class="n {"wrong" if k else "none"}">{k}/{clean["runs"]}</td>' for k in alarms)
        + f'<td class="n">{base[0]}/{base[1]}</td><td></td><td></td></tr>'
    )
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in (*summary_lines(matrix), *matrix["clean"]["alarmed"]))
    seeds = ", ".join(str(seed) for seed in matrix["seeds"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Faults and audits</title><style>{_STYLE}</style>'
        f"<h1>Faults and audits</h1><p><code>{COMMAND}</code>, methods {', '.join(matrix['methods'])}, seeds {seeds}. "
        "Each cell: runs in which the audit failed, of all runs of the fault. "
        + " ".join(f'<span class="{kind}">&nbsp;{word}&nbsp;</span>' for kind, word in _WORDS.items())
        + f"</p><ul>{lines}</ul>"
        f'<div class="scroll"><table><thead><tr><th>fault</th><th>replaces</th>{head}'
        '<th class="id">noticed without</th><th class="id">dormant</th><th>exact</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></html>\n"
    )


def draw(matrix: dict[str, Any], path: Path) -> None:
    """Write the matrix as a picture: faults down, audits across, what was caught dark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    colours = {kind: back for kind, (back, _) in _COLOURS.items()} | {"none": "#f4f5f7"}
    ids = ids_of(matrix)
    rows = sorted(matrix["faults"], key=lambda r: (r["seam"], r["name"]))
    last = len(ids) + 0.5
    figure, axes = plt.subplots(figsize=(4.2 + 0.34 * len(ids), 1.6 + 0.24 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        for x, id in enumerate(ids):
            axes.add_patch(plt.Rectangle((x, y), 0.94, 0.9, color=colours[kind_of(row, id)]))
        share = row["noticed_without"] / row["runs"]
        axes.add_patch(plt.Rectangle((last, y), 0.94, 0.9, color=colours["none"]))
        axes.add_patch(plt.Rectangle((last, y), 0.94, 0.9, color=colours["alone"], alpha=share))
    clean = matrix["clean"]
    for x, id in enumerate(ids):
        kind = "wrong" if clean["by_audit"].get(id) else "none"
        axes.add_patch(plt.Rectangle((x, len(rows) + 0.5), 0.94, 0.9, color=colours[kind]))
    axes.set_xlim(0, last + 1)
    axes.set_ylim(len(rows) + 1.5, 0)
    columns = [*((x, id) for x, id in enumerate(ids)), (last, "without audits")]
    axes.set_xticks([x + 0.47 for x, _ in columns], [name for _, name in columns], rotation=90, fontsize=8)
    lines = [row["name"] for row in rows] + [f"{clean['runs']} correct trainings"]
    places = [*range(len(rows)), len(rows) + 0.5]
    axes.set_yticks([y + 0.45 for y in places], lines, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=colours[kind], label=word) for kind, word in _WORDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
