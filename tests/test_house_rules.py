"""What keeps the project readable and the bundles usable, stated as tests."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle.config_item import ConfigComponent

import unicorn_monai
from unicorn_monai.bundle.installation import BUNDLES, find_entry, install, load_config
from unicorn_monai.bundle.verify import WIRING, findings

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "bundles").glob("*/configs/*.json"))
PRESETS = sorted((ROOT / "bundles").glob("*/presets/*.json"))
SOURCES = sorted([*(ROOT / "unicorn_monai").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")])
NETWORKS = ("AutoencoderKL", "DiffusionModelUNet", "UNet", "ControlNet", "ResnetGenerator", "SegmentingGenerator")
NETWORKS += ("PatchProjection",)
SCHEDULERS = re.compile(r"(Scheduler|\.DDIM|\.DPMSolverPlusPlus|\.UniPC)$")


def entries(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of a configuration, nested ones too."""
    yield key, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from entries(child, f"{key}::{name}".removeprefix("::"))


def components(config: Any) -> Iterator[tuple[str, dict]]:
    """Every dictionary with a ``_target_``."""
    for key, node in entries(config):
        if isinstance(node, dict) and "_target_" in node:
            yield key, node


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---------------------------------------------------------------- bundles


def test_all_bundles_are_found():
    assert {path.parent.parent.name for path in CONFIGS} == set(BUNDLES)


@pytest.mark.parametrize("path", CONFIGS + PRESETS, ids=name)
def test_a_dollar_joins_wires_and_never_computes(path):
    expressions = [node for _, node in entries(read(path)) if isinstance(node, str) and node.startswith("$")]
    assert [text for text in expressions if not WIRING.fullmatch(text[1:])] == []


@pytest.mark.parametrize(
    "text", ["@a + 1", "@net.to(@device).half()", "len(@data)", "lambda x: x", "os.path.join('a')"]
)
def test_logic_behind_a_dollar_would_be_noticed(text):
    assert not WIRING.fullmatch(text)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_target_exists(path):
    for key, node in components(read(path)):
        module = ConfigComponent(config=node, id=key).resolve_module_name()
        assert callable(module) or isinstance(module, str), f"{key}: {node['_target_']}"
        if isinstance(module, str):
            target = resolve(module)
            assert callable(target), f"{key}: {module}"


