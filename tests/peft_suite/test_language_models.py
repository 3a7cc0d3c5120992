"""PEFT's tests on language models: decoders, encoder-decoders, encoders and classifiers."""

from __future__ import annotations

from peft_suite.adopt import adopt
from peft_suite.layer_indexing import LayerIndexing
from peft_suite.methods import transformer_configs
from peft_suite.models import CLASSIFIERS, DECODERS, ENCODER_DECODERS, ENCODERS, model_rows
from peft_suite.peft_tests import peft_tests
from peft_suite.refused import PICKLES

decoders = peft_tests("test_decoder_models")
encoder_decoders = peft_tests("test_encoder_decoder_models")
encoders = peft_tests("test_feature_extraction_models")
classifiers = peft_tests("test_seq_classifier")

# Of these tests PEFT runs nothing for methods but its own LoRA and IA3, or prompt tuning.
WEIGHTED = "test_weighted_combination_of_adapters"
PROMPTS = "test_training_prompt_learning_tasks"


class TestDecoders(
    LayerIndexing,
    adopt(
        decoders.TestDecoderModels,
        {
            "model_id": model_rows(DECODERS),
            "config_cls,config_kwargs": transformer_configs("CAUSAL_LM"),
        },
        left_out=[
            WEIGHTED,
            PROMPTS,
            "test_prompt_learning_with_gradient_checkpointing",
            "test_prompt_tuning_sample_vocab_prepare_for_training",
            "test_prompt_tuning_text_prepare_for_training",
            "test_set_requires_grad_prompt_learning_raises",
        ],
        refused=PICKLES,
    ),
):
    pass


class TestEncoderDecoders(
    LayerIndexing,
    adopt(
        encoder_decoders.TestEncoderDecoderModels,
        {
            "model_id": model_rows(ENCODER_DECODERS),
            "config_cls,config_kwargs": transformer_configs("SEQ_2_SEQ_LM"),
        },
        left_out=[WEIGHTED, PROMPTS, "test_prompt_learning_forward_with_inputs_embeds"],
        refused=PICKLES,
    ),
):
    pass


class TestEncoders(
    LayerIndexing,
    adopt(
        encoders.TestPeftFeatureExtractionModel,
        {
            "model_id": model_rows(ENCODERS),
            "config_cls,config_kwargs": transformer_configs("FEATURE_EXTRACTION"),
        },
        left_out=[WEIGHTED, PROMPTS, "test_passing_input_embeds_works"],
    ),
):
    pass


class TestClassifiers(
    adopt(
        classifiers.TestSequenceClassificationModels,
        {
            "model_id": model_rows(CLASSIFIERS),
            "config_cls,config_kwargs": transformer_configs("SEQ_CLS"),
        },
        left_out=["test_prompt_tuning_text_prepare_for_training", "test_prompt_learning_forward_with_inputs_embeds"],
        refused=PICKLES,
    )
):
    pass
