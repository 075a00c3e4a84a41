"""The house itself: import direction, sizes, plain speech, and the import paths that old checkpoints name."""

import ast
import importlib
import io
import re
import resource
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import source_trees
from source_trees import REPOSITORY, python_files, walked, where

PACKAGE = REPOSITORY / "diffusion_policy"

# A module imports only from layers below, or from its own package.
LAYERS = {
    "moved": 0,
    "background_writer": 0,
    "errors": 0,
    "installation": 0,
    "commands": 0,
    "listing": 0,
    "spec": 0,
    "images": 0,
    "geometry": 0,
    "gripper_events": 0,
    "intervals": 0,
    "pose_check": 0,
    "timestamps": 0,
    "gripper_scale": 0,
    "safe_pickle": 0,
    "host_memory": 0,
    "storage": 0,
    "command_line": 0,
    "progress": 0,
    "tables": 0,
    "terminal": 0,
    "cpu": 0,
    "paths": 0,
    "hub": 0,
    "resolvers": 0,
    "video_writer": 0,
    "training_config": 1,
    "shape_meta": 1,
    "model": 0,
    "minecraft": 0,
    "trajectory": 1,
    "run_log": 1,
    "tensor_file": 1,
    "dataset": 1,
    "policy": 1,
    "recording": 2,
    "run_folder": 2,
    "sim": 1,
    "convert": 3,
    "checkpoint": 2,
    "env_runner": 2,
    "families": 2,
    "adapt": 3,
    "workspace": 3,
    "ppo": 3,
    "serve": 3,
    "evaluate": 3,
    "export": 4,
    "closed_loop": 4,
    "recipe": 4,
    "dagger": 5,
    "whatif": 4,
    "edit": 3,
    "diagnose": 4,
    "report": 5,
}
# Modules of layer 0 that others of layer 0 may build on, and the two packages that training may use.
FOUNDATIONS = {
    "errors",
    "listing",
    "moved",
    "installation",
    "commands",
    "spec",
    "images",
    "geometry",
    "gripper_scale",
    "intervals",
    "safe_pickle",
    "storage",
    "hub",
    "tables",
    "terminal",
    "video_writer",
}
NEIGHBOURS = {
    ("policy", "tensor_file"),
    ("workspace", "adapt"),
    ("workspace", "evaluate"),
    ("workspace", "ppo"),
    ("serve", "evaluate"),
}

WITHOUT_TORCH = [
    "diffusion_policy.spec",
    "diffusion_policy.geometry",
    "diffusion_policy.images",
    "diffusion_policy.gripper_events",
    "diffusion_policy.gripper_scale",
    "diffusion_policy.safe_pickle",
    "diffusion_policy.run_log",
    "diffusion_policy.trajectory",
    "diffusion_policy.recording",
    "diffusion_policy.convert",
    "diffusion_policy.command_line",
    "diffusion_policy.tables",
    "diffusion_policy.terminal",
]
OLD_IMPORT_PATHS = [
    "diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace.TrainDiffusionTransformerHybridWorkspace",
    "diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace_ddp."
    "TrainDiffusionTransformerHybridWorkspaceDDP",
    "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
    "diffusion_policy.workspace.train_diffusion_unet_hybrid_workspace.TrainDiffusionUnetHybridWorkspace",
    "diffusion_policy.policy.diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
    "diffusion_policy.dataset.cogact_image_dataset.CogActImageDataset",
    "diffusion_policy.model.diffusion.ema_model.EMAModel",
    "diffusion_policy.env_runner.real_pusht_image_runner.RealPushTImageRunner",
]
MAX_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_HELP_SECONDS = 1.0
# Names of packages without a purpose.
ATTIC = {"utils", "util", "common", "misc", "helpers", "base"}


def imported_packages(path: Path) -> Iterator[tuple[int, str]]:
    for node in walked(path):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "diffusion_policy" and len(parts) > 1 and parts[1] in LAYERS:
                yield node.lineno, parts[1]


def test_every_package_has_a_layer() -> None:
    packages = {path.stem for path in PACKAGE.iterdir() if path.name not in {"__init__.py", "__pycache__", "py.typed"}}
    assert packages <= LAYERS.keys(), f"packages without a layer: {sorted(packages - LAYERS.keys())}"


