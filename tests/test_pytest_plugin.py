"""The pytest plugin as its users meet it: in the tests of a project that knows nothing of kdbench."""

import sys

import pytest

import kdbench.audits.pytest_plugin  # noqa: F401  # once; each run of pytester would forget it and import it again

pytest_plugins = ["pytester"]
QUICK = ("-p", "no:hypothesispytest")
"It imports all of Hypothesis anew at the end of each run of pytester."

STEP = """
import torch, pytest
import torch.nn.functional as F
from torch import nn

T = 4.0

def make():
    torch.manual_seed(0)
    student, teacher = nn.Linear(12, 5), nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 5))
    return student, teacher.eval().requires_grad_(False), torch.optim.SGD(student.parameters(), lr=0.1)

def train(student, teacher, optimizer, square=T * T, steps=6):
    for _ in range(steps):
        x, y = torch.randn(32, 12), torch.randint(0, 5, (32,))
        with torch.no_grad():
            answer = teacher(x)
        z = student(x)
        kd = F.kl_div(F.log_softmax(z / T, 1), F.softmax(answer / T, 1), reduction="batchmean") * square
        optimizer.zero_grad()
        (0.5 * F.cross_entropy(z, y) + 0.5 * kd).backward()
        optimizer.step()
"""


def run(pytester, body, *args):
    pytester.makepyfile(STEP + body)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *QUICK, *args)


FIXTURE = """
def test_loop(kd_audit):
    student, teacher, optimizer = make()
    {before}
    with kd_audit(student=student, teacher=teacher, optimizer=optimizer):
        train(student, teacher, optimizer{change})
"""


def test_the_fixture_lets_a_right_loop_pass(pytester):
    run(pytester, FIXTURE.format(before="", change="")).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("before", "change", "finding"),
    [
        ("", ", square=1", ["KD312 kd-scale  *.py:*", "*1/T^2*"]),
        ("teacher.train()", "", ["KD301 teacher-mode  *.py:*", "*BatchNorm1d*"]),
    ],
)
def test_the_fixture_fails_a_wrong_one_once(pytester, before, change, finding):
    result = run(pytester, FIXTURE.format(before=before, change=change))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(finding)
    shown = result.stdout.str()
    assert shown.count("\n" + finding[0].removesuffix("*.py:*")) == 1 and "another exception" not in shown
    assert "(undecided)" not in shown and "KD101" not in shown, "what passed or was not decided makes no test fail"


def test_the_last_line_names_the_finding(pytester):
    """Often it is all that a log shows."""
    result = run(pytester, FIXTURE.format(before="", change=", square=1"))
    result.stdout.fnmatch_lines(["FAILED *::test_loop - *KD312 kd-scale*"])


@pytest.mark.parametrize(("waiver", "says"), [("KD312", "gives no reason"), ("KD999=x", "unknown audit 'KD999'")])
def test_a_wrong_waiver_is_refused_once_without_the_option_too(pytester, waiver, says):
    result = run(pytester, OPTION, "--kd-audit-waive", waiver)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: kd_audit_waive:*{says}*"])


def test_a_mark_without_a_reason_is_told_how_a_mark_is_written(pytester):
    body = FIXTURE.format(before="", change="").replace("def test", "@pytest.mark.kd_audit_waive('KD312')\ndef test")
    run(pytester, body).stdout.fnmatch_lines(['*write the mark as kd_audit_waive("KD312", reason="...")*'])


def test_a_fix_names_pytests_own_option(pytester):
    result = run(pytester, FIXTURE.format(before="", change=", square=1"))
    result.stdout.fnmatch_lines(["*waive it with the reason: --kd-audit-waive KD312=REASON"])


def test_a_watch_that_ends_with_another_fixture_is_judged_too(pytester):
    body = """
@pytest.fixture
def watched(kd_audit):
    student, teacher, optimizer = make()
    with kd_audit(student=student, teacher=teacher, optimizer=optimizer):
        yield student, teacher, optimizer

def test_it(watched):
    train(*watched, square=1)
"""
    result = run(pytester, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["KD312 kd-scale  *.py:*"])


