"""What PEFT's tests ask for and we refuse on purpose, with the reason that the skipped test shows."""

from __future__ import annotations

_PICKLE = "a pickled adapter (adapter_model.bin) is refused: opening a pickle can run code"

PICKLE = {"test_save_pretrained_pickle": _PICKLE}
PICKLES = PICKLE | {"test_save_pretrained_selected_adapters_pickle": _PICKLE}
CARD = {"test_non_existing_model_card": "our model card is filled in; PEFT asks for its empty one, of 1,000 letters"}
MIXED_MODEL = "PeftMixedModel takes only types on PEFT's own list, none of which shares factors between layers"

_UNMATCHED = (
    "each entry of target_modules must match a linear layer, and the error names the one that does not; "
    "PEFT takes lists in which some match and words its error otherwise"
)
UNMATCHED_TARGETS = {
    "test_all_modules_excluded": _UNMATCHED,
    "test_second_adapter_only_modules_to_save_raises": _UNMATCHED,
    "test_some_modules_excluded_some_unmatched": _UNMATCHED,
}
