"""Text prompts: made from a data set's items, encoded once, by CLIP for example, and kept on disk.

    prompt("{prompt}, {words}")  ->  tokens (77)  ->  CLIP  ->  context (77, D) of the cross-attention

The encoding of the empty prompt is the null context of classifier-free guidance (Ho and Salimans 2022), which

    eps = eps(null) + g_text (eps(context) - eps(null))

asks of the networks; those trained here see it in place of dropped prompts. The Uncertainty-ControlNet needs these
most: if words always tell the weather, nothing is left for the uncertainty to explain.
"""

from __future__ import annotations

import hashlib
import logging
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from unicorn_monai.data.layout import WEATHER
from unicorn_monai.system.files import PathLike, sweep
from unicorn_monai.system.networks import freeze
from unicorn_monai.system.weights import save_tensors, sha256

logger = logging.getLogger("unicorn_monai")


class PromptTemplate:
    """The prompt of an item of a data set, from a text with fields in braces.

    Those are any entry of the item, e.g. ``{subject}``; ``{prompt}``, for which ``prompt`` stands where an item has
    none; and ``{words}`` of the sub-domain that the entry ``key`` names, none for one that is not in it, as the
    labelled one.
    """

    def __init__(
        self,
        template: str = "{prompt}, {words}",
        prompt: str = "",
        words: Mapping[str, str] | None = None,
        key: str = "sub_domain",
    ) -> None:
        try:
            self.fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        except ValueError as error:
            raise ValueError(f"The prompt template '{template}' has unpaired braces ({error}).") from error
        self.template, self.prompt, self.key = template, prompt, key
        self.words = dict(WEATHER if words is None else words)

    def __call__(self, item: Mapping[str, Any], subdomain: str | None = None) -> str:
        """The prompt of ``item``; ``subdomain`` in place of its own gives that of the same scene elsewhere."""
        own = {key: value for key, value in item.items() if value is not None}
        words = self.words.get(str(own.get(self.key, "") if subdomain is None else subdomain), "")
        values = {"prompt": self.prompt} | own | {"words": words}
        missing = sorted(self.fields - values.keys())
        if missing:
            raise ValueError(
                f"The prompt template '{self.template}' asks for {missing}; item '{item.get('image')}' has only "
                f"{sorted(values)}. Add them to dataset.json or change the template."
            )
        text = self.template.format(**{field: values[field] for field in self.fields})
        return re.sub(r"\s*,(\s*,)+", ",", re.sub(r"\s+", " ", text)).strip(" ,")  # an empty field leaves no comma


