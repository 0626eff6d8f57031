"""Word vectors: the same everywhere, nothing for the empty prompt, different for different words."""

import logging
import subprocess
import sys

import pytest
import torch

from unicorn_monai.data.layout import WEATHER
from unicorn_monai.diffusion.text import PromptEmbeddings, PromptTemplate, Text
from unicorn_monai.diffusion.word_vectors import WordVectors, split, vector


def test_a_word_is_the_same_vector_in_every_process_and_with_any_random_state():
    torch.manual_seed(1)
    here = vector("night", 4).tolist()
    torch.manual_seed(2)
    assert vector("night", 4).tolist() == here
    assert here == pytest.approx([0.1981264, -0.4745086, 0.0454647, -0.1292085], abs=1e-6)  # on every machine
    code = "from unicorn_monai.diffusion.word_vectors import vector; print(vector('night', 4).tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


def test_vectors_are_normal_and_all_but_orthogonal():
    every = torch.stack([vector(f"word{i}", 256) for i in range(100)])
    assert every.mean().abs() < 0.02
    assert every.std() == pytest.approx(1, abs=0.02)
    assert every.abs().max() > 3.5  # of 25600 normal numbers
    cosines = torch.corrcoef(every) - torch.eye(100)
    assert cosines.abs().max() < 6 / 256**0.5
    assert torch.equal(vector("fog", 256)[:64], vector("fog", 64))


def test_a_prompt_is_its_words_and_zeros():
    (context,) = WordVectors(8, tokens=4).encode(["A street, foggy"])
    assert context.shape == (4, 8)
    assert context.dtype == torch.float32
    expected = [vector(word, 8) for word in ("a", "street", "foggy")]
    assert torch.equal(context, torch.stack([*expected, torch.zeros(8)]))
    assert split(" An image,  rainy-scene: NO 2!") == ["an", "image", "rainy", "scene", "no", "2"]


def test_every_weather_has_a_context_of_its_own():
    contexts = WordVectors().encode([f"an image, {words}" for words in WEATHER.values()])
    assert len({tuple(context.flatten().tolist()) for context in contexts}) == len(WEATHER)


def test_the_empty_prompt_is_zero(tmp_path):
    text = Text(PromptEmbeddings(WordVectors(8, tokens=3), tmp_path), PromptTemplate())
    assert torch.equal(text.null, torch.zeros(1, 3, 8))


@pytest.mark.parametrize(("count", "warned"), [(4, False), (5, True)])
def test_prompts_that_are_too_long_are_cut_and_told(caplog, count, warned):
    with caplog.at_level(logging.WARNING, "unicorn_monai"):
        (context,) = WordVectors(8, tokens=4).encode([" ".join(["rain"] * count)])
    assert torch.equal(context, vector("rain", 8).expand(4, 8))
    assert ("has 5 words; only the first 4 are used" in caplog.text) == warned


def test_another_size_has_a_cache_of_its_own():
    assert len({WordVectors(8, 4).identity, WordVectors(4, 8).identity, WordVectors(8, 5).identity}) == 3
    assert WordVectors(8, 4).identity == WordVectors(8, 4).identity


@pytest.mark.parametrize("options", [{"dimensions": 0}, {"tokens": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is 0; expected at least 1"):
        WordVectors(**options)
