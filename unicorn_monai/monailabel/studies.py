"""The folder of studies: MONAI Label's local datastore, with labels as the package trains on them and errors that tell.

Images lie in the folder itself, label maps in ``labels/final`` (submitted) and ``labels/original`` (predicted). What is
known about an image (its uncertainty, when it was served, whether it is synthetic) stands in ``datastore_v2.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from unicorn_monai.data.clutter import is_clutter
from unicorn_monai.images.transforms import read_image
from unicorn_monai.monailabel.client import Unknown, file_name, known
from unicorn_monai.monailabel.label_files import IMAGES, read_client_label, served_suffix, suffix_of, write_like

FINAL = "final"


class Studies(LocalDatastore):
    """The studies of one app, images of ``num_channels``; ``names`` of the labels, ordered by value."""

    def __init__(self, folder: str, names: Sequence[str], num_channels: int = 1, auto_reload: bool = False) -> None:
        self.names, self.num_channels = list(names), num_channels
        super().__init__(folder, extensions=[f"*{suffix}" for suffix in IMAGES], auto_reload=auto_reload)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        """The files of a folder that fit the patterns, without what is hidden or left by other programs."""
        return {name: file for name, file in super()._list_files(path, patterns).items() if not is_clutter(name)}

    def list_images(self) -> list[str]:
        """Ids of all images, with what other processes wrote in the meantime."""
        self._init_from_datastore_file()
        return super().list_images()

    def real(self, labeled: bool) -> list[str]:
        """Images that are not synthetic, with a submitted label or without."""
        self._init_from_datastore_file()
        images = self.get_labeled_images() if labeled else self.get_unlabeled_images()
        return [image for image in images if not self.get_image_info(image).get("synthetic")]

    def label_of(self, image_id: str, tag: str = FINAL) -> str:
        """File of an image's label map, if there is one with this tag."""
        known("image", image_id, self.list_images())
        known(f"label of '{image_id}' with the tag", tag, self.get_labels_by_image_id(image_id))
        return self.get_label_uri(image_id, tag)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy an image into the folder, if it is one; an id that another image has is refused, with its labels."""
        suffix = suffix_of(image_filename, IMAGES)
        image_id = file_name("image id", image_id or Path(image_filename).name.removesuffix(suffix))
        read_image(image_filename, self.num_channels)
        if image_id in self.list_images():
            if Path(self.get_image_uri(image_id)).read_bytes() == Path(image_filename).read_bytes():
                return image_id
            raise ValueError(
                f"There is another image '{image_id}', whose labels would become this one's. Remove it first, or give "
                "another id."
            )
        return super().add_image(image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label map in the axes and values of the package, with the geometry of its image."""
        known("image", image_id, self.list_images())
        image = self.get_image_uri(image_id)
        segments = label_info.get("label_info") if isinstance(label_info, Mapping) else None
        array = read_client_label(label_filename, image, self.names, segments or ())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"label{served_suffix(image)}"
            write_like(array, path, image)
            return super().save_label(image_id, str(path), file_name("label tag", label_tag), label_info)

    def remove_image(self, image_id: str) -> None:
        """Delete an image and its labels."""
        super().remove_image(known("image", image_id, self.list_images()))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Delete one label map, known at once and not only when the folder's watcher notices."""
        self.label_of(label_id, label_tag)
        super().remove_label(label_id, label_tag)
        entry = self._datastore.objects[label_id]
        entry.labels = {tag: label for tag, label in entry.labels.items() if tag != label_tag}
        self._update_datastore_file()

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is noted about a label map."""
        self.label_of(label_id, label_tag)
        return super().get_label_info(label_id, label_tag)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Note something about a label map."""
        self.label_of(label_id, label_tag)
        super().update_label_info(label_id, label_tag, info)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """ZIP file of the images with a submitted label, and of these labels."""
        self.list_images()
        if not self.get_labeled_images():
            raise Unknown("No study has a submitted label yet, so there is nothing to download. Submit a label first.")
        return super().get_dataset_archive(limit_cases)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Note something about an image."""
        self.update_images({image_id: info})

    def update_images(self, infos: Mapping[str, Mapping[str, Any]]) -> None:
        """Note something about several images at once, on top of what other processes wrote in the meantime."""
        ids = self.list_images()
        for image_id, info in infos.items():
            known("image", image_id, ids)
            self._datastore.objects[image_id].image.info.update(info)
        self._update_datastore_file()
