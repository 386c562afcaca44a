"""One file per method or stage; one line per method here."""

from stsl.editors.base import Edit, Editor, Inversion
from stsl.editors.nti import NTI
from stsl.editors.prompt_to_prompt import PromptToPrompt
from stsl.editors.stsl_edit import NTICAT, STSLCAT

EDITORS: dict[str, type[Editor]] = {
    "stsl-cat": STSLCAT,
    "nti-cat": NTICAT,
    "nti": NTI,
    "p2p": PromptToPrompt,
}

__all__ = ["EDITORS", "NTI", "NTICAT", "STSLCAT", "Edit", "Editor", "Inversion", "PromptToPrompt"]
