"""Every command that is printed runs as printed: quoted for bash and Hydra, with flags and settings that exist."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from script_parsers import SCRIPTS, flags_of, known_settings, refusal, refusal_of_line, script_called
from source_trees import REPOSITORY, parsed, python_files, spoken, walked, where

from diffusion_policy import commands
from diffusion_policy.installation import CONFIG, ENTRY_POINTS
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.training_config import keys_of

SOURCES = [*python_files("diffusion_policy", "scripts"), REPOSITORY / "train.py"]
# Stands for anything that a message inserts into its command: a path with everything that bash and Hydra take for
# syntax.
AWKWARD = "/tmp/a folder/it's [1]=$HOME,${x}#{y}/\"last\\"
PATHS = [
    "plain.ckpt", "a b", "it's", 'say "x"', "a=b", "[x]", "{x: y}", "a,b", "#x", "x#y", "$HOME", "${x}", "$(x)", "`x`",
    "a\\b", "end\\", "a\\'b", "~x", "~", "!x", "s3://bucket/set.zarr", "1", "1e3", "null", "True", "*", "?", "x;y",
    "x&y", "a|b", "(x)", " lead", "-x", "x>y", AWKWARD,
]  # fmt: skip


def test_bash_reads_what_was_meant() -> None:
    lines = [commands.command("doctor", "--run", path) for path in PATHS]
    script = "\n".join(["show() { printf '%s\\037' \"$@\"; printf '\\036'; }", *(f"show {line}" for line in lines)])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    read = [words.split("\037")[:-1] for words in done.stdout.split("\036")[:-1]]
    assert [script_called(words) for words in read] == [("doctor", ["--run", path]) for path in PATHS]


def test_hydra_reads_what_was_meant() -> None:
    values = [*PATHS, *([path, "b"] for path in PATHS), None, True, False, 3, 0.5, 1e-4, [1, 2], ["a", None]]
    words = [commands.setting(f"+probe_{i}", value) for i, value in enumerate(values)]
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        composed = compose("train_cogact_robot", overrides=words)
    probes = OmegaConf.create({f"probe_{i}": composed._get_node(f"probe_{i}") for i in range(len(values))})
    assert list(OmegaConf.to_container(probes, resolve=True).values()) == values  # type: ignore[union-attr]


def test_a_script_is_called_from_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert commands.command("doctor").split()[1:] == ["scripts/doctor.py"]
    monkeypatch.chdir(tmp_path)
    interpreter, script = commands.command("doctor").split()
    assert script == str(REPOSITORY / "scripts" / "doctor.py")
    prefix = subprocess.run(
        [interpreter, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert prefix.stdout.strip() == sys.prefix


def test_every_script_has_an_entry_point() -> None:
    assert sorted(ENTRY_POINTS.values()) == sorted([*(p.stem for p in (REPOSITORY / "scripts").glob("*.py")), "train"])


# ---- every place in the code that prints a command -------------------------------------------------------------------


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of functions or methods of these names, and where they are."""
    for path in SOURCES:
        for node in walked(path):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in names:
                yield f"{where(path)}:{node.lineno}", node


def words_of(arguments: list[ast.expr], *, optional: bool) -> list[str]:
    """Returns the words that a call would print, with an awkward path for anything unknown before it runs."""
    words = []
    for node in arguments:
        if isinstance(node, ast.Starred):
            words += [AWKWARD] if optional else []
        elif isinstance(node, ast.Constant):
            words.append(str(node.value))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setting":
            assert isinstance(node.args[0], ast.Constant)
            words.append(commands.setting(str(node.args[0].value), AWKWARD))
        elif isinstance(node, ast.JoinedStr):
            words.append("".join(str(v.value) if isinstance(v, ast.Constant) else "7" for v in node.values))
        else:
            words.append(AWKWARD)
    return words


def why_refused(script: str, words: list[str]) -> str | None:
    """Like `refusal`, with a number or a choice instead of a path where the script expects one."""
    why = refusal(script, words)
    while why is not None and AWKWARD in words:
        choice = re.search(r"invalid choice: .* \(choose from '?(\w+)", why)
        if choice is None and not re.search(r"invalid (int|float) value", why):
            return why
        words = [*words]
        words[words.index(AWKWARD)] = "7" if choice is None else choice[1]
        why = refusal(script, words)
    return why


