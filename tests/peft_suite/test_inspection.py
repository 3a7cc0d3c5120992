"""PEFT's tests of what a model tells about its adapters: which modules are adapted, and in what state they are."""

from __future__ import annotations

from peft_suite.adopt import adopt
from peft_suite.methods import CLASSES
from peft_suite.peft_tests import peft_tests
from peft_suite.refused import UNMATCHED_TARGETS

utils = peft_tests("test_tuners_utils")


class TestTargetedModuleNames(
    adopt(
        utils.TestTargetedModuleNames,
        {},
        in_place_of_lora=(
            [
                "test_layers_to_transform_filters_by_layer_not_expert_index",
                "test_one_targeted_module_list",
                "test_one_targeted_module_regex",
                "test_two_targeted_module_list",
                "test_two_targeted_module_regex",
            ],
            CLASSES,
        ),
    )
):
    pass


class TestExcludedModuleNames(
    adopt(
        utils.TestExcludedModuleNames,
        {},
        in_place_of_lora=(
            [
                "test_all_modules_excluded",
                "test_exclude_modules_not_used",
                "test_multiple_excluded_modules_list",
                "test_no_modules_matched",
                "test_no_modules_matched_second_adapter",
                "test_second_adapter_only_modules_to_save_raises",
                "test_some_modules_excluded_some_unmatched",
                "test_targeted_module_names_unique_across_adapters",
                "test_two_excluded_module_list",
                "test_two_excluded_module_regex",
            ],
            CLASSES,
        ),
        refused=UNMATCHED_TARGETS,
    )
):
    pass


# PEFT's large model has layers that only LoRA adapts, and these look for LoRA by its name or size.
OF_LORA = {
    "test_adapter_model_type_small",
    "test_model_status_with_modules_to_save",
    "test_module_type_small",
    "test_nb_params_small",
    "test_peft_types_small",
    "test_quantization_backend_small",
}


class TestModelAndLayerStatus(
    adopt(
        utils.TestModelAndLayerStatus,
        {},
        in_place_of_lora=(
            [
                name
                for name in dir(utils.TestModelAndLayerStatus)
                if name.startswith("test") and name.endswith(("_small", "_modules_to_save")) and name not in OF_LORA
            ],
            CLASSES,
        ),
    )
):
    pass
