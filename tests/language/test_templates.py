"""Records of all usual forms become the prompts that they should."""

from __future__ import annotations

import pytest

from protfold_peft.errors import DataError
from protfold_peft.language.records import Record
from protfold_peft.language.templates import instruction_samples, preference_sample

PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
)
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def samples(values, *, chat=False, separator=None):
    return instruction_samples(Record(values, "here, line 1"), chat=chat, separator=separator)


@pytest.mark.parametrize(("context", "prompt"), [("", PLAIN), (None, PLAIN), ("1, 2", WITH_INPUT)])
def test_alpaca(context, prompt):
    values = {"instruction": "Add.", "input": context, "output": "3"}
    assert samples(values) == [{"prompt": prompt, "completion": "3"}]


def test_alpaca_with_a_chat_template():
    made = samples({"instruction": "Add.", "input": "1, 2", "output": "3"}, chat=True)
    assert made == [
        {
            "prompt": [{"role": "user", "content": "Add.\n\n1, 2"}],
            "completion": [{"role": "assistant", "content": "3"}],
        }
    ]


def test_every_answer_of_a_conversation_is_a_sample_and_sharegpt_is_the_same():
    more = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    messages = [USER, ANSWER, *more]
    made = samples({"messages": messages}, chat=True)
    assert made == [
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER, ANSWER, more[0]], "completion": [more[1]]},
    ]
    names = {"user": "human", "assistant": "gpt"}
    shared = [{"from": names[each["role"]], "value": each["content"]} for each in messages]
    assert samples({"conversations": shared}, chat=True) == made
    in_alpaca = samples({"messages": messages})[1]["prompt"]
    assert in_alpaca.endswith("### Response:\nHello\n\n### Instruction:\nWhy?\n\n### Response:\n")


def test_plain_pairs_and_lines():
    assert samples({"prompt": "a ", "completion": "b"}) == [{"prompt": "a ", "completion": "b"}]
    assert samples({"text": "a||b||c"}, separator="||") == [{"prompt": "a||", "completion": "b||c"}]
    assert samples({"text": "a||b"}) == [{"text": "a||b"}]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "yes"},
         "rejected": {"from": "gpt", "value": "no"}},
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": "yes"}],
         "rejected": [{"role": "assistant", "content": "no"}]},
        {"chosen": [USER, {"role": "assistant", "content": "yes"}],
         "rejected": [USER, {"role": "assistant", "content": "no"}]},
        {"prompt": "Hi", "chosen": [USER, {"role": "assistant", "content": "yes"}],
         "rejected": [USER, {"role": "assistant", "content": "no"}]},
    ],
)  # fmt: skip
def test_preferences_of_all_forms_are_the_same(values):
    made = preference_sample(Record(values, "here, line 1"), chat=True)
    assert made == {
        "prompt": [USER],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    plain = preference_sample(Record(values, "here, line 1"), chat=False)
    assert (plain["chosen"], plain["rejected"]) == ("yes", "no")
    assert plain["prompt"] == "Hi" or "### Instruction:\nHi\n\n### Response:\n" in plain["prompt"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"instruction": "Add.", "output": ""}, "'output' is empty"),
        ({"instruction": "Add."}, "no column 'output'"),
        ({"messages": [USER]}, "no answer of the assistant"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 needs a role"),
        ({"messages": "Hi"}, "a list of messages"),
        ({"text": "no table"}, r"no '\|\|'"),
        ({"question": "Hi"}, "this one has question"),
    ],
)
def test_bad_instructions_are_named(values, words):
    with pytest.raises(DataError, match=rf"here, line 1: .*{words}"):
        samples(values, separator="||")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": "Hi", "chosen": "yes"}, "no column 'rejected'"),
        ({"prompt": "Hi", "chosen": "yes", "rejected": "yes"}, "are the same"),
        ({"prompt": "Hi", "chosen": "", "rejected": "yes"}, "'chosen' is empty"),
        ({"chosen": "yes", "rejected": "no"}, "a prompt"),
    ],
)
def test_bad_preferences_are_named(values, words):
    with pytest.raises(DataError, match=rf"here, line 1: .*{words}"):
        preference_sample(Record(values, "here, line 1"), chat=False)
