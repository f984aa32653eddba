"""A report in the forms that other programs read: JSON, JUnit XML, SARIF 2.1.0, and GitHub's workflow commands."""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

import kdbench
from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.finding import Finding, Report, Severity, Status, body, finite, is_ours
from kdbench.audits.places import shown
from kdbench.audits.report.policy import Verdict, fingerprint, is_not_understood
from kdbench.audits.report.verdict import sentence

_LEVELS: dict[Severity, str] = {"error": "error", "warn": "warning", "info": "note"}
_COMMANDS: dict[Severity, str] = {"error": "error", "warn": "warning", "info": "notice"}


@dataclass(frozen=True)
class Audited:
    """What was audited, and what came of it."""

    target: str
    "The script or module as it was named, `canonical`, a fault's name, or a run's folder."
    report: Report
    verdict: Verdict
    threshold: Severity = "error"
    "The mildest severity that counts as a failure."
    steps: int | None = None
    student: str | None = None
    teacher: str | None = None
    projectors: tuple[str, ...] = ()
    script_error: str | None = None
    script_exit: int | None = None
    unobserved: tuple[str, ...] = ()
    "Child processes that were not seen."
    processes: int = 1
    "In how many the training ran, all of them observed."
    waived_in_source: Mapping[str, str] = field(default_factory=dict)
    "By id, file and line of the comment in the audited code that waives it."
    declarable: bool = True
    "Whether a user can declare what is undecided; not where it was our own training, or is over."
    undecided_because: str | None = None
    "Where no single audit says it."

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        return sentence(self.report, self.verdict, self.threshold, self.trouble, self.declarable)

    @property
    def trouble(self) -> str | None:
        """One sentence on why nothing was decided, or what could not run; None for `clean` and `failed`."""
        if self.verdict == "could-not-run":
            broken = next((f"{f.id} {f.name}: {f.message}" for f in self.report.findings if f.status == "error"), None)
            last = self.script_error.splitlines()[-1] if self.script_error else None
            return last or broken or f"the script ended with exit code {self.script_exit}"
        if self.verdict == "undecided":
            silent = [f for f in self.report.findings if f.status == "not_triggered"]
            unread = [f.message for f in silent if is_not_understood(f)]
            unseen = [f.message for f in silent if f.reason == "no-teacher-seen"]
            nothing = "none of the audits asked for passed or failed"
            return self.undecided_because or next(iter(unread or unseen or [f.message for f in silent]), nothing)
        return None


@dataclass(frozen=True)
class AuditObject:
    """What an audit found: the kdbench.audit/1 object."""

    schema: Literal["kdbench.audit/1"]
    target: str
    "The script or module as it was named, `canonical`, a fault's name, or a run's folder."
    verdict: Verdict
    steps: int | None
    "Of the optimizer, that were seen."
    student: str | None
    teacher: str | None
    projectors: list[str]
    findings: list[Finding]
    "Failures first, root causes before what follows from them."
    counts: dict[Status, int]
    script_error: str | None
    "The traceback of a script that crashed."
    script_exit: int | None
    unobserved: list[str]
    "Child processes that were not seen."
    processes: int
    "In how many the training ran, all of them observed."
    summary: str
    "The verdict in one sentence."
    waived_in_source: dict[str, str]
    "By id, file and line of the comment that waives it."


def to_json(audited: Audited) -> str:
    """Return the object `kdbench.audit/1`."""
    made = AuditObject(
        schema="kdbench.audit/1",
        target=audited.target,
        verdict=audited.verdict,
        steps=audited.steps,
        student=audited.student,
        teacher=audited.teacher,
        projectors=list(audited.projectors),
        findings=list(audited.report.findings),
        counts=audited.report.counts(),
        script_error=audited.script_error,
        script_exit=audited.script_exit,
        unobserved=list(audited.unobserved),
        processes=audited.processes,
        summary=audited.summary,
        waived_in_source=dict(sorted(audited.waived_in_source.items())),
    )
    return json.dumps(finite(asdict(made)), indent=2, allow_nan=False)


def to_junit(audited: Audited) -> str:
    """Return a JUnit test suite: an audit a case, those that decided nothing skipped.

    What could not run or decided nothing as a whole is an error of a case of its own: no suite of skips looks green.
    """
    suite = ElementTree.Element("testsuite", name=f"kdbench audit {_xml(audited.target)}")
    fatal = {id(f) for f in audited.report.failed(audited.threshold)}
    for f in audited.report.findings:
        case = ElementTree.SubElement(suite, "testcase", classname="kdbench.audit", name=f"{f.id} {f.name}")
        if f.where:
            case.set("file", _xml(str(f.where["file"])))
            case.set("line", str(f.where["line"]))
        if id(f) in fatal:
            ElementTree.SubElement(case, "failure", type=f.severity, message=_xml(f.message)).text = _xml(_long(f))
        elif f.status == "fail":
            ElementTree.SubElement(case, "system-out").text = _xml(_long(f))
        elif f.status == "error":
            ElementTree.SubElement(case, "error", message=_xml(_broken(f))).text = _xml(_long(f))
        elif f.status in ("not_triggered", "waived"):
            ElementTree.SubElement(case, "skipped", message=_xml(_short(f)))
    if audited.trouble or audited.script_error:
        case = ElementTree.SubElement(suite, "testcase", classname="kdbench.audit", name="run")
        error = ElementTree.SubElement(
            case, "error", message=_xml(f"{audited.verdict}: {audited.trouble or 'crashed'}")
        )
        error.text = _xml(audited.script_error or "")
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite)))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def to_sarif(audited: Audited) -> str:
    """Return a SARIF 2.1.0 log: failures are results (waived ones suppressed), undecided audits are notified."""
    listed = [f for f in audited.report.findings if f.status in ("fail", "waived")]
    told = [f for f in audited.report.findings if f.status in ("not_triggered", "error")]
    ids = sorted({f.id for f in (*listed, *told)})
    names = {f.id: f for f in (*listed, *told)}
    rules = [_rule(id, names[id]) for id in ids]
    notes: list[dict[str, Any]] = [
        {
            "level": "error" if f.status == "error" else "note",
            "message": {"text": _long(f) if f.status == "error" else _short(f)},
            "associatedRule": {"id": f.id, "index": ids.index(f.id)},
        }
        for f in told
    ]
    if audited.trouble or audited.script_error:
        text = audited.script_error or audited.trouble
        notes.append({"level": "error", "message": {"text": f"{audited.verdict}: {text}"}})
    run = {
        "tool": {
            "driver": {"name": "kdbench", "version": kdbench.__version__, **_site("informationUri"), "rules": rules}
        },
        "invocations": [
            {
                "executionSuccessful": audited.verdict != "could-not-run",
                "toolExecutionNotifications": notes,
            }
        ],
        "results": [_result(f, ids.index(f.id), audited) for f in listed],
    }
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False)


