"""`checkpoint`: the users' files read safely, ours written so that theirs and our readers open them."""

import errno
import os
import pickle
import pickletools
import textwrap
import zipfile

import dill
import numpy as np
import pytest
import torch
import warm_process
from omegaconf import DictConfig, OmegaConf

from diffusion_policy import checkpoint as checkpoint_module
from diffusion_policy.checkpoint import (
    CheckpointError,
    build_policy,
    load_policy,
    read_checkpoint,
    write_checkpoint,
)
from diffusion_policy.model.normalizer import SingleFieldLinearNormalizer
from diffusion_policy.policy.registry import POLICY_TARGETS
from diffusion_policy.resolvers import InterpolationError, register_resolvers

HARMLESS_GLOBALS = {
    "collections OrderedDict",
    "collections defaultdict",
    "_codecs encode",
    "typing Any",
    "torch FloatStorage",
    "torch LongStorage",
    "torch ByteStorage",
    "torch._utils _rebuild_tensor_v2",
    "omegaconf.base ContainerMetadata",
    "omegaconf.base Metadata",
    "omegaconf.dictconfig DictConfig",
    "omegaconf.listconfig ListConfig",
    "omegaconf.nodes AnyNode",
    "__builtin__ dict",  # types of the config's containers and keys, as Python 2 called them
    "__builtin__ list",
    "__builtin__ long",
}
PICKLES = {"_output_dir": None, "global_step": 12, "epoch": 3}


@pytest.fixture
def cfg():
    return OmegaConf.create(
        {
            "n_obs_steps": 2,
            "n_latency_steps": 0,
            "policy": {
                "_target_": POLICY_TARGETS[0],
                "shape_meta": {
                    "obs": {
                        "image": {"shape": [3, 40, 48], "type": "rgb"},
                        "robot_eef_pose": {"shape": [7], "type": "low_dim"},
                    },
                    "action": {"shape": [7]},
                },
                "noise_scheduler": {
                    "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
                    "num_train_timesteps": 10,
                },
                "horizon": "${eval:'2+2'}",
                "n_action_steps": 2,
                "n_obs_steps": "${n_obs_steps}",
                "crop_shape": [36, 44],
                "n_layer": 1,
                "n_head": 2,
                "n_emb": 16,
            },
        }
    )


@pytest.fixture
def policy(cfg):
    torch.manual_seed(0)
    policy = build_policy(cfg)
    for key, width in (("image", 1), ("robot_eef_pose", 7), ("action", 7)):
        policy.normalizer[key] = SingleFieldLinearNormalizer.create_fit(np.random.default_rng(0).random((9, width)))
    return policy


@pytest.fixture
def written(cfg, policy, tmp_path):
    path = tmp_path / "latest.ckpt"
    state = policy.state_dict()
    shifted = {key: value + 1 if key == "model.head.bias" else value for key, value in state.items()}
    write_checkpoint(path, cfg=cfg, state_dicts={"model": state, "ema_model": shifted}, pickles=PICKLES)
    return path


# Reading the users' files.


def test_reads_the_users_checkpoint(reference_checkpoint):
    checkpoint = read_checkpoint(reference_checkpoint)
    assert list(checkpoint.state_dicts) == ["model", "ema_model", "optimizer"]
    assert checkpoint.pickles["global_step"] == 123
    assert checkpoint.pickles["epoch"] == 4
    assert checkpoint.pickles["_output_dir"].startswith("data/outputs/")
    assert checkpoint.run_state is None
    assert checkpoint.provenance is None
    register_resolvers()
    assert checkpoint.cfg.policy.n_action_steps == 8
    assert checkpoint.cfg.policy.shape_meta.action.shape == [7]


def test_double_names_are_one_tensor(reference_checkpoint):
    state = read_checkpoint(reference_checkpoint).state_dict("ema_model")
    twins = "obs_encoder.obs_nets.image.{}.nets.0.weight"
    assert state[twins.format("backbone")] is state["obs_encoder.obs_nets.image.nets.0.nets.0.weight"]


