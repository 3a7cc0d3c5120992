"""A file of requests with an adapter each: every answer is the one that its adapter gives alone."""

from __future__ import annotations

import json

import pytest
import torch
from adapter_methods import METHODS, make_config
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.runtime import LOGGER

PROMPTS = ["who are you?", "a", "the cat sat on", "1 + 1 is", "no", "and then the dog ran"]


@pytest.fixture
def adapters(llama, tmp_path):
    """Saved adapters of two methods, as if trained, and the base model under no name."""
    folders = {None: None}
    for seed, method in enumerate(("lorta", "tensor_train")):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), make_config(method))
        folders[method] = tmp_path / method
        model.save_pretrained(folders[method])
    return folders


@pytest.fixture
def serve(llama, tmp_path, write):
    """A function that runs the command on requests, and gives its result and the answers."""

    def run(requests, *arguments):
        text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in requests)
        path = write("requests.jsonl", text)
        command = ["lm", "serve-batch", path, "--model", llama, "--out", tmp_path / "answers.jsonl", "--device", "cpu"]
        result = CliRunner().invoke(app, [str(word) for word in [*command, *arguments]])
        LOGGER.handlers.clear()
        answers = tmp_path / "answers.jsonl"
        return result, [json.loads(line) for line in answers.read_text().splitlines()] if answers.exists() else []

    return run


def alone(llama, folder, prompt, length):
    """The answer by PEFT's own loading, one prompt, no padding, one token at a time without a cache."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama)
    model = (model if folder is None else PeftModel.from_pretrained(model, folder)).eval()
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    start = tokens.shape[1]
    for _ in range(length):
        with torch.no_grad():
            following = model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
        if following.item() == tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, following], dim=1)
    return tokenizer.decode(tokens[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_mixed_batches_answer_as_each_adapter_alone(llama, adapters, serve, batch_size):
    names = list(adapters)
    requests = [
        {
            "id": f"q{n}",
            "prompt": prompt,
            "adapter": str(adapters[names[n % 3]]) if names[n % 3] else None,
            "max_new_tokens": 3 + n,
        }
        for n, prompt in enumerate(PROMPTS)
    ]
    result, answers = serve(requests, "--batch-size", batch_size)
    assert result.exit_code == 0, result.stderr
    assert [answer["id"] for answer in answers] == [request["id"] for request in requests]
    for n, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        folder = adapters[names[n % 3]]
        assert answer["text"] == alone(llama, folder, request["prompt"], request["max_new_tokens"])
        assert answer["adapter"] == request["adapter"]
    assert ("(0 of several" in result.stdout) == (batch_size == 1)


def test_a_bad_request_costs_no_other_and_status_1(adapters, serve):
    requests = [
        {"id": "good", "instruction": "hi", "max_new_tokens": 2},
        "{broken\n",
        {"id": "empty", "prompt": " "},
        {"id": "long", "prompt": "a" * 63},
        {"id": "chat", "messages": [{"role": "user", "content": "hi"}]},
        {"id": "lost", "prompt": "a", "adapter": "gone"},
    ]
    # Alpaca's prompt is longer than the 64 tokens of the tiny model.
    result, answers = serve([{"id": "good", "prompt": "hi", "max_new_tokens": 2}, *requests])
    assert result.exit_code == 1
    assert "text" in answers[0]
    errors = [answer["error"] for answer in answers[1:]]
    words = ["are more than the model's 64", "line 3: not valid JSON", "line 4: 'prompt' is empty"]
    words += ["line 5: 63 tokens and 64 new", "needs a chat template"]
    words += ["line 7: 'gone' is not the folder of an adapter"]
    for error, word in zip(errors, words, strict=True):
        assert word in error


def test_adapters_that_cannot_share_a_model_are_named(llama, adapters, serve, tmp_path):
    lora = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "plain")
    requests = [{"prompt": "a", "adapter": str(tmp_path / "plain")}, {"prompt": "a", "adapter": str(adapters["lorta"])}]
    result, answers = serve(requests, "--max-new-tokens", 4)
    assert result.exit_code == 2
    assert "cannot share a model" in result.stderr
    assert not answers
    result, answers = serve(requests[:1], "--max-new-tokens", 4)
    assert (result.exit_code, len(answers)) == (0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_served(llama, serve, tmp_path, method):
    torch.manual_seed(5)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), make_config(method)).save_pretrained(tmp_path / "one")
    requests = [{"prompt": "ask", "adapter": str(tmp_path / "one")}, {"prompt": "ask"}]
    result, answers = serve(requests, "--max-new-tokens", 6)
    assert result.exit_code == 0, result.stderr
    assert answers[0]["text"] == alone(llama, tmp_path / "one", "ask", 6)
    assert answers[1]["text"] == alone(llama, None, "ask", 6)
