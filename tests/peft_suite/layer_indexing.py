"""PEFT's test of `layers_to_transform`, for methods whose layers share factors."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer


class LayerIndexing:
    """In place of `PeftCommonTester._test_training_layer_indexing`.

    PEFT counts parameter tensors, of which shared factors have as many for one layer as for all; PEFT skips its own
    methods of that kind. Here the adapted modules are counted.
    """

    transformers_class: Any
    torch_device: str
    prepare_inputs_for_testing: Any

    def _test_training_layer_indexing(self, model_id: str, config_cls: Any, config_kwargs: dict[str, Any]) -> None:
        def adapt(**options: Any) -> PeftModel:
            base = self.transformers_class.from_pretrained(model_id)
            config = config_cls(base_model_name_or_path=model_id, **config_kwargs, **options)
            return get_peft_model(base, config).to(self.torch_device)

        def adapted(model: PeftModel) -> set[str]:
            return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}

        everywhere = adapted(adapt())

        def of_layer(index: int) -> set[str]:
            # The first number in a path is the layer's.
            return {name for name in everywhere if re.findall(r"\.(\d+)\.", name)[0] == str(index)}

        model = adapt(layers_to_transform=[0])
        assert adapted(model) == of_layer(0)
        assert adapted(adapt(layers_to_transform=1)) == of_layer(1)
        assert len(everywhere) == len(of_layer(0)) + len(of_layer(1))

        inputs = self.prepare_inputs_for_testing()
        model(**inputs)[0].sum().backward()
        for name, parameter in model.named_parameters():
            ours = model.prefix in name or "modules_to_save" in name
            assert (parameter.grad is not None) == ours, name

        model.eval()
        with TemporaryDirectory() as folder, torch.no_grad():
            model.save_pretrained(folder)
            base = self.transformers_class.from_pretrained(model_id)
            loaded = PeftModel.from_pretrained(base, Path(folder)).to(self.torch_device)
            assert adapted(loaded) == adapted(model)
            torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0])