def test_reads_the_config_as_the_users_code_does(reference_checkpoint):
    theirs = torch.load(reference_checkpoint, pickle_module=dill, weights_only=False)["cfg"]
    assert read_checkpoint(reference_checkpoint).cfg == theirs


@pytest.mark.parametrize("which", ["model", "ema_model"])
def test_loads_the_users_policy_ready_to_answer(reference_checkpoint, shared_data, which):
    policy = load_policy(reference_checkpoint, which)
    golden = np.load(shared_data / "reference/cogact_7d_tiny.npz")
    obs = {
        name.removeprefix("obs."): torch.from_numpy(golden[name]) for name in golden.files if name.startswith("obs.")
    }
    obs["image"] = obs["image"].movedim(-1, -3)
    assert not policy.training
    with torch.no_grad():
        steps = policy.normalizer.normalize(
            {key: value.flatten(0, 1) / (255 if key == "image" else 1) for key, value in obs.items()}
        )
        features = policy.obs_encoder(steps)
    np.testing.assert_allclose(features.numpy(), golden[f"{which}.obs_features"], atol=1e-5)


def test_a_file_with_the_weights_one_level_too_high_says_so(tmp_path):
    path = tmp_path / "wrong.ckpt"
    torch.save({"model": {}, "ema_model": {}, "optimizer": {}}, path)
    with pytest.raises(CheckpointError, match=r"tensors without a config, .*found model, ema_model, optimizer"):
        read_checkpoint(path)


