"""The cause behind the symptoms."""

from diffusion_policy.diagnose.findings import EXPLAINS, SYMPTOMS, Finding, diagnose, ok

FLAT = Finding("loss-does-not-fall", "error", "the loss does not fall")
WARM_UP = Finding("warm-up", "warning", "the learning rate was hardly reached", "warm up for less", "python train.py")
FEW = Finding("size", "warning", "few episodes")
BROKEN = Finding("images", "error", "chunks are missing")


def test_nothing_is_wrong() -> None:
    diagnosis = diagnose([ok("size", "enough"), Finding("gpu", "note", "no GPU")])
    assert diagnosis.cause is None
    assert diagnosis.sentence() == "no trouble found"


def test_a_warning_that_explains_a_symptom_is_the_cause_of_it() -> None:
    diagnosis = diagnose([FEW, WARM_UP, FLAT])
    assert diagnosis.cause is WARM_UP
    assert diagnosis.explains == (FLAT,)
    assert diagnosis.others == (FEW,)
    assert diagnosis.sentence() == "the learning rate was hardly reached; it is probably why the loss does not fall"


def test_an_error_comes_before_what_explains_a_symptom() -> None:
    assert diagnose([WARM_UP, FLAT, BROKEN]).cause is BROKEN


def test_an_unexplained_symptom_is_its_own_cause_and_precedes_a_warning() -> None:
    assert diagnose([FEW, FLAT]).cause is FLAT


def test_one_warning_is_the_cause_where_nothing_else_is() -> None:
    assert diagnose([FEW, ok("images", "fine")]).cause is FEW


def test_a_cause_may_explain_several_symptoms() -> None:
    gripper = Finding("gripper-verdict", "error", "never closes")
    baselines = Finding("beats-baselines", "error", "does not beat hold pose")
    sentence = diagnose([WARM_UP, FLAT, gripper, baselines]).sentence()
    assert sentence.endswith(
        "why the loss does not fall, the gripper is not commanded to close and open and baselines are not beaten"
    )


def test_one_log_explains_nothing_in_another() -> None:
    width = Finding("log-action", "warning", "seven numbers", about="a.json")
    here, there = (Finding("gripper-verdict", "error", "never closes", about=f"{name}.json") for name in "ab")
    assert diagnose([width, here]).cause is width
    assert diagnose([width, there]).cause is there


def test_every_symptom_has_words() -> None:
    assert EXPLAINS.keys() == SYMPTOMS.keys()


def test_findings_are_plain_json() -> None:
    assert WARM_UP.to_json() == {
        "code": "warm-up",
        "severity": "warning",
        "evidence": "the learning rate was hardly reached",
        "remedy": "warm up for less",
        "command": "python train.py",
        "about": "",
    }