def test_imports_point_down() -> None:
    offences = []
    for path in python_files("diffusion_policy"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        for line, other in imported_packages(path):
            allowed = (
                other == package
                or LAYERS[other] < LAYERS[package]
                or (other in FOUNDATIONS and LAYERS[package] == 0)
                or (package, other) in NEIGHBOURS
            )
            if not allowed:
                offences.append(f"{where(path)}:{line}: {package} (layer {LAYERS[package]}) imports {other}")
            if other == "workspace" and package != "workspace":
                offences.append(f"{where(path)}:{line}: Hydra finds workspaces by name; nothing imports them")
    assert not offences, "\n".join(offences)


def test_files_and_functions_are_small() -> None:
    offences = []
    for path in python_files("diffusion_policy", "scripts"):
        text = path.read_text()
        if text.count("\n") > MAX_LINES:
            offences.append(f"{where(path)} has {text.count(chr(10))} lines")
        for node in walked(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                docstring = ast.get_docstring(node, clean=False)
                length -= docstring.count("\n") + 1 if docstring else 0
                if length > MAX_FUNCTION_LINES:
                    offences.append(f"{where(path)}:{node.lineno}: {node.name} has {length} lines")
    assert not offences, "\n".join(offences)


def test_no_attic() -> None:
    names = {path.stem for path in PACKAGE.rglob("*") if path.name != "__pycache__"}
    assert not names & ATTIC


def test_constructors_swallow_nothing() -> None:
    offences = [
        f"{where(path)}:{node.lineno}: **{node.args.kwarg.arg} swallows misspelt options"
        for path in python_files("diffusion_policy")
        for node in walked(path)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwarg is not None
    ]
    assert not offences, "\n".join(offences)


def test_weights_and_pickles_have_one_reader() -> None:
    offences = []
    for path in python_files("diffusion_policy", "scripts", "benchmarks"):
        for node in walked(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in {"torch.load", "pickle.load", "pickle.loads", "dill.load", "dill.loads", "eval", "exec"}:
                offences.append(f"{where(path)}:{node.lineno}: {called} runs what the file says; use safe_pickle")
            if called.endswith("load_state_dict") and any(
                keyword.arg == "strict" and getattr(keyword.value, "value", True) is False for keyword in node.keywords
            ):
                offences.append(f"{where(path)}:{node.lineno}: strict=False loads what it likes")
    assert not offences, "\n".join(offences)


def imports_rich(nodes: Iterable[ast.AST]) -> list[int]:
    """Lines that import rich, at the top, in functions, or for types only."""
    found = []
    for node in nodes:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found += [node.lineno for module in modules if module.split(".")[0] == "rich"]
    return found


def test_only_the_terminal_knows_how_results_are_drawn() -> None:
    """Code computing a result returns `tables`; entry points print them by `terminal`. Benchmarks print their own."""
    offences = [
        f"{where(path)}:{line}: imports rich; return diffusion_policy.tables, and let terminal print them"
        for path in [*python_files("diffusion_policy", "scripts"), REPOSITORY / "train.py"]
        if where(path) != "diffusion_policy/terminal.py"
        for line in imports_rich(walked(path))
    ]
    assert not offences, "\n".join(offences)
    planted = "import rich.table\ndef f():\n    from rich import get_console\nfrom .rich import x\nimport enrich\n"
    assert imports_rich(ast.walk(ast.parse(planted))) == [1, 3]


# Packages used by external programs: on a robot's computer, by Minecraft agents.
FOR_OTHER_PROGRAMS = ("diffusion_policy/serve/client/", "diffusion_policy/minecraft/")
# Defined for code outside this repository; everything else that is defined is used.
CALLED_FROM_OUTSIDE = {
    "by zarr: a codec and a store": {
        "_decode_single", "_encode_single", "compute_encoded_size", "from_dict", "to_dict", "get_partial_values",
        "list_dir", "list_prefix", "set_partial_values",
    },
    "by Python: import, logging": {"create_module", "emit"},
    "by torch, which prints modules": {"extra_repr"},
    "by installed commands (setup.py)": {"run_entry_point"},
    "by whoever know the public reference: methods of its policy and its normalizer": {
        "get_optimizer", "create_identity",
    },
    "by whoever know VPT: the method of its agent": {"get_action"},
    "by whoever train GR00T: which tensors its flags release": {"trainable"},
}  # fmt: skip


Nodes = tuple[ast.AST, ...]


def names_used(nodes: Iterable[ast.AST]) -> set[str]:
    """Names, attributes, and the words of short strings such as import paths; for a definition, only what is inside."""
    used: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[\w.:]+", node.value):
            used.update(re.findall(r"\w+", node.value))
    return used


def unused_definitions(defining: Mapping[str, Nodes], using: Iterable[Nodes], text: str = "") -> list[str]:
    """Functions, methods and classes of some files that no code names, in these files or elsewhere."""
    used = set(re.findall(r"\w+", text)).union(*map(names_used, [*defining.values(), *using]))
    return [
        f"{name}:{node.lineno}: {node.name}"
        for name, nodes in defining.items()
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name not in used
        and not node.name.startswith("__")
    ]


def test_nothing_is_there_for_tests_only() -> None:
    """Checked by name; a name shared with something else counts as used."""
    others = [*python_files("scripts", "benchmarks"), REPOSITORY / "train.py"]
    configs = "\n".join(path.read_text() for path in sorted((REPOSITORY / "config").rglob("*.yaml")))
    package = {where(path): walked(path) for path in python_files("diffusion_policy")}
    unused = unused_definitions(package, map(walked, others), configs)
    allowed = set().union(*CALLED_FROM_OUTSIDE.values())
    unused = [line for line in unused if not line.startswith(FOR_OTHER_PROGRAMS)]
    offences = [line for line in unused if line.rpartition(" ")[2] not in allowed]
    assert not offences, "nothing calls these but tests:\n" + "\n".join(offences)
    gone = allowed - {line.rpartition(" ")[2] for line in unused}
    assert not gone, f"{sorted(gone)} need no exception any more"
    planted = "class Alone:\n def own(self): self.own_too()\n def own_too(self): pass\ndef f(): pass\nf()"
    assert unused_definitions({"planted.py": tuple(ast.walk(ast.parse(planted)))}, []) == [
        "planted.py:1: Alone",
        "planted.py:2: own",
    ]


# What only `storage` may do: give a file its name, flush it, hash it.
ONLY_IN_STORAGE = re.compile(
    r"os\.(?:replace|rename|renames|link|symlink|fsync)$|hashlib\.\w+$|tempfile\.(?:NamedTemporaryFile|mkstemp|mktemp)$"
)


def test_files_come_to_be_in_one_way_and_have_one_hash() -> None:
    """Temporary folders and unnamed temporary files are not outputs, and may be anywhere."""
    offences = []
    for path in [*python_files("diffusion_policy", "scripts", "benchmarks"), REPOSITORY / "train.py"]:
        if where(path) == "diffusion_policy/storage.py":
            continue
        for node in walked(path):
            named = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            # Path.rename and Path.replace take one path; the replace of text and of dates does not.
            renames = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1
            if renames and node.func.attr in {"rename", "replace"} and not node.keywords:
                named = f".{node.func.attr}(path)"
            elif isinstance(node, ast.ImportFrom) and node.module in {"hashlib", "tempfile"}:
                named = f"from {node.module}"
            if named.startswith((".", "from ")) or ONLY_IN_STORAGE.match(named):
                offences.append(f"{where(path)}:{node.lineno}: {named}; use diffusion_policy.storage")
    assert not offences, "\n".join(offences)


# Numbers with one definition and a source: the dead band and the client's threshold, and the norms of quaternions.
NUMBERS_OF_GRIPPERS = re.compile(r"(?:^|_)(?:gripper_)?(?:open|closed)(?:_threshold)?$|CLIENT_THRESHOLD")
NUMBERS_OF_NORMS = re.compile(r"quaternion_(?:norm_)?(?:slack|tolerance)|norm_slack", re.IGNORECASE)


def named_numbers(path: Path) -> Iterator[tuple[int, str, float]]:
    """Numbers between 0 and 1 by the name that they get: by assignment, as a default, or as an argument."""
    for node in walked(path):
        pairs: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(node.targets[0].id, node.value)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            pairs = [(node.target.id, node.value)]
        elif isinstance(node, ast.Call):
            pairs = [(keyword.arg or "", keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            defaults = list(zip(positional[len(positional) - len(node.defaults) :], node.defaults, strict=True))
            of_keywords = zip(node.kwonlyargs, node.kw_defaults, strict=True)
            pairs = [(argument.arg, value) for argument, value in (*defaults, *of_keywords)]
        elif isinstance(node, ast.Compare) and re.search(r"gripper", ast.unparse(node.left)):
            middle = [value for value in node.comparators if ast.unparse(value) == "0.5"]
            pairs = [("CLIENT_THRESHOLD", value) for value in middle]
        for name, value in pairs:
            if isinstance(value, ast.Constant) and isinstance(value.value, float) and 0 < value.value < 1:
                yield value.lineno, name, value.value


def test_numbers_that_are_said_once() -> None:
    homes = {"gripper_events.py": NUMBERS_OF_GRIPPERS, "geometry.py": NUMBERS_OF_NORMS}
    offences = [
        f"{where(path)}:{line}: {name} is {number}; it is said in {home}"
        for path in python_files("diffusion_policy", "scripts")
        for line, name, number in named_numbers(path)
        for home, names in homes.items()
        if names.search(name) and where(path) != f"diffusion_policy/{home}"
    ]
    assert not offences, "\n".join(offences)


def test_pages_have_one_skeleton() -> None:
    offences = [
        where(path)
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in {".py", ".html", ".js"}
        and re.search(r"<(?:!doctype|html)\b", path.read_text(), re.IGNORECASE)
    ]
    # The message for a reader of weights that gets an error page instead of a file.
    assert offences == ["diffusion_policy/report/templates/page.html", "diffusion_policy/tensor_file/kinds.py"]


# Where a policy class may be named: its own packages, and the names under which old files know a workspace.
POLICY_PACKAGES = (
    "diffusion_policy/policy/",
    "diffusion_policy/model/",
    "diffusion_policy/families/lerobot_diffusion.py",  # names of another program's tensors
)
NAMES_OF_POLICIES = re.compile(
    r"input_emb\b|down_modules|Diffusion(?:Transformer|Unet)\w*Policy|diffusion_(?:transformer|unet)_hybrid_image_policy"
    r"|TransformerForDiffusion|ConditionalUnet1D|POLICY_TARGETS\[|FastDenoiser|is_foldable"
)


def test_nothing_but_its_own_package_knows_a_policy_class() -> None:
    """Code that trains, adapts, serves or judges a policy uses the contract and the registry, never a class."""
    offences = [
        f"{where(path)}:{number}: {found[0]}; ask policy.contract or policy.registry"
        for path in [*python_files("diffusion_policy", "scripts"), REPOSITORY / "train.py"]
        if not where(path).startswith(POLICY_PACKAGES)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (found := NAMES_OF_POLICIES.search(line))
    ]
    assert not offences, "\n".join(offences)


# All parts of a policy class; its files contain the workspace's path, whose training loop is shared.
PATHS_OF_A_POLICY = (
    *POLICY_PACKAGES,
    "config/",
    "docs/",
    "tests/",
    "diffusion_policy/workspace/train_diffusion_unet_hybrid_workspace.py",
    "CHANGELOG.md",
)


def test_a_second_policy_class_touches_nothing_but_its_own_paths() -> None:
    """The policy with a UNet: no other file mentions it."""
    speaking = [path for path in spoken_files() if re.search(r"unet", path.read_text(encoding="utf-8"), re.IGNORECASE)]
    offences = [where(path) for path in speaking if not where(path).startswith(PATHS_OF_A_POLICY)]
    assert not offences, f"{offences} speak of one policy class; ask policy.contract or policy.registry"
    assert len(speaking) >= 8, "the class, its tensors, its network, registry, config, rules, docs and tests"


# A layout defines the columns of an action. It is not used by what makes layouts, by functions of poses, rotations
# and the simulator's own state, and where there is no action.
KNOW_COLUMNS = (
    "diffusion_policy/spec/",
    "diffusion_policy/geometry.py",
    "diffusion_policy/pose_check.py",
    "diffusion_policy/trajectory/arrays.py",
    "diffusion_policy/sim/",
    "diffusion_policy/cpu.py",
)
COLUMNS, BOUNDS = {6, 7}, {3, 6, 7, 8}
BY_INDEX = re.compile(r"\.index\(GRIPPER\)")


def _literal(node: ast.expr | None) -> int | None:
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def is_column_of_action(index: ast.expr) -> bool:
    """Whether an index takes columns of an action by number: [..., :3], [:, 3:7], [..., -1], [:7]."""
    if isinstance(index, ast.Slice):
        bounds = (_literal(index.lower), _literal(index.upper))
        return bounds in {(3, 7), (3, 6), (None, 7)} or (index.upper is None and bounds[0] in {3, 7})
    if not isinstance(index, ast.Tuple) or len(index.elts) < 2:
        return False
    first, last = index.elts[0], index.elts[-1]
    if isinstance(last, ast.Slice):
        return bool({_literal(last.lower), _literal(last.upper)} & BOUNDS)
    all_before = isinstance(first, ast.Constant) and first.value is ...
    the_last = isinstance(last, ast.UnaryOp) and _literal(last.operand) == 1
    return _literal(last) in COLUMNS or (all_before and the_last)


def columns_taken(nodes: Iterable[ast.AST]) -> set[int]:
    """Lines that take columns by number; names in capitals (POSE[3:]) are not actions."""
    taken = [node for node in nodes if isinstance(node, ast.Subscript)]
    actions = (node for node in taken if not (isinstance(node.value, ast.Name) and node.value.id.isupper()))
    return {node.lineno for node in actions if is_column_of_action(node.slice) or is_last_of_dataset(node)}


def is_last_of_dataset(node: ast.Subscript) -> bool:
    """Whether it takes the last number of a dataset's actions: dataset["action"][:, -1]."""
    of_dataset = isinstance(node.value, ast.Subscript) and ast.unparse(node.value.slice) in {"'action'", "ACTION_KEY"}
    return of_dataset and isinstance(node.slice, ast.Tuple) and ast.unparse(node.slice.elts[-1]) == "-1"


def test_columns_by_number_are_seen() -> None:
    columns = (
        "a[..., :3]",
        "a[:, 3:7]",
        "a[..., -1]",
        "a[:, 7]",
        "state[:7]",
        "a[rows, :3]",
        "a[:, None, :7]",
        "a['action'][:, -1]",
    )
    others = ("POSE[3:]", "runs[:3]", "obs[:, -1]", "a[-1]", "a[:, 0]", "a[..., list(arm.position)]", "a[1:]", "a[...]")
    assert [text for text in (*columns, *others) if columns_taken(ast.walk(ast.parse(text)))] == list(columns)


def test_no_column_of_an_action_by_number() -> None:
    offences = []
    for path in [*python_files("diffusion_policy", "scripts"), REPOSITORY / "train.py"]:
        if where(path).startswith(KNOW_COLUMNS):
            continue
        text = path.read_text()
        lines = columns_taken(walked(path))
        lines |= {number for number, line in enumerate(text.splitlines(), start=1) if BY_INDEX.search(line)}
        offences += [f"{where(path)}:{line}: {text.splitlines()[line - 1].strip()}" for line in sorted(lines)]
    assert not offences, "ask a spec.ActionLayout:\n" + "\n".join(offences)


def spoken_files() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".txt", ""}
    return [
        REPOSITORY / name
        for name in tracked
        if name and Path(name).suffix in suffixes and (REPOSITORY / name).is_file()
    ]


def test_plain_speech() -> None:
    offences = []
    for path in spoken_files():
        text = path.read_text(encoding="utf-8")
        found = sorted({character for character in text if ord(character) > 126})
        if path.name != "test_house.py":
            found += re.findall(r"/home/\w+|/Users/\w+|/root/", text) + re.findall(r"#\s*(?:TODO|FIXME|XXX)", text)
        if found:
            offences.append(f"{where(path)} holds {found}: plain ASCII, nobody's home, nothing left to do")
    assert not offences, "\n".join(offences)


def test_old_import_paths_resolve() -> None:
    offences = []
    for dotted in OLD_IMPORT_PATHS:
        module, name = dotted.rsplit(".", 1)
        if not isinstance(getattr(importlib.import_module(module), name, None), type):
            offences.append(f"{dotted} does not exist, and old checkpoints name it")
    assert not offences, "\n".join(offences)


def test_light_packages_do_not_load_torch() -> None:
    program = f"import sys, {', '.join(WITHOUT_TORCH)}; sys.exit('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False)
    assert finished.returncode == 0, "one of the light packages imports torch"


def test_entry_points_explain_themselves_in_a_second() -> None:
    """In processor time; the least of three tries counts, since other programs disturb the caches."""
    offences = []
    for script in [*python_files("scripts"), REPOSITORY / "train.py"]:
        for _ in range(3):
            before = processor_time_of_children()
            finished = subprocess.run(
                [sys.executable, script, "--help"], capture_output=True, text=True, check=False, cwd=REPOSITORY
            )
            seconds = processor_time_of_children() - before
            if seconds <= MAX_HELP_SECONDS:
                break
        if finished.returncode or not re.search("usage:|Powered by Hydra", finished.stdout):
            offences.append(f"{where(script)} --help: status {finished.returncode}: {finished.stderr[-500:]}")
        if seconds > MAX_HELP_SECONDS:
            offences.append(f"{where(script)} --help takes {seconds:.2f} s; import what is heavy after parsing")
    assert not offences, "\n".join(offences)


def processor_time_of_children() -> float:
    """Processor seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Words that a reader in the field stumbles over, with the term to use; whole words in prose, and parts of identifiers.
RETIRED = {
    "said": "stated, reported, declared",
    "told": "derived from, reported, commanded",
    "beside": "next to, with, compared with",
    "lies": "is",
    "whoever": "the caller, a reader, ...",
    "asker": "client",
    "ticket": "pending reply",
    "door": "command, reader",
}
# Values of files, and former names that still import.
STORED = {
    "about to close beside", "closed beside", "a hotbar button beside attack, use or drop", "told", "Told", "Asker",
    "dataset.told", "said",
}  # fmt: skip
PROSE = re.compile(rf"\b({'|'.join(RETIRED)})\b", re.IGNORECASE)
# Python 3.12 has tokens of their own for the text in f-strings.
TEXTS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
PARTS_OF_NAMES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def test_retired_words_stay_out_of_names_and_prose() -> None:
    offences = []
    for path in [*python_files("diffusion_policy", "scripts"), REPOSITORY / "train.py"]:
        text = path.read_text(encoding="utf-8")
        if not PROSE.search(text) and not any(word in text.lower() for word in RETIRED):
            continue
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            words: set[str] = set()
            if token.type == tokenize.NAME:
                words = {part.lower() for part in PARTS_OF_NAMES.findall(token.string)} & RETIRED.keys()
            elif token.type in TEXTS and token.string.strip("\"'") not in STORED:
                words = {match.lower() for match in PROSE.findall(token.string)}
            line = f"{where(path)}:{token.start[0]}"
            offences += [f"{line}: {token.string[:40]!r} has {word!r}; use {RETIRED[word]}" for word in sorted(words)]
    assert not offences, "\n".join(offences)


# Code that breaks a law, in a package that is on no list.
PLANTED = [
    (test_imports_point_down, "from diffusion_policy.serve import client"),
    (test_files_and_functions_are_small, "\n" * (MAX_LINES + 1)),
    (test_files_and_functions_are_small, "def long():\n" + "    pass\n" * MAX_FUNCTION_LINES),
    (test_constructors_swallow_nothing, "class Policy:\n    def __init__(self, **options): pass"),
    (test_weights_and_pickles_have_one_reader, "import torch\n\ntorch.load(path)"),
    (test_weights_and_pickles_have_one_reader, "model.load_state_dict(state, strict=False)"),
    (test_only_the_terminal_knows_how_results_are_drawn, "def table():\n    from rich.table import Table"),
    (test_nothing_is_there_for_tests_only, "def alone(): pass"),
    (test_files_come_to_be_in_one_way_and_have_one_hash, "import os\n\nos.replace(before, after)"),
    (test_files_come_to_be_in_one_way_and_have_one_hash, "import hashlib\n\nhashlib.sha256(data)"),
    (test_files_come_to_be_in_one_way_and_have_one_hash, "path.rename(other)"),
    (test_numbers_that_are_said_once, "gripper_open = 0.7"),
    (test_nothing_but_its_own_package_knows_a_policy_class, "NAME = 'DiffusionUnetHybridImagePolicy'"),
    (test_no_column_of_an_action_by_number, "grippers = action[:, 7]"),
    (test_retired_words_stay_out_of_names_and_prose, "file_beside = None"),
    (test_retired_words_stay_out_of_names_and_prose, "# whoever reads this"),
]


@pytest.mark.parametrize(("law", "text"), PLANTED, ids=[law.__name__.removeprefix("test_") for law, _ in PLANTED])
def test_every_law_sees_an_offence(
    law: Callable[[], None], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "diffusion_policy" / "minecraft" / "new" / "planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text(text)
    for name in ("train.py", "config", "scripts", "benchmarks"):
        (tmp_path / name).touch() if name == "train.py" else (tmp_path / name).mkdir()
    for module in (sys.modules[__name__], source_trees):
        monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "diffusion_policy")
    monkeypatch.setattr(sys.modules[__name__], "FOR_OTHER_PROGRAMS", ())
    with pytest.raises(AssertionError, match=r"diffusion_policy/minecraft/new/planted\.py"):
        law()