def test_a_plain_state_dict_is_named_as_one(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"head.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"it is a plain state_dict, .*found head\.weight"):
        read_checkpoint(path)


def test_an_absent_file_and_absent_weights(written, tmp_path):
    with pytest.raises(CheckpointError, match="there is no such checkpoint file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    with pytest.raises(CheckpointError, match="holds no 'best_model'; its state_dicts are model, ema_model"):
        load_policy(written, which="best_model")


# Writing.


def test_what_is_written_is_read_back(cfg, policy, tmp_path):
    path = tmp_path / "latest.ckpt"
    state = policy.state_dict()
    optimizer = torch.optim.AdamW([policy.model.head.bias])
    policy.model.head.bias.sum().backward()
    optimizer.step()
    run_state = {
        "progress": {"epoch": 3},
        "generators": [{"torch": torch.get_rng_state(), "python": [3, [2**31], None]}],
    }
    write_checkpoint(
        path,
        cfg=cfg,
        state_dicts={"model": state, "optimizer": optimizer.state_dict()},
        pickles=PICKLES | {"_output_dir": "data/outputs/x"},
        run_state=run_state,
        provenance={"adaptation": {"rules": ["grow"]}},
    )
    found = read_checkpoint(path)
    assert found.cfg == cfg
    assert found.pickles == PICKLES | {"_output_dir": "data/outputs/x"}
    assert list(found.state_dict("model")) == list(state)
    assert all(torch.equal(found.state_dict("model")[key], value) for key, value in state.items())
    assert found.state_dicts["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(found.run_state["generators"][0].pop("torch"), run_state["generators"][0].pop("torch"))
    assert found.run_state == run_state
    assert found.provenance == {"adaptation": {"rules": ["grow"]}}


@pytest.mark.parametrize("pickle_module", [dill, pickle])
def test_the_users_code_opens_what_is_written(written, policy, pickle_module):
    payload = torch.load(written, pickle_module=pickle_module, weights_only=False)
    assert list(payload) == ["cfg", "state_dicts", "pickles"]
    assert isinstance(payload["cfg"], DictConfig)
    assert {name: dill.loads(dump) for name, dump in payload["pickles"].items()} == PICKLES
    policy.load_state_dict(payload["state_dicts"]["ema_model"], strict=True)


def test_only_harmless_names_are_written(cfg, tmp_path):
    path = tmp_path / "latest.ckpt"
    state = {"w": torch.zeros(2), "n": torch.tensor(1), "p": torch.nn.Parameter(torch.zeros(1))}
    write_checkpoint(
        path, cfg=cfg, state_dicts={"model": state}, pickles=PICKLES, run_state={"rng": torch.get_rng_state(), "f": 0.5}
    )
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        instructions = list(pickletools.genops(archive.read(name)))
    assert {argument for opcode, argument, _ in instructions if opcode.name == "GLOBAL"} <= HARMLESS_GLOBALS
    assert "STACK_GLOBAL" not in {opcode.name for opcode, _, _ in instructions}


def test_the_users_checkpoint_keeps_its_size_and_its_sharing(reference_checkpoint, tmp_path):
    source = read_checkpoint(reference_checkpoint)
    path = tmp_path / "copy.ckpt"
    write_checkpoint(path, cfg=source.cfg, state_dicts=source.state_dicts, pickles=source.pickles)
    assert path.stat().st_size == pytest.approx(reference_checkpoint.stat().st_size, rel=0.01)
    for which in ("model", "ema_model"):
        before, after = source.state_dict(which), read_checkpoint(path).state_dict(which)
        assert list(before) == list(after)
        assert [[k for k in before if before[k] is v] for v in before.values()] == [
            [k for k in after if after[k] is v] for v in after.values()
        ]


def test_a_part_of_a_large_tensor_is_saved_alone(cfg, tmp_path):
    path = tmp_path / "latest.ckpt"
    large = torch.arange(1_000_000.0)
    state = {"part": large[10:20], "again": large[10:20], "spread": torch.zeros(1).expand(4)}
    write_checkpoint(path, cfg=cfg, state_dicts={"model": state}, pickles=PICKLES)
    assert path.stat().st_size < 100_000
    found = read_checkpoint(path).state_dict("model")
    assert found["part"] is found["again"]
    assert torch.equal(found["part"], large[10:20])
    assert torch.equal(found["spread"], torch.zeros(4))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"run_state": {"when": {"path": os}}}, r"run_state.when.path: a module cannot be saved"),
        ({"run_state": {"rng": np.zeros(3)}}, "run_state.rng: a ndarray cannot be saved"),
        ({"pickles": {"epoch": {1}}}, "pickles.epoch: a set cannot be saved"),
        ({"provenance": {(1, 2): 3}}, r"provenance: the key \(1, 2\) is a tuple"),
        ({"state_dicts": {"model": {"w": print}}}, "state_dicts.model.w: a builtin_function_or_method cannot"),
    ],
)
def test_what_is_not_data_is_not_written(cfg, tmp_path, parts, reason):
    path = tmp_path / "latest.ckpt"
    with pytest.raises(CheckpointError, match=reason):
        write_checkpoint(path, **{"cfg": cfg, "state_dicts": {"model": {}}, "pickles": PICKLES, **parts})
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_could_not_be_read_back_is_not_written(tmp_path):
    cfg = OmegaConf.create({"home": "${oc.env:HOME}"})
    with pytest.raises(InterpolationError, match=r"'home' asks for the resolver 'oc\.env'"):
        write_checkpoint(tmp_path / "latest.ckpt", cfg=cfg, state_dicts={}, pickles={})


def test_what_a_killed_write_left_is_overwritten(cfg, tmp_path):
    (tmp_path / ".part.latest.ckpt").write_bytes(b"half a checkpoint")
    write_checkpoint(tmp_path / "latest.ckpt", cfg=cfg, state_dicts={"model": {}}, pickles=PICKLES)
    assert [path.name for path in tmp_path.iterdir()] == ["latest.ckpt"]


def test_a_failure_at_the_last_moment_keeps_the_former_file(written, cfg, monkeypatch):
    before = written.read_bytes()

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match=r"could not be written .No space left on device.; the previous file"):
        write_checkpoint(written, cfg=cfg, state_dicts={"model": {}}, pickles=PICKLES)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["latest.ckpt"]


FULL_DISK = """
    import resource, sys, torch
    from diffusion_policy.checkpoint import CheckpointError, write_checkpoint
    from omegaconf import OmegaConf
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    try:
        weights = {"model": {"w": torch.zeros(2**20)}}
        write_checkpoint(sys.argv[1], cfg=OmegaConf.create(), state_dicts=weights, pickles={})
    except CheckpointError as error:
        sys.exit(str(error))
"""


def test_a_disk_that_fills_while_writing_keeps_the_former_file(written):
    before = written.read_bytes()
    result = warm_process.run(["-c", textwrap.dedent(FULL_DISK), written], written.parent)
    assert result.returncode == 1
    assert "could not be written (File too large); the previous file is kept." in result.stderr
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == ["latest.ckpt"]


def test_a_write_into_nowhere_leaves_nothing(cfg, tmp_path):
    with pytest.raises(CheckpointError, match=r"No such file or directory\); nothing was left behind"):
        write_checkpoint(tmp_path / "absent/latest.ckpt", cfg=cfg, state_dicts={}, pickles={})


# Building.


def test_own_policies_are_loaded_with_the_weights_asked_for(written, policy):
    model, ema = load_policy(written, "model"), load_policy(written)
    assert not ema.training
    assert torch.equal(model.model.head.bias, policy.model.head.bias)
    assert torch.equal(ema.model.head.bias, policy.model.head.bias + 1)
    model.model.head.bias.data.fill_(5)
    assert not torch.equal(load_policy(written, "model").model.head.bias, model.model.head.bias)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that does not exist")
def test_a_missing_device(written):
    with pytest.raises(CheckpointError, match="cannot be put on the device 'cuda'"):
        load_policy(written, device="cuda")


def test_a_plain_dictionary_is_a_config_too(cfg):
    assert build_policy(OmegaConf.to_container(cfg)).n_emb == 16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_layers": 3}, "cfg.policy.n_layers is not an option of .*Policy; did you mean 'n_layer'"),
        ({"zzz": 3}, "cfg.policy.zzz is not an option of .*; it has shape_meta, noise_scheduler"),
        ({"_target_": "os.system"}, "cfg.policy._target_ is 'os.system'; a checkpoint may only name"),
        ({"noise_scheduler": {"_target_": "subprocess.run"}}, "noise_scheduler._target_ is 'subprocess.run'"),
        ({"noise_scheduler": None}, "noise_scheduler is missing"),
        ({"n_layer": 10**6}, "cfg.policy.n_layer is 1000000, beyond 1000"),
        ({"n_emb": 15}, "cannot be built from its options|n_emb"),
        ({"horizon": "${eval:'a'}"}, "cfg.policy cannot be resolved"),
        ({"horizon": "${nowhere}"}, "cfg.policy cannot be resolved .*nowhere"),
    ],
)
def test_a_policy_s_config_is_checked_option_by_option(cfg, change, reason):
    cfg.policy = {**OmegaConf.to_container(cfg.policy), **change}
    with pytest.raises(Exception, match=reason) as caught:
        build_policy(cfg)
    assert isinstance(caught.value, checkpoint_module.WorkspaceError)


def test_options_that_are_missing_are_listed(cfg):
    del cfg.policy.horizon
    del cfg.policy.n_obs_steps
    with pytest.raises(CheckpointError, match=r"cfg\.policy lacks horizon, n_obs_steps, which"):
        build_policy(cfg)
    with pytest.raises(CheckpointError, match="no section 'policy'; it has horizon"):
        build_policy({"horizon": 4})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda state: state.pop("model.head.bias"), r"1 keys are missing \['model.head.bias'\], 0 are unexpected"),
        (lambda state: state.update(extra=torch.zeros(1)), r"0 keys are missing \[\], 1 are unexpected \['extra'\]"),
        (
            lambda state: state.update({"model.head.bias": torch.zeros(8)}),
            r"model.head.bias has shape \(8,\), but the checkpoint's own config makes it \(7,\)",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith("normalizer.")],
            "no normalizer for the action",
        ),
    ],
)
def test_weights_that_do_not_fit_their_own_config(cfg, policy, tmp_path, damage, reason):
    state = dict(policy.state_dict())
    damage(state)
    path = tmp_path / "odd.ckpt"
    write_checkpoint(path, cfg=cfg, state_dicts={"ema_model": state}, pickles=PICKLES)
    with pytest.raises(CheckpointError, match=reason):
        load_policy(path)
