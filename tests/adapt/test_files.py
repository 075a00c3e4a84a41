"""The commands of the adapter: inspect, plan, apply, and what each refuses."""

import json
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_factory import policy_cfg
from omegaconf import OmegaConf

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.files import apply_file, open_target, plan_file, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.adapt.ledger import Entry, Ledger, Ref
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import Checkpoint
from diffusion_policy.report.ledger_map import VISIBLE, Node, framed, network_map
from diffusion_policy.report.ledger_page import page, write_page

ScriptMain = Callable[[Sequence[str]], int]


def script_main(repository: Path, name: str) -> ScriptMain:
    main: ScriptMain = runpy.run_path(str(repository / "scripts" / f"{name}.py"))["main"]
    return main


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "eight.yaml"
    OmegaConf.save(policy_cfg(action=8), path)
    return path


def test_inspection_tells_family_layout_and_sharing(pose_checkpoint: Checkpoint) -> None:
    found = inspect_file(pose_checkpoint.path)
    assert "diffusion policy" in found.family
    assert found.nesting == ("cfg", "state_dicts", "pickles")
    groups = {group.name: group for group in found.groups}
    assert groups["state_dicts.model.obs_encoder"].double_names == 65
    assert groups["state_dicts.ema_model.model"].dtypes == ("float32",)
    assert found.action["names"] == ["x", "y", "z", "qx", "qy", "qz", "qw"]
    assert found.action["layout"].startswith("position and quaternion")
    assert found.observations["image"] == "image 64x48"
    assert found.config["n_emb"] == 32
    json.dumps(found.to_json())


def test_inspection_of_other_files(shared_data: Path, tmp_path: Path) -> None:
    vpt = inspect_file(shared_data / "vpt" / "tiny.weights")
    assert {group.name: group.count.keys for group in vpt.groups}["aux_value_head"] == 5
    assert "VPT" in vpt.family
    assert vpt.settings["hidsize"] == 64
    torch.save({"w": torch.zeros(3)}, tmp_path / "plain.pt")
    assert inspect_file(tmp_path / "plain.pt").family == "no known family"


def test_a_plan_against_each_kind_of_target(
    pose_checkpoint: Checkpoint, eight: Path, shared_data: Path, tmp_path: Path
) -> None:
    rules = rules_of(["pose_to_gripper"])
    assert plan_file(pose_checkpoint.path, open_target(eight), rules).of("grown", part="ema_model")
    grow_7d_to_8d(pose_checkpoint.path, tmp_path / "grown.ckpt")
    assert plan_file(pose_checkpoint.path, open_target(tmp_path / "grown.ckpt"), rules).of("grown", part="model")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({k: list(t.shape) for k, t in pose_checkpoint.state_dicts["model"].items()}))
    assert not plan_file(pose_checkpoint.path, open_target(manifest), rules_of([])).of("fresh", part="model")
    published = open_target(shared_data / "vpt" / "manifest_2x.json")
    assert published.infos.keys() == open_target("vpt").infos.keys()
    with pytest.raises(AdaptError, match="has no config, so no checkpoint can be made"):
        apply_file(pose_checkpoint.path, open_target(manifest), rules_of([]), tmp_path / "out.ckpt")


def test_a_target_may_be_the_sources_config_changed(pose_checkpoint: Checkpoint) -> None:
    path = pose_checkpoint.path
    target = open_target(path, changes=["policy.horizon=12", "+task.note=new"])
    assert target.infos["model.pos_emb"].shape == (1, 12, 32)
    assert plan_file(path, target, rules_of(["longer_horizon"])).of("grown", part="model")
    with pytest.raises(AdaptError, match=r"no 'policy\.horizn' to change; write \+policy\.horizn=12"):
        open_target(path, changes=["policy.horizn=12"])
    with pytest.raises(AdaptError, match="cannot read the change 'horizon'"):
        open_target(path, changes=["horizon"])
    assert open_target("vpt_1x", changes=["hidsize=512"]).infos["net.final_ln.weight"].shape == (512,)
    with pytest.raises(AdaptError, match="no target 'nothing'; expected a training config"):
        open_target("nothing")
    (path.parent / "m.json").write_text('{"a": [1]}')
    with pytest.raises(AdaptError, match=r"m\.json is a manifest and has no config to change"):
        open_target(path.parent / "m.json", changes=["a=1"])


def test_groot_grows_by_its_own_config(shared_data: Path, tmp_path: Path) -> None:
    tiny = shared_data / "groot" / "golden_small"
    target = open_target(tiny / "config.json", changes=["action_dim=8"])
    for source in (tiny / "model.safetensors", tiny / "sharded"):
        ledger = plan_file(source, target, rules_of(["groot_n1_5_action_dim"]))
        assert len(ledger.of("grown")) == 3
    apply_file(tiny / "model.safetensors", target, rules_of(["groot_n1_5_action_dim"]), tmp_path / "wide.pt")
    assert torch.load(tmp_path / "wide.pt", weights_only=True)["action_head.action_decoder.layer2.b"].shape[1] == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "expected a JSON object"), ("{", "cannot be read as a JSON configuration"),
     ('{"a": "x"}', "a is 'x'; expected"),
     ('{"a": [[1], "float3"]}', "expected a shape such as")],
)  # fmt: skip
def test_invalid_manifests(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(AdaptError, match=message):
        open_target(tmp_path / "m.json")


def test_plain_weights_are_adapted_to_plain_weights(tmp_path: Path) -> None:
    shared = torch.ones(2, 2)
    torch.save({"module.a": shared, "module.b": shared, "module.head": torch.ones(3)}, tmp_path / "old.pt")
    (tmp_path / "m.json").write_text(json.dumps({"a": [2, 2], "b": [2, 2], "head": [4]}))
    (tmp_path / "r.yaml").write_text(
        "rules:\n- rename: {prefix: module., to: ''}\n- {grow: head, axes: {0: first}, init: zeros}\n"
    )
    target, rules = open_target(tmp_path / "m.json"), rules_of([str(tmp_path / "r.yaml")])
    reported: list[tuple[int, int]] = []
    show = lambda done, total: reported.append((done, total))  # noqa: E731
    ledger = apply_file(tmp_path / "old.pt", target, rules, tmp_path / "new.pt", on_progress=show)
    assert reported == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)], "checked, filled, written, read back"
    assert ledger.coverage("weights") == pytest.approx(11 / 12)
    assert torch.load(tmp_path / "new.pt", weights_only=True)["head"].tolist() == [1, 1, 1, 0]
    beside = json.loads((tmp_path / "new.pt.ledger.json").read_text())
    assert beside["rules"][0]["rules"][0] == {"rename": {"prefix": "module.", "to": ""}}
    with pytest.raises(AdaptError, match=r"weights without a config are written as \.pt"):
        apply_file(tmp_path / "old.pt", target, rules, tmp_path / "new.bin")
    with pytest.raises(AdaptError, match="nothing can be proven"):
        apply_file(tmp_path / "old.pt", target, rules, tmp_path / "x.pt", must_preserve=True)
    (tmp_path / "t.yaml").write_text("rules:\n- rename: {prefix: module., to: ''}\n- {strip: head}\n")
    with pytest.raises(AdaptError, match="no value is known for the whole tensor"):
        apply_file(tmp_path / "old.pt", target, rules_of([str(tmp_path / "t.yaml")]), tmp_path / "x.pt")