def test_an_assertion_ends_at_the_tests_own_line(pytester):
    body = """
def test_it():
    from kdbench.audits.asserts import assert_clean
    student, teacher, optimizer = make()
    step = lambda: train(student, teacher, optimizer, square=1, steps=1)
    assert_clean(step, student=student, teacher=teacher, optimizer=optimizer)
"""
    result = run(pytester, body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*assert_clean(step, *", "E *AuditFailure: KD312 kd-scale *"])
    assert "asserts.py" not in result.stdout.str() and "finding.py:" not in result.stdout.str()


def test_the_fixture_fails_a_watch_that_saw_nothing(pytester):
    result = run(pytester, FIXTURE.format(before="", change=", steps=0"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["nothing was decided: no step of the declared optimizer was seen"])


def test_the_fixture_fails_a_watch_without_its_block(pytester):
    body = """
def test_loop(kd_audit):
    student, teacher, optimizer = make()
    kd_audit(student=student, teacher=teacher, optimizer=optimizer)
    train(student, teacher, optimizer)
"""
    result = run(pytester, body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*kd_audit(...) watches a block of its own, and had none: write `with kd_audit*"])


def test_a_test_that_fails_by_itself_is_left_to_that(pytester):
    result = run(pytester, FIXTURE.format(before="", change=", steps=0") + "        assert False, 'mine'\n")
    result.assert_outcomes(failed=1)


def test_after_a_watch_too(pytester):
    result = run(pytester, FIXTURE.format(before="", change=", steps=0") + "    assert False, 'mine'\n")
    result.assert_outcomes(failed=1)
    assert "nothing was decided" not in result.stdout.str()


OPTION = """
def test_right():
    train(*make())

def test_no_square():
    train(*make(), square=1)

def test_of_no_training():
    assert True
"""
TWICE = """
def test_of_an_optimizer():
    student, _, optimizer = make()
    student(torch.randn(4, 12)).sum().backward()
    for _ in range(3):
        optimizer.step()
"""


def test_the_option_watches_every_test_and_fails_the_wrong_one(pytester):
    result = run(pytester, OPTION, "--kd-audit")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ test_no_square _*",
            "KD312 kd-scale  *.py:*",
            "2 tests step an optimizer, 2 of them in a distillation: 1 failed, 0 with warnings, 1 clean",
        ]
    )


def test_without_the_option_nothing_is_said(pytester):
    result = run(pytester, OPTION)
    result.assert_outcomes(passed=3)
    assert "kd-audit" not in result.stdout.str()


def test_what_is_no_distillation_is_only_warned_of(pytester):
    result = run(pytester, TWICE, "--kd-audit")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_of_an_optimizer",
            "KD212 one-step-per-backward  *",
            "1 tests step an optimizer, 0 of them *: 0 failed, 1 with warnings, 0 clean",
        ]
    )


def test_a_training_in_a_fixture_is_the_tests_own(pytester):
    body = "@pytest.fixture\ndef trained():\n    train(*make(), square=1)\n\ndef test_it(trained):\n    pass\n"
    run(pytester, body, "--kd-audit").assert_outcomes(failed=1)


@pytest.mark.parametrize("how", ["option", "ini", "mark"])
def test_a_waiver_with_a_reason_is_heard(pytester, how):
    args = ["--kd-audit"]
    if how == "option":
        args += ["--kd-audit-waive", "KD312=as in the paper"]
    if how == "ini":
        pytester.makeini("[pytest]\nkd_audit_waive =\n    kd-scale=as in the paper\n")
    mark = "@pytest.mark.kd_audit_waive('KD312', reason='as in the paper')\n" if how == "mark" else ""
    body = mark + "def test_no_square():\n    train(*make(), square=1)\n"
    run(pytester, body, *args).assert_outcomes(passed=1)
    assert run(pytester, body.removeprefix(mark), "--kd-audit").parseoutcomes().get("failed") == (
        None if how == "ini" else 1
    )


@pytest.mark.parametrize(("waiver", "says"), [("KD312", "gives no reason"), ("KD999=why", "unknown audit 'KD999'")])
def test_a_wrong_waiver_is_refused_before_the_first_test(pytester, waiver, says):
    result = run(pytester, OPTION, "--kd-audit", "--kd-audit-waive", waiver)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: kd_audit_waive:*{says}*"])


def test_the_option_leaves_the_numbers_alone(pytester):
    body = """
def test_bits():
    student, teacher, optimizer = make()
    train(student, teacher, optimizer)
    print("weights", student.weight.double().sum().item().hex(), torch.rand(()).item().hex())
"""
    seen, unseen = (run(pytester, body, "-s", *args).stdout.str() for args in (["--kd-audit"], []))
    numbers = [text.partition("weights ")[2].split()[:2] for text in (seen, unseen)]
    assert "1 clean" in seen and len(numbers[0]) == 2 and numbers[0] == numbers[1]


def test_unused_it_costs_nothing_and_hides_no_module_of_the_users(pytester):
    """In a process of its own: torch is not imported, and a project's own `audits` is the one found."""
    pytester.makepyfile(audits="MINE = 1", harness="MINE = 1")
    pytester.makepyfile(
        "import sys\n\ndef test_it():\n"
        "    assert 'torch' not in sys.modules\n    import audits, harness\n    assert audits.MINE and harness.MINE\n"
    )
    result = pytester.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--trace-config")
    assert "kdbench_pytest" in result.stdout.str()
    result.assert_outcomes(passed=1)
