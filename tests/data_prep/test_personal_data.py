"""Whose eye it is decides the pseudonym, in whatever encoding it is written, and is told by no message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import dicom, heidelberg, image_folder
from data_prep.privacy import Refused, discreet, told
from oct_files import bscan, e2e, label_map, opt, picture, save, vol
from unicorn_monai.data.layout import SPLITS, read_header

PERSONAL = ("Müller", "Mueller", "PÄT", "PAT-", "Erika", "1964")  # in no message, however written


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "keys" / "key"))


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def needs_eyepy() -> None:
    pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")


def subjects(source, root: Path, output: Path) -> list[str]:
    options = ["--split", "1", "0", "0", "--size", "40", "32", "--labels", "none"]
    assert source.main([str(root), str(output), *options]) == 0
    header = read_header(output)
    return sorted({item["subject"] for split in SPLITS for item in header.get(split, [])})


def vol_of(path: Path, person: bytes, **parts: bytes) -> Path:
    """A .vol of a person, with other bytes at some places of its header."""
    vol(path, patient="", layers=False)
    content = bytearray(path.read_bytes())
    content[140:164] = person.ljust(24, b"\0")
    for place, value in parts.items():
        start = int(place.removeprefix("at_"))
        content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


XML = """{declared}<HEDX><BODY><SWVersion><Version>1</Version></SWVersion>
<Patient><ID>369</ID><PatientID>{person}</PatientID>
<LastName>Müller</LastName><Birthdate><Date><Year>{year}</Year><Month>8</Month><Day>12</Day></Date></Birthdate>
<Study><StudyDate><Date><Year>2020</Year><Month>1</Month><Day>1</Day></Date></StudyDate><Series><ID>1</ID>
<Laterality>R</Laterality><ReferenceSeries><ID>1</ID><ExamDate><Date><Year>2020</Year><Month>1</Month><Day>1</Day></Date>
</ExamDate></ReferenceSeries><Image><ImageType><Type>OCT</Type></ImageType><OphthalmicAcquisitionContext><Width>32</Width>
<Height>40</Height><ScaleX>0.012</ScaleX><ScaleY>0.004</ScaleY><ImageQuality>30</ImageQuality><Start><Coord><X>0</X>
<Y>0</Y></Coord></Start><End><Coord><X>1</X><Y>0</Y></Coord></End></OphthalmicAcquisitionContext><ImageData>
<ExamURL>{picture}</ExamURL></ImageData></Image></Series></Study></Patient></BODY></HEDX>"""


def xml_of(folder: Path, person: str, encoding: str, declared: bool, year: str = "1964") -> Path:
    folder.mkdir(parents=True)
    picture(folder / "a.tif", bscan(len(folder.name)))
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n' if declared else ""
    text = XML.format(declared=head, person=person, picture="a.tif", year=year)
    (folder / "export.xml").write_bytes(text.encode(encoding))
    return folder


def dicom_of(path: Path, person: bytes, character_set: str | None) -> Path:
    """A DICOM file whose PatientID holds these bytes, whatever character set it states."""
    image = opt(PatientID="#" * (len(person) + len(person) % 2))
    if character_set:
        image.SpecificCharacterSet = character_set
    save(image, path)
    filled = person.ljust(len(person) + len(person) % 2)
    path.write_bytes(path.read_bytes().replace(b"#" * len(filled), filled))
    return path


def test_a_person_has_one_pseudonym_in_every_format_and_encoding(root):
    needs_eyepy()
    vol_of(root / "vol" / "a.vol", "PÄT1".encode("latin-1"))
    xml_of(root / "declared" / "x", "PÄT1", "iso-8859-1", declared=True)
    xml_of(root / "undeclared" / "x", "PÄT1", "latin-1", declared=False)
    xml_of(root / "utf8" / "x", "PÄT1", "utf-8", declared=True)
    names = [subjects(heidelberg, root / k, root.parent / k) for k in ("vol", "declared", "undeclared", "utf8")]
    for k, (encoding, character_set) in enumerate(
        (("latin-1", "ISO_IR 100"), ("utf-8", "ISO_IR 192"), ("latin-1", None))
    ):
        dicom_of(root / f"dicom{k}" / "a.dcm", "PÄT1".encode(encoding), character_set)
        names.append(subjects(dicom, root / f"dicom{k}", root.parent / f"dicom{k}"))
    assert names == [names[0]] * len(names)
    assert len(names[0]) == 1


def test_an_id_of_an_e2e_file_is_that_of_the_vol(root):
    needs_eyepy()
    e2e(root / "e2e" / "a.e2e")
    content = (root / "e2e" / "a.e2e").read_bytes()
    (root / "e2e" / "a.e2e").write_bytes(content.replace(b"PAT-4711", b"P\xc4T-4711\0"[:8]))
    vol_of(root / "vol" / "a.vol", b"P\xc4T-4711"[:8])
    (one,) = subjects(heidelberg, root / "vol", root.parent / "vol")
    assert one in subjects(heidelberg, root / "e2e", root.parent / "e2e")


@pytest.mark.parametrize("kind", ["vol", "xml", "dicom"])
def test_ids_that_differ_in_an_umlaut_are_two_people(root, kind):
    needs_eyepy()
    for name in ("PÄT", "PÖT"):
        if kind == "vol":
            vol_of(root / f"{name}.vol", name.encode("latin-1"))
        elif kind == "xml":
            xml_of(root / name, name, "latin-1", declared=False)
        else:
            dicom_of(root / f"{name}.dcm", name.encode("latin-1"), "ISO_IR 192")
    assert len(subjects(dicom if kind == "dicom" else heidelberg, root, root.parent / "out")) == 2


@pytest.mark.parametrize(
    "parts",
    [
        {"at_176": "Müller".encode("latin-1")},  # the visit
        {"at_164": struct.pack("<d", 1e300)},  # a birth date beyond all dates
        {"at_88": struct.pack("<Q", 2**64 - 1)},  # an examination beyond all dates
        {"at_104": b"\xcc" * 16, "at_224": b"\xcc" * 34},  # memory that nobody wrote to
        {"at_84": b"OD\0\xcc"},  # the same behind the end of a text
    ],
)
def test_a_vol_is_read_whatever_its_header_says_of_a_person(root, parts, capsys):
    needs_eyepy()
    vol_of(root / "a.vol", b"PAT-1\0\xcc\xcc", **parts)
    vol_of(root / "b.vol", b"PAT-1")
    assert len(subjects(heidelberg, root, root.parent / "out")) == 1
    items = read_header(root.parent / "out")["training"]
    assert [item["laterality"] for item in items] == ["OD"] * 4
    assert "skipped" not in capsys.readouterr().out


def _broken_vol(root: Path) -> None:
    path = vol_of(root / "a.vol", "Müller".encode("latin-1"), at_176=b"Erika")
    path.write_bytes(path.read_bytes()[:-99])


def _broken_e2e(root: Path) -> None:
    e2e(root / "a.e2e")
    rng = np.random.default_rng(0)
    content = bytearray((root / "a.e2e").read_bytes().replace(b"PAT-4711", "PÄT-4711".encode("latin-1")))
    content[600:4000:37] = rng.integers(0, 256, len(range(600, 4000, 37)), dtype=np.uint8).tobytes()
    (root / "a.e2e").write_bytes(content)


def _xml_of_a_name_for_a_year(root: Path) -> None:
    xml_of(root / "x", "PÄT", "latin-1", declared=False, year="Müller")


def _altered(old: bytes, new: bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        image = opt(PatientID="PAT-1", NumberOfFrames=3, SpecificCharacterSet="ISO_IR 9999")
        content = save(image, root / "a.dcm").read_bytes()
        assert old in content
        (root / "a.dcm").write_bytes(content.replace(old, new))

    return make


def _segmentation_of_a_name(root: Path) -> None:
    image = opt()
    save(image, root / "a.dcm")
    path = save(label_map(image), root / "s.dcm")
    path.write_bytes(path.read_bytes().replace(b"US\x02\x00\x01\x00", b"LO\x06\x00Erika ", 1))


def _text_for_a_row(root: Path) -> None:
    picture(root / "images" / "p" / "a.png")
    (root / "labels" / "p").mkdir(parents=True)
    (root / "labels" / "p" / "a.csv").write_text("\n".join(["1,2"] * 20 + ["Erika,Mueller"] + ["1,2"] * 11))


MESSAGES = {
    "a .vol cut off": (heidelberg, _broken_vol),
    "an .e2e damaged": (heidelberg, _broken_e2e),
    "an .xml with a name for a year": (heidelberg, _xml_of_a_name_for_a_year),
    "DICOM: a name for a number": (dicom, _altered(b"IS\x02\x003 ", b"LO\x06\x00Erika")),
    "DICOM: a name for a spacing": (dicom, _altered(b"DS\x0c\x000.004\\0.012 ", b"LO\x0c\x00Erika\\Mueller"[:20])),
    "DICOM: no known character set": (dicom, _altered(b"PAT-1 ", b"P\xc4T-1 ")),
    "DICOM: a type nobody knows": (dicom, _altered(b"LO\x06\x00PAT-1 ", b"XX\x06\x00PAT-1 ")),
    "DICOM: a name for a state": (dicom, _altered(b"CS\x04\x00YES ", b"CS\x06\x00Erika ")),
    "DICOM: a segmentation": (dicom, _segmentation_of_a_name),
    "surfaces: a name for a row": (image_folder, _text_for_a_row),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_no_message_tells_whose_file_it_is(root, name, capfd, caplog, recwarn):
    needs_eyepy()
    source, make = MESSAGES[name]
    make(root)
    options = ["--split", "1", "0", "0", "--size", "40", "32"]
    source.main([str(root), str(root.parent / "out"), *options])
    shown = "".join(capfd.readouterr()) + caplog.text + "".join(str(w.message) for w in recwarn)
    assert [word for word in PERSONAL if word.lower() in shown.lower()] == []
    assert "Traceback" not in shown


def test_of_an_error_of_a_reader_only_the_kind_is_told():
    assert told(ValueError("could not convert string to float: 'Erika'")) == "ValueError"
    assert told(Refused("pixels: found none; expected some")) == "pixels: found none; expected some"


def test_readers_are_loud_again_afterwards(caplog):
    import logging

    logger = logging.getLogger("pydicom")
    with discreet():
        logger.error("Erika")
    logger.error("again")
    assert [record.getMessage() for record in caplog.records] == ["again"]