class TextEncoder(Protocol):
    """What encodes prompts: CLIP here, the word vectors of `word_vectors`, or a model of one's own."""

    identity: str  # of the weights and the vocabulary

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (prompts, tokens, dimensions) float32 on the CPU."""
        ...


class ClipTextEncoder:
    """CLIP's text encoder and tokenizer of a Stable Diffusion folder, loaded at the first prompt that is encoded."""

    def __init__(self, folder: PathLike, device: torch.device | str = "cpu", batch_size: int = 32) -> None:
        self.folder, self.device, self.batch_size = Path(folder), torch.device(device), batch_size
        for part in ("text_encoder", "tokenizer"):
            if not (self.folder / part).is_dir():
                raise ValueError(f"'{folder}' has no folder '{part}'; expected a Stable Diffusion 1.x or 2.x folder.")

    @cached_property
    def identity(self) -> str:
        """Sha256 over the files of both parts."""
        digest = hashlib.sha256()
        for path in sorted(path for part in ("text_encoder", "tokenizer") for path in (self.folder / part).iterdir()):
            if path.suffix in (".json", ".txt", ".safetensors"):
                digest.update(f"{path.parent.name}/{path.name}: {sha256(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        try:
            from transformers import CLIPTextModel, CLIPTokenizer  # type: ignore[import-not-found]
        except ImportError as error:
            raise ValueError(
                "Prompts need the package transformers; run `pip install 'unicorn-monai[street]'`."
            ) from error
        weights = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
        try:
            tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
            place = self.folder / "text_encoder"
            model, loaded = CLIPTextModel.from_pretrained(place, local_files_only=True, **weights)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"The text encoder or tokenizer of '{self.folder}' cannot be read ({error}). Files are missing or "
                "truncated; copy the folder again."
            ) from error
        lacking = sorted(loaded["missing_keys"])
        if lacking:
            raise ValueError(f"'{self.folder / 'text_encoder'}' lacks {len(lacking)} tensors, first '{lacking[0]}'.")
        words, length = model.config.vocab_size, model.config.max_position_embeddings
        if len(tokenizer) != words or tokenizer.model_max_length != length:
            raise ValueError(
                f"The tokenizer of '{self.folder}' has {len(tokenizer)} words and prompts of "
                f"{tokenizer.model_max_length} tokens, its text encoder {words} and {length}; they belong to different "
                "models. Copy both from one."
            )
        return tokenizer, freeze(model).to(self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (prompts, tokens, dimensions) float32 on the CPU; what is too long is cut, and told."""
        tokenizer, model = self._model
        length = tokenizer.model_max_length
        for prompt in prompts:
            tokens = len(tokenizer(prompt)["input_ids"])
            if tokens > length:
                logger.warning(f"The prompt '{prompt}' has {tokens} tokens; only the first {length} are used.")
        parts = []
        for start in tqdm(range(0, len(prompts), self.batch_size), desc="prompts", disable=None, leave=False):
            batch = list(prompts[start : start + self.batch_size])
            tokens = tokenizer(batch, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            masked = getattr(model.config, "use_attention_mask", False)
            mask = tokens["attention_mask"].to(self.device) if masked else None
            parts.append(model(tokens["input_ids"].to(self.device), attention_mask=mask)[0].float().cpu())
        return torch.cat(parts)


class PromptEmbeddings:
    """Embeddings of prompts, each encoded once and kept on disk: later runs need no text encoder in memory."""

    def __init__(self, encoder: TextEncoder, cache_dir: PathLike) -> None:
        self.encoder, self.folder = encoder, Path(cache_dir) / f"prompts-{encoder.identity[:24]}"
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (prompts, tokens, dimensions) float32 on the CPU."""
        unknown = sorted(set(prompts) - self._known.keys())
        missing = [prompt for prompt in unknown if not self._file(prompt).is_file()]
        if missing:
            sweep(self.folder)
            for prompt, embedding in zip(missing, self.encoder.encode(missing), strict=True):
                save_tensors({"embedding": embedding.float()}, self._file(prompt), prompt=prompt)
        self._known |= {prompt: self._load(prompt) for prompt in unknown}
        return torch.stack([self._known[prompt] for prompt in prompts])

    @property
    def null(self) -> Tensor:
        """That of the empty prompt, (1, tokens, dimensions)."""
        return self([""])

    def _file(self, prompt: str) -> Path:
        return self.folder / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"

    def _load(self, prompt: str) -> Tensor:
        try:
            return load_file(self._file(prompt))["embedding"]
        except (SafetensorError, KeyError, OSError) as error:
            raise ValueError(f"'{self._file(prompt)}' is damaged ({error}). Remove it; it is made again.") from error


@dataclass(frozen=True)
class Text:
    """How a latent diffusion model is told in words what to show."""

    embeddings: PromptEmbeddings
    template: PromptTemplate  # of real and of synthetic images
    subdomains: Sequence[str] = ()  # named in turn by the prompts of synthetic images, instead of the label maps' own

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (prompts, tokens, dimensions) float32 on the CPU."""
        return self.embeddings(prompts)

    @property
    def null(self) -> Tensor:
        """The encoding of the empty prompt, (1, tokens, dimensions)."""
        return self.embeddings.null
