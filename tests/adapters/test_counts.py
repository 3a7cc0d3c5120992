"""Parameter counts against the published tables, and mode ranks chosen for a budget."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EsmConfig, EsmModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from protfold_peft.adapters import LoRTAConfig, LoTRConfig, TensLoRAConfig, TensorTrainConfig, TeRAConfig
from protfold_peft.errors import ConfigError

QKV = ["query", "key", "value"]
QKVO = [*QKV, "attention.output.dense"]


def roberta(width=768, heads=12, layers=12):
    with torch.device("meta"):
        return RobertaModel(
            RobertaConfig(
                hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=4 * width
            )
        )


def esm2(width, heads, layers):
    with torch.device("meta"):
        return EsmModel(
            EsmConfig(
                vocab_size=33,
                hidden_size=width,
                num_attention_heads=heads,
                num_hidden_layers=layers,
                intermediate_size=4 * width,
                position_embedding_type="rotary",
                pad_token_id=1,
            )
        )


def llama():
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=4096,
                num_attention_heads=32,
                num_key_value_heads=32,
                num_hidden_layers=32,
                intermediate_size=11008,
            )
        )


def count(model, config):
    with torch.device("meta"):
        adapted = get_peft_model(model, config)
    number = adapted.get_nb_trainable_parameters()[0]
    adapted.unload()
    return number


MODELS = {
    "RoBERTa-base": (lambda: roberta(), QKVO, (860, 3440, 6880), (36864, 55296, 73728)),
    "RoBERTa-large": (lambda: roberta(1024, 16, 24), QKVO, (1132, 4528, 9056), (98304, 147456, 196608)),
    "Llama-2-7B": (
        llama,
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        (4292, 17168, 34336),
        (524288, 786432, 1048576),
    ),
    "ESM-2 35M": (lambda: esm2(480, 20, 12), QKVO, (540, 2160, 4320), (23040, 34560, 46080)),
    "ESM-2 650M": (lambda: esm2(1280, 20, 33), QKVO, (1401, 5604, 11208), (168960, 253440, 337920)),
    "ESM-2 3B": (lambda: esm2(2560, 40, 36), QKVO, (2704, 10816, 21632), (368640, 552960, 737280)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_published_table(name):
    """LoRTA at ranks 1, 4 and 8, and PEFT's LoRA of rank 1 on two, three and four projections."""
    make, targets, lorta, lora = MODELS[name]
    assert tuple(count(make(), LoRTAConfig(r=r, target_modules=targets)) for r in (1, 4, 8)) == lorta
    subsets = ([targets[0], targets[2]], targets[:3], targets)
    assert tuple(count(make(), LoraConfig(r=1, target_modules=subset)) for subset in subsets) == lora


@pytest.mark.parametrize(("r", "expected"), [(32, 73_728), (40, 99_840)])
def test_lotr_on_roberta_base(r, expected):
    """Query and value of all layers in one group, as its authors have them."""
    assert count(roberta(), LoTRConfig(r=r, target_modules=["query", "value"])) == expected


TENSLORA = {  # equal ranks 4 and 8 on RoBERTa-base, query, key and value
    "att": (123_840, 261_504),
    "qkv": (74_640, 153_888),
    "depth": (18_768, 38_688),
    "att_qkv": (43_728, 130_464),
    "att_depth": (11_040, 32_832),
    "qkv_depth": (6_460, 16_504),
    "att_qkv_depth": (4_460, 39_640),
}


@pytest.mark.parametrize("variant", TENSLORA)
def test_tenslora_isorank(variant):
    found = tuple(count(roberta(), TensLoRAConfig(r=r, variant=variant, target_modules=QKV)) for r in (4, 8))
    assert found == TENSLORA[variant]


def test_tenslora_at_rank_16_is_larger_than_lora():
    """Sixteen exceeds the number of heads, layers and kinds, and isorank does not cap it."""
    assert count(roberta(), TensLoRAConfig(r=16, target_modules=QKV)) == 1_062_320
    assert count(roberta(), LoraConfig(r=16, target_modules=QKV)) < 1_062_320
    with pytest.raises(ConfigError, match=r"core of 1,073,741,824 parameters.*budget"):
        count(roberta(), TensLoRAConfig(r=64, target_modules=QKV))