def _rule(id: str, f: Finding) -> dict[str, Any]:
    """Return a SARIF rule: what the audit holds, its fix, and its page where the site has an address."""
    story = next((audit.story for audit in CATALOGUE.values() if audit.id == id), f.name)
    return {
        "id": id,
        "name": f.name,
        "shortDescription": {"text": story.splitlines()[0]},
        "fullDescription": {"text": " ".join(story.split())},
        "help": {"text": f"{f.mend}\nMore: kdbench audits explain {id}".lstrip()},
        **_site("helpUri", f"rules/{id}.html"),
    }


def _site(key: str, page: str = "") -> dict[str, str]:
    """Return the address of a page of the documentation under this key; nothing where the site has no address."""
    address = documentation()
    return {key: f"{address.rstrip('/')}/{page}"} if address else {}


@functools.cache
def documentation() -> str | None:
    """Return the address of the documentation that the installed package names, or None."""
    try:
        named = metadata("kdbench").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    urls = dict(label.split(", ", 1) for label in named)
    return urls.get("Documentation")


def _result(f: Finding, index: int, audited: Audited) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": f.id,
        "ruleIndex": index,
        "level": _LEVELS[f.severity],
        "message": {"text": _long(f)},
        "partialFingerprints": {"kdbench/v1": fingerprint(f)},
    }
    if f.where:
        region = {"startLine": max(1, int(f.where["line"]))}
        result["locations"] = [
            {"physicalLocation": {"artifactLocation": _place(str(f.where["file"])), "region": region}}
        ]
    elif audited.target.endswith(".py"):
        result["locations"] = [{"physicalLocation": {"artifactLocation": _place(audited.target)}}]
    if f.status == "waived":
        kind = "inSource" if f.id in audited.waived_in_source else "external"
        result["suppressions"] = [{"kind": kind, "justification": f.reason or ""}]
    return result


def _place(file: str) -> dict[str, str]:
    path = Path(file)
    return {"uri": path.as_uri()} if path.is_absolute() else {"uri": quote(path.as_posix()), "uriBaseId": "%SRCROOT%"}


def to_github(audited: Audited) -> str:
    """Return workflow commands of GitHub Actions, one a line: they annotate the lines of a pull request."""
    lines = [
        _command(
            _COMMANDS["error" if f in audited.report.failed(audited.threshold) else f.severity],
            {**(f.where or {}), "title": f"{f.id} {f.name}"},
            _long(f),
        )
        for f in audited.report.findings
        if f.status == "fail"
    ]
    lines += [
        _command("error", {"title": f"{f.id} {f.name}: {_broken(f)}"}, _long(f))
        for f in audited.report.findings
        if f.status == "error"
    ]
    if audited.trouble or audited.script_error:
        text = audited.script_error or audited.trouble or ""
        lines.append(_command("error", {**_last_place(text), "title": f"kdbench audit: {audited.verdict}"}, text))
    lines.append(
        _command("notice", {"title": f"kdbench audit: {audited.verdict}"}, f"{audited.target}: {audited.summary}")
    )
    return "\n".join(lines)


def _last_place(text: str) -> dict[str, Any]:
    """Return file and line that a traceback, or a syntax error, names last; nothing where it names none."""
    places = re.findall(r'^ *File "(.+)", line (\d+)', text, re.MULTILINE)
    return {"file": shown(places[-1][0]), "line": int(places[-1][1])} if places else {}


def _command(name: str, properties: dict[str, Any], message: str) -> str:
    def escaped(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    said = ",".join(
        f"{key}={escaped(str(value)).replace(':', '%3A').replace(',', '%2C')}" for key, value in properties.items()
    )
    return f"::{name} {said}::{escaped(message)}"


def _long(f: Finding) -> str:
    return "\n".join(body(f))


def _broken(f: Finding) -> str:
    return f"error of kdbench: {f.message}" if is_ours(f) else f"could not run: {f.message}"


def _short(f: Finding) -> str:
    if f.status == "waived":
        return f"waived ({f.reason}): {f.message}"
    return f.message + (f"; decided with {f.decide_with}" if f.decide_with else "")


def _xml(text: str) -> str:
    """Return text without the characters that XML 1.0 cannot hold, as a script's coloured traceback has them."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
