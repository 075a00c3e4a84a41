"""Command lines that people paste: how scripts are called from here, quoted for bash and for Hydra.

Every command in an error, a finding or a summary is made here, so that it runs as it is printed: in the folder and
with the interpreter that printed it, whatever signs are in its paths.
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
# Hydra reads these as text without quotes. Numbers and words such as null have a meaning of their own.
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.:@%+-]*")
_WORDS_WITH_MEANING = {"null", "true", "false", "nan", "inf"}


def command(script: str, *arguments: object) -> str:
    """The command line of a script, such as `command("doctor", "--run", folder)`, to be pasted into bash.

    Args:
        script: name of a file in scripts/ without its suffix, or "train".
        arguments: its words; paths and numbers are written as they print.
    """
    return shlex.join([*script_words(script), *map(str, arguments)])


def script_words(script: str, launcher: Sequence[str] = ()) -> tuple[str, ...]:
    """The first words of a script's command line, without arguments.

    Args:
        script: as in `command`.
        launcher: what starts it in place of the interpreter, such as torchrun with its options.
    """
    if IS_INSTALLED:
        names = {name: entry for entry, name in ENTRY_POINTS.items()}
        entry = _program(names[script])
        return (*launcher, "--no-python", entry) if launcher else (entry,)
    return (*(launcher or (_python(),)), _from_here(script_path(script)))


def setting(key: str, value: object) -> str:
    """One Hydra override, `key=value`, that is read back as that value; `command` quotes it for bash.

    Args:
        key: dotted name, with + or ~ before it where needed.
        value: text or a path, number, boolean, None, or a sequence of these.
    """
    return f"{key}={_hydra_value(value)}"


def config_words(kept: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The words of a command line that name a run's config.

    Args:
        kept: `.hydra/hydra.yaml` of the run; None: it has none.

    Raises:
        KeyError, TypeError: it is not as Hydra writes it.
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
    """The command that installs packages for the interpreter that runs."""
    return shlex.join([_python(), "-m", "pip", "install", *requirements])


def unpack(archive: Path, folder: Path) -> str:
    """The command that unpacks a zip archive into a folder with the interpreter that runs."""
    return shlex.join([_python(), "-m", "zipfile", "-e", str(archive), str(folder)])


def python_code(code: str) -> str:
    """The command that runs a line of Python with the interpreter that runs."""
    return shlex.join([_python(), "-c", code])


def install_extra(extra: str) -> str:
    """The command that installs the packages of an optional extra of this project."""
    try:
        needed = requires("diffusion-policy") or []
    except PackageNotFoundError:
        needed = []
    marker = re.compile(rf"\s*;.*extra\s*==\s*['\"]{re.escape(extra)}['\"].*")
    packages = [marker.sub("", line) for line in needed if marker.search(line)]
    return pip_install(*(packages or [f"diffusion-policy[{extra}]"]))


def rebuild() -> str:
    """The command that builds the compiled kernels of a checkout again; empty where there are no sources."""
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
    # Before a quote, backslashes escape, elsewhere they are themselves; ${ would refer to another setting.
    quoted = re.sub(r"(\\*)('|\$\{|$)", lambda m: m[1] * 2 + ("\\" + m[2] if m[2] else ""), text)
    return f"'{quoted}'"


def _python() -> str:
    """What starts this interpreter: `python` where that is it, else its path."""
    found = shutil.which("python")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "python"
    return _from_here(Path(sys.executable))


def _from_here(path: Path) -> str:
    """A path as it is called from this folder: relative to it where it lies below."""
    if path.is_relative_to(CHECKOUT):
        relative = path.relative_to(CHECKOUT)
        if relative.exists() and relative.samefile(path):
            return str(relative)
    return str(path)


def _program(name: str) -> str:
    """A command of this installation: by name where the shell finds it, else beside the one that runs."""
    if shutil.which(name) is not None:
        return name
    beside = Path(sys.argv[0]).absolute().with_name(name)
    return str(beside) if beside.is_file() else name
