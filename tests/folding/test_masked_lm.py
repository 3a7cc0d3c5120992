"""The language model's own head, against transformers' EsmForMaskedLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import randomise, tiny_config
from transformers import EsmForMaskedLM

from protfold_peft.errors import CheckpointError, ConfigError
from protfold_peft.folding.masked_lm import HEAD_FILE, attach_head
from protfold_peft.folding.mini import build_mini
from protfold_peft.folding.model import EsmFold


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """A folding model, and the masked language model that it was built on."""
    network = EsmFold(tiny_config())
    randomise(network)
    config = tiny_config()
    config.is_folding_model = False
    config.tie_word_embeddings = True
    peer = EsmForMaskedLM(config)
    randomise(peer, seed=1)
    peer.tie_weights()
    state = {name: value for name, value in network.esm.state_dict().items() if "contact_head" not in name}
    missing = peer.esm.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    return network.eval(), peer.eval()


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("esm2")
    pair[1].save_pretrained(path)
    return path


def masked_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 20, (2, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    hidden = ids.clone()
    hidden[0, [2, 5]], hidden[1, 0] = 21, 21
    return ids, mask, hidden


def test_logits_are_those_of_esm_for_masked_lm(pair, folder: Path) -> None:
    network, peer = pair
    attach_head(network, folder)
    ids, mask, hidden = masked_batch()
    output = network(ids, mask, masked_ids=hidden, fold=False)
    # The same sentence as the tokenizer would write it, from the vocabulary alone.
    words = network.config.vocab_list
    letters = "ARNDCQEGHILKMFPSTWYV"
    rows = []
    for types, length in zip(hidden.tolist(), (11, 8)):
        row = [words.index("<cls>"), *(words.index("<mask>" if t == 21 else letters[t]) for t in types[:length])]
        rows.append([*row, words.index("<eos>"), *[words.index("<pad>")] * (11 - length)])
    tokens = torch.tensor(rows)
    expected = peer(tokens, attention_mask=(tokens != words.index("<pad>")).long()).logits[:, 1:-1]
    torch.testing.assert_close(output.masked_lm_logits[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.masked_lm_logits[1, :8], expected[1, :8], atol=1e-5, rtol=1e-5)
    assert output.masked_lm_tokens[0].tolist() == [words.index(letters[t]) for t in ids[0].tolist()]


def test_the_structure_does_not_see_what_is_hidden(pair, folder: Path) -> None:
    network, _ = pair
    attach_head(network, folder)
    ids, mask, hidden = masked_batch()
    with torch.no_grad():
        plain = network(ids, mask, recycles=0)
        both = network(ids, mask, recycles=0, masked_ids=hidden)
    assert torch.equal(plain.positions, both.positions)
    assert plain.masked_lm_logits is None


def test_the_head_goes_with_the_model_in_a_file_of_its_own(pair, folder: Path, tmp_path: Path) -> None:
    network, peer = pair
    attach_head(network, folder)
    network.save_pretrained(tmp_path)
    assert not any("masked_lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    again = EsmFold.from_pretrained(tmp_path).eval()
    assert again.masked_lm_head is None
    attach_head(again, None, tmp_path)
    assert torch.equal(again.masked_lm_head.dense.weight, peer.lm_head.dense.weight)
    ids, mask, hidden = masked_batch()
    first, second = (model(ids, mask, masked_ids=hidden, fold=False).masked_lm_logits for model in (network, again))
    torch.testing.assert_close(first, second)


def test_heads_that_do_not_fit_are_refused(pair, folder: Path, tmp_path: Path) -> None:
    network, peer = pair
    with pytest.raises(ConfigError, match=r"set model.masked_lm_head to the matching ESM-2"):
        attach_head(network, None, tmp_path)
    with pytest.raises(CheckpointError, match=r"could not be loaded"):
        attach_head(network, tmp_path / "absent")
    other = EsmForMaskedLM(peer.config)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"its word embeddings are not those of the folding model"):
        attach_head(network, tmp_path / "other")
    (tmp_path / HEAD_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"masked_lm_head.safetensors cannot be read"):
        attach_head(network, None, tmp_path)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_language_model_stays_near(bits: str) -> None:
    """Per matrix: 8 bits round by 1/254 of the largest entry of a row, 4 bits (NF4) by a tenth of the spread."""
    pytest.importorskip("bitsandbytes")
    from protfold_peft.folding.quantize import quantize_language_model

    # Not the tiny model: bitsandbytes' blocks of 64 are longer than its rows.
    network = build_mini()
    exact = {name: module for name, module in network.esm.encoder.named_modules() if type(module) is torch.nn.Linear}
    quantize_language_model(network, bits, torch.float32)
    network.to("cpu")
    assert len(exact) == 6 * 6
    for name, linear in exact.items():
        packed = network.esm.encoder.get_submodule(name)
        assert type(packed) is not torch.nn.Linear
        x = torch.randn(7, linear.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            difference = packed(x) - linear(x)
            error = float(difference.norm() / (linear(x) - linear.bias).norm())
        assert 0 < error < {"8bit": 0.03, "4bit": 0.12}[bits], name
    ids, mask, _ = masked_batch()
    features = network.language_model_features(network.af2_idx_to_esm_idx(ids, mask))
    assert features.isfinite().all()
    with pytest.raises(ConfigError, match="use 8bit or 4bit"):
        quantize_language_model(network, "2bit", torch.float32)