def test_the_command_plans_applies_and_reports(
    repository: Path, pose_checkpoint: Checkpoint, eight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script_main(repository, "adapt")
    common = [str(pose_checkpoint.path), "--target", str(eight), "--rules", "pose_to_gripper"]
    report, html, out = tmp_path / "l.json", tmp_path / "l.html", tmp_path / "new.ckpt"
    assert main(["plan", *common, "--json", str(report), "--page", str(html)]) == 0
    assert not out.exists()
    assert Ledger.from_json(json.loads(report.read_text())).of("grown")
    assert "new gripper" in html.read_text()
    assert main(["apply", *common, "--out", str(out), "--must-preserve"]) == 0
    assert main(["apply", *common, "--out", str(out)]) == 2
    assert main(["inspect", str(out), "--json", str(report)]) == 0
    assert json.loads(report.read_text())["provenance"]["adaptation"]["source"]["name"] == "pose.ckpt"
    assert main(["plan", *common[:3]]) == 2
    printed = capsys.readouterr()
    assert "model.input_emb.weight" in printed.out
    assert "--overwrite to replace it" in printed.err
    assert "- model.input_emb.weight" in printed.err


def test_the_command_asks_what_if(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = script_main(repository, "adapt")
    assert main(["whatif", "vpt_1x", "--set", "hidsize=2048"]) in (0, 1)
    assert main(["whatif", "nothing", "--set", "a=1"]) == 2
    assert "no model or config 'nothing'" in capsys.readouterr().err


def test_the_former_command(
    repository: Path, pose_checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script_main(repository, "finetune_from_7d_to_8d")
    arguments = ["--old_ckpt", str(pose_checkpoint.path), "--new_ckpt", str(tmp_path / "pretrained" / "new.ckpt")]
    assert main([*arguments, "--ledger", str(tmp_path / "ledger.json")]) == 0
    assert (tmp_path / "ledger.json").exists()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "agree within 1e-05" in " ".join(printed.out.split())
    assert printed.err.startswith("error: ")


def test_the_page_is_one_file_that_fetches_nothing(pose_checkpoint: Checkpoint, eight: Path, tmp_path: Path) -> None:
    ledger = plan_file(pose_checkpoint.path, open_target(eight), rules_of(["pose_to_gripper"]))
    write_page(tmp_path / "deep" / "page.html", ledger, "old <&> new")
    html = (tmp_path / "deep" / "page.html").read_text()
    assert "old &lt;&amp;&gt; new" in html
    # Plotly's script contains addresses; none is fetched.
    shell = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not any(word in shell for word in ("http:", "https:", "src=", "url("))
    assert "default-src 'none'" in html.replace("&#39;", "'")
    for name in ("obs_encoder.obs_nets.image.backbone", "model.input_emb.weight", "(sample): 7 kept, new gripper"):
        assert name in html
    same = plan_file(pose_checkpoint.path, open_target(pose_checkpoint.path), rules_of([]))
    assert "100.00% of the" in page(same, "same")


def test_the_map_joins_names_of_only_children_and_of_parts_too_small_for_a_frame() -> None:
    root = Node("model")
    for index, (path, size) in enumerate({"a.b.w": 800, "a.b.v": 190, "c.d.x": 9, "c.d.y": 1}.items()):
        root.add(path.split("."), size, index)
    boxes = list(framed(root.collapsed()))
    named = [(box.label, box.leaf, box.parent) for box in boxes]
    assert named == [("model", None, -1), ("a.b", None, 0), ("w", 0, 1), ("v", 1, 1), ("c.d.x", 2, 0), ("c.d.y", 3, 0)]


def test_the_map_shows_what_is_a_millionth_of_the_network() -> None:
    def entry(key: str, action: Any, numel: int) -> Entry:
        ref = Ref(key, (numel,), tensor=key)
        return Entry("model", action, "a rule", ref, ref)

    entries = [entry("body.w", "copied", 10**6), entry("head.w", "grown", 1), entry("same.w", "copied", 1)]
    (trace,) = network_map("model", entries).data
    sizes = {color: size for color, size in zip(trace.customdata, trace.values, strict=True) if color == "grown"}
    assert sizes["grown"] == pytest.approx(VISIBLE * (10**6 + 2))
    assert min(trace.values[2:]) == 1, "what was copied is drawn as large as it is"
    assert any("head.w<br>grown [1] -&gt; [1], 1 parameters<br>a rule" in text for text in trace.hovertext)