def fault_of_command(call: ast.Call) -> str | None:
    """Returns what is wrong with the words of a call of `command`."""
    first, *arguments = call.args
    if not isinstance(first, ast.Constant):
        return "name the script in the call, so that its words can be tested"
    if first.value not in ENTRY_POINTS.values():
        return f"there is no script {first.value}"
    if first.value == "train" and any(isinstance(argument, ast.Starred) for argument in arguments):
        return None  # complete words that a run was started with
    forms = [words_of(arguments, optional=optional) for optional in (True, False)]
    refusals = [why_refused(str(first.value), words) for words in forms]
    return None if None in refusals else f"{forms[-1]}: {refusals[-1]}"


def test_printed_commands_are_taken_by_their_scripts() -> None:
    faults = [(where, fault_of_command(call)) for where, call in calls("command")]
    assert len(faults) > 40
    assert not [fault for fault in faults if fault[1] is not None]


def test_printed_changes_of_a_training_run_exist() -> None:
    """Overrides found by a plan are passed starred; tests/adapt/test_policy_settings.py tests those."""
    called = [(where, words_of(call.args, optional=False)) for where, call in calls("again", "resumed")]
    refusals = [(where, refusal("train", words)) for where, words in called]
    assert len(refusals) > 5
    assert not [refused for refused in refusals if refused[1] is not None]


def test_printed_changes_of_a_conversion_exist() -> None:
    called = [(where, words_of(call.args, optional=False)) for where, call in calls("reconvert")]
    refusals = [
        (where, why_refused("convert_cogact_to_zarr", ["--input", "in", "--output", "out", *words]))
        for where, words in called
    ]
    assert refusals
    assert not [refused for refused in refusals if refused[1] is not None]


# Flags of other programs.
OTHERS = {
    "--nproc-per-node", "--nnodes", "--no-python", "--config-name", "--config-path", "--config-dir",
    "--no-build-isolation", "--no-deps", "--editable",
}  # fmt: skip
RAW = re.compile(r"python3? [\w/.-]+\.py|\.py --|pip3? install|\bdp-[a-z]+ ")
SETTING = re.compile(r"(?<![\w.\[+-])([a-z_]+(?:\.[a-z_]+)+)=")
CHOICE = re.compile(r"(?<![\w.])((?:experiment|loss|observation_dropout|learning_rates|stages|task)=[a-z]\w+)")


def faults_of_messages(path: Path) -> Iterator[str]:
    """Finds commands not made by `diffusion_policy.commands`, and flags and settings in prose that no script has."""
    flags_of_all = frozenset(OTHERS).union(*map(flags_of, SCRIPTS))
    settings = known_settings() | set(keys_of(OmegaConf.structured(ServeSettings)))
    for line, text in spoken(path):
        position = f"{where(path)}:{line}"
        raw = RAW.search(text) if path.stem not in ("commands", "installation") else None
        if raw is not None:
            yield f"{position}: {raw[0]!r} is not tested; make command lines with diffusion_policy.commands"
        if re.search(r"style=|var\(--|:root", text):
            continue
        if flags := set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - flags_of_all:
            yield f"{position}: no script has {sorted(flags)}"
        named = {*SETTING.findall(text), *CHOICE.findall(text)} if path.parent.name != "scripts" else set()
        if unknown := named - settings:
            yield f"{position}: there is no setting {sorted(unknown)}"


def test_what_messages_name_exists() -> None:
    faults = [fault for path in SOURCES for fault in faults_of_messages(path)]
    assert not faults, "\n".join(faults)


# ---- every place in docs, configs and help that shows one ------------------------------------------------------------

SHOWN = [
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "config").rglob("*.yaml")),
    *sorted((REPOSITORY / "scripts").glob("*.py")),
    REPOSITORY / "train.py",
]


def shown_commands(path: Path) -> list[str]:
    """Lines that call a script, continuation lines joined; comment signs and prompts in front left out."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(parsed(path)) or ""
    text = re.sub(r"\\\n[ #]*", " ", text)
    pattern = r"^[ #$>*-]*`?((?:[A-Z_]+=\S+ )*(?:python|torchrun|dp-[a-z-]+) [^`\n]*)"
    return [line for line in re.findall(pattern, text, flags=re.MULTILINE) if script_called(line.split()) is not None]


def test_commands_that_are_shown_are_taken_by_their_scripts() -> None:
    shown = [(where(path), line) for path in SHOWN for line in shown_commands(path)]
    refusals = [(*at, refusal_of_line(re.sub(r" +\.\.\.( |$)", " ", at[1]))) for at in shown]
    assert len(refusals) > 50
    assert not [refused for refused in refusals if refused[-1] is not None]
