"""Characters: broken encodings, forms of Unicode, white space, and what no reader sees."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from bigtrain.data.clean import Drop
from bigtrain.errors import UserError

LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")
SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
SURROGATES = re.compile(r"[\ud800-\udfff]")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def repairing(unescape_html: bool) -> Callable[[str], str]:
    """The step of `fix_unicode`."""
    try:
        import ftfy
    except ImportError as error:
        raise UserError("bigtrain.data.clean.fix_unicode needs ftfy: pip install 'bigtrain[data]'") from error
    # each of the other faults that ftfy knows has a step of its own, or is none (curly quotes)
    settings = ftfy.TextFixerConfig(
        unescape_html="auto" if unescape_html else False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )

    def fix_unicode(text: str) -> str:
        if text.isascii() and "&" not in text:  # nothing to repair, and most of English
            return text
        return ftfy.fix_text(text, settings)

    return fix_unicode


def normalise(text: str, form: Literal["NFC", "NFKC"], blank_lines: int) -> str:
    """One spelling of everything; the settings are told at `normalise`."""
    text = unicodedata.normalize(form, text)
    text = TRAILING.sub("", SPACES.sub(" ", LINE_ENDS.sub("\n", text)))
    return re.sub(rf"\n{{{blank_lines + 2},}}", "\n" * (blank_lines + 1), text).strip("\n")


def control_characters(text: str) -> str:
    """Without the characters that `control_characters` names."""
    return SURROGATES.sub("\ufffd", UNSEEN.sub("", ESCAPES.sub("", text)))


def length(text: str, min_characters: int, max_characters: int | None) -> str | Drop:
    """The text, if it is long and short enough."""
    if len(text) < min_characters:
        return Drop(f"fewer than {min_characters:,} characters")
    if max_characters is not None and len(text) > max_characters:
        return Drop(f"more than {max_characters:,} characters")
    return text
