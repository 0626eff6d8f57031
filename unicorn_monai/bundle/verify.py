"""Look a bundle over before anything in it is parsed as a configuration, unpickled or run.

    sha256   every file is listed in SHA256SUMS and is what was listed (the format of ``sha256sum -c``)
    files    no link leads out of the folder; no file of a kind that holds code; texts and pictures only in ``docs``
    configs  every JSON file, wherever it lies: no expression but wiring, no component but usual ones, no other file
    weights  tensors only; the two files and the description of each network agree

A MONAI bundle's configuration is a program. What is found here is what a reader should look at; that nothing is found
does not make a bundle of unknown origin safe. Compare the sha256 of SHA256SUMS with the one its author tells.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from unicorn_monai.bundle.components import is_usual
from unicorn_monai.bundle.expressions import texts
from unicorn_monai.system import weights
from unicorn_monai.system.files import PathLike, parse_json, write_text
from unicorn_monai.system.intake import bounded_memory, lies_there, read_text, require_regular
from unicorn_monai.system.terminal import printable
from unicorn_monai.system.weights import MOST_DESCRIPTION, SAFETENSORS, sha256

SUMS = "SHA256SUMS"
CODE = re.compile(
    r"\.(py[cdwz]?|so|dll|exe|sh|bat|cmd|ps1|ts|pth|ckpt|bin|pkl|pickle|joblib|np[yz]|ipynb|ya?ml|js|html?|svg|whl|egg"
    r"|zip|tar|t?gz|desktop)$",
    re.IGNORECASE,
)
DOCS = (".md", ".txt", ".png", ".jpg", ".jpeg")
# What may stand behind a `$`: wiring. Whatever computes is a function with a name and a test.
WIRING = re.compile(
    r"@[\w:]+( \+ '[^']*')+"  # a path is joined
    r"|@[\w:]+\.to\(@device\)"
    r"|@[\w:]+\.(parameters|run)\(\)"
    r"|monai\.utils\.set_determinism\(@seed\)"
    r"|monai\.handlers\.from_engine\(\[?('\w+'(, )?)+\]?(, first=True)?\)"
    r"|torch\.(float32|float16|bfloat16|int64|uint8)"
)
MODES = ("default", "callable", "partial")  # of a component; "debug" would start a debugger
# Python evaluates the values of `args`, `kwargs` and `defaults`.
LOGGING = {"class": re.compile(r"StreamHandler"), "args": re.compile(r"\(\s*(sys\.std(out|err),?\s*)?\)")}
LOGGING_ENTRY = re.compile(r"\s*(class|args|kwargs|defaults)\s*[=:](.*)", re.IGNORECASE)
_SIBLING = re.compile(r"'/\.\./\w+'")  # another bundle beside this one
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def seal(bundle_root: PathLike) -> str:
    """Write ``SHA256SUMS`` of a bundle that is to be given away, if nothing is to be told of it.

    Its sha256 is returned, to be told where it cannot be exchanged together with the bundle.
    """
    root = _folder(bundle_root)
    found = [*_file_findings(root), *_config_findings(root), *_weight_findings(root)]
    if found:
        raise ValueError("Not sealed:\n" + "\n".join(found))
    write_text(root / SUMS, "".join(f"{sha256(root / name)}  {name}\n" for name in _names(root)))
    return sha256(root / SUMS)


def findings(bundle_root: PathLike, sums_sha256: str | None = None) -> list[str]:
    """What a reader should know before running a bundle, a line each.

    ``sums_sha256`` is what its author says is the sha256 of ``SHA256SUMS``.
    """
    root = _folder(bundle_root)
    with bounded_memory():
        broken = [*_file_findings(root), *_sum_findings(root, sums_sha256)]
        return [*broken, *_config_findings(root), *_weight_findings(root)]


def _folder(bundle_root: PathLike) -> Path:
    root = Path(bundle_root)
    if not (root / "configs").is_dir():
        raise ValueError(f"'{root}' is no bundle: no folder 'configs' in it. Check the path.")
    return root


def _names(root: Path) -> list[str]:
    """Every file of the bundle, relative; links to folders are not followed."""
    found = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    return sorted(name for path in found if (name := path.relative_to(root).as_posix()) != SUMS)


def _file_findings(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if printable(name) != name:
            yield f"{name}: has a name that is not seen as it is; expected letters, digits, signs and spaces"
        if path.is_symlink():
            yield f"{name}: is a link to '{path.readlink()}'; expected a file of its own"
        elif not (path.is_file() or path.is_dir()):
            yield f"{name}: is neither a file nor a folder"
        elif path.is_file() and CODE.search(path.name):
            yield f"{name}: may hold code; expected JSON, text, pictures, .pt or .safetensors only"
        elif path.is_file() and name.lower().startswith("docs/") and not name.lower().endswith(DOCS):
            yield f"{name}: is no text and no picture; expected nothing else in docs"


def _sum_findings(root: Path, sums_sha256: str | None) -> Iterator[str]:
    if not lies_there(root / SUMS):
        yield f"{SUMS}: is missing, so changes cannot be noticed; its author writes it with `unicorn-monai seal`"
        return
    if sums_sha256 is not None and sha256(root / SUMS) != sums_sha256.lower():
        yield f"{SUMS}: has the sha256 {sha256(root / SUMS)}, expected {sums_sha256}; not what its author sealed"
    listed: dict[str, str] = {}
    for line in read_text(root / SUMS, errors="replace").splitlines():
        if found := _LINE.fullmatch(line):
            listed[found[2]] = found[1]
        else:
            yield f"{SUMS}: the line {line[:80]!r} is no checksum"
    present = set(_names(root))
    for name in sorted(present | listed.keys()):
        if name not in listed:
            yield f"{name}: is not listed in {SUMS}; it was added later"
        elif name not in present:
            yield f"{name}: is listed in {SUMS} and is missing"
        elif (root / name).is_file() and not (root / name).is_symlink() and sha256(root / name) != listed[name]:
            yield f"{name}: was changed after it was sealed (sha256)"


def _config_findings(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*")):  # MONAI reads a configuration from anywhere
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() == ".json" and not path.is_symlink():
            try:
                _require_short(path)
                for key, text in texts(parse_json(path)):
                    yield from (f"{name}: {key}: {what}" for what in _code_in(key, text))
            except (ValueError, RecursionError) as error:
                yield f"{name}: {error}"
        elif path.suffix.lower() == ".conf" and not path.is_symlink():
            try:
                lines = read_text(_require_short(path), errors="replace").splitlines()
            except ValueError as error:
                yield f"{name}: {error}"
                continue
            for line in lines:
                found = LOGGING_ENTRY.match(line)
                allowed = LOGGING.get(found[1].lower()) if found else None
                if found and not (allowed and allowed.fullmatch(found[2].strip())):
                    yield f"{name}: '{line[:80]}' logs to something else than the console"


def _require_short(path: Path) -> Path:
    """Refuse a configuration that is no regular file, or larger than people write them."""
    size = require_regular(path).stat().st_size
    if size > MOST_DESCRIPTION:
        raise ValueError(f"has {size} bytes; expected a configuration of at most {MOST_DESCRIPTION}")
    return path


def _code_in(key: str, text: str) -> Iterator[str]:
    last = re.split(r"::|#", key)[-1].lstrip("+")  # MONAI takes # for ::, and adds up what + stands before
    if text.startswith("$") and not WIRING.fullmatch(text[1:]):
        yield f"runs the expression {text[:120]!r}"
    elif re.search(r"(^|[/'])\.\.([/']|$)", _SIBLING.sub("", text)):
        yield f"leads out of the folder of the bundles, {text[:120]!r}"
    elif text.startswith("%"):
        yield f"takes in another file, {text[:120]!r}"
    elif last == "_target_" and not is_usual(text):
        yield f"calls '{text[:120]}', which is none of the components that bundles are made of"
    elif last == "_mode_" and text not in MODES:
        yield f"runs a component in the mode '{text[:120]}'; expected one of {', '.join(MODES)}"
    elif last == "base_bundle" and not text.isidentifier():
        yield f"is built on '{text[:120]}', which is no bundle beside it"


def _weight_findings(root: Path) -> Iterator[str]:
    """Findings about every ``.pt`` and ``.safetensors``; nothing is unpickled that does not hold tensors alone."""
    for path in sorted(root.rglob("*.pt")):
        name = path.relative_to(root).as_posix()
        try:
            if path.is_symlink():
                continue
            weights.require_tensors_only(path)
            if lies_there(path.with_suffix(SAFETENSORS)) or lies_there(path.with_suffix(".json")):
                yield from (f"{name}: {what}" for what in _disagreements(path))
        except ValueError as error:
            yield f"{name}: {error}"
    for path in sorted(root.rglob(f"*{SAFETENSORS}")):
        if not path.with_suffix(".pt").exists() and not path.is_symlink():
            try:
                weights.description_in(path)
            except ValueError as error:
                yield f"{path.relative_to(root).as_posix()}: {error}"


def _disagreements(path: Path) -> Iterator[str]:
    """Where the two files of published weights and their description contradict each other."""
    twin, beside = path.with_suffix(SAFETENSORS), path.with_suffix(".json")
    noted = parse_json(beside) if lies_there(beside) else {}
    for file, key in ((path, "sha256"), (twin, "safetensors_sha256")):
        if not lies_there(file):
            yield f"'{file.name}' is missing beside it"
            continue
        own, found = weights.read_metadata(file), weights.tensors_sha256(weights.read_tensors(file))
        if own.get("tensors_sha256") != found:
            yield f"'{file.name}' does not hold the tensors of its description (sha256)"
        if noted.get(key) != sha256(file):
            yield f"'{beside.name}' does not have the sha256 of '{file.name}'"
        own = {k: v for k, v in own.items() if k != "sha256"}
        differing = sorted(k for k in own if json.dumps(own[k]) != json.dumps(noted.get(k)))
        if differing:
            yield f"'{beside.name}' and '{file.name}' contradict each other in {differing}"
