"""Markdown on the page: what is rendered, what is inert, and that nothing of a text is hidden."""

import re
import time

import pytest

from toolkit.labeling.markdown import TAGS, rendered

ANSWER = """# Plan

Use *less* **salt**, ~~more~~ `x < 1`:

3. first
4. second
   - inner

| a | b |
|---|--:|
| 1 | 2 |

> quoted
line two

```python
if x < 1:  # &amp;
    pass
```
"""


def test_the_usual_markdown_is_rendered_below_the_pages_own_headings() -> None:
    page = rendered(ANSWER)
    for piece in (
        "<h3>Plan</h3>", "<em>less</em>", "<strong>salt</strong>", "<del>more</del>",
        "<code>x &lt; 1</code>", '<ol><li value="3">first</li><li value="4">second',
        "<ul><li>inner</li></ul>", "<th>a</th><th>b</th>", "<td>1</td><td>2</td>",
        "<blockquote><p>quoted<br>line two</p></blockquote>", "<span>python</span>",
        "<pre><code>if x &lt; 1:  # &amp;amp;\n    pass\n</code></pre>",
    ):  # fmt: skip
        assert piece in page


def test_a_link_and_an_image_are_text_with_their_addresses() -> None:
    page = rendered(
        '[see](javascript:alert(1) "now") <https://a.example> ![cat](//b.example/c.png)'
    )
    assert re.sub("<[^>]*>", "", page) == (
        "see (javascript:alert(1) \u201cnow\u201d) https://a.example cat (//b.example/c.png)"
    )
    assert not re.search(r"<(a|img)|href|src", page)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>\n\n<div onclick=x>*a*</div>",
        "[a](<x onmouseover=alert(1)>) ![\"onerror='x](y)",
        '```x"><script>\n</code></pre><img src=x onerror=alert(1)>\n```',
        "| <b> | `</td>` |\n|---|---|\n| &lt;i&gt; | &#60;u&#62; |",
        "1000000000. x\n\n<!-- a -->\n\n<![CDATA[ b ]]>",
        "&#8238;gpj.exe \u202eabc\u2066 a\x00b \x1b[31m\rz",
    ],
)
def test_every_tag_is_one_of_ours_whatever_a_text_holds(text: str) -> None:
    ours = {tag for opening in TAGS.values() for tag in re.findall("<[^>]*>", opening)}
    more = (
        r"</?h[3-6]>|<li value=\"\d+\">|<(p|span|div) class=\"(bar|address|image|code|why|text)\">"
    )
    more += r"|</?(pre|code|span|p|div|button)>|<button type=\"button\" class=\"copy\">"
    more += r"|<span class=\"hidden-character\">"
    page = rendered(text)
    for tag in re.findall("<[^>]*>", page):
        assert tag in ours or re.fullmatch(more, tag), tag
    assert not re.search("[\x00\x1b\r\u202e\u2066]", page)


def test_characters_that_an_eye_would_miss_are_written_out_also_behind_entities() -> None:
    page = rendered("&#8238;a\u200bb `\u2066`")
    assert re.findall('hidden-character">([^<]*)<', page) == ["\\u202e", "\\u200b", "\\u2066"]


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n| 1 | 2 | dropped by the rule of tables |",
        "x" * 100_001,
    ],
)
def test_markdown_that_would_hide_text_is_shown_as_plain_text(text: str) -> None:
    assert text.replace("\n", "") in re.sub("<[^>]*>|\n", "", rendered(text))
    assert rendered(text).startswith('<p class="why">')


def grid(columns: int, rows: int) -> str:
    """A table whose rows give one cell only, the way that makes many cells of a short text."""
    return "|h" * columns + "\n" + "|-" * columns + "\n" + "|x\n" * rows


@pytest.mark.parametrize(
    "text",
    [
        grid(64, 1500),
        "\n\n".join([grid(20, 60)] * 2),
        "> " + grid(64, 1500).replace("\n", "\n> "),
        "- " + grid(64, 1500).replace("\n", "\n  "),
        grid(1, 2500),
    ],
)
def test_a_table_of_many_cells_is_plain_text_at_once(text: str) -> None:
    begun = time.process_time()
    page = rendered(text)
    assert time.process_time() - begun < 0.5
    assert page.startswith('<p class="why">This text has a large table') and "<td>" not in page
    assert text in str(page).replace("&gt;", ">")


def test_a_table_that_a_person_can_read_is_still_one_and_lines_below_a_title_are_no_table() -> None:
    assert rendered(grid(20, 60)).count("<td>") == 1200
    assert rendered("Title\n-----\n" + "line\n" * 900).startswith("<h4>")


def test_a_text_is_rendered_once() -> None:
    assert rendered("*once*") is rendered("*once*")


@pytest.mark.parametrize(
    "text",
    [
        "[a]: /address 'a definition'\n\n[a] [b][c] ![d][e]",
        "7. seven\n2. two\n\n***\n\nTitle\n=====\n&#65; `&amp;` \\* caf\u00e9 \u4f60\u597d",
        "~~~ info string here\nunclosed",
        ANSWER,
    ],
)
def test_no_letter_or_digit_is_lost(text: str) -> None:
    page = rendered(text)
    assert not page.startswith('<p class="why">')
    numbered = re.sub(r'<li value="(\d+)">', r"\1", page)
    seen = filter(str.isalnum, re.sub("<[^>]*>", "", numbered).replace("&amp;", "&"))
    assert all(letter in seen for letter in filter(str.isalnum, text.replace("&#65;", "A")))


@pytest.mark.slow
def test_no_text_takes_long() -> None:
    for text in ("[" * 30_000, "**a " * 5_000, "> " * 20_000, "|a" * 20_000, "`" * 90_000):
        begun = time.process_time()
        rendered(text)
        assert time.process_time() - begun < 5