def resolve(dotted: str) -> Any:
    """The class or function, or method of a class, at a dotted path."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing: Any = __import__(".".join(parts[:cut]), fromlist=["_"])
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part)
        return thing
    raise ImportError(dotted)


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_network_is_defined_once_in_the_inference_configuration(path):
    defined = [node["_target_"].split(".")[-1] for _, node in components(read(path))]
    networks = [target for target in defined if target in NETWORKS]
    assert path.name == "inference.json" or networks == []
    assert len(networks) == len(set(networks))


def test_no_network_is_defined_by_two_bundles():
    homes = [
        node["_target_"].split(".")[-1]
        for path in CONFIGS
        for _, node in components(read(path))
        if node["_target_"].split(".")[-1] in NETWORKS
    ]
    assert len(homes) == len(set(homes))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_no_scheduler_clips_latents(path):
    for key, node in components(read(path)):
        if SCHEDULERS.search(node["_target_"]):
            assert node.get("clip_sample") is False, f"{key} of {name(path)} needs an explicit clip_sample: false"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_is_complete_and_holds_no_code(bundle):
    root = ROOT / "bundles" / bundle
    for file in ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md"):
        assert (root / file).stat().st_size > 100, f"{bundle} needs {file}"
    assert (root / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert not list(root.rglob("*.py"))
    assert not (root / "scripts").exists()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_logging_of_a_bundle_uses_the_standard_library_only(bundle):
    text = (ROOT / "bundles" / bundle / "configs" / "logging.conf").read_text()
    assert set(re.findall(r"^class=(.*)$", text, re.MULTILINE)) == {"StreamHandler"}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_verification_finds_nothing_to_tell_of_a_bundle_but_that_it_is_not_sealed(bundle, tmp_path):
    found = findings(install(bundle, tmp_path))
    assert [text for text in found if not text.startswith("SHA256SUMS: is missing")] == []


def foundation(path: Path) -> Path:
    """The configuration that another one, through its base bundles, goes back to."""
    config = read(path)
    if "base_bundle" not in config:
        return path
    return foundation(ROOT / "bundles" / config["base_bundle"] / "configs" / config.get("base_config", path.name))


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.name.startswith("train")], ids=name)
def test_every_training_has_a_form_for_several_processes(path):
    beneath = foundation(path)
    changes, base = read(beneath.with_name(f"multi_gpu_{beneath.name}")), load_config(path.parent.parent, path.name)
    target = base["train"]["trainer"]["_target_"]
    makes = resolve(target) if target.startswith("unicorn_monai.") else None
    by_recipe = inspect.isfunction(makes) and "last_handlers" in inspect.getclosurevars(makes).globals
    assert by_recipe or changes["+train::handlers"], "handlers are added, the single-process ones stay"
    new = {key for key in changes if "::" not in key and key not in base}
    assert all(f"@{key}" in json.dumps(changes) for key in new - {"finalize"}), "nothing is defined in vain"
    for key in changes:
        if "::" in key:
            find_entry(base, key.lstrip("+").rpartition("::")[0], path)


OWN_ENTRIES = {  # MONAI takes one file: what builds on a training repeats it, and differs in these entries alone
    ("train_cyclegan", "train_cycada"): {
        *("retinal_unet", "segmentation_path", "semantic_weight", "segmenter", "loss", "checks"),
        *("output_dir", "ckpt_dir", "pool_size", "back_network", "back_network_def"),
    },
    ("train_cut", "train_accut"): {
        *("num_labels", "segmentation_weight", "network_def", "loss", "checks", "output_dir", "ckpt_dir"),
        *("loading", "train::preprocessing", "train::dataset"),
    },
}


@pytest.mark.parametrize(("base", "other"), OWN_ENTRIES)
def test_a_training_that_builds_on_another_stays_the_same_but_for_its_own_entries(base, other):
    def leaves(file: str) -> dict[str, Any]:
        found = dict(entries(read(ROOT / "bundles" / "style_transfer" / "configs" / f"{file}.json")))
        return {key: node for key, node in found.items() if not isinstance(node, dict | list)}

    one, two = leaves(base), leaves(other)
    changed = [key.split("::") for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
    found = {"::".join(parts[: 2 if parts[0] in ("train", "validate") else 1]) for parts in changed}
    assert found == OWN_ENTRIES[base, other]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_metadata_name_the_versions_that_were_tested(bundle):
    metadata = read(ROOT / "bundles" / bundle / "configs" / "metadata.json")
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split("\n") if "==" in line)
    stated = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    assert {package: metadata[key] for package, key in stated.items()} == {package: pins[package] for package in stated}
    packages = dict(metadata["required_packages_version"])
    assert packages.pop("unicorn-monai") == metadata["version"] == unicorn_monai.__version__
    assert packages == {package: pins[package] for package in packages}
    assert metadata["version"] in metadata["changelog"]
    for key in ("name", "task", "description", "intended_use", "references", "data_source", "data_type"):
        assert metadata[key], key


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_readme_tells_the_settings_as_they_are(bundle):
    sections = re.split(
        r"^### `(\w+\.json)`$", (ROOT / f"bundles/{bundle}/docs/README.md").read_text(), flags=re.MULTILINE
    )
    for file, text in zip(sections[1::2], sections[2::2], strict=True):
        config = load_config(ROOT / "bundles" / bundle, file)
        for key, value in re.findall(r"^\| `([\w:]+)` \| `(.+?)` \|", text, re.MULTILINE):
            node: Any = config
            for part in key.split("::"):
                node = node[part]
            assert node == json.loads(value), f"{key} of {file}"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_commands_of_a_readme_name_files_and_settings_that_exist(bundle):
    commands = re.findall(
        r"^.*-m monai\.bundle run .*$", (ROOT / f"bundles/{bundle}/docs/README.md").read_text(), re.MULTILINE
    )
    assert commands
    for command in commands:
        settings: set[str] = set()
        for bundle_, file in re.findall(r"\w*bundles/(\w+)/configs/(\w+\.json)", command):
            settings |= load_config(ROOT / "bundles" / bundle_, file).keys()
        options = set(re.findall(r" --([\w:]+)", command.partition(" -m monai.bundle run ")[2])) - {"config_file"}
        assert options <= settings, command


@pytest.mark.parametrize("path", PRESETS, ids=name)
def test_every_preset_can_be_installed(path, tmp_path):
    root = install(path.parent.parent.name, tmp_path, path.stem)
    for file, settings in read(path).items():
        config = load_config(root, file)
        for key, value in settings.items():
            node: Any = config
            for part in key.split("::"):
                node = node[part]
            assert node == value


# ---------------------------------------------------------------- the library


LONGEST, MOST_PARAMETERS, MOST_MODULES = 60, 8, 14
ROOMS = sorted(path.parent for path in (ROOT / "unicorn_monai").rglob("__init__.py"))


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of a file under its full name, but those that declare a command line."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def within(node: ast.AST, above: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and not any(
                "command" in ast.unparse(d) for d in child.decorator_list
            ):
                yield f"{above}.{child.name}", child
            called = isinstance(child, ast.FunctionDef | ast.ClassDef)
            yield from within(child, f"{above}.{child.name}" if called else above)

    return within(ast.parse(path.read_text()), module)


def parameters(function: ast.FunctionDef) -> int:
    given = function.args
    names = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return len([argument for argument in names if argument.arg not in ("self", "cls")])


def above(limit: int, measure: Callable[[ast.FunctionDef], int]) -> dict[str, int]:
    found = {label: measure(node) for path in SOURCES for label, node in functions(path)}
    return {label: size for label, size in found.items() if size > limit}


def test_no_function_is_long():
    assert above(LONGEST, lambda node: (node.end_lineno or node.lineno) - node.lineno + 1) == {}


def test_no_function_takes_many_parameters():
    assert above(MOST_PARAMETERS, parameters) == {}


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_holds_few_modules_none_called_like_what_it_offers(room):
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    assert len(modules) <= MOST_MODULES
    assert not modules & set(getattr(resolve(name(room).replace("/", ".")), "__all__", ()))
    for module in modules:
        tree = ast.parse((room / f"{module}.py").read_text())
        assert module not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_offers_what_it_names(room):
    package = resolve(name(room).replace("/", "."))
    for offered in getattr(package, "__all__", ()):
        assert getattr(package, offered) is not None
    with pytest.raises(AttributeError, match="cellar"):
        package.cellar  # noqa: B018


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_left_to_assert_outside_tests(path):
    tree = ast.parse(path.read_text())
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
MACHINES = sorted([*SOURCES, *(ROOT / "benchmarks").rglob("*.py")])


def keyword(call: ast.Call, name: str) -> Any:
    """The constant given for a keyword of a call; None if there is none."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def dangers(source: str) -> Iterator[str]:
    """Where a file could run what it reads: every way Python has of unpickling, evaluating, or calling a shell."""
    for node in ast.walk(ast.parse(source)):
        modules: set[str] = set()
        if isinstance(node, ast.Import):
            modules = {alias.name.split(".")[0] for alias in node.names} - {"pickle"}  # for its errors
        elif isinstance(node, ast.ImportFrom):
            modules = {(node.module or "").split(".")[0]}
        bad = bool(modules & UNPICKLING)
        if isinstance(node, ast.Attribute):
            bad |= ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            bad |= called == "torch.load" and keyword(node, "weights_only") is not True
            bad |= called in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load")
            bad |= bool(keyword(node, "allow_pickle") or keyword(node, "shell"))
            bad |= keyword(node, "weights_only") is False
        if bad and isinstance(node, ast.expr | ast.stmt):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("path", MACHINES, ids=name)
