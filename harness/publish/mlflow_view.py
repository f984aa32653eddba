"""What MLflow's UI opens on: the arms side by side, kept as shared views in tags of the experiment.

By itself the UI shows the ten newest runs, which are the same arm's. The view of the links shows one run per arm, with
its means over the seeds; another in the UI's menu shows every seed, grouped by arm. The tags are undocumented: where a
version of MLflow ignores them, the links open the plain experiment.
"""

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

NAME = "kdbench"
"The key of the shared view in its link; one name, so that a link stays good while the study grows."
_TITLES = {NAME: "kdbench: arms side by side", f"{NAME}-seeds": "kdbench: every seed, by arm"}
TAG = "mlflow.sharedViewState."
COLOUR = "mlflow.runColor"
"The tag of a run's colour. Groups have none: the UI gives some of them the same."
_DRAWN: dict[str, dict[str, Any]] = {
    "final": {"type": "BAR"},
    "curve": {"type": "LINE", "xAxisKey": "step", "lineSmoothness": 0},  # left out, the UI smooths
}
_LOG = {"scaleType": "log"}  # one arm whose loss is a hundred times the others' would flatten theirs
_CHARTS: dict[str, dict[str, dict[str, Any]]] = {
    "final": {"test_accuracy": {}, "test_accuracy_sd": {}, "val_accuracy": {}, "audits_failed": {}, "agreement": {}},
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
_NAME = "attributes.`Run Name`"
_COLUMNS = {
    "tags.`test accuracy`": 170,
    "tags.`findings`": 230,
    "tags.`as declared`": 100,
    "params.`seeds`": 70,
    "params.`fault`": 150,
    "params.`method`": 90,
}
"Columns of the table of arms from left to right, and their widths in pixels: the first three fit a small screen."
_COLUMNS_OF_SEEDS = {
    "metrics.`final/test_accuracy`": 215,
    "tags.`findings`": 110,
    "metrics.`final/val_accuracy`": 150,
    "params.`fault`": 150,
    "params.`method`": 90,
    "params.`seed`": 70,
}


def title(method: str, fault: str | None, pair: str = "", point: str = "") -> str:
    """Return a run's short name, which the UI's narrow list need not cut: logit: imagenet-stem."""
    return f"{method}: {fault or 'corrected'}" + (f", {point}" if point else "") + (f", {pair}" if pair else "")


def group(method: str, fault: str | None, pair: str, point: str = "") -> str:
    """Return the name under which an arm's seeds stand together, with the settings that a grid tries, if it does.

    Long names are cut at the end, so what differs least comes last.
    """
    return " · ".join([method, fault or "corrected", *([point] if point else []), pair])


def tags(groups: Iterable[str], now_ms: int) -> dict[str, str]:
    """Return the experiment's tags that hold the views: for the link, and by name for the UI's menu of views."""
    found: dict[str, str] = {}
    for name, state in ((NAME, _arms()), (f"{NAME}-seeds", _seeds(groups))):
        # As the UI itself does it: a study of every fault would not fit into a tag otherwise.
        packed = base64.b64encode(zlib.compress(json.dumps(state, sort_keys=True).encode())).decode()
        named = {"name": _TITLES[name], "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
        found |= {TAG + name: f"deflate;{packed}", f"{TAG}{name}-menu": json.dumps(named)}
    return found


def links(base: str, experiment: str) -> tuple[str, str]:
    """Return the links to the charts of the arms and to the table of their means."""
    table = f"{base}/#/experiments/{experiment}/runs?viewStateShareKey={NAME}&workflowType=machine_learning"
    return table.replace("runs?", "runs?compareRunsMode=CHART&"), table


def _arms() -> dict[str, Any]:
    """Return the view of the arms: a run each, so with a colour of its own and a name that is not cut so soon."""
    return {**_state("summary", {_NAME: 240, **_COLUMNS}), "groupBy": None}


def _seeds(groups: Iterable[str]) -> dict[str, Any]:
    """Return the view of all seeds, grouped by arm."""
    return {
        **_state("arm", {_NAME: 340, **_COLUMNS_OF_SEEDS}),
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "group"}]},
        "groupsExpanded": {f"tag.group.{name}": False for name in groups},  # closed, they are the charts' legend
        "useGroupedValuesInCharts": True,
    }


def _state(role: str, columns: dict[str, int]) -> dict[str, Any]:
    """Return what both views share, as the UI keeps it. With search and order in the link the UI would ignore it."""
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
    sections = [  # two columns: in three or four, a window of 1280 pixels cuts the names in the legends
        {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": 2, "cardHeight": 340}
        for name in _CHARTS
    ]
    widths = {**columns, "runDateAndNestInfo": 130, "duration": 90}
    return {
        "runsHiddenMode": "SHOW_ALL",
        # Teachers train longer and would stretch every axis; of a grid the test scores are not to be looked at.
        "searchFilter": f"tags.role = '{role}'",
        "orderByKey": "tags.`group`",
        "orderByAsc": True,
        "selectedColumns": [column for column in columns if column != _NAME],
        "columnOrder": list(widths),
        "columnWidths": widths,
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }
