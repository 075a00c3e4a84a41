"""Command lines for messages: how scripts are called in this installation, quoted for bash and for Hydra.

Every command in an error, a finding or a summary is made by these functions, so that it runs exactly as printed, in the
folder and with the interpreter that printed it, whatever characters its paths contain.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from diffusion_policy.installation import CHECKOUT, CONFIG, ENTRY_POINTS, IS_INSTALLED, script_path

DEFAULT_CONFIG = "train_cogact_robot"
# Hydra reads these as text without quotes; numbers and words such as null have another meaning.
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.:@%+-]*")
_WORDS_WITH_MEANING = {"null", "true", "false", "nan", "inf"}


def command(script: str, *arguments: object) -> str:
    """Returns the command line of a script, such as `command("doctor", "--run", folder)`, to be pasted into bash.

    Args:
        script: name of a file in scripts/ without its suffix, or "train".
        arguments: its arguments; paths and numbers are converted by `str`.
    """
    return shlex.join([*script_words(script), *map(str, arguments)])


def script_words(script: str, launcher: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the first words of a script's command line, without arguments.

    Args:
        script: as in `command`.
        launcher: program that starts it instead of the interpreter, such as torchrun with its options.
    """
    if IS_INSTALLED:
        names = {name: entry for entry, name in ENTRY_POINTS.items()}
        entry = _program(names[script])
        return (*launcher, "--no-python", entry) if launcher else (entry,)
    return (*(launcher or (_python(),)), _from_here(script_path(script)))


def in_grove() -> tuple[str, ...]:
    """Returns the options of evaluate_closed_loop.py by which a policy of VPT plays in the grove."""
    return ("--simulator", _from_here(CONFIG / "simulator" / "grove.yaml"))


def setting(key: str, value: object) -> str:
    """Returns a Hydra override, `key=value`, that Hydra parses to that value; `command` quotes it for bash.

    Args:
        key: dotted name, preceded by + or ~ where needed.
        value: text or a path, number, boolean, None, or a sequence of these.
    """
    return f"{key}={_hydra_value(value)}"


def config_words(kept: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Returns the words of a command line that name a run's config.

    Args:
        kept: content of the run's `.hydra/hydra.yaml`; None: there is none.

    Raises:
        KeyError, TypeError: the content is not what Hydra writes.
    """
    if kept is None:
        return (f"--config-name={DEFAULT_CONFIG}",)
    options = {"main": "--config-path", "command-line": "--config-dir"}
    sources = kept["hydra"].get("runtime", {}).get("config_sources", ())
    elsewhere = (
        f"{options[source['provider']]}={source['path']}"
        for source in sources
        if source["provider"] in options and source["schema"] == "file" and Path(source["path"]) != CONFIG
    )
    return (*elsewhere, f"--config-name={kept['hydra']['job']['config_name']}")


def pip_install(*requirements: str) -> str:
    """Returns the command that installs packages for the running interpreter."""
    return shlex.join([_python(), "-m", "pip", "install", *requirements])


def unpack(archive: Path, folder: Path) -> str:
    """Returns the command that unpacks a zip archive into a folder with the running interpreter."""
    return shlex.join([_python(), "-m", "zipfile", "-e", str(archive), str(folder)])


def python_code(code: str) -> str:
    """Returns the command that runs a line of Python with the running interpreter."""
    return shlex.join([_python(), "-c", code])


def install_extra(extra: str) -> str:
    """Returns the command that installs the packages of an optional extra of this project."""
    try:
        needed = requires("diffusion-policy") or []
    except PackageNotFoundError:
        needed = []
    marker = re.compile(rf"\s*;.*extra\s*==\s*['\"]{re.escape(extra)}['\"].*")
    packages = [marker.sub("", line) for line in needed if marker.search(line)]
    return pip_install(*(packages or [f"diffusion-policy[{extra}]"]))


def rebuild() -> str:
    """Returns the command that rebuilds the compiled kernels of a checkout; empty if there are no sources."""
    return "" if IS_INSTALLED else pip_install("--no-build-isolation", "--no-deps", "--editable", str(CHECKOUT))


def _hydra_value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_hydra_value, value))}]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_WITH_MEANING:
        return text
    # Backslashes escape only before a quote; ${ would refer to another setting.
    quoted = re.sub(r"(\\*)('|\$\{|$)", lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), text)
    return f"'{quoted}'"


def _python() -> str:
    """Returns how this interpreter is called: `python` if that is found first, else its path."""
    on_path = shutil.which("python")
    if on_path is not None and Path(on_path).parent == Path(sys.executable).parent:
        return "python"
    return _from_here(Path(sys.executable))


def _from_here(path: Path) -> str:
    """Returns a path as it is called from this folder: relative where it is inside."""
    if path.is_relative_to(CHECKOUT):
        relative = path.relative_to(CHECKOUT)
        if relative.exists() and relative.samefile(path):
            return str(relative)
    return str(path)


def _program(name: str) -> str:
    """Returns a command of this installation: its name if the shell finds it, else its path next to the running one."""
    if shutil.which(name) is not None:
        return name
    sibling = Path(sys.argv[0]).absolute().with_name(name)
    return str(sibling) if sibling.is_file() else name
