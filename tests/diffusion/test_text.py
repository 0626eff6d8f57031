"""Prompts: what they say, how they are encoded, and that this happens once."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import pytest
import torch

from unicorn_monai.diffusion.text import ClipTextEncoder, PromptEmbeddings, PromptTemplate, Text


class Letters:
    """A text encoder of one's own: the code of each letter."""

    identity = "letters"

    def __init__(self):
        self.asked = []

    def encode(self, prompts):
        self.asked.append(list(prompts))
        rows = [[ord(c) for c in prompt[:5].ljust(5)] for prompt in prompts]
        return torch.tensor(rows, dtype=torch.float32)[..., None].expand(-1, -1, 3)


# ---------------------------------------------------------------- templates

TEMPLATES = {
    "words of the sub-domain": ({}, {"sub_domain": "night"}, None, "night scene"),
    "no words for the labelled domain": ({"prompt": "a street"}, {"sub_domain": "clear"}, None, "a street"),
    "own prompt": ({"prompt": "a street"}, {"prompt": "a tram", "sub_domain": "fog"}, None, "a tram, foggy scene"),
    "no own prompt": ({"prompt": "a street"}, {"prompt": None, "sub_domain": "fog"}, None, "a street, foggy scene"),
    "elsewhere": ({"prompt": "a street"}, {"sub_domain": "clear"}, "rain", "a street, rainy scene"),
    "elsewhere than there": ({"prompt": "a street"}, {"sub_domain": "fog"}, "snow", "a street, snowy scene"),
    "own words": ({"template": "{words} of {device}", "words": {"b": "OCT"}}, {"sub_domain": "b", "device": "X"}, None,
                  "OCT of X"),
    "own key": ({"key": "weather", "prompt": "a street"}, {"weather": "rain"}, None, "a street, rainy scene"),
    "fixed": ({"template": "a street"}, {}, None, "a street"),
    "nothing to say": ({}, {}, None, ""),
}  # fmt: skip


@pytest.mark.parametrize(("options", "item", "subdomain", "expected"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_names_scene_and_weather(options, item, subdomain, expected):
    assert PromptTemplate(**options)(item, subdomain) == expected


def test_a_template_that_asks_for_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"asks for \['city'\]; item 'a.png' has only \['image', 'prompt', 'words'\]"):
        PromptTemplate("a street in {city}")({"image": "a.png"})
    with pytest.raises(ValueError, match="unpaired braces"):
        PromptTemplate("a {street")


# ---------------------------------------------------------------- the cache


def test_prompts_are_encoded_once(tmp_path):
    encoder = Letters()
    prompts = PromptEmbeddings(encoder, tmp_path)
    embeddings = prompts(["fog", "rain", "fog"])
    assert torch.equal(embeddings, Letters().encode(["fog", "rain", "fog"]))
    assert encoder.asked == [["fog", "rain"]]
    assert torch.equal(PromptEmbeddings(encoder, tmp_path)(["rain"]), embeddings[1:2])
    prompts(["rain", "snow"])
    assert encoder.asked == [["fog", "rain"], ["snow"]]


def test_the_null_context_is_the_encoding_of_the_empty_prompt(tmp_path):
    text = Text(PromptEmbeddings(Letters(), tmp_path), PromptTemplate(), ["fog"])
    assert torch.equal(text.null, Letters().encode([""]))
    assert torch.equal(text(["fog", ""]), Letters().encode(["fog", ""]))


def test_another_text_encoder_has_a_cache_of_its_own(tmp_path):
    PromptEmbeddings(Letters(), tmp_path)(["fog"])
    other = Letters()
    other.identity = "other letters"
    PromptEmbeddings(other, tmp_path)(["fog"])
    assert other.asked == [["fog"]]


def test_a_damaged_embedding_is_told(tmp_path):
    PromptEmbeddings(Letters(), tmp_path)(["fog"])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"is damaged .* Remove it"):
        PromptEmbeddings(Letters(), tmp_path)(["fog"])


