"""Build steps that pyproject.toml cannot express: the wheel holds config/, the demo's pose policy and the scripts, each
with a command.

In a checkout they stay where they are; diffusion_policy/installation.py finds them in either place.
"""

import re
import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
ENTRY_POINTS = runpy.run_path(str(ROOT / "diffusion_policy" / "installation.py"))["ENTRY_POINTS"]
COMMANDS = {script: command for command, script in ENTRY_POINTS.items()}


class BuildPackage(build_py):
    """Copies config/, the scripts and the demo's pose policy into the package."""

    def run(self):
        """Run as setuptools does, then copy."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "diffusion_policy"
        for file in [
            *sorted((ROOT / "config").rglob("*.yaml")),
            *sorted((ROOT / "scripts").glob("*.py")),
            ROOT / "train.py",
        ]:
            target = package / (file.relative_to(ROOT) if file.name != "train.py" else "scripts/train.py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(as_installed(file.read_text(encoding="utf-8")), encoding="utf-8")
            shutil.copystat(file, target)
        (package / "pretrained").mkdir(exist_ok=True)
        for name in ("tabletop_7d.ckpt", "grove_vpt.weights", "grove_vpt.weights.json"):
            shutil.copy2(ROOT / "data" / "pretrained" / name, package / "pretrained")


def as_installed(text):
    """The text with commands of the installation in place of files of a checkout, in help and comments."""
    text = re.sub(r"python scripts/(\w+)\.py", lambda found: COMMANDS.get(found[1], found[0]), text)
    text = text.replace("python train.py", COMMANDS["train"])
    return text.replace("--config config/serve.yaml ", "")  # its settings are the defaults


setup(
    cmdclass={"build_py": BuildPackage},
    entry_points={
        "console_scripts": [f"{command} = diffusion_policy.installation:run_entry_point" for command in ENTRY_POINTS]
    },
)
