"""PEFT's tests on small custom models: every behaviour that PEFT asks of every method."""

from __future__ import annotations

import pytest
from peft import PeftModel
from peft_suite.adopt import adopt
from peft_suite.methods import ACTIVE_TOGETHER, CLASSES, CUSTOM_CASES, NAMED_CONFIGS, SINGLE_CONFIGS, pairs
from peft_suite.peft_tests import peft_tests
from peft_suite.refused import CARD, MIXED_MODEL, PICKLE

peft_custom = peft_tests("test_custom_models")

ROWS = {
    "test_name, model_id, config_cls, config_kwargs": CUSTOM_CASES,
    "test_name, tuner_method, config_cls, config_kwargs_1, config_kwargs_2": ACTIVE_TOGETHER,
    "config_cls": CLASSES,
    "config0": SINGLE_CONFIGS,
    "mixed": [False, pytest.param(True, marks=pytest.mark.skip(reason=MIXED_MODEL))],
}
LIN0 = {"target_modules": ["lin0"]}
LIN1 = {"target_modules": ["lin1"]}
BOTH = {"target_modules": ["lin0", "lin1"]}
CONV = {"target_modules": ["conv1d"]}
SAVED_LIN0 = {"modules_to_save": ["lin0"]}
SAVED_LIN1 = {"modules_to_save": ["lin1"]}


class TestCustomModel(
    adopt(
        peft_custom.TestPeftCustomModel,
        ROWS,
        in_place_of_lora=(
            [
                "test_add_adapter_rejects_duplicate_name_without_mutation",
                "test_delete_adapter_multiple_adapters_with_modules_to_save",
                "test_delete_adapter_with_multiple_adapters_works",
                "test_existing_model_card",
                "test_ignore_mismatched_sizes_with_scalar_modules_to_save",
                "test_load_does_not_overwrite_similarly_named_sibling",
                "test_non_existing_model_card",
                "test_save_embedding_layers_excludes_similarly_named_sibling",
                "test_weight_bias_attributes",
            ],
            CLASSES,
        ),
        left_out=[
            "test_add_weighted_adapter_cat_with_rank_pattern",
            # Asks for nothing of classes but LoraConfig and BOFTConfig.
            "test_disable_adapter_with_bias_warns",
        ],
        refused=PICKLE | CARD,
    )
):
    pass


class TestMultipleActiveAdapters(adopt(peft_custom.TestMultipleActiveAdapters, ROWS)):
    pass


class TestRequiresGrad(
    adopt(
        peft_custom.TestRequiresGrad,
        ROWS,
        in_place_of_lora=(
            [
                "test_requires_grad_follows_inference_mode_modules_to_save",
                "test_requires_grad_lora_different_targets",
                "test_requires_grad_lora_same_targets",
                "test_requires_grad_modules_to_save_default",
                "test_requires_grad_modules_to_save_disabling",
                "test_requires_grad_modules_to_save_multiple_adapters",
            ],
            CLASSES,
        ),
    )
):
    def check_requires_grad(self, model: PeftModel, *params_expected: str) -> None:
        """As PEFT's, where LoRA's matrices of an adapter stand for our factors of that adapter."""
        lora = {name for name in params_expected if ".lora_" in name}
        adapters = {name.split(".")[-2] for name in lora}
        factors = {
            name
            for name, _ in model.named_parameters()
            for adapter in adapters
            if name.startswith(f"base_model.{model.prefix}.{adapter}.")
        }
        assert bool(factors) == bool(lora)
        super().check_requires_grad(model, *(set(params_expected) - lora), *factors)


class TestMixedAdapterBatches(
    adopt(
        peft_custom.TestMixedAdapterBatches,
        {
            "test_name, config0, config1": pairs(LIN0, LIN0 | {"r": 16}),
            "test_name, config": NAMED_CONFIGS,
            "test_mixed_adapter_batches_different_target_layers": pairs(LIN0, LIN1),
            "test_mixed_adapter_batches_lora_conv1d_emb": pairs(CONV, CONV | {"r": 16}),
            "test_mixed_adapter_batches_lora_conv1d_emb_multiple_modules_to_save": pairs(
                CONV | SAVED_LIN0, CONV | SAVED_LIN0
            ),
            "test_mixed_adapter_batches_multiple_modules_to_save": pairs(LIN0 | SAVED_LIN1, LIN0 | SAVED_LIN1),
            "test_mixed_adapter_batches_partly_overlapping_target_layers": pairs(LIN0, BOTH),
            "test_mixed_adapter_batches_unsupported_layer_raises": pairs(
                LIN0 | {"modules_to_save": ["gru"]}, LIN0 | {"modules_to_save": ["gru"]}
            ),
        },
        left_out=["test_mixed_adapter_batches_lora_conv2d", "test_mixed_adapter_batches_mha_raises"],
    )
):
    pass


class TestDefaultTargetModules(
    adopt(
        peft_custom.TestDefaultTargetModules,
        ROWS,
        # These patch tables that LoRA and DeLoRA keep for themselves.
        left_out=["test_default_target_modules_list_of_str", "test_default_target_modules_str"],
    )
):
    pass


class TestFullySharded(adopt(peft_custom.TestPeftFsdpStateDict, ROWS)):
    pass
