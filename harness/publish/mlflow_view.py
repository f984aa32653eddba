"""What MLflow's UI opens on: the arms side by side, kept as a shared view in tags of the experiment.

By itself the UI shows the ten newest runs, which are the same arm's. The tags are undocumented: where a version of
MLflow ignores them, the links open the plain experiment.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

NAME = "kdbench"
"The key of the shared view in its link; one name, so that a link stays good while the study grows."
_TITLE = "kdbench: arms side by side"
TAG = "mlflow.sharedViewState." + NAME
_DRAWN: dict[str, dict[str, Any]] = {
    "final": {"type": "BAR"},
    "curve": {"type": "LINE", "xAxisKey": "step", "lineSmoothness": 0},  # left out, the UI smooths
}
_LOG = {"scaleType": "log"}  # one arm whose loss is a hundred times the others' would flatten theirs
_CHARTS: dict[str, dict[str, dict[str, Any]]] = {
    "final": {"test_accuracy": {}, "val_accuracy": {}, "audits_failed": {}, "agreement": {}},
    "curve": {
        "val_accuracy": {},
        "train_accuracy": {},
        "loss": _LOG,
        "kd_loss": _LOG,
        "grad_norm": _LOG,
        "projector_grad_norm": _LOG,
        "lr": {},
    },
}
"Sections of charts in the order in which they are shown; the metrics of each, and how they are drawn."
_COLUMNS = {
    "metrics.`final/test_accuracy`": 215,
    "metrics.`final/val_accuracy`": 150,
    "metrics.`final/audits_failed`": 150,
    "tags.`findings`": 110,
    "params.`fault`": 150,
    "params.`method`": 90,
    "params.`seed`": 70,
}
"Columns of the table from left to right, and their widths in pixels."


def group(method: str, fault: str | None, pair: str, point: str = "") -> str:
    """Return the name under which an arm's seeds stand together, with the settings that a grid tries, if it does.

    Long names are cut at the end, so what differs least comes last.
    """
    return " · ".join([method, fault or "corrected", *([point] if point else []), pair])


def tags(groups: Iterable[str], now_ms: int) -> dict[str, str]:
    """Return the experiment's tags that hold the view: for the link, and by name for the UI's menu of views."""
    state = json.dumps(_state(groups), sort_keys=True)
    # As the UI itself does it: a study of every fault would not fit into a tag otherwise.
    packed = "deflate;" + base64.b64encode(zlib.compress(state.encode())).decode()
    named = {"name": _TITLE, "createdAt": now_ms, "updatedAt": now_ms, "state": packed}
    return {TAG: packed, f"{TAG}-menu": json.dumps(named)}


def links(base: str, experiment: str) -> tuple[str, str]:
    """Return the links to the grouped charts and to the table of group means."""
    table = f"{base}/#/experiments/{experiment}/runs?viewStateShareKey={NAME}&workflowType=machine_learning"
    return table.replace("runs?", "runs?compareRunsMode=CHART&"), table


def _state(groups: Iterable[str]) -> dict[str, Any]:
    """Return the view as the UI keeps it; with its search and order in the link, the UI would ignore all of it."""
    charts = [
        {
            "uuid": f"{section}/{name}",
            "metricKey": f"{section}/{name}",
            "metricSectionId": section,
            "isGenerated": True,
            "deleted": False,
            **_DRAWN[section],
            **drawn,
        }
        for section, metrics in _CHARTS.items()
        for name, drawn in metrics.items()
    ]
    sections = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": 4, "cardHeight": 340}
        for name in _CHARTS
    ]
    widths = {"attributes.`Run Name`": 340, **_COLUMNS, "runDateAndNestInfo": 130, "duration": 90}
    return {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "group"}]},
        "groupsExpanded": {f"tag.group.{name}": False for name in groups},  # closed, they are the charts' legend
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        # Teachers train longer and would stretch every axis; of a grid the test scores are not to be looked at.
        "searchFilter": "tags.role = 'arm'",
        "orderByKey": "tags.`group`",
        "orderByAsc": True,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }
