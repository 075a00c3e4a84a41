"""diffusion_policy.serve.engine.policy_engine and its fast path: equal to the plain policy, and faster for a reason."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_factory import tiny_config, write_tiny_checkpoint
from kernel_marker import needs_bf16, needs_kernels
from omegaconf import OmegaConf
from serve_factory import parsed

from diffusion_policy.checkpoint import build_policy, load_policy
from diffusion_policy.convert.decoding import read_frame
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.model.cpu import kernels
from diffusion_policy.model.diffusion.fast_denoiser import CompiledDenoiser, FastDenoiser, is_foldable
from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.serve import server
from diffusion_policy.serve.engine import PolicyEngine, fast_path
from diffusion_policy.serve.engine import policy_engine as engine_module
from diffusion_policy.serve.engine.cuda_graph import GraphedDenoiser
from diffusion_policy.serve.settings import EngineSettings, ServeError, ServeSettings, read_settings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.host import Host
from diffusion_policy.serve.transport.protocol import MessageForm, Observation

KINDS = [FastDenoiser, pytest.param(CompiledDenoiser, marks=needs_kernels)]


def opened(checkpoint: Path, **options: object) -> PolicyEngine:
    return PolicyEngine.open(checkpoint, EngineSettings(**{"steps": 4, **options}))  # type: ignore[arg-type]


def randomised(model: TransformerForDiffusion) -> TransformerForDiffusion:
    for parameter in model.parameters():  # including biases, which are initialized to zero
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def denoiser() -> TransformerForDiffusion:
    torch.manual_seed(0)
    return randomised(TransformerForDiffusion(8, 8, 6, 3, cond_dim=20, n_layer=3, n_head=4, n_emb=32, causal_attn=True))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [6, 3], ids=["whole", "executed steps only"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_denoiser_is_the_denoiser(kind: type[FastDenoiser], causal: bool, length: int) -> None:
    torch.manual_seed(0)
    model = TransformerForDiffusion(
        8, 8, horizon=6, n_obs_steps=3, cond_dim=20, n_layer=3, n_head=4, n_emb=32, causal_attn=causal
    ).eval()
    assert CompiledDenoiser.suits(model) or kind is FastDenoiser
    fast = kind(randomised(model), length)
    fast.set_timesteps(torch.tensor([90, 40, 0]))
    for _ in range(2):  # a second request overwrites the first
        sample, features = torch.randn(1, length, 8), torch.randn(3, 20)
        fast.set_condition(features)
        for timestep in (90, 40, 0):
            expected = model(sample, timestep, features[None])
            assert (fast.predict(sample, timestep) - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", [FastDenoiser, pytest.param(CompiledDenoiser, marks=needs_bf16)])
def test_in_bf16_only_what_is_multiplied_is_rounded(kind: type[FastDenoiser]) -> None:
    model = denoiser()
    assert kind is FastDenoiser or CompiledDenoiser.suits(model, "bfloat16")
    exact, rounded = FastDenoiser(model, 6), kind(model, 6, "bfloat16")
    sample, features = torch.randn(1, 6, 8), torch.randn(3, 20)
    answers = []
    for fast in (exact, rounded):
        fast.set_timesteps(torch.tensor([40]))
        fast.set_condition(features)
        answers.append(fast.predict(sample, 40).clone())
    apart = (answers[0] - answers[1]).abs().max() / answers[0].abs().max()
    assert 0 < apart < 0.03, "eight bits a number"


@pytest.mark.parametrize("kind", KINDS)
def test_with_causal_attention_the_first_steps_are_denoised_alone(kind: type[FastDenoiser]) -> None:
    model = denoiser()
    sample, features = torch.randn(1, 6, 8), torch.randn(3, 20)
    whole, part = kind(model, 6), kind(model, 6, rows=4)
    for fast in (whole, part):
        fast.set_timesteps(torch.tensor([40]))
        fast.set_condition(features)
    expected = whole.predict(sample, 40)[:, :4]
    torch.testing.assert_close(part.predict(sample[:, :4], 40), expected, atol=1e-5, rtol=1e-5)


def test_without_the_compiled_kernels_the_path_is_torch_s(
    served_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "why_unavailable", lambda: "they were not built")
    engine = opened(served_checkpoint)
    assert engine._fast is not None
    assert type(engine._fast._denoiser) is FastDenoiser
    assert "images are encoded at half the speed, without the compiled kernels: they were not built" in caplog.text
    plain = opened(served_checkpoint, fast=False)
    answers = [each.infer(parsed(), 0, None, Stages()).actions for each in (engine, plain)]
    np.testing.assert_allclose(*answers, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_a_small_encoder_is_served_fast_as_well(tmp_path: Path, stride: int, activation: str) -> None:
    small = {"encoder_width": 16, "encoder_stride": stride, "encoder_activation": activation}
    checkpoint = write_tiny_checkpoint(tmp_path / "small.ckpt", policy=small)
    fast, plain = opened(checkpoint), opened(checkpoint, fast=False)
    assert fast._fast is not None
    answers = [each.infer(parsed(), 0, None, Stages()).actions for each in (fast, plain)]
    np.testing.assert_allclose(*answers, atol=1e-4)


def test_everything_that_computes_runs_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread that has computed, even if idle, makes each denoising step several times slower."""
    threads: list[int] = []

    class Opened:
        form = MessageForm(2)

        def warm_up(self) -> None:
            threads.append(threading.get_ident())

    def opened(*arguments: object) -> Opened:
        threads.append(threading.get_ident())
        return Opened()

    async def serve(engine: object, settings: ServeSettings, worker: ThreadPoolExecutor) -> None:
        monkeypatch.setattr(Opened, "action_range", lambda self: (np.zeros(8), np.ones(8)), raising=False)
        host = Host(engine, settings, worker=worker)
        assert host._worker is worker
        threads.append(worker.submit(threading.get_ident).result())

    monkeypatch.setattr(server.PolicyEngine, "open", opened)
    monkeypatch.setattr(server, "serve", serve)
    server.serve_checkpoint(read_settings(None, ["ckpt=any"]))
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoising_step_takes_no_memory_for_what_it_computes(kind: type[FastDenoiser]) -> None:
    fast = kind(denoiser(), 6)
    fast.set_timesteps(torch.tensor([40]))
    fast.set_condition(torch.randn(3, 20))
    sample = torch.randn(1, 6, 8)
    fast.predict(sample, 40)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        fast.predict(sample, 40)
    taken = [event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0]
    smallest_result = 4 * 6 * 8  # bytes of the output, the smallest tensor that a step computes
    assert max(taken, default=0) < smallest_result, "only what a norm keeps of its rows"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a CUDA device")
def test_a_recorded_step_is_the_step() -> None:
    fast = FastDenoiser(denoiser().cuda(), 6)
    fast.set_timesteps(torch.tensor([90, 40]))
    graphed = GraphedDenoiser(fast, 90)
    for timestep in (90, 40):
        sample, features = torch.randn(1, 6, 8).cuda(), torch.randn(3, 20).cuda()
        fast.set_condition(features)
        expected = fast.predict(sample, timestep).clone()
        torch.testing.assert_close(graphed.predict(sample, timestep), expected)


def test_denoisers_whose_condition_changes_as_a_whole_are_not_folded() -> None:
    mixing = TransformerForDiffusion(8, 8, 6, 2, cond_dim=20, n_layer=1, n_head=2, n_emb=16, n_cond_layers=1)
    assert not is_foldable(mixing)


@pytest.mark.parametrize("changed", [{"n_cond_layers": 1}, {"eval_fixed_crop": False}], ids=str)
def test_policies_that_cannot_be_folded_are_served_all_the_same(changed: dict[str, object]) -> None:
    cfg = tiny_config()
    cfg["policy"] |= changed  # type: ignore[operator]
    policy = build_policy(OmegaConf.create(cfg)).eval()
    policy.set_normalizer(load_normalizer())
    answers = [
        PolicyEngine(policy, EngineSettings(steps=3, fast=fast)).infer(parsed(), 0, None, Stages()).actions
        for fast in (True, False)
    ]
    np.testing.assert_allclose(*answers, atol=1e-4)
    if "eval_fixed_crop" in changed:
        with pytest.raises(ServeError, match="crops are random"):
            PolicyEngine(policy, EngineSettings(steps=3, warm_start=0.5))


def load_normalizer() -> LinearNormalizer:
    normalizer = LinearNormalizer()
    action = torch.tensor([[0.2, -0.3, 0.1, 0.9, -0.1, -0.1, -0.1, 0.0], [0.8, 0.3, 0.7, 1.0, 0.1, 0.1, 0.1, 1.0]])
    normalizer.fit({"robot_eef_pose": action[:, :7], "robot_gripper_state": action[:, 7:], "action": action})
    normalizer["image"] = get_image_range_normalizer()
    return normalizer


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm-solver++"])
def test_the_fast_path_gives_the_plain_path_s_actions(served_checkpoint: Path, scheduler: str) -> None:
    fast, plain = (opened(served_checkpoint, scheduler=scheduler, fast=fast) for fast in (True, False))
    # Executed are 4 steps from the second on. A sampler that draws noise draws it for all 8.
    assert fast.describe()["denoised_steps"] == (8 if scheduler == "ddpm" else 6)
    for seed in range(3):
        observed = parsed(seed, (160, 120))
        ours, theirs = (engine.infer(observed, seed, None, Stages()) for engine in (fast, plain))
        np.testing.assert_allclose(ours.sequence, theirs.sequence[: len(ours.sequence)], atol=1e-4)
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-4)


def test_a_solver_that_remembers_predictions_gets_its_own_copies() -> None:
    cfg = tiny_config()
    cfg["policy"]["noise_scheduler"]["prediction_type"] = "sample"  # type: ignore[index]
    policy = build_policy(OmegaConf.create(cfg)).eval()
    policy.set_normalizer(load_normalizer())
    options = [EngineSettings(scheduler="dpm-solver++", steps=5, fast=fast) for fast in (True, False)]
    answers = [PolicyEngine(policy, each).infer(parsed(), 0, None, Stages()).actions for each in options]
    np.testing.assert_allclose(*answers, atol=1e-4)


@pytest.mark.parametrize("emulated", [True, False])
def test_a_precision_that_a_device_only_emulates_is_warned_about(
    emulated: bool, served_checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "multiplies_bf16", lambda device: not emulated)
    opened(served_checkpoint, precision="bfloat16")
    assert ("no instructions for it" in caplog.text) is emulated


def test_a_step_that_cannot_be_recorded_is_served_and_reported(
    served_checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(fast_path, "GraphedDenoiser", refuse)
    monkeypatch.setattr(fast_path, "is_cuda", lambda device: True)
    engine = opened(served_checkpoint)
    assert "cannot be recorded as a CUDA graph" in caplog.text
    assert "not permitted when stream is capturing" in caplog.text
    assert np.isfinite(engine.infer(parsed(), 0, None, Stages()).actions).all()
    caplog.clear()
    opened(served_checkpoint, cuda_graphs=False)
    assert "CUDA graph" not in caplog.text


def test_compiled_convolutions_are_the_same_convolutions(served_checkpoint: Path) -> None:
    with torch.compiler.set_stance("force_eager"):  # the wiring; compiling takes a minute
        compiled = opened(served_checkpoint, compile=True).infer(parsed(), 0, None, Stages())
    np.testing.assert_array_equal(
        compiled.sequence, opened(served_checkpoint).infer(parsed(), 0, None, Stages()).sequence
    )


def test_half_precision_is_near(served_checkpoint: Path) -> None:
    half, plain = opened(served_checkpoint, precision="bfloat16"), opened(served_checkpoint, fast=False)
    answers = [engine.infer(parsed(), 0, None, Stages()).actions for engine in (half, plain)]
    assert np.abs(answers[0] - answers[1]).max() < 0.05


def test_a_step_seen_before_is_not_encoded_again_and_its_features_are_the_same(served_checkpoint: Path) -> None:
    engine = opened(served_checkpoint)
    first, second = parsed(0), parsed(1)  # they share a frame
    assert engine.infer(first, 0, None, Stages()).encoded == 2
    stages = Stages()
    warm = engine.infer(second, 1, None, stages)
    assert warm.encoded == 1
    cold = opened(served_checkpoint, cached_frames=0).infer(second, 1, None, Stages())
    assert cold.encoded == 2
    np.testing.assert_array_equal(warm.sequence, cold.sequence)
    moved = Observation(
        second.images, second.poses + np.array([0.01, 0, 0, 0, 0, 0, 0]), second.grippers, second.timestamps
    )
    assert engine.infer(moved, 1, None, Stages()).encoded == 2, "the pose belongs to the step"


def test_serving_prepares_what_training_prepares(served_checkpoint: Path, recorded_zarr: Path) -> None:
    """Law 4: recorded frames give equal tensors on both paths."""
    engine = opened(served_checkpoint)
    policy = load_policy(served_checkpoint)
    dataset = CogActImageDataset(policy.shape_meta, recorded_zarr, horizon=2, n_obs_steps=2)
    sample = dataset[3]["obs"]
    frames = [np.ascontiguousarray(np.moveaxis(frame.numpy(), 0, -1)) for frame in sample["image"]]
    poses, grippers = (sample[key].double().numpy() for key in ("robot_eef_pose", "robot_gripper_state"))
    inputs, _ = engine.inspect(Observation(tuple(frames), poses, grippers, np.array([0.0, 0.1])), 0)
    assert inputs.keys() == sample.keys()
    for key, value in sample.items():
        np.testing.assert_array_equal(inputs[key], value.numpy())


def test_serving_resizes_as_the_converter_does(served_checkpoint: Path, tmp_path: Path) -> None:
    engine = opened(served_checkpoint)
    observed = parsed(0, (1280, 720))
    inputs, _ = engine.inspect(observed, 0)
    for step, image in enumerate(observed.images):
        assert isinstance(image, bytes)
        (tmp_path / "frame_0000.jpg").write_bytes(image)
        converted, _ = read_frame(tmp_path / "frame_0000.jpg", 40, 36)
        np.testing.assert_array_equal(np.moveaxis(inputs["image"][step], 0, -1), converted)


def test_a_quaternion_of_the_other_sign_is_the_same_observation(served_checkpoint: Path) -> None:
    engine = opened(served_checkpoint)
    observed = parsed()
    flipped = observed.poses * [1, 1, 1, -1, -1, -1, -1]
    other = Observation(observed.images, flipped, observed.grippers, observed.timestamps)
    answers = [engine.infer(each, 0, None, Stages()).sequence for each in (observed, other)]
    np.testing.assert_array_equal(*answers)


def test_a_warm_start_continues_from_the_remainder(served_checkpoint: Path) -> None:
    cold, warm = opened(served_checkpoint, steps=8), opened(served_checkpoint, steps=8, warm_start=0.5)
    observed = parsed()
    first = warm.infer(observed, 0, None, Stages())
    remainder = first.sequence[4:]
    distances = {
        name: np.abs(engine.infer(observed, 5, remainder, Stages()).sequence[:4] - remainder).mean()
        for name, engine in (("cold", cold), ("warm", warm))
    }
    assert distances["warm"] < distances["cold"]
    assert len(first.sequence) == 8, "the remainder is a start, so all of it is denoised"
    np.testing.assert_allclose(
        cold.infer(observed, 0, None, Stages()).actions, first.actions, atol=1e-5,
        err_msg="without a remainder nothing is skipped",
    )  # fmt: skip


def test_what_a_client_is_told(served_checkpoint: Path) -> None:
    about = opened(served_checkpoint).describe()
    assert about["action_semantics"]["names"][-1] == "gripper"
    assert len(about["checkpoint_sha256"]) == len(about["normalizer_sha256"]) == 64
    assert (about["scheduler"], about["steps"], about["n_action_steps"]) == ("ddim", 4, 4)


def test_a_policy_without_a_gripper_is_not_served(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "seven.ckpt", width=7)
    with pytest.raises(ServeError, match=r"grows a gripper: python .*scripts/finetune_from_7d_to_8d\.py --old_ckpt"):
        opened(path)


def test_an_absent_device_is_refused(served_checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is available")
    with pytest.raises(ServeError, match="no CUDA device"):
        opened(served_checkpoint, device="cuda:0")