@pytest.mark.parametrize("r", [1, 3, 8])
def test_tensor_train_formulas(r):
    d, h, layers, kinds = 480, 20, 12, 4
    assert count(esm2(d, h, layers), TensorTrainConfig(r=r, target_modules=QKVO)) == r * 2 * d + r * r * (
        layers + kinds
    )
    with_heads = count(esm2(d, h, layers), TensorTrainConfig(r=r, heads=True, target_modules=QKVO))
    assert with_heads == r * (d + d // h) + r * r * (h + layers + kinds)


def test_tera_trains_its_vectors_alone():
    """480 = 20 x 24 on both axes: four vectors of min(r, length) for each of the sites."""
    assert count(esm2(480, 20, 12), TeRAConfig(r=8, target_modules=QKVO)) == 48 * 4 * 8
    assert count(esm2(480, 20, 12), TeRAConfig(r=22, target_modules=QKVO)) == 48 * 2 * (20 + 22)


@pytest.mark.parametrize("variant", TENSLORA)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_isoparameter_comes_near_loras_count_and_stays_below(variant, rank):
    """Nothing more fits: raising any one rank by one passes the budget."""
    config = TensLoRAConfig(match_lora_rank=rank, variant=variant, target_modules=QKV)
    budget = 36 * rank * 2 * 768
    number = count(roberta(), config)
    assert number <= budget
    with torch.device("meta"):
        networks = get_peft_model(roberta(), config).base_model.networks("default")
    ranks = next(iter(networks.values())).ranks()
    lengths = {"model": 768, "head_width": 64, "heads": 12, "output": 768, "input": 768, "kinds": 3, "layers": 12}

    def formula(ranks):
        return len(networks) * (sum(lengths[mode] * r for mode, r in ranks.items()) + math.prod(ranks.values()))

    assert formula(ranks) == number
    for mode, r in ranks.items():
        assert r <= lengths[mode]
        assert r == lengths[mode] or formula(ranks | {mode: r + 1}) > budget
    # Balanced: a mode falls behind another only where it is full, or one step more passes the budget.
    for mode, other in itertools.permutations(ranks, 2):
        assert (
            ranks[mode] >= ranks[other] - 1
            or ranks[mode] == lengths[mode]
            or formula(ranks | {mode: ranks[mode] + 1}) > budget
        )


def test_a_budget_spans_groups_of_several_shapes():
    """Feed-forward maps have modes of their own; the ranks of the common modes agree."""
    config = TensLoRAConfig(budget=20_000, target_modules="all-linear")
    number = count(esm2(480, 20, 12), config)
    assert 18_000 < number <= 20_000
    with pytest.raises(ConfigError, match="budget of 100 parameters is too small: rank 1 in every mode takes"):
        count(esm2(480, 20, 12), TensLoRAConfig(budget=100))


def test_ranks_by_mode():
    ranks = {"model": 6, "head_width": 5, "heads": 4, "kinds": 2, "layers": 3}
    number = count(esm2(480, 20, 12), TensLoRAConfig(ranks=ranks, target_modules=QKV))
    assert number == 480 * 6 + 24 * 5 + 20 * 4 + 3 * 2 + 12 * 3 + 6 * 5 * 4 * 2 * 3
    with pytest.raises(ConfigError, match="names the mode 'output', which no tensor has"):
        count(esm2(480, 20, 12), TensLoRAConfig(ranks={"output": 2}, target_modules=QKV))


def test_grouped_query_attention_has_a_second_head_factor():
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=5, vocab_size=9)
        )
    assert count(model, LoRTAConfig(r=7)) == 7 * (64 + 8 + 8 + 2 + 5 + 4)
    assert count(model, TensLoRAConfig(r=2)) == 2 * (64 + 8 + 8 + 2 + 5 + 4) + 2**5
    assert count(model, TensorTrainConfig(r=3, heads=True)) == 3 * (64 + 8) + 9 * (8 + 2 + 5 + 4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LoRTAConfig, 4_320),
        (TeRAConfig, 1_536),
        (TensorTrainConfig, 8_704),
        (LoTRConfig, 10_752),
        (TensLoRAConfig, 37_088),
        (LoraConfig, 368_640),
    ],
)
def test_the_table_in_the_readme(config, expected):
    """ESM-2 35M, rank 8, query, key, value and output."""
    assert count(esm2(480, 20, 12), config(r=8, target_modules=QKVO)) == expected
    assert f"{expected:,}" in (Path(__file__).parents[2] / "README.md").read_text()
