"""Texts that whatever shows them must leave as the texts they are: one list for every face."""

from __future__ import annotations

import re

MARKUP = '<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*7 }}{% raw %}</script><!--'
TERMINAL = "\x1b]0;title\x07 \x1b[2J \x9b31m \x7f \x08 \r over \u202e back \u2066 x"
HOSTILE = (
    MARKUP,
    TERMINAL,
    "x</td></details></summary> | `` ` **b** [l](javascript:x) ![i](http://x.example/p) <b>b</b>",
    "\n---\n# H\n~~~\n```\n````\n",
    "www.evil.example me@evil.example https://evil.example &lt; &amp; \\|",
    "'); DROP TABLE samples; -- {0} %s ${x}",
    '=HYPERLINK("http://x.example"),"\t;',
)
EVERY = " ".join(HOSTILE)
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What must not reach a terminal."""
TAGS = ("<script", "<img", "<b>", "<strong", "<em>", "<hr", 'href="javascript')
"""What none of the texts may become on a page."""
