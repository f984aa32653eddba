"""The machine formats: well formed, complete, and never green in silence."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_policy import ACTIVE, BOUND, BROKEN, INPUT, MODE, SCALE, SILENT

import kdbench
from kdbench.audits.finding import FUNCTION_BROKE, sorted_report
from kdbench.audits.report import render
from kdbench.audits.report.render import Audited, to_github, to_json, to_junit, to_sarif

FORMATS = (to_json, to_junit, to_sarif, to_github)
WAIVED = replace(INPUT, status="waived", reason="own preprocessing")
OPEN = replace(SILENT, id="KD341", decide_with="--alpha", reason="intent-unknown")
LONGER = replace(SILENT, decide_with="--steps 0", reason="not-in-these-steps")
ODD = replace(SCALE, message="100% wrong: a, b <&>\x1b[31m", where={"file": "my train,v1.py", "line": 7})


def audited(*findings, verdict="failed", **rest):
    return Audited("train.py", sorted_report(findings), verdict, **rest)


ALL = audited(SCALE, BOUND, WAIVED, ACTIVE, MODE, SILENT, BROKEN, steps=25, student="Net (student)", unobserved=("x",))
SILENCE = audited(SILENT, verdict="undecided", script_exit=0)
CRASH = audited(SILENT, verdict="could-not-run", script_error="Traceback\n\x1b[31mValueError: no", script_exit=None)


def test_json_is_the_object_that_is_promised():
    found = json.loads(to_json(ALL))
    assert list(found) == [
        "schema", "target", "verdict", "steps", "student", "teacher", "projectors", "findings", "counts",
        "script_error", "script_exit", "unobserved", "processes", "summary", "waived_in_source",
    ]  # fmt: skip
    assert found["schema"] == "kdbench.audit/1" and found["target"] == "train.py" and found["teacher"] is None
    assert found["counts"] == {"pass": 1, "fail": 3, "not_triggered": 1, "error": 1, "waived": 1}
    assert [f["id"] for f in found["findings"]][:2] == ["KD312", "KD205"]
    assert found["findings"][0] == {
        "id": "KD312",
        "name": "kd-scale",
        "severity": "error",
        "status": "fail",
        "phase": "first",
        "message": SCALE.message,
        "observed": SCALE.observed,
        "mend": "mend it",
        "where": {"file": "train.py", "line": 7},
        "consequence_of": None,
        "reason": None,
        "decide_with": None,
    }


def test_json_holds_no_nan():
    assert '"kd_weight": null' in to_json(audited(replace(SCALE, observed={"kd_weight": float("nan")})))


def test_junit_fails_what_failed_and_skips_what_was_silent():
    suite = ElementTree.fromstring(to_junit(ALL))
    cases = {case.get("name").split()[0]: case for case in suite.iter("testcase")}
    assert suite.attrib | {"name": ""} == {"name": "", "tests": "7", "failures": "2", "errors": "1", "skipped": "2"}
    assert cases["KD312"].get("line") == "7" and "fix: mend it" in cases["KD312"].find("failure").text
    assert "follows from KD201" in cases["KD204"].find("failure").text
    assert cases["KD205"].find("failure") is None and "binds always" in cases["KD205"].find("system-out").text
    assert "own preprocessing" in cases["KD304"].find("skipped").get("message")
    assert cases["KD203"].find("skipped") is not None and len(cases["KD301"]) == 0


def test_junit_counts_a_warning_only_where_it_is_asked_to():
    mild, strict = (
        ElementTree.fromstring(to_junit(audited(INPUT, threshold=threshold))) for threshold in ("error", "warn")
    )
    assert (mild.get("failures"), strict.get("failures")) == ("0", "1")


@pytest.mark.parametrize("case", [SILENCE, CRASH], ids=["silence", "crash"])
def test_no_format_looks_green_in_silence(case):
    assert ElementTree.fromstring(to_junit(case)).get("errors") == "1"
    assert to_github(case).startswith("::error title=kdbench audit%3A")
    notes = json.loads(to_sarif(case))["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert "error" in {note["level"] for note in notes}


def test_sarif_names_rule_level_line_and_fingerprint():
    log = json.loads(to_sarif(ALL))
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    results = {result["ruleId"]: result for result in run["results"]}
    assert log["version"] == "2.1.0" and sorted(results) == ["KD204", "KD205", "KD304", "KD312"]
    assert {id: r["level"] for id, r in results.items()} == {
        "KD204": "error",
        "KD205": "note",
        "KD304": "warning",
        "KD312": "error",
    }
    assert all(rules[r["ruleIndex"]] == id for id, r in results.items())
    place = results["KD312"]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "train.py" and place["region"] == {"startLine": 7}
    assert results["KD304"]["suppressions"][0]["justification"] == "own preprocessing"
    assert "suppressions" not in results["KD312"]
    moved = json.loads(to_sarif(audited(replace(SCALE, where={"file": "train.py", "line": 99}))))["runs"][0]["results"]
    assert moved[0]["partialFingerprints"] == results["KD312"]["partialFingerprints"] != {}
    notes = run["invocations"][0]["toolExecutionNotifications"]
    assert {note["associatedRule"]["id"]: note["level"] for note in notes} == {"KD203": "note", "KD101": "error"}


def test_sarif_names_the_version_and_each_rules_own_page(monkeypatch):
    monkeypatch.setattr(render, "documentation", lambda: "https://docs.example/kdbench/")
    driver = json.loads(to_sarif(ALL))["runs"][0]["tool"]["driver"]
    assert (driver["version"], driver["informationUri"]) == (kdbench.__version__, "https://docs.example/kdbench/")
    scale = next(rule for rule in driver["rules"] if rule["id"] == "KD312")
    assert scale["helpUri"] == "https://docs.example/kdbench/rules/KD312.html"
    assert scale["fullDescription"]["text"].startswith(scale["shortDescription"]["text"])
    assert scale["help"]["text"] == "mend it\nMore: kdbench audits explain KD312"
    monkeypatch.setattr(render, "documentation", lambda: None)
    driver = json.loads(to_sarif(ALL))["runs"][0]["tool"]["driver"]
    assert "informationUri" not in driver and not any("helpUri" in rule for rule in driver["rules"])


def test_the_address_is_the_one_that_the_package_names(monkeypatch):
    class Named:
        def get_all(self, key):
            return ["Paper, https://paper.example", "Documentation, https://docs.example"]

    monkeypatch.setattr(render, "metadata", lambda name: Named())
    render.documentation.cache_clear()
    assert render.documentation() == "https://docs.example"
    render.documentation.cache_clear()


def test_sarif_writes_paths_as_uris():
    def uri(file):
        log = json.loads(to_sarif(audited(replace(SCALE, where={"file": file, "line": 1}))))
        return log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]

    assert uri("my code/a#b.py") == {"uri": "my%20code/a%23b.py", "uriBaseId": "%SRCROOT%"}
    assert uri("/my code/a.py") == {"uri": Path("/my code/a.py").as_uri()}


def test_github_escapes_what_it_would_misread():
    line = to_github(audited(ODD)).splitlines()[0]
    assert line.startswith("::error file=my train%2Cv1.py,line=7,title=KD312 kd-scale::100%25 wrong: a, b <&>")
    assert line.endswith("%0Afix: mend it")


def test_github_points_at_the_line_at_which_a_script_broke():
    told = 'Traceback (most recent call last):\n  File "run.py", line 3, in <module>\n    x = 1 +\nSyntaxError: odd'
    broken = replace(CRASH, script_error=told)
    assert to_github(broken).startswith("::error file=run.py,line=3,title=kdbench audit%3A")


def test_github_says_one_line_a_failure_at_its_level():
    lines = to_github(ALL).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::notice", "::error", "::error", "::notice"]
    assert lines[-2].startswith("::error title=KD101 optimizer-coverage%3A error of kdbench%3A the audit itself broke")
    assert lines[-1] == f"::notice title=kdbench audit%3A failed::train.py: {ALL.summary}"
    assert to_github(audited(INPUT)).startswith("::warning ")
    assert to_github(audited(INPUT, threshold="warn")).startswith("::error ")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            ALL,
            "Not clean: 2 of 5 audits failed: KD312, KD204. 1 note: KD205. 1 waived: KD304. "
            "1 audit broke, which is an error of kdbench: KD101",
        ),
        (audited(MODE, INPUT, verdict="clean"), "Clean: 1 audit passed. 1 warning: KD304"),
        (audited(MODE, OPEN, verdict="clean"), "Clean: 1 audit passed. 1 more needs --alpha to decide"),
        (audited(MODE, LONGER, verdict="clean"), "Clean: 1 audit passed"),
        (audited(MODE, OPEN, verdict="clean", declarable=False), "Clean: 1 audit passed"),
        (audited(MODE, BROKEN, verdict="could-not-run"), "Error of kdbench: 1 audit broke and decided nothing: KD101"),
        (CRASH, "Could not run: \x1b[31mValueError: no"),
        (SILENCE, "Undecided: no scaler"),
        (audited(verdict="undecided"), "Undecided: none of the audits asked for passed or failed"),
        (audited(MODE, verdict="undecided", undecided_because="a bug would pass"), "Undecided: a bug would pass"),
    ],
)
def test_the_verdict_in_words(case, says):
    assert case.summary == says


def test_warnings_notes_and_errors_of_ours_are_told_from_failures():
    text = str(ALL.report)
    assert text.startswith("failed 2, notes 1, passed 1, waived 1, errors of kdbench 1, undecided 1\n")
    lines = text.splitlines()
    assert "KD312 kd-scale  train.py:7" in lines and "  fix: mend it" in lines and "FAIL" not in text
    assert "KD205 clip-active  (note)" in lines and "KD101 optimizer-coverage  (error of kdbench)" in lines
    assert "KD304 same-input  (waived)" in lines and "  reason: own preprocessing" in lines
    assert "kdbench doctor" in text and "KDBENCH_DEBUG=1" in text


@pytest.mark.parametrize("form", FORMATS)
def test_an_audit_that_broke_is_an_error_of_ours_in_every_format(form):
    case = audited(MODE, SILENT, BROKEN, verdict="could-not-run")
    text = form(case)
    assert "rror of kdbench" in text and ("kdbench doctor" in text or form is to_json)
    users = audited(MODE, replace(BROKEN, reason=FUNCTION_BROKE), verdict="could-not-run")
    assert "rror of kdbench" not in form(users), "a function of the user's"


def test_sarif_says_where_a_failure_is_accepted():
    inside = audited(replace(SCALE, status="waived", reason="meant"), waived_in_source={"KD312": "train.py:6"})
    kinds = [
        json.loads(to_sarif(case))["runs"][0]["results"][0]["suppressions"][0]["kind"]
        for case in (inside, replace(inside, waived_in_source={}))
    ]
    assert kinds == ["inSource", "external"]
    assert json.loads(to_json(inside))["waived_in_source"] == {"KD312": "train.py:6"}


@pytest.mark.parametrize("form", FORMATS)
def test_odd_characters_break_no_format(form):
    text = form(audited(ODD))
    if form is to_junit:
        assert "<&>" in ElementTree.fromstring(text).find("testcase/failure").get("message")
    elif form is not to_github:
        assert ODD.message in json.dumps(json.loads(text), ensure_ascii=False).encode().decode("unicode_escape")
