"""What-if on the project's configs: the policy's own class on the meta device gives the tensors."""

from pathlib import Path

import pytest

from diffusion_policy.families import recognize
from diffusion_policy.families.family import FamilyError, Impact
from diffusion_policy.whatif.config_change import what_if
from diffusion_policy.whatif.project_config import open_project_config

CONFIG = "train_cogact_robot"


@pytest.mark.parametrize(("changes", "verdict", "why"), [
    (["training.seed=7"], Impact.SAFE, "no part of the model reads it"),
    (["policy.p_drop_attn=0.1"], Impact.SAFE, "training only"),
    (["policy.n_head=8"], Impact.DIFFERS, "split into other heads"),
    (["n_action_steps=4"], Impact.DIFFERS, "another slice"),
    (["policy.noise_scheduler.beta_schedule=linear"], Impact.DIFFERS, "noise schedule"),
    (["policy.n_layer=12"], Impact.PARTLY, "new"),
    (["policy.n_layer=4"], Impact.PARTLY, "dropped"),
    (["horizon=32"], Impact.BREAKING, "of another shape"),
    (["policy.n_emb=512"], Impact.BREAKING, "of another shape"),
    (["~policy.crop_shape"], Impact.BREAKING, "class default (76, 76) applies"),
    (["policy.num_inference_steps=200"], Impact.CANNOT_RUN, "more than the 100"),
    (["policy.n_head=7"], Impact.NOT_CONSTRUCTED, "the policy refuses this config"),
    (["n_action_steps=16"], Impact.NOT_CONSTRUCTED, "beyond the horizon"),
    (["~horizon"], Impact.NOT_CONSTRUCTED, "cannot be resolved"),
    (["policy.num_inference_steps=100"], Impact.SAFE, "already"),
])  # fmt: skip
def test_verdicts(changes: list[str], verdict: Impact, why: str):
    report = what_if(CONFIG, changes)
    assert report.verdict is verdict
    assert why in report.verdicts[0].why


def test_what_only_fails_together_fails():
    report = what_if(CONFIG, ["n_action_steps=14", "n_obs_steps=4"])
    assert report.verdict is Impact.NOT_CONSTRUCTED
    assert [one.verdict for one in report.verdicts] == [Impact.DIFFERS, Impact.BREAKING]
    assert "beyond the horizon" in report.error
    assert report.exit_status == 1


def test_a_longer_horizon_names_position_embeddings_and_masks():
    found = what_if(CONFIG, ["horizon=32"]).to_json()
    assert set(found["shape_mismatch"]) == {"model.pos_emb", "model.mask", "model.memory_mask"}
    assert found["counts"]["tensors"]["shape_mismatch"] == 3


def test_a_config_is_found_by_path_too(repository: Path):
    by_path = what_if(repository / "config" / f"{CONFIG}.yaml", ["policy.n_layer=12"])
    assert by_path.to_json() == what_if(CONFIG, ["policy.n_layer=12"]).to_json()


def test_the_policy_of_a_config_is_recognized_and_its_settings_read():
    project = open_project_config(Path(CONFIG))
    assert project is not None
    shapes = project.shapes(project.config, ["model"])
    found = recognize(shapes)
    assert found is not None
    assert (found.family.name, found.prefix) == ("robot_policy", "")
    assert found.settings == {
        "action_dim": 8, "n_emb": 256, "n_layer": 8, "n_cond_layers": 0, "cameras": ["image"], "encoder_width": 64,
        "horizon": 16, "n_obs_steps": 2, "observation features": 72,
    }  # fmt: skip
    wrapped = recognize({f"module.{name}": shape for name, shape in shapes.items()})
    assert wrapped is not None
    assert "DistributedDataParallel" in wrapped.sentence
    nested = recognize({f"state_dicts.ema_model.{name}": shape for name, shape in shapes.items()})
    assert nested is not None
    assert "in the file's entry `state_dicts.ema_model`" in nested.sentence


@pytest.mark.parametrize(("change", "message"), [
    ("policy.n_layers=9", "closest is 'policy.n_layer'"),
    ("policy=3", "is a group"),
])  # fmt: skip
def test_refusals(change: str, message: str):
    with pytest.raises(FamilyError, match=message):
        what_if(CONFIG, [change])


def test_a_config_without_a_policy_is_refused(tmp_path: Path):
    (tmp_path / "other.yaml").write_text("a: 1\n")
    with pytest.raises(FamilyError, match="no `policy` section"):
        what_if(tmp_path / "other.yaml", [])
    (tmp_path / "broken.yaml").write_text("defaults:\n  - nowhere\n")
    with pytest.raises(FamilyError, match="cannot be composed"):
        what_if(tmp_path / "broken.yaml", [])
