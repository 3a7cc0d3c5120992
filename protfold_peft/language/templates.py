"""From records in the usual forms to prompts and answers: Alpaca, chat messages, ShareGPT, plain pairs and texts.

A sample of instruction tuning is `{prompt, completion}` or `{text}`, one of preferences `{prompt, chosen, rejected}`.
The values are texts, or lists of chat messages where the tokenizer's chat template writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protfold_peft.errors import DataError
from protfold_peft.language.records import Record

Sample = dict[str, Any]
Messages = list[dict[str, str]]

# Source: Taori et al., "Stanford Alpaca" (2023), README.
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """Alpaca's prompt, up to where the answer begins."""
    return (_WITH_INPUT if context else _WITHOUT_INPUT).format(instruction=instruction, input=context)


def instruction_samples(record: Record, *, chat: bool, separator: str | None) -> list[Sample]:
    """The samples of a record: one for each answer of a conversation, one for any other record.

    Args:
        record: With `instruction` (and `input`) and `output`; or `messages` or `conversations`; or `prompt` and
            `completion`; or `text`.
        chat: Write prompts as chat messages, not in Alpaca's form.
        separator: Divides a `text` into prompt and completion.

    Raises:
        DataError: The record has none of these forms.
    """
    values = record.values
    if "instruction" in values:
        prompt = _instruction(record, chat)
        return [{"prompt": prompt, "completion": _answer(record.text("output"), chat)}]
    if "messages" in values or "conversations" in values:
        return _conversation_samples(record, chat)
    if "prompt" in values and "completion" in values:
        return [_pair(record, chat)]
    if "text" in values:
        text = record.text("text")
        if separator is None:
            return [{"text": text}]
        prompt, found, completion = text.partition(separator)
        if not found or not completion.strip():
            raise DataError(f"{record.place}: no '{separator}' with a text behind it (data.separator)")
        return [{"prompt": prompt + found, "completion": completion}]
    raise _unknown(record, "instruction and output, messages, conversations, prompt and completion, or text")


def preference_sample(record: Record, *, chat: bool) -> Sample:
    """The prompt, the chosen and the rejected answer of a record.

    Args:
        record: `chosen` and `rejected`, each a text, a message or a list of messages that ends with one, and as prompt
            `prompt`, `instruction` (and `input`), `messages` or `conversations`, or all but the last of `chosen`.
        chat: Write prompts as chat messages, not in Alpaca's form.

    Raises:
        DataError: The record has none of these forms, or both answers are the same.
    """
    answers = [_last_text(record[name], f"{record.place}: '{name}'") for name in ("chosen", "rejected")]
    if answers[0] == answers[1]:
        raise DataError(f"{record.place}: 'chosen' and 'rejected' are the same; leave the record out")
    values = record.values
    if "instruction" in values:
        prompt = _instruction(record, chat)
    elif "prompt" in values and isinstance(values["prompt"], str):
        # Without a chat template a text is taken as it is.
        prompt = [{"role": "user", "content": values["prompt"]}] if chat else values["prompt"]
    else:
        turns = next((values[name] for name in ("prompt", "messages", "conversations") if name in values), None)
        if turns is None and isinstance(values["chosen"], list):
            turns = values["chosen"][:-1]
        if not turns:
            raise _unknown(record, "a prompt: prompt, instruction, messages or conversations")
        messages = _messages(turns, record.place)
        prompt = messages if chat else conversation_prompt(messages)
    return {"prompt": prompt, "chosen": _answer(answers[0], chat), "rejected": _answer(answers[1], chat)}


def conversation_prompt(messages: Messages) -> str:
    """A conversation in Alpaca's form, up to where the next answer begins."""
    system = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
    turns = [each for each in messages if each["role"] != "system"]
    text = alpaca_prompt(turns[0]["content"], system)
    for each in turns[1:]:
        user = each["role"] == "user"
        text += f"\n\n### Instruction:\n{each['content']}\n\n### Response:\n" if user else each["content"]
    return text


def _instruction(record: Record, chat: bool) -> str | Messages:
    instruction, context = record.text("instruction"), record.values.get("input") or ""
    if not isinstance(context, str):
        raise DataError(f"{record.place}: 'input' is no text")
    if not chat:
        return alpaca_prompt(instruction, context)
    return [{"role": "user", "content": f"{instruction}\n\n{context}" if context else instruction}]


def _pair(record: Record, chat: bool) -> Sample:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        texts = record.text("prompt"), record.text("completion")
        return {"prompt": [{"role": "user", "content": texts[0]}] if chat else texts[0],
                "completion": _answer(texts[1], chat)}  # fmt: skip
    messages = _messages(prompt, record.place)
    answer = _last_text(completion, f"{record.place}: 'completion'")
    return {"prompt": messages if chat else conversation_prompt(messages), "completion": _answer(answer, chat)}


def _conversation_samples(record: Record, chat: bool) -> list[Sample]:
    name = "messages" if "messages" in record.values else "conversations"
    messages = _messages(record[name], record.place)
    samples = []
    for end, message in enumerate(messages):
        if message["role"] == "assistant" and end > 0:
            before = messages[:end]
            prompt = before if chat else conversation_prompt(before)
            samples.append({"prompt": prompt, "completion": _answer(message["content"], chat)})
    if not samples:
        raise DataError(f"{record.place}: '{name}' has no answer of the assistant to learn from")
    return samples


def _answer(text: str, chat: bool) -> str | Messages:
    return [{"role": "assistant", "content": text}] if chat else text


def _messages(turns: Any, place: str) -> Messages:
    """`role` and `content` of every turn; ShareGPT's `from` and `value` too."""
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError(f"{place}: a conversation is a list of messages with role and content")
    messages = []
    for number, turn in enumerate(turns, start=1):
        role = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if role not in _ROLES or not isinstance(content, str):
            raise DataError(f"{place}: message {number} needs a role (user, assistant or system) and a text as content")
        messages.append({"role": _ROLES[role], "content": content})
    if all(message["role"] == "system" for message in messages):
        raise DataError(f"{place}: the conversation has no message of the user")
    return messages


def _last_text(value: Any, what: str) -> str:
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = value.get("content", value.get("value"))
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is empty or no text")
    return value


def _unknown(record: Record, forms: str) -> DataError:
    there = ", ".join(str(name) for name in record.values) or "nothing"
    return DataError(f"{record.place}: a record needs {forms}; this one has {there}")
