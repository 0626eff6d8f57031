"""Published weights: one state dictionary in two files, each with its description inside.

    model.safetensors   the header holds the description
    model.pt            the same tensors, where MONAI's CheckpointLoader and MONAI Label look for them
    model.json          the description again, for people and other programs, with the sha256 of both files

    description = {"architecture": fingerprint, "tensors_sha256": ..., "scale_factor": ..., ...}

Each file is renamed into place and can be read without the others, so a crash leaves every one of them whole. A ``.pt``
is looked through before ``torch.load`` sees it, and that with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unicorn_monai.system.errors import NotFinite
from unicorn_monai.system.files import PathLike, atomic, failing_at, write_json
from unicorn_monai.system.intake import Untaken, lies_there, read_text, require_regular
from unicorn_monai.system.networks import fingerprint

SAFETENSORS = ".safetensors"
RECORD = "description.json"  # in the archive of a .pt
ENTRY = "unicorn_monai"  # in the header of a .safetensors; a single one, for their order in the file is random
RESERVED = ("sha256", "safetensors_sha256", "tensors_sha256", "architecture")
MOST_DESCRIPTION = 10_000_000  # bytes
MOST_PICKLE = 4_000_000  # bytes of the list of tensors, a hundred or so for each

# What the archive of a state dictionary consists of, and the only names its pickle may mention.
_MEMBER = re.compile(
    r"[\w.-]+/(data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
    rf"|{re.escape(RECORD)})"
)
_TENSORS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage")
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)  # or encrypted
_NAMES_HIDDEN = ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")


def sha256(path: PathLike) -> str:
    """Sha256 of a file."""
    with require_regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Sha256 of a state dictionary: names, types, shapes and values, whatever the file and the order."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(network: nn.Module, path: PathLike, **metadata: Any) -> None:
    """Write a network's weights as ``.pt`` and ``.safetensors``, and their description as ``.json``, side by side.

    ``metadata``: what belongs to the weights, e.g. ``scale_factor``; values that JSON can hold.
    """
    taken = sorted(set(metadata) & set(RESERVED))
    if taken:
        raise ValueError(f"The metadata {taken} of '{path}' are computed from the weights; give them other names.")
    state = {}
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"'{key}' of the weights is a {type(value).__name__}, expected a tensor; not published.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(f"Weight '{key}' is NaN or infinite; '{path}' was not written. Lower the learning rate.")
        state[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    description = {"architecture": fingerprint(network), "tensors_sha256": tensors_sha256(state), **metadata}
    text = json.dumps(description)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path.with_suffix(SAFETENSORS), apart=True) as twin, atomic(path) as file:
        with failing_at(path.with_suffix(SAFETENSORS)):
            save_file(state, twin, {ENTRY: text})
        with file.open("wb") as stream:
            torch.save(state, stream)
        with zipfile.ZipFile(file, "a") as archive:
            folder = archive.namelist()[0].split("/")[0]
            archive.writestr(zipfile.ZipInfo(f"{folder}/{RECORD}"), text)  # dated 1980: equal weights, equal files
        files = {"sha256": sha256(file), "safetensors_sha256": sha256(twin)}
    write_json(path.with_suffix(".json"), files | description)


def copy_weights(source: PathLike, target: PathLike) -> None:
    """Copy published weights, all files of them, to ``target``: none of other weights is left beside them."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    for suffix in (SAFETENSORS, ".pt", ".json"):
        file, place = (Path(path).with_suffix(suffix) for path in (source, target))
        if file.is_file():
            with atomic(place) as temporary:
                shutil.copyfile(file, temporary)
        else:
            place.unlink(missing_ok=True)


def read_metadata(path: PathLike) -> dict[str, Any]:
    """What is known about the weights at ``path``: sha256 of that file, architecture, scale factor, ..."""
    path = Path(path)
    if not lies_there(path):
        raise ValueError(f"No trained weights at '{path}'. Train this stage first.")
    own, beside, file = description_in(path), {}, path.with_suffix(".json")
    if lies_there(file):
        beside = _parsed(read_text(file, errors="replace"), f"'{file}'", ("sha256", "architecture"))
    noted = beside.get("safetensors_sha256" if path.suffix == SAFETENSORS else "sha256")
    if own is None:  # written by torch.save alone; what lies beside it must be about this very file
        if not beside:
            raise ValueError(
                f"'{path}' holds no description, and no '{file.name}' lies beside it. Use weights written by this "
                "package, or read others in with `unicorn-monai import-weights`."
            )
        if sha256(path) == noted:
            return beside
        raise ValueError(
            f"'{path}' does not have the sha256 noted beside it; it is damaged or was exchanged. Train again."
        )
    same = beside.get("tensors_sha256") == own["tensors_sha256"]  # not so after a crash between two renames
    return {"sha256": noted if same and noted else sha256(path), **own}


def load_weights(network: nn.Module, path: PathLike) -> dict[str, Any]:
    """Load weights written by :func:`save_weights`, ``.pt`` or ``.safetensors``; returns their metadata.

    A ``ValueError`` tells of a missing or damaged file, one of another architecture, or weights that are not finite.
    """
    path, metadata = Path(path), read_metadata(path)
    if fingerprint(network) != metadata["architecture"]:
        raise ValueError(
            f"The weights '{path}' belong to a network of another architecture. Use the configuration they were "
            "trained with (channels, attention_levels, number of labels), or train this stage again."
        )
    state = read_tensors(path)
    if metadata.get("tensors_sha256") not in (None, tensors_sha256(state)):
        raise ValueError(
            f"The weights in '{path}' do not have the sha256 of their description; the file is damaged or was "
            "changed. Train again."
        )
    wanted, found = ({k: (tuple(v.shape), v.dtype) for k, v in s.items()} for s in (network.state_dict(), state))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"'{key}' in '{path}' is {found.get(key, 'absent')}, expected {wanted.get(key, 'absent')}: the file's "
                "description does not tell the truth. Do not use it."
            )
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(f"Weight '{key}' in '{path}' is NaN or infinite. Train again, with a lower learning rate.")
    network.load_state_dict(state)
    return metadata


