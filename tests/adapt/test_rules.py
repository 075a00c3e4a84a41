"""Reading rules: what is allowed, and a clear error for anything else."""

from pathlib import Path
from typing import Any

import pytest

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.rules import parse_rules, read_rules


def test_a_file_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rules:\n  - rename: {prefix: net., to: ''}\n  - drop: [a.*, b]\n    why: not needed\n")
    rules = read_rules(path)
    assert rules.name == "mine"
    assert [str(rule) for rule in rules.rules] == ["rename '^net\\\\.' to ''", "drop a.*, b (not needed)"]
    assert rules.rules[1].matches("a.x.y")
    assert not rules.rules[1].matches("b.x")


def test_files_join_and_must_agree_on_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("weights: model\nrules: [{drop: a}]\n")
    second.write_text("weights: model\nrules: [{drop: b}]\n")
    joined = read_rules(first, second)
    assert (joined.name, len(joined.rules), joined.weights) == ("a + b", 2, "model")
    assert len(joined.to_json()) == 2
    second.write_text("rules: [{drop: b}]\n")
    with pytest.raises(AdaptError, match="weights is 'each', an earlier file has 'model'"):
        read_rules(first, second)


def test_own_rules_are_found_by_name() -> None:
    assert read_rules("pose_to_gripper").name == "pose_to_gripper"


def test_a_prefix_is_not_a_regular_expression() -> None:
    (rule,) = parse_rules({"rules": [{"rename": {"prefix": "a.b.", "to": r"\1"}}]}).rules
    assert rule.renamed("a.b.c") == r"\1c"
    assert rule.renamed("axb.c") == "axb.c"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a mapping with name and rules, found list"),
        ({"rule": []}, "unknown entry 'rule'.*did you mean 'rules'"),
        ({"weights": "best"}, "weights is 'best'; expected each, model or ema_model"),
        ({"rules": "drop"}, "rules is 'drop'; expected a list"),
        ({"rules": ["drop"]}, "rule 1: expected a mapping such as"),
        ({"rules": [{}]}, "expected exactly one of rename, drop"),
        ({"rules": [{"drop": "a", "fresh": "b"}]}, "expected exactly one of"),
        ({"rules": [{"drop": "a", "wy": "x"}]}, "unknown entry 'wy'.*did you mean 'why'"),
        ({"rules": [{"drop": []}]}, "expected a pattern or a list of them"),
        ({"rules": [{"copy": "a"}]}, "copy needs `from`"),
        ({"rules": [{"grow": "a"}]}, "grow needs `init`"),
        ({"rules": [{"grow": "a", "init": "ones"}]}, "init is 'ones'; expected zeros, mean, target"),
        ({"rules": [{"grow": "a", "init": {"normal": -1}}]}, "init is {'normal': -1}"),
        ({"rules": [{"fresh": "a", "init": {"layer": "x"}}]}, "init is {'layer': 'x'}"),
        (
            {"rules": [{"grow": "a", "init": "zeros", "axes": {"last": "b"}}]},
            "axes is .*expected {dimension: axis name}",
        ),
        ({"rules": [{"rename": "a"}]}, "rename is 'a'; expected"),
        ({"rules": [{"rename": {"pattern": "(", "to": ""}}]}, "is not a regular expression"),
        ({"slots": {"action": ["a"]}}, "slots.action: is .*expected {source: .names., target"),
    ],
)
def test_refusals_name_the_entry(data: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        parse_rules(data)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"absent\.yaml: cannot be read as YAML rules"):
        read_rules(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("rules: [")
    with pytest.raises(AdaptError, match=r"bad\.yaml: cannot be read as YAML rules"):
        read_rules(tmp_path / "bad.yaml")