def test_nothing_that_is_read_is_run(path):
    assert list(dangers(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.load(f)",
        "from pickle import loads",
        "import joblib",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "torch.hub.load(repo, name)",
        "CheckpointLoader(path, weights_only=False)",
    ],
)
def test_running_what_is_read_would_be_noticed(line):
    assert list(dangers(line))


def imports(path: Path) -> set[str]:
    """What a file imports when it is itself imported: modules, or names of modules as ``module.name``."""
    found: set[str] = set()
    body = list(ast.parse(path.read_text()).body)
    while body:
        node = body.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            body += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


OUTSIDE = [*CONFIGS, *PRESETS, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.md")]
OUTSIDE += [*(ROOT / "bundles").glob("*/docs/*.md"), ROOT / "README.md"]
NAMED = re.compile(r"from unicorn_monai\.([\w.]+) import|\"_target_\": \"unicorn_monai\.([\w.]+)\"")


@pytest.mark.parametrize("path", OUTSIDE, ids=name)
def test_who_uses_the_library_knows_its_rooms_not_their_modules(path):
    for imported, target in NAMED.findall(path.read_text(encoding="utf-8")):
        place = (imported or target.rpartition(".")[0]).split(".")
        if (ROOT / "unicorn_monai" / place[0]).is_dir():
            assert len(place) == 1, ".".join(place)


def test_the_library_imports_neither_the_data_preparation_nor_the_tests():
    for path in (ROOT / "unicorn_monai").rglob("*.py"):
        assert not {module for module in imports(path) if module.split(".")[0] in ("data_prep", "tests")}, name(path)


TEXTS = sorted(
    path
    for folder in ("unicorn_monai", "bundles", "data_prep", "tests", "docs", "benchmarks", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".json", ".md", ".css", ".html", ".conf", ".sh", ".toml", ".txt", "")
    and path.is_file()
    and not {"models", "output", "__pycache__"} & set(path.parts)
) + [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt") or path.name == "Makefile"]
FOREIGN = re.compile(r"/(work|root|home/\w+|Users)/|\b(TO" + r"DO|FIX" + r"ME|lorem ipsum)\b")


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_no_file_tells_of_the_machine_it_was_written_on(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    if path == Path(__file__):
        lines = [line for line in lines if not line.startswith("FOREIGN")]
    assert [line for line in lines if FOREIGN.search(line)] == []


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_check_takes_the_arguments_that_it_is_given(path):
    """A configuration on top of another changes checks by their place in its list."""
    for check in load_config(path.parents[1], path.name).get("checks", []):
        inspect.signature(resolve(check["_target_"])).bind(**{k: v for k, v in check.items() if not k.startswith("_")})