def read_tensors(path: PathLike) -> dict[str, Tensor]:
    """The state dictionary in a ``.safetensors`` or ``.pt`` file, on the CPU; nothing in the file is executed."""
    path = require_regular(path)
    if path.suffix == SAFETENSORS:
        _require_short_header(path)
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{path}' is no safetensors file, or damaged ({error}).") from error
    content = load_tensors_only(path)
    if not is_state(content):
        raise ValueError(f"'{path}' holds no state dictionary; expected tensors by name.")
    return content


def is_state(content: Any) -> bool:
    """Whether something is a state dictionary: tensors by name."""
    return isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def load_tensors_only(path: PathLike) -> Any:
    """``torch.load`` of a file that mentions nothing but tensors, containers and plain values."""
    require_tensors_only(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the reader
        raise ValueError(f"Cannot read '{path}' ({error}). It is damaged or holds more than tensors.") from error
    size, largest = Path(path).stat().st_size, max((value.nbytes for value in _tensors(content)), default=0)
    if largest > size:  # one number that is repeated takes no place in the file
        raise ValueError(f"'{path}' is refused: a tensor has {largest} bytes, the file {size}. It is no weights.")
    return content


def _tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor, each part looked at once, however often and deeply containers hold each other."""
    waiting, seen = [content], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield part
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()


def require_tensors_only(path: PathLike) -> None:
    """Look through the archive of a ``.pt`` without unpickling it; refuse all but tensors and containers."""
    path = require_regular(path)
    refuse = f"'{path}' is refused, it may run code or fill the memory:"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            strange = [name for name in names if not _MEMBER.fullmatch(name)]
            if strange or len(set(names)) < len(names) or len({name.split("/")[0] for name in names}) > 1:
                raise ValueError(f"{refuse} its archive has the members {strange or names}, not those of torch.save.")
            size = path.stat().st_size
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                    raise ValueError(f"{refuse} '{member.filename}' is packed; torch.save stores tensors as they are.")
            lists = [member for member in members if member.filename.endswith("/data.pkl")]
            if lists and lists[0].file_size > MOST_PICKLE:
                raise ValueError(f"{refuse} its list of tensors has {lists[0].file_size} bytes; at most {MOST_PICKLE}.")
            content = [archive.read(member) for member in lists]
    except _UNREADABLE as error:
        raise ValueError(f"'{path}' is no archive of torch.save ({error}). Expected tensors written by it.") from error
    try:
        codes = ((code.name, str(argument)) for code, argument, _ in pickletools.genops(content[0]))
        named = {(code, argument) for code, argument in codes if code == "GLOBAL" or code in _NAMES_HIDDEN}
    except (ValueError, IndexError) as error:
        raise ValueError(f"'{path}' holds no readable list of tensors ({error}). It is damaged.") from error
    for code, argument in sorted(named):
        if code in _NAMES_HIDDEN or not _TENSORS.fullmatch(argument):
            raise ValueError(f"{refuse} it names '{argument if code == 'GLOBAL' else code}', which is no tensor.")


def _require_short_header(path: Path) -> None:
    """Refuse a ``.safetensors`` file whose header, JSON that its library parses, is longer than any network needs."""
    with require_regular(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if MOST_DESCRIPTION < length <= path.stat().st_size:  # beyond the file it is told otherwise
        raise Untaken(f"'{path}' is refused: its header has {length} bytes; expected at most {MOST_DESCRIPTION}.")


def description_in(path: PathLike) -> dict[str, Any] | None:
    """The description inside a weights file; None where there is none, a ``ValueError`` where it cannot be read."""
    path = require_regular(path)
    try:
        if path.suffix == SAFETENSORS:
            _require_short_header(path)
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(ENTRY)
        else:
            with zipfile.ZipFile(path) as archive:
                found = [m for m in archive.infolist() if m.filename.endswith(f"/{RECORD}")]
                if any(m.file_size > MOST_DESCRIPTION for m in found):
                    raise ValueError(f"The description in '{path}' has {found[0].file_size} bytes; refused.")
                text = archive.read(found[0]).decode(errors="replace") if found else None
    except (SafetensorError, *_UNREADABLE) as error:
        raise ValueError(f"'{path}' is no file of weights, or damaged ({error}). Train again.") from error
    return None if text is None else _parsed(text, f"in '{path}'", ("architecture", "tensors_sha256"))


def _parsed(text: str, where: str, needed: tuple[str, ...]) -> dict[str, Any]:
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The description {where} is not valid JSON ({error}). Train again.") from error
    if not isinstance(description, dict) or not all(isinstance(description.get(key), str) for key in needed):
        raise ValueError(f"The description {where} lacks {list(needed)}. Use weights written by this package.")
    return description


def save_tensors(tensors: dict[str, Tensor], path: PathLike, **metadata: str) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(Path(path), apart=True) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata or None)