# ---------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    pytest.importorskip("transformers", reason="needs transformers: make test-street")
    from stable_diffusion_folder import clip

    root = tmp_path_factory.mktemp("clip")
    tokenizer, text_encoder = clip()
    tokenizer.save_pretrained(root / "tokenizer")
    text_encoder.save_pretrained(root / "text_encoder")
    return root


@pytest.fixture
def own(first, tmp_path):
    return shutil.copytree(first, tmp_path / "clip")


def test_clip_encodes_as_transformers_does(first):
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(first / "tokenizer")
    model = CLIPTextModel.from_pretrained(first / "text_encoder").eval()
    texts = ["a photo of rain", "", "Zürich 12"]
    ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(ids).last_hidden_state
    embeddings = ClipTextEncoder(first, batch_size=2).encode(texts)
    assert embeddings.shape == (3, 77, 32)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-6)
    assert not torch.equal(embeddings[0], embeddings[1])


def test_cached_prompts_need_no_text_encoder(own, tmp_path, monkeypatch):
    embeddings = PromptEmbeddings(ClipTextEncoder(own), tmp_path / "cache")(["rain", ""])
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    again = PromptEmbeddings(ClipTextEncoder(own), tmp_path / "cache")
    assert torch.equal(again(["rain", ""]), embeddings)
    with pytest.raises(ValueError, match=r"need the package transformers; run `pip install 'unicorn-monai\[street\]'`"):
        again(["fog"])


def test_the_cache_belongs_to_the_weights_and_the_vocabulary(own):
    before = ClipTextEncoder(own).identity
    assert ClipTextEncoder(own).identity == before
    config = own / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text() + " ")
    assert ClipTextEncoder(own).identity != before


@pytest.mark.parametrize(("count", "warned"), [(75, False), (76, True), (200, True)])
def test_prompts_that_are_too_long_are_cut_and_told(first, caplog, count, warned):
    encoder = ClipTextEncoder(first)
    with caplog.at_level(logging.WARNING, "unicorn_monai"):
        embedding = encoder.encode([" ".join(["rain"] * count)])
    assert embedding.shape == (1, 77, 32)
    assert (f"has {count + 2} tokens; only the first 77 are used" in caplog.text) == warned
    if warned:  # the end of the text stays marked
        torch.testing.assert_close(embedding, encoder.encode([" ".join(["rain"] * 75)]))


def test_a_vocabulary_of_another_model_is_refused(own):
    path = own / "text_encoder" / "config.json"
    from safetensors.torch import load_file, save_file

    weights = own / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    (key,) = (key for key in tensors if key.endswith("token_embedding.weight"))
    words = len(tensors[key])
    save_file(tensors | {key: tensors[key][:-10].clone()}, weights, metadata={"format": "pt"})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": words - 10}))
    with pytest.raises(ValueError, match=f"has {words} words .* its text encoder {words - 10} .* different models"):
        ClipTextEncoder(own).encode(["rain"])


def test_an_incomplete_text_encoder_is_refused(own):
    from safetensors.torch import load_file, save_file

    weights = own / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "final_layer_norm" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 tensors, first '.*final_layer_norm"):
        ClipTextEncoder(own).encode(["rain"])


DAMAGE = {
    "truncated weights": ("text_encoder/model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "no weights": ("text_encoder/model.safetensors", lambda path: path.unlink()),
    "no configuration": ("text_encoder/config.json", lambda path: path.unlink()),
    "no vocabulary": ("tokenizer/tokenizer.json", lambda path: path.unlink()),
}


@pytest.mark.parametrize(("file", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_missing_or_damaged_files_are_told(own, file, damage):
    damage(own / file)
    with pytest.raises(ValueError, match=f"'{own}'"):
        ClipTextEncoder(own).encode(["rain"])


def test_a_folder_without_text_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no folder 'text_encoder'; expected a Stable Diffusion"):
        ClipTextEncoder(tmp_path)
