"""`resolvers`: `eval` in a config is arithmetic, and a config file may contain nothing else."""

import pytest
from omegaconf import OmegaConf

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.resolvers import (
    ArithmeticTextError,
    InterpolationError,
    check_interpolations,
    evaluate_arithmetic,
    flat_config,
    register_resolvers,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2-1+0", 1),
        (" 8 + 0 ", 8),
        ("(3*2)/4", 1.5),
        ("-7//2", -4),
        ("7%4", 3),
        ("2**10", 1024),
        ("+1e-4", 1e-4),
        (3, 3),
    ],
)
def test_evaluates_sums(text, value):
    result = evaluate_arithmetic(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__import__('os').system('true')", "not arithmetic on numbers.*nothing was run"),
        ("a", "'a' is not arithmetic"),
        ("'a'*9", "not arithmetic"),
        ("True", "not arithmetic"),
        ("1 < 2", "not arithmetic"),
        ("[1][0]", "not arithmetic"),
        ("1/0", "division by zero"),
        ("9**9**9", "exponent"),
        ("2**64*2", "beyond"),
        ("1e308*10", "beyond"),
        ("(-1)**0.5", "beyond"),
        ("1 +", "invalid syntax"),
        ("(" * 150, "never closed"),
        ("1+" * 150 + "1", "at most 200 characters"),
        (True, "expected a sum"),
        (None, "expected a sum"),
    ],
)
def test_refuses_everything_else(text, reason):
    with pytest.raises(ArithmeticTextError, match=reason):
        evaluate_arithmetic(text)


def test_configs_resolve_like_the_users():
    register_resolvers()
    register_resolvers()
    cfg = OmegaConf.create(
        {"n_obs_steps": 2, "n_latency_steps": 0, "pad": "${eval:'${n_obs_steps}-1+${n_latency_steps}'}"}
    )
    assert cfg.pad == 1


HARMLESS = {
    "name": "grasp",
    "n_obs_steps": 2,
    "shape": [3, 180, 320],
    "pad": "${eval:'${n_obs_steps}-1'}",
    "shape_meta": "${task.shape_meta}",
    "run_dir": "data/${now:%Y.%m.%d}_${name}",
    "task": {
        "shape_meta": {"image": "${shape}"},
        "near": {"relative": "${.sibling}", "sibling": 1, "up": "${...name}"},
    },
    "first": "${shape[0]}",
    "dangling": "${nowhere.to.be.found}",
}


def test_harmless_interpolations_pass():
    check_interpolations(HARMLESS, "a.ckpt")


TOWER = {f"a{level}": f"${{a{level - 1}}}${{a{level - 1}}}" if level else "boom" for level in range(40)}
CHAIN = {f"a{level}": f"${{a{level + 1}}}" for level in range(5000)}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"a": "${oc.env:HOME}"}, "entry 'a' asks for the resolver 'oc.env'"),
        ({"a": {"b": ["${eval:'${oc.env:HOME}'}"]}}, "entry 'a.b.0' asks for the resolver 'oc.env'"),
        ({"a": "${oc.create:x}"}, "'oc.create'"),
        ({"a": "${ hydra :x}"}, "'hydra'"),
        ({"a": "oc.env", "b": "${${a}:HOME}"}, r"entry 'b' asks for the resolver '\$\{a\}'"),
        ({"a": "name", "b": "${${a}}"}, "computes the name"),
        ({"a": "${b}", "b": "${a}"}, "refers to itself"),
        ({"a": {"b": "${a}"}}, "refers to itself"),
        (TOWER, "unfolds to more than"),
        (CHAIN, "nested too deeply"),
        ({"a": "${eval:"}, "not a valid interpolation"),
        ({"a": "${b}" + "x" * 5000}, "an interpolation within 5004 characters"),
    ],
)
def test_harmful_interpolations_are_refused_by_name(config, reason):
    with pytest.raises(InterpolationError, match=f"a.ckpt: .*{reason}") as caught:
        check_interpolations(config, "a.ckpt")
    assert isinstance(caught.value, WorkspaceError)
    assert len(str(caught.value)) < 400


def test_a_config_is_laid_flat_and_a_dangling_reference_stays_as_written():
    config = OmegaConf.create({"a": {"b": 1, "empty": {}}, "c": "${a.b}", "d": [1, 2]})
    assert flat_config(config) == {"a.b": 1, "a.empty": {}, "c": 1, "d": [1, 2]}
    assert flat_config(OmegaConf.create({"a": {"b": "${nowhere}"}})) == {"a.b": "${nowhere}"}
