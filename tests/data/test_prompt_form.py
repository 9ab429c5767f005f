"""Prompts in a form, and their split, which puts each prompt on one side."""

from toolkit.data.prompt_form import in_form, once_each, split_prompts


def test_a_text_is_put_into_its_form_and_messages_stay() -> None:
    row = {"prompt": "A long text.", "source": 3}
    assert in_form(row, "{prompt}\\nTL;DR:", False)["prompt"] == "A long text.\nTL;DR:"
    assert in_form(row, "Sum up: {prompt}", True) == {
        "prompt": [{"role": "user", "content": "Sum up: A long text."}],
        "source": 3,
    }
    assert in_form(row, None, False) == row

    only = {"prompt": [{"role": "user", "content": "Hi"}]}
    assert in_form(only, "{prompt}!", True)["prompt"][0]["content"] == "Hi!"
    turns = {"prompt": [*only["prompt"], {"role": "assistant", "content": "Yes?"}] * 2}
    assert in_form(turns, "{prompt}!", True) == turns
    assert in_form({"text": "cut later"}, "{prompt}!", True) == {"text": "cut later"}


def test_a_prompt_that_is_in_its_form_already_stays() -> None:
    for as_messages in (False, True):
        for form in ("Sum up: {prompt}\\nTL;DR:", "{prompt}\\n", " {prompt}?"):
            once = in_form({"prompt": "Long."}, form, as_messages)
            assert in_form(once, form, as_messages) == once
    assert in_form({"prompt": "a!"}, "!{prompt}!", False)["prompt"] == "!a!!"  # half of it is not


def test_a_prompt_with_braces_of_its_own_is_not_a_form() -> None:
    assert in_form({"prompt": "{x} {prompt}"}, "<{prompt}>", False)["prompt"] == "<{x} {prompt}>"


def test_each_prompt_is_kept_once_without_labels_of_its_completions() -> None:
    rows = [
        {"prompt": "a", "completions": ["x", "y"], "best": 1, "topic": "t"},
        {"prompt": "b", "completions": ["x", "y"], "best": 0},
        {"prompt": "a", "completions": ["z", "w"], "best": 0},
        {"text": "a whole text"},
    ]
    assert once_each(rows) == [{"prompt": "a", "topic": "t"}, {"prompt": "b"}, rows[3]]


def test_a_split_has_every_prompt_once_in_its_order_and_depends_on_the_seed_alone() -> None:
    rows = [{"prompt": str(i)} for i in range(50)]
    kept, held_out = split_prompts(rows, 0.1, seed=0)
    assert len(held_out) == 5
    assert sorted(kept + held_out, key=rows.index) == rows
    assert kept == sorted(kept, key=rows.index) and held_out == sorted(held_out, key=rows.index)
    assert split_prompts(rows, 0.1, seed=0) == (kept, held_out)
    assert split_prompts(rows, 0.1, seed=1)[1] != held_out


def test_two_prompts_stay_on_each_side_however_few_there_are() -> None:
    rows = [{"prompt": str(i)} for i in range(4)]
    assert [len(part) for part in split_prompts(rows, 0.01, 0)] == [2, 2]
    assert [len(part) for part in split_prompts(rows, 0.9, 0)] == [2, 2]
